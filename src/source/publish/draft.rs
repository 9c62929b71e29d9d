//! A route being edited: opened from the one in force, changed key by key, built once.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    route::{
        FurtherSettings, HostPattern, KeyVersion, Member, Revision, Route, RouteId, Settings,
        SettingsKey, settings::Balance, value::UpstreamOptions,
    },
    telemetry::metrics::Metrics,
    upstream::{Address, Endpoint, Identity, Registry, balancer::Balancer},
};

/// The keys of one route, and whether they still are what the route in force was built from.
pub(super) struct Draft {
    id: RouteId,
    before: Option<Arc<Route>>,
    upstreams: BTreeMap<Arc<str>, WrittenUpstream>,
    settings: BTreeMap<Arc<str>, WrittenSettings>,
    is_changed: bool,
}

/// What an upstream's key says.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct WrittenUpstream {
    pub(super) address: Address,
    pub(super) options: UpstreamOptions,
    pub(super) mod_revision: Revision,
}

/// What a `@settings` key says.
#[derive(Clone, PartialEq)]
pub(super) struct WrittenSettings {
    pub(super) settings: Arc<Settings>,
    pub(super) mod_revision: Revision,
}

/// What a draft is built with.
pub(super) struct Workshop<'p, A> {
    pub(super) registry: &'p mut Registry,
    pub(super) metrics: &'p Metrics,
    pub(super) default_balance: Balance,
    /// The known addresses of a name.
    pub(super) addresses_of: A,
}

impl Draft {
    /// The draft of a route, as it is in force, or of a new one.
    pub(super) fn open(id: RouteId, before: Option<&Arc<Route>>) -> Self {
        let mut draft = Self {
            id,
            before: before.cloned(),
            upstreams: BTreeMap::new(),
            settings: BTreeMap::new(),
            is_changed: false,
        };
        let Some(route) = before else {
            return draft;
        };
        // Shares the texts of the route in force.
        draft.id = route.id();
        for member in &*route.members {
            // The several addresses of a name have one key.
            draft
                .upstreams
                .entry(member.key.key.clone())
                .or_insert_with(|| WrittenUpstream {
                    address: member.upstream.identity.endpoint.written(),
                    options: UpstreamOptions {
                        weight: member.weight,
                        tls: member.upstream.identity.tls.clone(),
                        protocol: member.upstream.identity.protocol,
                    },
                    mod_revision: member.key.mod_revision,
                });
        }
        if let Some(in_force) = &route.settings_key {
            let further = (in_force.further.iter()).map(|other| (&other.key, &other.settings));
            for (version, settings) in further.chain([(&in_force.version, &route.settings)]) {
                let written = WrittenSettings {
                    settings: settings.clone(),
                    mod_revision: version.mod_revision,
                };
                draft.settings.insert(version.key.clone(), written);
            }
        }
        draft
    }

    pub(super) fn id(&self) -> &RouteId {
        &self.id
    }

    pub(super) fn before(&self) -> Option<&Arc<Route>> {
        self.before.as_ref()
    }

    pub(super) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Builds it even if no key changed: a name has other addresses now.
    pub(super) fn touch(&mut self) {
        self.is_changed = true;
    }

    /// The mod_revision of a key in force.
    pub(super) fn mod_revision(&self, key: &str) -> Option<Revision> {
        let upstream = self.upstreams.get(key).map(|written| written.mod_revision);
        upstream.or_else(|| self.settings.get(key).map(|written| written.mod_revision))
    }

    pub(super) fn put_upstream(&mut self, key: &str, written: WrittenUpstream) -> bool {
        put(&mut self.upstreams, key, written, &mut self.is_changed)
    }

    pub(super) fn put_settings(&mut self, key: &str, mut written: WrittenSettings) -> bool {
        if let Some(known) = self.settings.get(key)
            && known.settings == written.settings
        {
            written.settings = known.settings.clone();
        }
        put(&mut self.settings, key, written, &mut self.is_changed)
    }

    /// Whether there was such a key.
    pub(super) fn delete(&mut self, key: &str) -> bool {
        let was_there = self.upstreams.remove(key).is_some() | self.settings.remove(key).is_some();
        self.is_changed |= was_there;
        was_there
    }

    /// The names its upstreams need resolved.
    pub(super) fn names(&self) -> HashSet<&str> {
        let addresses = self.upstreams.values().map(|written| &written.address);
        addresses.filter_map(name_of).collect()
    }

