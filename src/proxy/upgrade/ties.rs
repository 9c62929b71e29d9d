//! What ties the upgraded connections of one worker to the table: the member each was sent to. A connection whose member
//! is taken out ends once that is so for the drain timeout; no other request does.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use slab::Slab;

use crate::{
    proxy::client::{Client, Expiry},
    route::{Member, Route, Table},
    sweep::{Sweep, TICK, Tick},
};

/// Each connection is looked at once in so many ticks, which is a second: a part of them at each.
const ROUND: Tick = (1000 / TICK.as_millis()) as Tick;

/// The upgraded connections of one worker.
pub struct Ties {
    entries: RefCell<Slab<Entry>>,
    /// For how long a connection outlives its member.
    grace: Tick,
}

struct Entry {
    client: Rc<Client>,
    tie: Tie,
}

/// Holds a place among the ties; leaves it when dropped.
pub struct Tied<'t> {
    ties: &'t Ties,
    key: usize,
}

impl Ties {
    /// No connection; those to come outlive their members by `drain_timeout`.
    pub fn new(drain_timeout: Duration) -> Self {
        Self {
            entries: RefCell::default(),
            grace: Sweep::ticks(drain_timeout),
        }
    }

    /// This connection was upgraded at this member, by index, of its route.
    pub fn tie(&self, client: Rc<Client>, route: Arc<Route>, member: usize) -> Tied<'_> {
        let tie = Tie {
            route,
            member,
            loose_since: None,
        };
        let key = self.entries.borrow_mut().insert(Entry { client, tie });
        Tied { ties: self, key }
    }

    /// Looks at those whose turn it is in this tick, and tells them whose time is over.
    pub fn look(&self, table: &Table, now: Tick) {
        let mut entries = self.entries.borrow_mut();
        let mine = (now % ROUND) as usize;
        for key in (mine..entries.capacity()).step_by(ROUND as usize) {
            if let Some(entry) = entries.get_mut(key)
                && let Some(since) = entry.tie.loose_since(table, now)
                && now.saturating_sub(since) >= self.grace
            {
                entry.client.expire(Expiry::Removed);
            }
        }
    }
}

impl Drop for Tied<'_> {
    fn drop(&mut self) {
        self.ties.entries.borrow_mut().remove(self.key);
    }
}

/// The member of a connection, in the newest version of its route that was seen to have it.
struct Tie {
    route: Arc<Route>,
    member: usize,
    loose_since: Option<Tick>,
}

impl Tie {
    /// Since when the table lacks the member; `None` while it has it.
    fn loose_since(&mut self, table: &Table, now: Tick) -> Option<Tick> {
        self.loose_since = match self.is_held_by(table) {
            true => None,
            false => self.loose_since.or(Some(now)),
        };
        self.loose_since
    }

    fn is_held_by(&mut self, table: &Table) -> bool {
        let Some(route) = table.successor_of(&self.route) else {
            return false;
        };
        if Arc::ptr_eq(route, &self.route) {
            return true;
        }
        let Some(member) = same_member(route, &self.route.members[self.member]) else {
            return false;
        };
        (self.route, self.member) = (route.clone(), member);
        true
    }
}

