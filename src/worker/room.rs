//! Which of a worker's connections give way, when there are as many as there may be.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use foldhash::fast::RandomState;
use slab::Slab;

use super::admission::Origin;
use crate::{
    proxy::{
        client::{Client, Loss},
        forwarded::TrustedProxies,
    },
    sweep::Tick,
};

/// How many are found in one look. A look costs time with each connection there is, so it is not taken for each that comes.
const FOUND: usize = 256;

/// Those that were found at the latest look, the first to go last.
#[derive(Default)]
pub struct Room {
    found: RefCell<Vec<Found>>,
    looked: Cell<Option<Tick>>,
    /// They bring the clients of many, and don't give way for that.
    exempt: Arc<TrustedProxies>,
}

struct Found {
    /// What would be lost, how many connections of this worker are of the same client, and since when it is as it is.
    rank: (Loss, u32, Tick),
    origin: Origin,
    client: Rc<Client>,
}

impl Room {
    /// Nothing found yet.
    pub fn sparing(exempt: Arc<TrustedProxies>) -> Self {
        Self {
            exempt,
            ..Self::default()
        }
    }

    /// Ends one connection that nothing runs on, if there is any: first those whose request head comes too slowly, then
    /// those that never asked for anything, then those that lie idle. Among equals those of the newcomer's own address
    /// go first, then those of whoever has most, then those that have been so for longest.
    pub fn make(
        &self,
        connections: &Slab<Rc<Client>>,
        now: Tick,
        newcomer: Option<IpAddr>,
    ) -> bool {
        loop {
            let next = take(&mut self.found.borrow_mut(), newcomer);
            match next {
                Some(client) if client.gives_way() => return true,
                Some(_) => {}
                None if self.looked.replace(Some(now)) == Some(now) => return false,
                None => *self.found.borrow_mut() = look(connections, &self.exempt),
            }
        }
    }
}

fn take(found: &mut Vec<Found>, newcomer: Option<IpAddr>) -> Option<Rc<Client>> {
    let (loss, ..) = found.last()?.rank;
    let own = newcomer.map(Origin::of).and_then(|origin| {
        let equals = found.iter().rev().take_while(|found| found.rank.0 == loss);
        let mut equals = equals.map(|found| found.origin);
        equals.position(|other| other == origin)
    });
    let index = found.len() - 1 - own.unwrap_or(0);
    Some(found.remove(index).client)
}

fn look(connections: &Slab<Rc<Client>>, exempt: &TrustedProxies) -> Vec<Found> {
    let mut shares: HashMap<Origin, u32, RandomState> = HashMap::default();
    let mut found = Vec::new();
    for (_, client) in connections {
        let origin = Origin::of(client.address().ip());
        *shares.entry(origin).or_default() += 1;
        if let Some((loss, age)) = client.loss() {
            found.push(Found {
                rank: (loss, 0, age),
                origin,
                client: client.clone(),
            });
        }
    }
    for Found {
        rank,
        origin,
        client,
    } in &mut found
    {
        rank.1 = shares[origin];
        if exempt.contains(client.address().ip()) {
            rank.1 = 1;
        }
    }
    if let Some(rest) = found.len().checked_sub(FOUND)
        && rest > 0
    {
        found.select_nth_unstable_by_key(rest, |found| found.rank);
        found.drain(..rest);
    }
    found.sort_unstable_by_key(|found| found.rank);
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        proxy::client::{Expiry, Protocol},
        sweep::Sweep,
    };

    #[test]
    fn slow_heads_go_first_then_who_never_asked_then_who_is_idle_and_nobody_who_is_busy() {
        let sweep = Rc::new(Sweep::default());
        let mut connections = Slab::new();
        let mut connect = || {
            let client = Client::new(([127, 0, 0, 1], 1).into(), false, sweep.clone());
            connections.insert(client.clone());
            client
        };
        let busy = connect();
        busy.opened(Protocol::Http1);
        let _running = busy.begin_request();
        let mut expected = Vec::new();
        for seconds in 1..4 {
            let idle = connect();
            idle.opened(Protocol::Http1);
            drop(idle.begin_request());
            sweep.advance(Sweep::ticks(Duration::from_secs(seconds)));
            expected.push(idle);
        }
        let silent = connect();
        sweep.advance(Sweep::ticks(Duration::from_secs(4)));
        let shaken_hands = connect();
        shaken_hands.opened(Protocol::Http1);
        sweep.advance(Sweep::ticks(Duration::from_secs(5)));
        let slow = connect();
        slow.opened(Protocol::Http1);
        slow.received();
        sweep.advance(Sweep::ticks(Duration::from_secs(9)));
        // So young that its first request may be under way.
        let _new = connect();
        let asking = connect();
        asking.opened(Protocol::Http1);
        asking.received();
        expected.splice(0..0, [slow.clone(), silent, shaken_hands]);

        let room = Room::default();
        for client in expected {
            assert_eq!(client.expired(), None);
            assert!(room.make(&connections, sweep.now(), None));
            let is_slow = Rc::ptr_eq(&client, &slow);
            let reason = if is_slow {
                Expiry::RoomOfHead
            } else {
                Expiry::Room
            };
            assert_eq!(client.expired(), Some(reason));
        }
        assert!(!room.make(&connections, sweep.now(), None));
        assert_eq!(busy.expired(), None);
    }

    #[test]
    fn among_equals_the_newcomers_own_go_first_then_those_of_whoever_has_most() {
        let sweep = Rc::new(Sweep::default());
        let mut connections = Slab::new();
        let address = |last| IpAddr::from([192, 0, 2, last]);
        for last in [1, 1, 9, 9, 9, 2, 2, 2] {
            let client = Client::new((address(last), 1).into(), false, sweep.clone());
            connections.insert(client);
            sweep.advance(sweep.now() + 1);
        }
        sweep.advance(1000);
        let exempt = ["192.0.2.9/32".parse().unwrap()];
        let room = Room::sparing(Arc::new(exempt.into_iter().collect()));
        for (newcomer, expected) in [
            (Some(1), 0),
            (Some(7), 5),
            (None, 6),
            (Some(2), 7),
            (Some(7), 1),
        ] {
            assert!(room.make(&connections, sweep.now(), newcomer.map(address)));
            let mut gone = connections
                .iter_mut()
                .filter(|(_, client)| client.expired().is_some());
            let (index, client) = gone.next().expect("one gave way");
            assert_eq!(index, expected, "{newcomer:?}");
            *client = Client::new((address(100), 1).into(), false, sweep.clone());
        }
    }

    #[test]
    fn a_look_serves_many_and_the_next_comes_with_the_next_tick() {
        let sweep = Rc::new(Sweep::default());
        let mut connections = Slab::new();
        for _ in 0..FOUND + 10 {
            let client = Client::new(([127, 0, 0, 1], 1).into(), false, sweep.clone());
            connections.insert(client);
        }
        sweep.advance(1000);
        let room = Room::default();
        let made = |now| {
            (0..)
                .take_while(|_| room.make(&connections, now, None))
                .count()
        };
        assert_eq!([made(1000), made(1000), made(1001)], [FOUND, 0, 10]);
    }
}
