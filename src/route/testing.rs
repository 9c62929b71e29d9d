//! Routes for tests, as keys would make them.

use super::{KeyVersion, Member, Role, Route, Settings};
use crate::{
    telemetry::metrics::Metrics,
    upstream::{
        Endpoint, Identity, Protocol, Registry,
        balancer::{Balance, Balancer},
        standing::Standings,
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
        let upstream = registry.upstream(&Identity {
            endpoint: Endpoint::Tcp {
                address: ([127, 0, 0, 1], port).into(),
                name: None,
            },
            tls: None,
            protocol: Protocol::Http1,
            pool: None,
        });
        Member {
            standing: standings.standing(&upstream, &settings.outlier, None),
            upstream,
            weight,
            role,
            max_requests: None,
            is_alias: false,
            limit: None,
            key: KeyVersion {
                key: port.to_string().into(),
                mod_revision: 3,
            },
        }
    };
    Route {
        host: "a".parse().unwrap(),
        prefix: "".parse().unwrap(),
        name: "a".into(),
        balancer: balancer(Role::Serving),
        backups: has_backups.then(|| Box::new(balancer(Role::Backup))),
        tokens: None,
        panic: Default::default(),
        limits: None,
        speaks_http2: false,
        members: (1..).zip(members).map(member).collect(),
        settings: settings.into(),
        settings_key: None,
        metrics: metrics.route("a"),
    }
}
