//! What ties a request to a member of its route: the client's sticky cookie, and the key that is hashed. Routes that
//! ask for neither pay for neither.

use std::{cell::Cell, net::IpAddr};

use http::{HeaderValue, request::Parts};
use twox_hash::XxHash3_64;

use super::{
    cookies,
    forwarded::{Claims, Scheme},
};
use crate::{
    route::{Route, path},
    upstream::balancer::{HashOn, tokens::Token},
};

/// What ties a request to a member of its route.
#[derive(Debug, Default)]
pub struct Affinity {
    /// The hash of what `hash_on` names; `None` if the request lacks it, or nothing is hashed.
    pub key: Option<u64>,
    /// The member whose cookie the client sent.
    member: Option<usize>,
    token: Option<Token>,
    /// Another member has the request, but the client stays with its own.
    is_lent: Cell<bool>,
}

/// Whose request it is, as far as affinity may depend on it.
#[derive(Clone, Copy)]
pub struct Asker<'r> {
    pub request: &'r Parts,
    /// The raw path, without query.
    pub path: &'r str,
    /// What it says of earlier hops.
    pub claims: Claims<'r>,
    pub scheme: Scheme,
}

impl Affinity {
    /// What this request is tied to in this route.
    pub fn of(route: &Route, asker: Asker<'_>) -> Self {
        let mut affinity = Self::default();
        if let (Some(sticky), Some(tokens)) = (&route.settings.sticky, &route.tokens) {
            // Among those of other routes, which cover this path too, is ours.
            let ours = cookies::values(&asker.request.headers, &sticky.cookie)
                .filter_map(Token::parse)
                .find_map(|token| Some((token, tokens.member(token)?)));
            (affinity.token, affinity.member) = ours.unzip();
        }
        if route.is_keyed() {
            affinity.key = asker.key(&route.settings.hash_on);
        }
        affinity
    }

    /// The member that the request is for; `None` once it is lent.
    pub fn member(&self) -> Option<usize> {
        self.member.filter(|_| !self.is_lent.get())
    }

    /// Another member is to have this request, since the client's own has no room for it, or can't do what it asks for:
    /// the client keeps its cookie.
    pub fn lend(&self) {
        self.is_lent.set(self.member.is_some());
    }

    /// The `Set-Cookie` for a client whose request this member answered; `None` if it has that cookie, keeps the one it
    /// has, or needs none.
    pub fn cookie(&self, route: &Route, member: usize, asker: Asker<'_>) -> Option<HeaderValue> {
        let sticky = route.settings.sticky.as_ref()?;
        let token = Token::of(&route.members[member].upstream.name);
        (self.token != Some(token) && !self.is_lent.get())
            .then(|| cookies::sticky(sticky, token, &route.prefix, asker.scheme()))
            .flatten()
    }
}

impl Asker<'_> {
    /// The hash must be the same in all instances and versions: XXH3, whose output is part of its specification.
    fn key(&self, hash_on: &HashOn) -> Option<u64> {
        let headers = &self.request.headers;
        Some(match hash_on {
            HashOn::ClientIp => match self.claims.client() {
                IpAddr::V4(address) => XxHash3_64::oneshot(&address.octets()),
                IpAddr::V6(address) => XxHash3_64::oneshot(&address.octets()),
            },
            HashOn::Header(name) => XxHash3_64::oneshot(headers.get(name)?.as_bytes()),
            HashOn::Cookie(name) => XxHash3_64::oneshot(cookies::values(headers, name).next()?),
            HashOn::Path => XxHash3_64::oneshot(path::normalise(self.path).as_bytes()),
        })
    }

    fn scheme(&self) -> Scheme {
        self.claims.scheme(self.scheme)
    }
}
