//! One look-up of a name: its addresses of both families, the preferred one apart.
//!
//! A dual-stack upstream is one process behind two addresses: taking both for members would give it a double share,
//! and fail half of its requests where only one family is routed. So the addresses of one family are members, IPv4 if
//! there are any, and those of the other are what their dials fall back to.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    lookup::Lookup,
    net::NetError,
    proto::{
        op::Query,
        rr::{Name, RData, RecordType},
    },
};
use tokio::time::timeout;

/// How long the answer for IPv4 waits for the one for IPv6: a name server that never answers for the latter must not
/// hold up the former. What comes later is in its cache when it is asked next.
const RESOLUTION_DELAY: Duration = Duration::from_millis(250);

/// What was found, each list sorted and without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Not empty.
    pub(super) addresses: Vec<IpAddr>,
    /// Of the other family; `None`: they could not be asked for.
    pub(super) fallbacks: Option<Vec<IpAddr>>,
    /// For how long it serves.
    pub(super) time_to_live: Duration,
}

/// Where names are looked up.
pub(super) struct Lookups {
    resolver: TokioResolver,
    hosts: Hosts,
}

/// What one family came to.
enum Family {
    Addresses(Vec<IpAddr>, Instant),
    /// There are none.
    Nothing(String),
    Failed(String),
}

impl Lookups {
    /// By this resolver; names in `hosts` have the addresses that stand there and no others.
    pub(super) fn by(resolver: TokioResolver, hosts: Hosts) -> Self {
        Self { resolver, hosts }
    }

    /// The addresses of `name`. `knows_v4`: it had IPv4 addresses before, so that a failure to ask for these is one,
    /// whatever there is of the other family.
    pub(super) async fn find(&self, name: &str, knows_v4: bool) -> Result<Found, String> {
        let (v4, v6) = match self.in_hosts(name) {
            Some(families) => families,
            None => self.ask(name).await,
        };
        choose(v4, v6, knows_v4)
    }

    /// As the C library does: a name that stands in the file is not asked for, not even for its other family.
    fn in_hosts(&self, name: &str) -> Option<(Family, Family)> {
        let name = Name::from_utf8(name).ok()?;
        let look_up = |kind| {
            let query = Query::query(name.clone(), kind);
            self.hosts.lookup_static_host(&query)
        };
        let (v4, v6) = (look_up(RecordType::A), look_up(RecordType::AAAA));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let family = |found: Option<Lookup>| match found {
            Some(found) => family(&found),
            None => Family::Nothing("not in the hosts file".to_owned()),
        };
        Some((family(v4), family(v6)))
    }

    async fn ask(&self, name: &str) -> (Family, Family) {
        let outcome = |found: Result<Lookup, NetError>| match found {
            Ok(found) => family(&found),
            Err(error) if error.is_no_records_found() => Family::Nothing(error.to_string()),
            Err(error) => Family::Failed(error.to_string()),
        };
        let mut v6 = std::pin::pin!(self.resolver.lookup(name, RecordType::AAAA));
        let mut early = None;
        let v4 = {
            let mut v4 = std::pin::pin!(self.resolver.lookup(name, RecordType::A));
            tokio::select! {
                biased;
                found = &mut v4 => outcome(found),
                found = &mut v6 => {
                    early = Some(outcome(found));
                    outcome(v4.await)
                }
            }
        };
        let v6 = match (early, &v4) {
            (Some(v6), _) => v6,
            (None, Family::Addresses(..)) => match timeout(RESOLUTION_DELAY, v6).await {
                Ok(found) => outcome(found),
                Err(_) => Family::Failed("no answer in time".to_owned()),
            },
            (None, _) => outcome(v6.await),
        };
        (v4, v6)
    }
}

fn family(found: &Lookup) -> Family {
    let mut addresses: Vec<_> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect();
    if addresses.is_empty() {
        return Family::Nothing("no address".to_owned());
    }
    addresses.sort_unstable();
    addresses.dedup();
    Family::Addresses(addresses, found.valid_until())
}

fn choose(v4: Family, v6: Family, knows_v4: bool) -> Result<Found, String> {
    let remaining = |until: Instant| until.saturating_duration_since(Instant::now());
    match (v4, v6) {
        (Family::Addresses(addresses, until), Family::Addresses(fallbacks, others_until)) => {
            Ok(Found {
                addresses,
                fallbacks: Some(fallbacks),
                time_to_live: remaining(until.min(others_until)),
            })
        }
        (Family::Addresses(addresses, until), other) => Ok(Found {
            addresses,
            fallbacks: matches!(other, Family::Nothing(_)).then(Vec::new),
            time_to_live: remaining(until),
        }),
        (Family::Failed(error), _) if knows_v4 => Err(error),
        (Family::Failed(_), Family::Addresses(addresses, _)) => Ok(Found {
            addresses,
            fallbacks: None,
            // Asked again soon: it may have IPv4 addresses.
            time_to_live: Duration::ZERO,
        }),
        (Family::Nothing(_), Family::Addresses(addresses, until)) => Ok(Found {
            addresses,
            fallbacks: Some(Vec::new()),
            time_to_live: remaining(until),
        }),
        (Family::Failed(error), _) | (_, Family::Failed(error)) | (Family::Nothing(error), _) => {
            Err(error)
        }
    }
}
