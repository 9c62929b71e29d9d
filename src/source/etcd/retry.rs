//! Which endpoint is tried next, and when: a pure count of failures.

use std::time::Duration;

use super::fault::Fault;

/// A third of the lease TTL that an instance will hold, so that three tries fit into it.
const LONGEST: Duration = Duration::from_secs(15);
const SHORTEST: Duration = Duration::from_millis(100);
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
    /// how long to wait before. Every endpoint gets its turn before the first wait; `random` is from 0 to 1.
    pub fn after(&mut self, fault: &Fault, watched: Option<Duration>, random: f64) -> Duration {
        if watched.is_some_and(|lived| lived >= SETTLED) {
            self.failures = 0;
            self.logged_in_afresh = false;
        }
        if matches!(fault, Fault::Refused(_)) && !self.logged_in_afresh {
            self.logged_in_afresh = true;
            return Duration::ZERO;
        }
        self.failures = self.failures.saturating_add(1);
        self.current = (self.current + 1) % self.endpoints;
        let turns = u32::try_from(self.endpoints).unwrap_or(u32::MAX);
        if !self.failures.is_multiple_of(turns) {
            return Duration::ZERO;
        }
        let doublings = (self.failures / turns - 1).min(16);
        (SHORTEST * 2u32.pow(doublings))
            .min(LONGEST)
            .mul_f64(0.5 + random / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for _ in 0..100 {
            assert_eq!(retry.after(&unreachable(), None, 1.0), LONGEST);
        }
    }

    #[test]
    fn jitter_takes_up_to_half() {
        assert_eq!(
            Retry::new(1, 0).after(&unreachable(), None, 0.0),
            SHORTEST / 2
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
    fn a_watch_that_lived_starts_the_count_anew() {
        let mut retry = Retry::new(1, 0);
        for _ in 0..8 {
            retry.after(&unreachable(), None, 1.0);
        }
        assert_eq!(retry.after(&unreachable(), Some(SETTLED), 1.0), SHORTEST);
        assert_eq!(
            retry.after(&unreachable(), Some(Duration::ZERO), 1.0),
            SHORTEST * 2,
            "a watch that breaks at once is a failure like any other"
        );
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
        assert_eq!(
            retry.after(&refused, Some(SETTLED), 1.0),
            Duration::ZERO,
            "one more login"
        );
    }
}
