//! Active health checks: what an upstream is asked, and what its answers say of it.
//!
//! A route that asks for checks holds [`Checks`] for each of its upstreams, one for all routes that ask alike. The
//! [`checker`] makes them, by a `schedule`, with a [`probe`]; what they find changes the `verdict`, which requests
//! read with one load.

pub mod checker;
mod expect;
mod finding;
pub mod probe;
mod schedule;
mod verdict;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use self::verdict::Verdict;
pub use self::{expect::Expect, finding::Finding};
use super::Upstream;
use crate::moment::Moment;

/// `"health"`: what an upstream is asked, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CheckSettings {
    /// The path that is asked for; `None`: a connection is enough.
    pub path: Option<Box<str>>,
    /// From one check to the next, give or take a tenth. Default 5 s.
    pub interval: Duration,
    /// What one check may take. Default 2 s.
    pub timeout: Duration,
    /// Good answers in a row that make an unhealthy upstream healthy. Default 2. Of one that was never asked before the
    /// first answer decides.
    pub healthy: u32,
    /// Bad ones in a row that make a healthy upstream unhealthy. Default 3.
    pub unhealthy: u32,
    /// Which statuses are good. Default 200 to 399.
    pub expect: Expect,
    /// What an upstream is before its first answer.
    pub initial: Initial,
}

/// `"initial"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Initial {
    /// It gets requests at once.
    #[default]
    Healthy,
    /// It gets none before it has proved itself.
    Unhealthy,
}

impl Default for CheckSettings {
    fn default() -> Self {
        Self {
            path: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy: 2,
            unhealthy: 3,
            expect: Expect::default(),
            initial: Initial::Healthy,
        }
    }
}

/// The checks of one upstream with the same settings, shared by all routes that ask for them.
#[derive(Debug)]
pub struct Checks {
    /// Who is checked.
    pub upstream: Arc<Upstream>,
    /// How.
    pub settings: Arc<CheckSettings>,
    /// Copied from the verdict, for those who pick.
    is_healthy: AtomicBool,
    /// When it last became healthy, as a [`Moment`]; 0: it never was anything else.
    recovered: AtomicU64,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    verdict: Verdict,
    since: Instant,
    last: Option<Last>,
}

/// What the checks of an upstream have found so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Whether it may get requests.
    pub is_healthy: bool,
    /// The good checks in a row since the last bad one; `None` of what is healthy, or was never checked.
    pub good_in_a_row: Option<u32>,
    /// Since when that is so.
    pub since: Instant,
    /// The latest check; `None` before the first.
    pub last: Option<Last>,
}

/// One check and what it found.
#[derive(Clone, Debug, PartialEq)]
pub struct Last {
    /// When it ended.
    pub at: Instant,
    /// What it found.
    pub finding: Finding,
}

impl Checks {
    /// Of an upstream that was not asked yet.
    pub fn new(upstream: Arc<Upstream>, settings: Arc<CheckSettings>) -> Self {
        let verdict = Verdict::before_any_check(&settings);
        if !verdict.is_healthy() {
            upstream.metrics.unhealthy.inc();
        }
        Self {
            upstream,
            settings,
            is_healthy: AtomicBool::new(verdict.is_healthy()),
            recovered: AtomicU64::new(0),
            record: Mutex::new(Record {
                verdict,
                since: Instant::now(),
                last: None,
            }),
        }
    }

    /// Whether it may get requests: one load.
    pub fn is_healthy(&self) -> bool {
        self.is_healthy.load(Ordering::Relaxed)
    }

    /// When it last became healthy; `None`: it was all the time, or is not.
    pub fn recovered(&self) -> Option<Moment> {
        let millis = self.recovered.load(Ordering::Relaxed);
        (millis > 0).then(|| Moment::from_millis(millis))
    }

    /// What is known of it, and why.
    pub fn report(&self) -> Report {
        let record = self.record();
        Report {
            is_healthy: record.verdict.is_healthy(),
            good_in_a_row: record.verdict.good_in_a_row(),
            since: record.since,
            last: record.last.clone(),
        }
    }

    /// Takes in what a check found that ended `at`; returns whether that changed the verdict.
    pub fn note(&self, finding: Finding, at: Instant) -> bool {
        let mut record = self.record();
        let is_change = match finding.is_good() {
            Some(is_good) => record.verdict.weigh(is_good, &self.settings),
            None => false,
        };
        record.last = Some(Last { at, finding });
        if is_change {
            record.since = at;
            let is_healthy = record.verdict.is_healthy();
            if is_healthy {
                let now = Moment::now().as_millis();
                self.recovered.store(now, Ordering::Relaxed);
            }
            self.is_healthy.store(is_healthy, Ordering::Relaxed);
            match is_healthy {
                true => self.upstream.metrics.unhealthy.dec(),
                false => self.upstream.metrics.unhealthy.inc(),
            }
        }
        is_change
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record
            .lock()
            .expect("no code panics while holding this lock")
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        if !self.is_healthy() {
            self.upstream.metrics.unhealthy.dec();
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::upstream::{Endpoint, Identity, Protocol, testing};

    /// Checks of an upstream at this port of this machine.
    pub fn checks(port: u16, settings: CheckSettings) -> Arc<Checks> {
        let upstream = upstream(testing::local(port), Protocol::Http1);
        Arc::new(Checks::new(upstream, settings.into()))
    }

    /// An upstream that nobody else has.
    pub fn upstream(endpoint: Endpoint, protocol: Protocol) -> Arc<Upstream> {
        testing::alone(&Identity {
            protocol,
            ..testing::plain(endpoint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::checks, *};

    #[test]
    fn a_report_says_what_is_known_since_when_and_why() {
        let settings = CheckSettings {
            unhealthy: 2,
            ..CheckSettings::default()
        };
        let checks = checks(1, settings);
        let unhealthy = &checks.upstream.metrics.unhealthy;
        let begun = checks.report();
        assert!(begun.is_healthy && begun.last.is_none());
        let later = |seconds| begun.since + Duration::from_secs(seconds);
        assert!(!checks.note(Finding::Status(503, false), later(1)));
        assert!(checks.is_healthy());
        assert_eq!(checks.report().since, begun.since);
        assert!(!checks.note(Finding::unknown("no descriptors"), later(2)));
        assert!(checks.is_healthy(), "our own trouble is not its");
        assert!(checks.note(Finding::failed("refused"), later(3)));
        assert!(!checks.is_healthy());
        assert_eq!(unhealthy.get(), 1);
        let last = Last {
            at: later(3),
            finding: Finding::failed("refused"),
        };
        let expected = Report {
            is_healthy: false,
            good_in_a_row: Some(0),
            since: later(3),
            last: Some(last),
        };
        assert_eq!(checks.report(), expected);
        checks.note(Finding::Connected, later(4));
        assert_eq!(checks.report().good_in_a_row, Some(1));
        assert!(checks.note(Finding::Connected, later(5)));
        assert!(checks.is_healthy());
        assert_eq!(unhealthy.get(), 0);
    }

    #[test]
    fn an_upstream_whose_checks_end_is_unhealthy_no_more() {
        let settings = CheckSettings {
            initial: Initial::Unhealthy,
            ..CheckSettings::default()
        };
        let checks = checks(1, settings);
        let upstream = checks.upstream.clone();
        assert!(!checks.is_healthy());
        assert_eq!(upstream.metrics.unhealthy.get(), 1);
        drop(checks);
        assert_eq!(upstream.metrics.unhealthy.get(), 0);
    }
}
