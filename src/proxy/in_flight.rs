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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::{KeyVersion, Member, Settings},
        telemetry::metrics::Metrics,
        upstream::{Endpoint, Identity, Protocol, Registry, balancer::Balancer},
    };

    /// One key with two addresses, as a name has, and another key.
    fn route(keys: [&str; 3]) -> Arc<Route> {
        let metrics = Metrics::new();
        let mut registry = Registry::new(metrics.clone());
        let mut port = 0;
        let members = keys.map(|key| {
            port += 1;
            Member {
                upstream: registry.upstream(&Identity {
                    endpoint: Endpoint::Tcp {
                        address: ([127, 0, 0, 1], port).into(),
                        name: None,
                    },
                    tls: None,
                    protocol: Protocol::Http1,
                }),
                weight: 1,
                is_alias: false,
                key: KeyVersion {
                    key: key.into(),
                    mod_revision: 3,
                },
            }
        });
        Arc::new(Route {
            host: "a".parse().unwrap(),
            prefix: "".parse().unwrap(),
            name: "a".into(),
            settings: Settings::shared_default(),
            settings_key: None,
            members: Box::new(members),
            balancer: Balancer::Nobody,
            metrics: metrics.route("a"),
        })
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
