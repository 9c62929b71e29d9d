//! A route being edited: opened from the one in force, changed key by key, built once.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use crate::{
    moment::Moment,
    route::{
        FurtherSettings, HostPattern, KeyVersion, Member, Revision, Role, Route, RouteId,
        RouteLimits, Settings, SettingsKey, panic::Panic, settings::Balance,
        value::UpstreamOptions,
    },
    telemetry::metrics::Metrics,
    upstream::{
        Address, Endpoint, Identity, Protocol, Registry, Upstream,
        balancer::{Balancer, tokens::Tokens},
        limit::{Limit, queue::Queue},
        standing::Standings,
    },
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
    pub(super) standings: &'p mut Standings,
    pub(super) metrics: &'p Metrics,
    pub(super) default_balance: Balance,
    /// Nothing was published yet: nobody is new.
    pub(super) is_first_table: bool,
    /// The known addresses of a name, and those of the other family.
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
                        role: member.role,
                        max_requests: member.max_requests,
                        tls: member.upstream.identity.tls.clone(),
                        protocol: member.upstream.identity.protocol,
                        pool: member.upstream.identity.pool.clone(),
                        proxy_protocol: member.upstream.identity.proxy_protocol,
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
        A: Fn(&str) -> (&'a [IpAddr], &'a [IpAddr]),
    {
        if self.upstreams.is_empty() && self.settings.is_empty() {
            return None;
        }
        let (settings, settings_key) = choose_settings(&self.settings);
        let limits = self.limits(&settings);
        let queue = limits.as_ref().map(|limits| &limits.queue);
        let members = self.members(&settings, queue, workshop);
        let before = self.before.as_deref();
        let name = before.map_or_else(|| name(&self.id), |before| before.name.clone());
        let weights = |role| -> Vec<u32> {
            let takes = |member: &Member| member.role == role && member.takes_new_requests();
            let weight = |member: &Member| if takes(member) { member.weight } else { 0 };
            members.iter().map(weight).collect()
        };
        let has_backups = members.iter().any(|member| member.role == Role::Backup);
        let balance = settings.balance.unwrap_or(workshop.default_balance);
        let balancer = |role, before| {
            let address = |member: usize| &*members[member].upstream.name;
            Balancer::new(balance, &weights(role), address, before)
        };
        let tokens = settings.sticky.is_some().then(|| {
            let keep = (0_u32..)
                .zip(&members)
                .filter(|(_, member)| member.keeps_clients());
            let names = keep.map(|(index, member)| (index, &*member.upstream.name));
            Box::new(Tokens::new(names))
        });
        Some(Arc::new(Route {
            metrics: before.map_or_else(
                || workshop.metrics.route(&name),
                |before| before.metrics.clone(),
            ),
            balancer: balancer(Role::Serving, before.map(|before| &before.balancer)),
            backups: has_backups.then(|| {
                let before = before.and_then(|before| before.backups.as_deref());
                Box::new(balancer(Role::Backup, before))
            }),
            tokens,
            limits,
            speaks_http2: members
                .iter()
                .any(|member| member.upstream.identity.protocol == Protocol::H2),
            panic: Panic::default(),
            host: self.id.host,
            prefix: self.id.prefix,
            name,
            settings,
            settings_key,
            members,
        }))
    }

    /// Where settings or keys ask for limits: what runs in the route as it was, and waits for it, counts on.
    fn limits(&self, settings: &Settings) -> Option<RouteLimits> {
        let mut options = self.upstreams.values().map(|written| &written.options);
        let is_limited = settings.max_requests.is_some()
            || options.any(|options| options.max_requests.is_some());
        if !is_limited {
            return None;
        }
        let before = self.before.as_ref().and_then(|route| route.limits.as_ref());
        let queue = before.map_or_else(Arc::default, |before| before.queue.clone());
        let before = before.and_then(|before| before.requests.as_ref());
        Some(RouteLimits {
            requests: limit(settings.max_requests, before, &queue),
            queue,
        })
    }

    /// The member as it was before: it has the same key and the same upstream.
    fn member_before(&self, key: &str, upstream: &Arc<Upstream>) -> Option<&Member> {
        let members = &self.before.as_ref()?.members;
        let first = members.partition_point(|member| *member.key.key < *key);
        let of_key = members[first..]
            .iter()
            .take_while(|member| *member.key.key == *key);
        let mut same = of_key.filter(|member| Arc::ptr_eq(&member.upstream, upstream));
        same.next()
    }

    /// When a member came in, if others took requests by then, and a table was there to come into.
    fn entered(&self, key: &str, upstream: &Arc<Upstream>, is_first_table: bool) -> Option<Moment> {
        let route = self.before.as_ref()?;
        let before = self.member_before(key, upstream);
        if let Some(before) = before.filter(|member| member.takes_new_requests()) {
            return before.standing.as_ref()?.entered;
        }
        let is_new = !is_first_table && route.members.iter().any(Member::takes_new_requests);
        is_new.then(Moment::now)
    }

    fn members<'a, A>(
        &self,
        settings: &Settings,
        queue: Option<&Arc<Queue>>,
        workshop: &mut Workshop<'_, A>,
    ) -> Box<[Member]>
    where
        A: Fn(&str) -> (&'a [IpAddr], &'a [IpAddr]),
    {
        let mut members = Vec::with_capacity(self.upstreams.len());
        let mut taken = HashSet::new();
        for (key, written) in &self.upstreams {
            let version = KeyVersion {
                key: key.clone(),
                mod_revision: written.mod_revision,
            };
            for (endpoint, fallback) in endpoints(&written.address, &workshop.addresses_of) {
                let upstream = workshop.registry.upstream(&Identity {
                    endpoint,
                    tls: written.options.tls.clone(),
                    protocol: written.options.protocol,
                    pool: written.options.pool.clone(),
                    proxy_protocol: written.options.proxy_protocol,
                });
                let mut standing = workshop.standings.standing(
                    &upstream,
                    &settings.outlier,
                    settings.health.as_ref(),
                );
                if settings.slow_start.is_some()
                    && let Some(entered) = self.entered(key, &upstream, workshop.is_first_table)
                {
                    standing.get_or_insert_default().entered = Some(entered);
                }
                upstream.fall_back_to(fallback);
                let max_requests = written.options.max_requests;
                members.push(Member {
                    role: written.options.role,
                    max_requests,
                    limit: queue.and_then(|queue| {
                        let before = self.member_before(key, &upstream);
                        let before = before.and_then(|before| before.limit.as_ref());
                        limit(max_requests, before, queue)
                    }),
                    standing,
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

/// A limit of so many requests: the one before goes on, if it has the same queue.
fn limit(
    most: Option<NonZeroU32>,
    before: Option<&Arc<Limit>>,
    queue: &Arc<Queue>,
) -> Option<Arc<Limit>> {
    let most = most?;
    let Some(before) = before.filter(|before| Arc::ptr_eq(before.queue(), queue)) else {
        return Some(Limit::new(most, queue.clone()));
    };
    before.set_most(most);
    Some(before.clone())
}

fn choose_settings(
    written: &BTreeMap<Arc<str>, WrittenSettings>,
) -> (Arc<Settings>, Option<Box<SettingsKey>>) {
    let mut by_key = written.iter().map(|(key, written)| FurtherSettings {
        key: KeyVersion {
            key: key.clone(),
            mod_revision: written.mod_revision,
        },
        settings: written.settings.clone(),
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

/// What an address stands for now, each with what a dial falls back to.
fn endpoints<'a>(
    address: &Address,
    addresses_of: impl Fn(&str) -> (&'a [IpAddr], &'a [IpAddr]),
) -> Vec<(Endpoint, Option<SocketAddr>)> {
    let (name, port) = match address {
        Address::Ip(address) => {
            let endpoint = Endpoint::Tcp {
                address: *address,
                name: None,
            };
            return vec![(endpoint, None)];
        }
        Address::Unix(path) => return vec![(Endpoint::Unix(path.clone()), None)],
        Address::Name(name, port) => (name, *port),
    };
    let (addresses, fallbacks) = addresses_of(name);
    if addresses.is_empty() {
        return vec![(Endpoint::Unresolved(name.clone(), port), None)];
    }
    // Nothing says which belong together, so they are dealt out.
    let dealt = fallbacks
        .iter()
        .map(Some)
        .cycle()
        .chain(std::iter::repeat(None));
    let endpoint = |(&ip, fallback): (&IpAddr, Option<&IpAddr>)| {
        let endpoint = Endpoint::Tcp {
            address: SocketAddr::new(ip, port),
            name: Some(name.clone()),
        };
        (endpoint, fallback.map(|&ip| SocketAddr::new(ip, port)))
    };
    addresses.iter().zip(dealt).map(endpoint).collect()
}
