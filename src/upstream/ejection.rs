//! Upstreams that failed too often, taken out of the choice for a while.
//!
//! Two streaks are kept: attempts that failed since the last good response head, and response bodies cut short since
//! the last whole one. (A single one would forget each cut with the good head of the next.) What is on the way of
//! every request is one load; the clock is asked only of an upstream that is out.

mod term;
mod window;

use std::{
    fmt,
    num::NonZeroU8,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use prometheus::IntGauge;

pub use self::{
    term::Term,
    window::{Counted, Tally, Window},
};
use crate::moment::Moment;

/// `"outlier"`: which failures eject an upstream, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outlier {
    /// So many in a row; 0: they never do. Default 5.
    pub consecutive_failures: u32,
    /// For how long the first time; longer with each further one. Default 30 s.
    pub ejection: Duration,
    /// How many of a route's members may be out at one time, in percent; over 0, one always may. Default 50.
    pub max_ejected_percent: u8,
    /// So large a share of failures, in percent, and twice that of the route's other members, ejects an upstream too,
    /// in a row or not. `None`, the default: no share does.
    pub failure_percent: Option<NonZeroU8>,
    /// Of so many requests at least, in 10 to 20 s, and as many to the others. Default 20.
    pub min_requests: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            ejection: Duration::from_secs(30),
            max_ejected_percent: 50,
            failure_percent: None,
            min_requests: 20,
        }
    }
}

/// What an upstream did wrong. Never what a client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It refused the connection, or could not be reached.
    Connect,
    /// There was no connection within `timeouts.connect`.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// The connection ended before the response head did.
    Reset,
    /// It spoke nonsense.
    Malformed,
    /// No response head within `timeouts.response`, or `timeouts.request`.
    Timeout,
    /// It answered this: 500 to 599, but neither 501 nor 505.
    Status(u16),
    /// It ended, or fell silent, in the response body.
    Cut,
    /// So many of its latest requests failed, in percent, though not in a row.
    Share(u8),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status(status) => return write!(f, "status {status}"),
            Self::Share(percent) => {
                return write!(f, "{percent} % of its latest requests failed");
            }
            Self::Connect => "no connection",
            Self::ConnectTimeout => "connecting took too long",
            Self::Tls => "no TLS",
            Self::Reset => "connection ended before the response",
            Self::Malformed => "malformed response",
            Self::Timeout => "no response in time",
            Self::Cut => "response body cut short",
        })
    }
}

/// Whether an upstream is out, by the failures that routes with the same [`Outlier`] settings saw.
#[derive(Debug, Default)]
pub struct Ejection {
    /// The latest [`Term`], packed; 0 before the first.
    latest: AtomicU64,
    /// Failures in a row in the lower half, cut bodies in a row in the upper.
    streaks: AtomicU32,
    /// How often it was ejected.
    count: AtomicU32,
    /// Counts it while it is in force, until somebody looks after the end; `None`: nothing does.
    gauge: Option<IntGauge>,
}

/// The halves of [`Ejection::streaks`].
const HEADS: u32 = 0xFFFF;
const BODIES: u32 = !HEADS;

impl Ejection {
    /// Of an upstream that is in. This gauge counts it while it is out.
    pub fn counted_by(gauge: IntGauge) -> Self {
        let mut ejection = Self::default();
        ejection.gauge = Some(gauge);
        ejection
    }

    /// Whether it is out now. While it isn't, this is one load.
    pub fn is_in_force(&self) -> bool {
        self.is_in_force_at(Moment::now)
    }

    /// As [`Self::is_in_force`]; `now` is asked only of an upstream that is out, or was until lately.
    pub fn is_in_force_at(&self, now: impl FnOnce() -> Moment) -> bool {
        let bits = self.latest.load(Ordering::Relaxed);
        if !term::is_open(bits) {
            return false;
        }
        if term::unpacked(bits).is_some_and(|term| term.until > now()) {
            return true;
        }
        let closed = self.latest.compare_exchange(
            bits,
            term::closed(bits),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        // Else somebody else has closed it, or it was ejected again: the next one will see.
        if closed.is_ok() {
            self.count_one_less();
        }
        false
    }

    /// The latest ejection, over or not.
    pub fn latest(&self) -> Option<Term> {
        term::unpacked(self.latest.load(Ordering::Relaxed))
    }

    /// How often it was ejected. Who sends a request keeps this number: should the request fail after a further
    /// ejection, that failure was paid for already.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// A good response head came.
    pub fn succeeded(&self) {
        self.end_streak(HEADS);
    }

    /// A response body came to its end.
    pub fn came_whole(&self) {
        self.end_streak(BODIES);
    }

    fn end_streak(&self, half: u32) {
        // A store by every request would make this line travel between all cores.
        if self.streaks.load(Ordering::Relaxed) & half != 0 {
            self.streaks.fetch_and(!half, Ordering::Relaxed);
        }
    }

    /// One more failure; whether it is one too many in a row.
    pub fn failed(&self, fault: Fault, settings: &Outlier) -> bool {
        let shift = shift(fault);
        let longer = |streaks: u32| {
            let streak = ((streaks >> shift) & HEADS).saturating_add(1).min(HEADS);
            (streaks & !(HEADS << shift)) | (streak << shift)
        };
        let before = (self.streaks).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |streaks| {
            Some(longer(streaks))
        });
        let streak = before.map_or(0, |before| (longer(before) >> shift) & HEADS);
        settings.consecutive_failures > 0 && streak >= settings.consecutive_failures
    }

    /// Takes it out; `None` if it is out already. Until it succeeds after its return, one failure ejects it again.
    pub fn eject(&self, fault: Fault, settings: &Outlier, now: Moment) -> Option<Term> {
        let mut bits = self.latest.load(Ordering::Relaxed);
        let term = loop {
            let before = term::unpacked(bits);
            if before.is_some_and(|before| before.until > now) {
                return None;
            }
            let term = Term::begin(before, fault, settings.ejection, now);
            let exchanged = self.latest.compare_exchange(
                bits,
                term::packed(&term),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match exchanged {
                Ok(_) => break term,
                Err(other) => bits = other,
            }
        };
        // Else the one before is over and was not seen to be: it is counted still.
        if let Some(gauge) = self.gauge.as_ref().filter(|_| !term::is_open(bits)) {
            gauge.inc();
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let almost = match fault {
            // It has just as good a chance as before.
            Fault::Share(_) => 0,
            _ => settings.consecutive_failures.saturating_sub(1).min(HEADS),
        };
        self.streaks
            .store(almost << shift(fault), Ordering::Relaxed);
        Some(term)
    }

    /// Its failures may not eject it, as too many others are out: it begins anew.
    pub fn spare(&self) {
        self.streaks.store(0, Ordering::Relaxed);
    }

    fn count_one_less(&self) {
        if let Some(gauge) = &self.gauge {
            gauge.dec();
        }
    }
}

impl Drop for Ejection {
    fn drop(&mut self) {
        if term::is_open(*self.latest.get_mut()) {
            self.count_one_less();
        }
    }
}

/// Where the streak of such faults stands.
fn shift(fault: Fault) -> u32 {
    match fault {
        Fault::Cut => 16,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
