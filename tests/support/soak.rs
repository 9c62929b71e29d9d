//! Whether tests take their full time: `scripts/soak` sets `WAYPOST_SOAK=1`, and it is read here alone.

use std::{env, time::Duration};

pub fn is_soak() -> bool {
    env::var_os("WAYPOST_SOAK").is_some_and(|value| value == "1")
}

/// How many: `short` in every run, `full` in a soak.
pub fn rounds(short: usize, full: usize) -> usize {
    if is_soak() { full } else { short }
}

/// How many seconds: `short` in every run, `full` in a soak.
pub fn seconds(short: u64, full: u64) -> Duration {
    Duration::from_secs(if is_soak() { full } else { short })
}
