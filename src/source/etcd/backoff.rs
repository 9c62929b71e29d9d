//! How long to wait before trying etcd again, so that a fleet doesn't come back in step. Pure, and for everybody who
//! talks to etcd.

use std::time::Duration;

/// The first wait, before jitter.
pub const SHORTEST: Duration = Duration::from_millis(100);

/// How long after this many failures in a row (from 1): doubles from 100 ms up to `longest`, of which `random`, from 0
/// to 1, takes up to half away.
pub fn back_off(failures: u32, longest: Duration, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (SHORTEST * 2u32.pow(doublings))
        .min(longest)
        .mul_f64(0.5 + random / 2.0)
}

/// The longest wait of who holds a lease of this TTL: three tries fit into it, so that one lost answer doesn't lose
/// the lease.
pub const fn longest_under_lease(ttl: Duration) -> Duration {
    Duration::from_millis(ttl.as_millis() as u64 / 3)
}

/// How long after a watch that stood for a while is lost: anything up to a second. Whatever ended it has ended those
/// of the whole fleet, and a change is still there in time.
pub fn scatter(random: f64) -> Duration {
    Duration::from_secs(1).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(15);

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<_> = (1..=10)
            .map(|failures| back_off(failures, LONGEST, 1.0).as_millis())
            .collect();
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]
        );
        assert_eq!(back_off(u32::MAX, LONGEST, 1.0), LONGEST);
        assert_eq!(back_off(0, LONGEST, 1.0), SHORTEST);
    }

    #[test]
    fn jitter_takes_up_to_half() {
        for failures in [1, 5, 50] {
            let whole = back_off(failures, LONGEST, 1.0);
            assert_eq!(back_off(failures, LONGEST, 0.0), whole / 2);
        }
    }

    #[test]
    fn three_tries_fit_into_a_lease() {
        let ttl = Duration::from_secs(15);
        let longest = longest_under_lease(ttl);
        assert_eq!(longest, Duration::from_secs(5));
        assert!(3 * back_off(u32::MAX, longest, 1.0) <= ttl);
    }

    /// A thousand instances lose etcd in the same moment. However often each has failed, no tenth of the time that
    /// their next tries are spread over sees twice its share, and that time grows with the outage.
    #[test]
    fn a_fleet_does_not_come_back_in_step() {
        let mut random = StdRng::seed_from_u64(7);
        let mut at: Vec<f64> = (0..1_000)
            .map(|_| scatter(random.random()).as_secs_f64())
            .collect();
        for failures in 1..=12 {
            let (first, last) = (at.iter()).fold((f64::MAX, 0.0_f64), |(low, high), &at| {
                (low.min(at), high.max(at))
            });
            assert!(last - first > 0.9, "all come within {} s", last - first);
            let mut tenths = [0; 10];
            for at in &at {
                let tenth = (at - first) / (last - first) * 10.0;
                tenths[(tenth as usize).min(9)] += 1;
            }
            let fullest = tenths.iter().max().unwrap();
            assert!(*fullest < 300, "after {failures} failures: {tenths:?}");
            for at in &mut at {
                *at += back_off(failures, LONGEST, random.random()).as_secs_f64();
            }
        }
        let spread = at.iter().fold(0.0_f64, |high, &at| high.max(at))
            - at.iter().fold(f64::MAX, |low, &at| low.min(at));
        assert!(spread > 15.0, "{spread} s");
    }
}
