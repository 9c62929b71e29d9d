//! How many of an upstream's latest requests failed: of those of this period and of the one before.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use crate::moment::Moment;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Attempts that ended in a response head, or in a failure.
    pub requests: u64,
    /// Those that failed, be it in the body.
    pub failures: u64,
}

/// What a request adds to a [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A good response head.
    Success,
    /// None.
    Failure,
    /// A body cut short, behind a head that was counted.
    Cut,
}

/// The counts of the latest two periods, kept by whoever counts: when two workers begin a period at the same time a
/// few requests are lost, which no share of many depends on.
#[derive(Debug, Default)]
pub struct Window {
    periods: [Period; 2],
}

#[derive(Debug, Default)]
struct Period {
    /// Its number, counted from 1.
    number: AtomicU32,
    requests: AtomicU32,
    failures: AtomicU32,
}

/// As long as Envoy's.
const PERIOD: Duration = Duration::from_secs(10);

impl Window {
    /// Counts a request that ended now.
    pub fn count(&self, counted: Counted, now: Moment) {
        let number = number(now);
        let period = &self.periods[number as usize % 2];
        let known = period.number.load(Relaxed);
        let is_first = known != number
            && (period.number)
                .compare_exchange(known, number, Relaxed, Relaxed)
                .is_ok();
        if is_first {
            period.requests.store(0, Relaxed);
            period.failures.store(0, Relaxed);
        }
        if counted != Counted::Cut {
            period.requests.fetch_add(1, Relaxed);
        }
        if counted != Counted::Success {
            period.failures.fetch_add(1, Relaxed);
        }
    }

    /// What was counted in this period and the one before.
    pub fn tally(&self, now: Moment) -> Tally {
        let number = number(now);
        let is_recent = |period: &&Period| {
            let age = number.checked_sub(period.number.load(Relaxed));
            age.is_some_and(|age| age <= 1)
        };
        let recent = self.periods.iter().filter(is_recent);
        recent.fold(Tally::default(), |sum, period| Tally {
            requests: sum.requests + u64::from(period.requests.load(Relaxed)),
            failures: sum.failures + u64::from(period.failures.load(Relaxed)),
        })
    }

    /// Begins anew.
    pub fn clear(&self) {
        for period in &self.periods {
            period.number.store(0, Relaxed);
        }
    }
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            failures: self.failures + other.failures,
        }
    }

    /// Whether of so many requests at least, so many percent failed, and twice as large a share as of the others'.
    pub fn stands_out(self, percent: u8, min_requests: u32, others: Self) -> bool {
        let min_requests = u64::from(min_requests);
        self.is_bad(percent, min_requests)
            && others.requests >= min_requests
            && u128::from(self.failures) * u128::from(others.requests)
                >= 2 * u128::from(others.failures) * u128::from(self.requests)
    }

    /// The share of failures; cut bodies may make it more than there were requests.
    pub fn percent(self) -> u8 {
        let percent = self.failures * 100 / self.requests.max(1);
        u8::try_from(percent.min(100)).expect("100 at most")
    }

    fn is_bad(self, percent: u8, min_requests: u64) -> bool {
        self.requests >= min_requests && self.failures * 100 >= self.requests * u64::from(percent)
    }
}

/// From 2 on, so that the period before the first one has a number too, and 0 is none's.
fn number(now: Moment) -> u32 {
    let period = u64::try_from(PERIOD.as_millis()).unwrap_or(u64::MAX);
    u32::try_from(now.as_millis() / period + 2).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1000)
    }

    #[test]
    fn two_periods_are_looked_at() {
        let window = Window::default();
        let tally = |seconds| {
            let tally = window.tally(at(seconds));
            (tally.requests, tally.failures)
        };
        assert_eq!(tally(0), (0, 0));
        window.count(Counted::Success, at(3));
        window.count(Counted::Failure, at(9));
        window.count(Counted::Cut, at(9));
        assert_eq!([tally(9), tally(19), tally(20)], [(2, 2), (2, 2), (0, 0)]);
        window.count(Counted::Success, at(12));
        assert_eq!([tally(12), tally(25), tally(30)], [(3, 2), (1, 0), (0, 0)]);
        window.count(Counted::Failure, at(20));
        assert_eq!([tally(20), tally(30)], [(2, 1), (1, 1)]);
        window.clear();
        assert_eq!(tally(20), (0, 0));
    }

    #[test]
    fn one_stands_out_by_its_share_and_by_twice_that_of_the_others() {
        for (own, others, expected) in [
            ((20, 6), (40, 0), true),
            ((20, 5), (40, 0), false),
            ((19, 19), (40, 0), false),
            ((20, 20), (19, 0), false),
            ((20, 20), (40, 20), true),
            ((20, 20), (40, 21), false),
            ((20, 12), (40, 12), true),
            ((20, 12), (40, 13), false),
            ((20, 20), (0, 0), false),
        ] {
            let tally = |(requests, failures)| Tally { requests, failures };
            let stands_out = tally(own).stands_out(30, 20, tally(others));
            assert_eq!(stands_out, expected, "{own:?} among {others:?}");
        }
    }
}
