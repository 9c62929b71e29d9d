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
    /// Where it is, or its answer comes from.
    sent: Option<Sent>,
}

/// Where a request was sent.
#[derive(Clone, Copy)]
struct Sent {
    /// The index of the member.
    member: usize,
    /// How often the member had been ejected by then.
    ejections: u32,
}

/// Whose request a place belongs to.
#[derive(Debug)]
pub struct Place(usize);

impl InFlight {
    /// A request has this route now.
    pub fn enter(&self, route: Arc<Route>) -> Place {
        let sent = None;
        Place(self.requests.borrow_mut().insert(Routed { route, sent }))
    }

    /// It is sent to another route's members from now on: the table has changed since it came.
    pub fn reroute(&self, place: &Place, route: Arc<Route>) {
        let sent = None;
        self.requests.borrow_mut()[place.0] = Routed { route, sent };
    }

    /// It is sent to this member of its route.
    pub fn send(&self, place: &Place, member: usize) {
        let routed = &mut self.requests.borrow_mut()[place.0];
        let ejections = routed.route.members[member].ejection().count();
        routed.sent = Some(Sent { member, ejections });
    }

    /// It came back from there without an answer that anybody gets.
    pub fn came_back(&self, place: &Place) {
        self.requests.borrow_mut()[place.0].sent = None;
    }

    /// The member it was sent to, by index, of this version of its route.
    pub fn sent_to(&self, place: &Place) -> Option<(Arc<Route>, usize)> {
        let requests = self.requests.borrow();
        let Routed { route, sent } = &requests[place.0];
        Some((route.clone(), (*sent)?.member))
    }

    /// It has ended; this was its route.
    pub fn leave(&self, place: Place) -> Arc<Route> {
        self.requests.borrow_mut().remove(place.0).route
    }

    /// Looks at where it was sent: the route, the member's index, and how often that had been ejected by then. `None` if
    /// it was not sent yet.
    pub fn look<T>(&self, place: &Place, see: impl FnOnce(&Route, usize, u32) -> T) -> Option<T> {
        let Routed { route, sent } = &self.requests.borrow()[place.0];
        sent.map(|sent| see(route, sent.member, sent.ejections))
    }

    /// How many requests were sent to their upstream on behalf of this key. Looks at each that runs.
    pub fn count(&self, key: &str) -> usize {
        let requests = self.requests.borrow();
        let is_of_key = |routed: &Routed| {
            let member = (routed.sent).map(|sent| &routed.route.members[sent.member]);
            member.is_some_and(|member| *member.key.key == *key)
        };
        requests
            .iter()
            .filter(|(_, routed)| is_of_key(routed))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::testing,
        telemetry::metrics::Metrics,
        upstream::{
            Registry,
            testing::{local, plain},
        },
    };

    /// One key with two addresses, as a name has, and another key.
    fn route(keys: [&str; 3]) -> Arc<Route> {
        let metrics = Metrics::new();
        let mut registry = Registry::new(metrics.clone());
        let members = keys.into_iter().zip(1..).map(|(key, port)| {
            let upstream = registry.upstream(&plain(local(port)));
            testing::member(upstream, key)
        });
        Arc::new(testing::of("a", members.collect(), &metrics))
    }

    #[test]
    fn a_request_counts_for_the_key_it_was_sent_by_last() {
        let in_flight = InFlight::default();
        let counts = |keys: [&str; 3]| keys.map(|key| in_flight.count(key));
        let (before, after) = (route(["x", "x", "y"]), route(["z", "y", "x"]));
        let first = in_flight.enter(before.clone());
        let second = in_flight.enter(before.clone());
        assert_eq!(counts(["x", "y", "z"]), [0, 0, 0], "not sent yet");
        in_flight.send(&first, 0);
        in_flight.send(&second, 1);
        assert_eq!(counts(["x", "y", "z"]), [2, 0, 0]);
        in_flight.came_back(&second);
        assert_eq!(counts(["x", "y", "z"]), [1, 0, 0], "nowhere for now");
        in_flight.send(&second, 2);
        assert_eq!(counts(["x", "y", "z"]), [1, 1, 0], "tried again elsewhere");
        in_flight.reroute(&second, after.clone());
        assert_eq!(counts(["x", "y", "z"]), [1, 0, 0], "about to be sent anew");
        in_flight.send(&second, 0);
        assert_eq!(counts(["x", "y", "z"]), [1, 0, 1]);
        assert!(Arc::ptr_eq(&in_flight.leave(first), &before));
        assert!(Arc::ptr_eq(&in_flight.leave(second), &after));
        assert_eq!(counts(["x", "y", "z"]), [0, 0, 0]);
        let again = in_flight.enter(before);
        assert_eq!(counts(["x", "y", "z"]), [0, 0, 0], "a place left is empty");
        in_flight.leave(again);
    }
}
