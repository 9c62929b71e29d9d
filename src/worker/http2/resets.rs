//! How many of its streams a client may give up: each may have cost an exchange with an upstream by then, and makes room
//! for the next among those that it may have open, so that this number alone bounds nothing (rapid reset,
//! CVE-2023-44487). A stream that we reset for a fault of the client's is one that it gave up, as a client can bring that
//! about (MadeYouReset, CVE-2025-8671).
//!
//! A bucket: so many at once, as many again in half a minute, and one more for each stream that is answered to its end. So
//! a client whose resets are fewer than its answers never meets the limit, be it a proxy with the clients of thousands.

use std::{cell::Cell, rc::Rc, time::Duration};

use crate::{
    proxy::client::{Client, Expiry},
    sweep::{Sweep, Tick},
};

/// In which the whole bucket is filled again.
const PERIOD: Duration = Duration::from_secs(30);

/// What one connection has used of its bucket.
pub(super) struct Resets {
    client: Rc<Client>,
    /// How many there may be at once.
    most: u64,
    /// What a reset costs: each tick that passes pays `most`.
    cost: u64,
    debt: Cell<u64>,
    /// When the debt was what it is.
    as_of: Cell<Tick>,
}

impl Resets {
    pub(super) fn new(client: Rc<Client>, most: u32) -> Rc<Self> {
        Rc::new(Self {
            as_of: Cell::new(client.now()),
            client,
            most: most.into(),
            cost: Sweep::ticks(PERIOD).into(),
            debt: Cell::new(0),
        })
    }

    /// The client gave up one more stream. Beyond what it may, its connection ends.
    pub(super) fn count(&self) {
        let now = self.client.now();
        let passed = now.saturating_sub(self.as_of.replace(now));
        let paid = self.most * u64::from(passed);
        let debt = self.debt.get().saturating_sub(paid) + self.cost;
        self.debt.set(debt);
        if debt > self.most * self.cost {
            self.client.expire(Expiry::Resets);
        }
    }

    /// A stream was answered to its end.
    pub(super) fn make_good(&self) {
        self.debt.set(self.debt.get().saturating_sub(self.cost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(most: u32) -> (Rc<Sweep>, Rc<Client>, Rc<Resets>) {
        let sweep = Rc::new(Sweep::default());
        let client = Client::new(([127, 0, 0, 1], 1).into(), false, sweep.clone());
        let resets = Resets::new(client.clone(), most);
        (sweep, client, resets)
    }

    fn times(count: usize, what: impl Fn()) {
        for _ in 0..count {
            what();
        }
    }

    #[test]
    fn a_burst_is_allowed_and_one_more_ends_the_connection() {
        let (_sweep, client, resets) = connection(100);
        times(100, || resets.count());
        assert_eq!(client.expired(), None);
        resets.count();
        assert_eq!(client.expired(), Some(Expiry::Resets));
    }

    #[test]
    fn time_allows_as_many_again() {
        let (sweep, client, resets) = connection(100);
        times(100, || resets.count());
        for round in 1..=10 {
            // A tenth of the period, but for rounding.
            sweep.advance(round * (Sweep::ticks(PERIOD) / 10 + 1));
            times(10, || resets.count());
            assert_eq!(client.expired(), None, "{round}");
        }
        sweep.advance(sweep.now() + 10 * Sweep::ticks(PERIOD));
        times(100, || resets.count());
        assert_eq!(client.expired(), None);
        resets.count();
        assert_eq!(client.expired(), Some(Expiry::Resets));
    }

    #[test]
    fn whoever_lets_as_many_be_answered_never_meets_it() {
        let (_sweep, client, resets) = connection(100);
        for _ in 0..100 {
            times(100, || resets.count());
            times(100, || resets.make_good());
        }
        assert_eq!(client.expired(), None);
        // Nothing is saved up.
        times(1000, || resets.make_good());
        times(101, || resets.count());
        assert_eq!(client.expired(), Some(Expiry::Resets));
    }
}
