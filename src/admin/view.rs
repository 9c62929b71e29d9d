//! A route and its members as the API shows them: what their keys say, and what flags add to that.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    route::{Member, Revision, Route, settings::Balance},
    upstream::{Endpoint, Protocol, dial::Deny},
};

/// What flags add to what keys say.
pub(super) struct Policy {
    /// For routes that don't say.
    pub(super) balance: Balance,
    /// What is never dialled.
    pub(super) deny: Deny,
}

/// A route with its members.
#[derive(Serialize)]
pub(super) struct RouteView {
    pub(super) name: Arc<str>,
    pub(super) host: String,
    pub(super) path_prefix: String,
    pub(super) balance: Balance,
    pub(super) settings_key: Option<Arc<str>>,
    pub(super) settings_mod_revision: Option<Revision>,
    pub(super) members: Vec<MemberView>,
}

impl RouteView {
    pub(super) fn of(route: &Route, policy: &Policy) -> Self {
        let settings_key = route.settings_key.as_deref();
        let view = |member| MemberView::of(member, &policy.deny);
        let members = route.members.iter().map(view).collect();
        Self {
            name: route.name.clone(),
            host: route.host.to_string(),
            path_prefix: route.prefix.as_str().to_owned(),
            balance: route.settings.balance.unwrap_or(policy.balance),
            settings_key: settings_key.map(|in_force| in_force.version.key.clone()),
            settings_mod_revision: settings_key.map(|in_force| in_force.version.mod_revision),
            members,
        }
    }
}

/// A member and where it comes from.
#[derive(Serialize)]
pub(super) struct MemberView {
    upstream: Arc<str>,
    weight: u32,
    protocol: &'static str,
    tls: bool,
    /// Whether there is an address to dial.
    resolved: bool,
    /// Whether `--upstream-deny`, or being our own admin address, keeps it from being dialled.
    denied: bool,
    /// The same upstream by another key: gets no requests of its own.
    alias: bool,
    key: Arc<str>,
    mod_revision: Revision,
}

impl MemberView {
    fn of(member: &Member, deny: &Deny) -> Self {
        let identity = &member.upstream.identity;
        Self {
            upstream: member.upstream.name.clone(),
            weight: member.weight,
            protocol: match identity.protocol {
                Protocol::Http1 => "http1",
                Protocol::H2 => "h2",
            },
            tls: identity.tls.is_some(),
            resolved: !matches!(identity.endpoint, Endpoint::Unresolved(..)),
            denied: is_denied(member, deny),
            alias: member.is_alias,
            key: member.key.key.clone(),
            mod_revision: member.key.mod_revision,
        }
    }
}

/// Whether `--upstream-deny` forbids dialling this member, or it is this Waypost itself.
pub(super) fn is_denied(member: &Member, deny: &Deny) -> bool {
    match member.upstream.identity.endpoint {
        Endpoint::Tcp { address, .. } => deny.verdict(address).is_err(),
        Endpoint::Unresolved(..) | Endpoint::Unix(_) => false,
    }
}
