//! The requests that run on one worker, and on behalf of which key each is at its upstream, or on the way to it.

use std::{cell::RefCell, sync::Arc};

use slab::Slab;

use crate::route::Route;

/// Every request of a worker that has a route. A place is taken in it and left again: nothing is counted per member,
/// of which there may be a million, and nothing is shared with other workers.
#[derive(Default)]
pub struct InFlight {
    requests: RefCell<Slab<Routed>>,
}

struct Routed {
    route: Arc<Route>,
    /// The index of the member it was sent to last.
    member: Option<usize>,
}

/// Whose request a place belongs to.
#[derive(Debug)]
pub struct Place(usize);

impl InFlight {
    /// A request has this route now.
    pub fn enter(&self, route: Arc<Route>) -> Place {
        let member = None;
        Place(self.requests.borrow_mut().insert(Routed { route, member }))
    }

    /// It is sent to another route's members from now on: the table has changed since it came.
    pub fn reroute(&self, place: &Place, route: Arc<Route>) {
        let member = None;
        self.requests.borrow_mut()[place.0] = Routed { route, member };
    }

    /// It is sent to this member of its route.
    pub fn send(&self, place: &Place, member: usize) {
        self.requests.borrow_mut()[place.0].member = Some(member);
    }

    /// It has ended; this was its route.
    pub fn leave(&self, place: Place) -> Arc<Route> {
        self.requests.borrow_mut().remove(place.0).route
    }

    /// How many requests were sent to their upstream on behalf of this key. Looks at each that runs.
    pub fn count(&self, key: &str) -> usize {
        let requests = self.requests.borrow();
        let is_of_key = |routed: &Routed| {
            let member = routed.member.map(|index| &routed.route.members[index]);
            member.is_some_and(|member| *member.key.key == *key)
        };
        requests
            .iter()
            .filter(|(_, routed)| is_of_key(routed))
            .count()
    }
}
