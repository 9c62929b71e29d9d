//! What the system says of this process: read from `/proc`, zero where there is none, and what it may use.

use std::fs;

use crate::descriptors;

/// What the process uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time together.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_fds: i64,
    /// How many there may be.
    pub max_fds: i64,
    /// Resident memory.
    pub resident_bytes: i64,
    /// Threads.
    pub threads: i64,
}

/// Ticks a second in `/proc/self/stat`: fixed by the kernel's interface, whatever its own clock.
const TICKS: f64 = 100.0;

/// Reads what there is.
pub fn usage() -> Usage {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let open_fds = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Usage {
        cpu_seconds: cpu_seconds(&stat).unwrap_or_default(),
        // One of them is the directory being read.
        open_fds: i64::try_from(open_fds.saturating_sub(1)).unwrap_or(i64::MAX),
        max_fds: i64::try_from(descriptors::limit()).unwrap_or(i64::MAX),
        resident_bytes: number_after(&status, "VmRSS:").unwrap_or_default() * 1024,
        threads: number_after(&status, "Threads:").unwrap_or_default(),
    }
}

/// Fields 14 and 15; counted from the end of the command, which may itself hold spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

fn number_after(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_a_command_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 120 0 0 0 250 50 0 0 20 0 4 0 100 0 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn status_lines_are_found_by_name() {
        let status = "Name:\twaypost\nVmRSS:\t    4096 kB\nThreads:\t3\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(4096));
        assert_eq!(number_after(status, "Threads:"), Some(3));
        assert_eq!(number_after(status, "VmSwap:"), None);
    }
}
