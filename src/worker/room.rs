//! Which of a worker's connections give way, when there are as many as there may be.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use slab::Slab;

use crate::{proxy::client::Client, sweep::Tick};

/// How many are found in one look. A look costs time with each connection there is, so it is not taken for each that comes.
const FOUND: usize = 256;

/// Those that were found at the latest look, the first to go last.
#[derive(Default)]
pub struct Room {
    found: RefCell<Vec<Rc<Client>>>,
    looked: Cell<Option<Tick>>,
}

impl Room {
    /// Ends one connection that nothing runs on, if there is any: of those that never asked for anything the oldest, then
    /// the one that lay idle longest.
    pub fn make(&self, connections: &Slab<Rc<Client>>, now: Tick) -> bool {
        loop {
            let next = self.found.borrow_mut().pop();
            match next {
                Some(client) if client.gives_way() => return true,
                Some(_) => {}
                None if self.looked.replace(Some(now)) == Some(now) => return false,
                None => *self.found.borrow_mut() = look(connections),
            }
        }
    }
}

fn look(connections: &Slab<Rc<Client>>) -> Vec<Rc<Client>> {
    let idle = connections.iter().map(|(_, client)| client);
    let idle = idle.filter_map(|client| Some((client.uselessness()?, client)));
    let mut found: Vec<_> = idle.collect();
    if let Some(rest) = found.len().checked_sub(FOUND)
        && rest > 0
    {
        found.select_nth_unstable_by_key(rest, |(uselessness, _)| *uselessness);
        found.drain(..rest);
    }
    found.sort_unstable_by_key(|(uselessness, _)| *uselessness);
    found
        .into_iter()
        .map(|(_, client)| client.clone())
        .collect()
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
    fn who_never_asked_goes_first_then_who_is_idle_longest_and_nobody_who_is_busy() {
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
        sweep.advance(Sweep::ticks(Duration::from_secs(9)));
        // So young that its first request may be under way.
        let _new = connect();
        expected.insert(0, silent);

        let room = Room::default();
        for client in expected {
            assert_eq!(client.expired(), None);
            assert!(room.make(&connections, sweep.now()));
            assert_eq!(client.expired(), Some(Expiry::Room));
        }
        assert!(!room.make(&connections, sweep.now()));
        assert_eq!(busy.expired(), None);
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
        let made = |now| (0..).take_while(|_| room.make(&connections, now)).count();
        assert_eq!([made(1000), made(1000), made(1001)], [FOUND, 0, 10]);
    }
}
