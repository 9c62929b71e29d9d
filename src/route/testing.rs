//! Routes for tests, as keys would make them.

use std::sync::Arc;

use super::{KeyVersion, Member, Role, Route, Settings};
use crate::{
    telemetry::metrics::Metrics,
    upstream::{
        Registry, Upstream,
        balancer::{Balance, Balancer},
        standing::Standings,
        testing::{local, plain},
    },
};

/// A route with members of these weights and roles, in round robin unless the settings say otherwise.
pub fn route(settings: Settings, members: &[(u32, Role)]) -> Route {
    let metrics = Metrics::new();
    let (mut registry, mut standings) = (Registry::new(metrics.clone()), Standings::default());
    let weights = |role| -> Vec<u32> {
        let weight = |&(weight, of): &(u32, Role)| if of == role { weight } else { 0 };
        members.iter().map(weight).collect()
    };
    let balance = settings.balance.unwrap_or(Balance::RoundRobin);
    let balancer = |role| Balancer::new(balance, &weights(role), |_| "", None);
    let has_backups = members.iter().any(|(_, role)| *role == Role::Backup);
    let member = |(port, &(weight, role)): (u16, &(u32, Role))| {
        let upstream = registry.upstream(&plain(local(port)));
        Member {
            standing: standings.standing(&upstream, &settings.outlier, None),
            weight,
            role,
            ..self::member(upstream, &port.to_string())
        }
    };
    Route {
        balancer: balancer(Role::Serving),
        backups: has_backups.then(|| Box::new(balancer(Role::Backup))),
        settings: settings.clone().into(),
        ..of("a", (1..).zip(members).map(member).collect(), &metrics)
    }
}

/// A route of this name with these members, which has the default settings and nobody to pick among them.
pub fn of(name: &str, members: Box<[Member]>, metrics: &Metrics) -> Route {
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    Route {
        host: host.parse().unwrap(),
        prefix: path.parse().unwrap(),
        name: name.into(),
        settings: Settings::shared_default(),
        settings_key: None,
        balancer: Balancer::Nobody,
        backups: None,
        panic: Default::default(),
        tokens: None,
        limits: None,
        speaks_http2: false,
        members,
        metrics: metrics.route(name),
    }
}

/// What a key without options makes of an upstream.
pub fn member(upstream: Arc<Upstream>, key: &str) -> Member {
    Member {
        upstream,
        weight: 1,
        role: Role::Serving,
        max_requests: None,
        limit: None,
        standing: None,
        is_alias: false,
        key: KeyVersion {
            key: key.into(),
            mod_revision: 3,
        },
    }
}
