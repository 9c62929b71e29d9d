//! A point in time that fits an atomic.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Milliseconds since the process first asked for the time; never 0, which may so stand for "never".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// What moments are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Moment {
    /// The present. A call of the system's clock: nothing for the way of a plain request.
    pub fn now() -> Self {
        Self::from_millis(u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1)
    }

    /// The moment of this number.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Its number.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// So much later.
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long ago `earlier` was; zero if it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
