//! Which endpoint is tried next, and when: a pure count of failures.

use std::time::Duration;

use super::{
    backoff::{back_off, scatter},
    fault::Fault,
};

/// Between two tries. Nothing expires meanwhile, and it bounds how long an etcd that is back goes unnoticed.
const LONGEST: Duration = Duration::from_secs(15);
/// A watch that lived this long was no failure of its endpoint: counting starts anew.
const SETTLED: Duration = Duration::from_secs(5);

/// The current endpoint and how often in a row things failed.
#[derive(Debug)]
pub struct Retry {
    endpoints: usize,
    current: usize,
    failures: u32,
    /// The last failure was answered by logging in afresh; the next refusal is not.
    logged_in_afresh: bool,
}

impl Retry {
    /// Starts with one of so many endpoints; which one, `random` says.
    pub fn new(endpoints: usize, random: u32) -> Self {
        let endpoints = endpoints.max(1);
        Self {
            endpoints,
            current: random as usize % endpoints,
            failures: 0,
            logged_in_afresh: false,
        }
    }

    /// The index of the endpoint to use.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Counts a failure after a watch of this length (if there was one), turns to the endpoint to use next, and says
    /// how long to wait before. Every endpoint gets its turn before the first back-off, but a watch that stood is lost
    /// by the whole fleet at once, so then the first try is scattered; `random` is from 0 to 1.
    pub fn after(&mut self, fault: &Fault, watched: Option<Duration>, random: f64) -> Duration {
        let stood = watched.is_some_and(|lived| lived >= SETTLED);
        if stood {
            self.failures = 0;
            self.logged_in_afresh = false;
        }
        if matches!(fault, Fault::Refused(_)) && !self.logged_in_afresh {
            self.logged_in_afresh = true;
            return if stood {
                scatter(random)
            } else {
                Duration::ZERO
            };
        }
        self.failures = self.failures.saturating_add(1);
        self.current = (self.current + 1) % self.endpoints;
        if stood {
            return scatter(random);
        }
        let turns = u32::try_from(self.endpoints).unwrap_or(u32::MAX);
        if !self.failures.is_multiple_of(turns) {
            return Duration::ZERO;
        }
        back_off(self.failures / turns, LONGEST, random)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::backoff::SHORTEST, *};

    fn unreachable() -> Fault {
        Fault::Unreachable("refused".to_owned())
    }

    #[test]
    fn one_endpoint_backs_off_up_to_the_longest_wait() {
        let mut retry = Retry::new(1, 0);
        let waits: Vec<_> = (0..10)
            .map(|_| retry.after(&unreachable(), None, 1.0).as_millis())
            .collect();
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]
        );
    }

    #[test]
    fn every_endpoint_is_tried_before_the_first_wait() {
        let mut retry = Retry::new(3, 0);
        let mut tried = vec![retry.current()];
        let mut waits = Vec::new();
        for _ in 0..6 {
            waits.push(retry.after(&unreachable(), None, 1.0).as_millis());
            tried.push(retry.current());
        }
        assert_eq!(tried, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(waits, [0, 0, 100, 0, 0, 200]);
    }

    #[test]
    fn a_watch_that_stood_starts_the_count_anew_and_scatters_the_first_try() {
        let mut retry = Retry::new(3, 0);
        for _ in 0..8 {
            retry.after(&unreachable(), None, 1.0);
        }
        for (watched, expected) in [
            (Some(SETTLED), 250),
            (None, 0),
            (Some(Duration::ZERO), 62), // breaks at once: a failure like any other
        ] {
            let wait = retry.after(&unreachable(), watched, 0.25);
            assert_eq!(wait.as_millis(), expected, "{watched:?}");
        }
    }

    #[test]
    fn a_refusal_is_answered_by_one_fresh_login_at_the_same_endpoint() {
        let refused = Fault::Refused("invalid auth token".to_owned());
        let mut retry = Retry::new(2, 0);
        assert_eq!(retry.after(&refused, None, 1.0), Duration::ZERO);
        assert_eq!(retry.current(), 0);
        retry.after(&refused, None, 1.0);
        assert_eq!(retry.current(), 1);
        assert_eq!(retry.after(&refused, None, 1.0), SHORTEST, "backs off");
        // One more login; if users were changed, that of the whole fleet.
        let current = retry.current();
        assert_eq!(
            retry.after(&refused, Some(SETTLED), 0.5),
            Duration::from_millis(500)
        );
        assert_eq!(retry.current(), current);
    }
}