/// Where a route has this member of an earlier version: under the same key, and dialled in the same way. An address that
/// a name has no longer is none that anybody took out: many name servers tell a few of many in turn.
fn same_member(route: &Route, member: &Member) -> Option<usize> {
    // Ordered by key; the several addresses of a name have one.
    let first = (route.members).partition_point(|other| other.key.key < member.key.key);
    let of_key = route.members[first..]
        .iter()
        .take_while(|other| other.key.key == member.key.key);
    let dialled = |member: &Member| {
        let identity = &member.upstream.identity;
        (
            identity.tls.clone(),
            identity.protocol,
            identity.proxy_protocol,
        )
    };
    let is_same = |other: &Member| {
        Arc::ptr_eq(&other.upstream, &member.upstream) || dialled(other) == dialled(member)
    };
    of_key.into_iter().position(is_same).map(|at| first + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::testing,
        telemetry::metrics::Metrics,
        upstream::{Endpoint, Identity, ProxyProtocol, Registry, testing::plain},
    };

    /// A key, its upstream's port, the name that led there, and how it is dialled.
    type Written = (&'static str, u16, Option<&'static str>, How);
    /// Whether with TLS, and with which header.
    type How = (bool, Option<ProxyProtocol>);

    const PLAIN: How = (false, None);
    const TLS: How = (true, None);
    const HEADER: How = (false, Some(ProxyProtocol::V2));

    const ONE: Written = ("x/one", 1, None, PLAIN);
    const TWO: Written = ("x/two", 2, None, PLAIN);
    const NAMED: Written = ("x/named", 3, Some("name"), PLAIN);

    /// The upstreams of a process, and tables of them.
    struct Tables(Registry);

    impl Tables {
        fn of(&mut self, members: &[Written]) -> Table {
            let metrics = Metrics::new();
            let mut members: Vec<_> = members.iter().map(|written| self.member(written)).collect();
            members.sort_by(|one, other| one.key.key.cmp(&other.key.key));
            let route = testing::of("a", members.into(), &metrics);
            let mut table = Table::default();
            table.insert(Arc::new(route));
            table
        }

        fn member(&mut self, &(key, port, name, (tls, proxy_protocol)): &Written) -> Member {
            let endpoint = Endpoint::Tcp {
                address: ([127, 0, 0, 1], port).into(),
                name: name.map(Into::into),
            };
            let identity = Identity {
                tls: tls.then(Arc::default),
                proxy_protocol,
                ..plain(endpoint)
            };
            testing::member(self.0.upstream(&identity), key)
        }
    }

    fn tie(table: &Table, key: &str) -> Tie {
        let route = table.find("a", "/").unwrap().clone();
        let is_of_key = |member: &Member| *member.key.key == *key;
        Tie {
            member: route.members.iter().position(is_of_key).unwrap(),
            route,
            loose_since: None,
        }
    }

    #[test]
    fn a_member_is_held_while_its_key_dials_the_same_upstream() {
        let mut tables = Tables(Registry::new(Metrics::new()));
        for (what, key, before, after, is_held) in [
            (
                "nothing changed",
                "x/two",
                &[ONE, TWO][..],
                &[ONE, TWO][..],
                true,
            ),
            ("another came", "x/two", &[TWO], &[ONE, TWO], true),
            ("another went", "x/two", &[ONE, TWO], &[TWO], true),
            ("its key went", "x/two", &[ONE, TWO], &[ONE], false),
            ("all went", "x/two", &[ONE, TWO], &[], false),
            (
                "in another key's name",
                "x/two",
                &[ONE, TWO],
                &[ONE, ("x/z", 2, None, PLAIN)],
                false,
            ),
            (
                "with TLS",
                "x/two",
                &[TWO],
                &[("x/two", 2, None, TLS)],
                false,
            ),
            (
                "with a header",
                "x/two",
                &[TWO],
                &[("x/two", 2, None, HEADER)],
                false,
            ),
            (
                "a name moved",
                "x/named",
                &[NAMED],
                &[("x/named", 4, Some("name"), PLAIN)],
                true,
            ),
            (
                "a name with TLS",
                "x/named",
                &[NAMED],
                &[("x/named", 4, Some("name"), TLS)],
                false,
            ),
            (
                "a name has several addresses",
                "x/named",
                &[NAMED],
                &[ONE, ("x/named", 4, Some("name"), PLAIN), NAMED, TWO],
                true,
            ),
        ] {
            let (before, after) = (tables.of(before), tables.of(after));
            let mut tie = tie(&before, key);
            assert_eq!(tie.loose_since(&before, 1), None, "{what}");
            assert_eq!(tie.loose_since(&after, 2).is_none(), is_held, "{what}");
        }
    }

    #[test]
    fn it_is_loose_since_it_was_first_seen_so_and_not_after_it_came_back() {
        let mut tables = Tables(Registry::new(Metrics::new()));
        let (with, without) = (tables.of(&[ONE, TWO]), tables.of(&[ONE]));
        let again = tables.of(&[TWO]);
        let mut tie = tie(&with, "x/two");
        for (now, table, since) in [
            (10, &with, None),
            (20, &without, Some(20)),
            (30, &Table::default(), Some(20)),
            (40, &again, None),
            (50, &without, Some(50)),
        ] {
            assert_eq!(tie.loose_since(table, now), since, "at {now}");
        }
    }

    #[test]
    fn each_is_looked_at_once_in_a_round_and_told_when_its_time_is_over() {
        let mut tables = Tables(Registry::new(Metrics::new()));
        let with = tables.of(&[ONE]);
        let route = with.find("a", "/").unwrap();
        let ties = Ties::new(TICK * 100);
        let sweep = Rc::new(Sweep::default());
        let clients: Vec<_> = (0..3 * ROUND)
            .map(|_| Client::new(([127, 0, 0, 1], 1).into(), false, sweep.clone()))
            .collect();
        let tied: Vec<_> = (clients.iter())
            .map(|client| ties.tie(client.clone(), route.clone(), 0))
            .collect();
        let told = || {
            clients
                .iter()
                .filter(|client| client.expired().is_some())
                .count()
        };
        let gone = Table::default();
        for now in 0..=120 {
            ties.look(if now < ROUND { &with } else { &gone }, now);
            assert_eq!(told(), 0, "at {now}");
        }
        for now in 121..=121 + 2 * ROUND {
            ties.look(&gone, now);
        }
        assert_eq!(told(), clients.len());
        assert_eq!(clients[0].expired(), Some(Expiry::Removed));
        drop(tied);
        assert!(ties.entries.borrow().is_empty());
    }
}
