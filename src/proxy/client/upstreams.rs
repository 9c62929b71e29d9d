//! A client as upstreams see it that are told of clients by a PROXY header: what they are told, and whose the connections
//! are on which they were.

use std::net::SocketAddr;

use super::Client;
use crate::upstream::{pool::Owner, proxy_protocol::Origin};

impl Client {
    /// It connected to this address of ours.
    pub fn came_to(&self, destination: SocketAddr) {
        self.destination.set(Some(destination));
    }

    /// Whose connection it is, for upstreams. What its requests say of earlier hops is theirs to tell.
    pub fn origin(&self) -> Origin {
        match self.destination.get() {
            Some(destination) if !self.is_somebody.get() => Origin::Client {
                source: self.address(),
                destination,
            },
            _ => Origin::Unknown,
        }
    }

    /// Who has the connections that speak for it, if there ever was one.
    pub fn owner(&self) -> Option<&Owner> {
        self.owner.get()
    }

    /// The same; from now on there is one.
    pub fn becomes_owner(&self) -> &Owner {
        self.owner.get_or_init(Owner::default)
    }
}