    /// The route; `None` if no key is left.
    pub(super) fn build<'a, A>(self, workshop: &mut Workshop<'_, A>) -> Option<Arc<Route>>
    where
        A: Fn(&str) -> &'a [IpAddr],
    {
        if self.upstreams.is_empty() && self.settings.is_empty() {
            return None;
        }
        let members = self.members(workshop);
        let (settings, settings_key) = choose_settings(self.settings);
        let before = self.before.as_deref();
        let name = before.map_or_else(|| name(&self.id), |before| before.name.clone());
        let weights: Vec<u32> = members
            .iter()
            .map(|member| if member.is_alias { 0 } else { member.weight })
            .collect();
        let balance = settings.balance.unwrap_or(workshop.default_balance);
        Some(Arc::new(Route {
            metrics: before.map_or_else(
                || workshop.metrics.route(&name),
                |before| before.metrics.clone(),
            ),
            balancer: Balancer::new(balance, &weights, before.map(|before| &before.balancer)),
            host: self.id.host,
            prefix: self.id.prefix,
            name,
            settings,
            settings_key,
            members,
        }))
    }

    fn members<'a, A>(&self, workshop: &mut Workshop<'_, A>) -> Box<[Member]>
    where
        A: Fn(&str) -> &'a [IpAddr],
    {
        let mut members = Vec::with_capacity(self.upstreams.len());
        let mut taken = HashSet::new();
        for (key, written) in &self.upstreams {
            let version = KeyVersion {
                key: key.clone(),
                mod_revision: written.mod_revision,
            };
            for endpoint in endpoints(&written.address, &workshop.addresses_of) {
                let upstream = workshop.registry.upstream(&Identity {
                    endpoint,
                    tls: written.options.tls.clone(),
                    protocol: written.options.protocol,
                });
                members.push(Member {
                    is_alias: self.upstreams.len() > 1 && !taken.insert(upstream.slot.index),
                    upstream,
                    weight: written.options.weight,
                    key: version.clone(),
                });
            }
        }
        members.into()
    }
}

fn choose_settings(
    written: BTreeMap<Arc<str>, WrittenSettings>,
) -> (Arc<Settings>, Option<Box<SettingsKey>>) {
    let mut by_key = written.into_iter().map(|(key, written)| FurtherSettings {
        key: KeyVersion {
            key,
            mod_revision: written.mod_revision,
        },
        settings: written.settings,
    });
    let Some(first) = by_key.next() else {
        return (Settings::shared_default(), None);
    };
    let in_force = SettingsKey {
        version: first.key,
        further: by_key.collect(),
    };
    (first.settings, Some(Box::new(in_force)))
}

fn put<T: PartialEq>(
    keys: &mut BTreeMap<Arc<str>, T>,
    key: &str,
    written: T,
    is_changed: &mut bool,
) -> bool {
    match keys.get_mut(key) {
        Some(known) if *known == written => return false,
        Some(known) => *known = written,
        None => {
            keys.insert(key.into(), written);
        }
    }
    *is_changed = true;
    true
}

pub(super) fn name_of(address: &Address) -> Option<&str> {
    match address {
        Address::Name(name, _) => Some(name),
        Address::Ip(_) | Address::Unix(_) => None,
    }
}

/// Most routes are a host for every path: those share the host's own text.
fn name(id: &RouteId) -> Arc<str> {
    match &id.host {
        HostPattern::Exact(host) if id.prefix.is_empty() => host.clone(),
        _ => id.to_string().into(),
    }
}

fn endpoints<'a>(address: &Address, addresses_of: impl Fn(&str) -> &'a [IpAddr]) -> Vec<Endpoint> {
    let (name, port) = match address {
        Address::Ip(address) => {
            return vec![Endpoint::Tcp {
                address: *address,
                name: None,
            }];
        }
        Address::Unix(path) => return vec![Endpoint::Unix(path.clone())],
        Address::Name(name, port) => (name, *port),
    };
    match addresses_of(name) {
        [] => vec![Endpoint::Unresolved(name.clone(), port)],
        addresses => addresses
            .iter()
            .map(|&ip| Endpoint::Tcp {
                address: SocketAddr::new(ip, port),
                name: Some(name.clone()),
            })
            .collect(),
    }
}
