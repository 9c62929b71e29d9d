//! When to compare what we have with what etcd has, as no fault of a watch can hide from that. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How often every key is compared, on average; a quarter sooner or later, so that a fleet doesn't in step.
pub const PERIOD: Duration = Duration::from_secs(3600);
/// After a comparison that failed, half of it sooner or later.
const PAUSE: Duration = Duration::from_secs(60);
/// A fleet that resumes at once counts within this time, and 100 ms more per thousand keys: a count of a million takes
/// etcd some 160 ms.
const SPREAD: Duration = Duration::from_secs(1);
const SPREAD_PER_THOUSAND: Duration = Duration::from_millis(100);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Count the keys: cheap, and finds most of what a resume may have missed.
    Count,
    /// Compare every key.
    Everything,
}

/// When which comparison is due.
#[derive(Debug)]
pub struct Reconcile {
    period: Duration,
    count_at: Option<Instant>,
    everything_at: Instant,
}

impl Reconcile {
    /// Nothing is due for about a period. `random` is from 0 to 1, here and below.
    pub fn new(now: Instant, period: Duration, random: f64) -> Self {
        let mut reconcile = Self {
            period,
            count_at: None,
            everything_at: now,
        };
        reconcile.everything_is_right(now, random);
        reconcile
    }

    /// A watch goes on from what we have: soon the keys, of which there are so many, are counted.
    pub fn resumed(&mut self, now: Instant, keys: usize, random: f64) {
        let thousands = u32::try_from(keys / 1_000).unwrap_or(u32::MAX);
        let spread = SPREAD + SPREAD_PER_THOUSAND * thousands;
        let at = now + spread.mul_f64(random);
        self.count_at = Some(at);
        self.everything_at = self.everything_at.max(at);
    }

    /// Everything was read, or compared and nothing differed.
    pub fn everything_is_right(&mut self, now: Instant, random: f64) {
        self.count_at = None;
        self.everything_at = now + self.period.mul_f64(0.75 + random / 2.0);
    }

    /// There are as many keys as there should be.
    pub fn count_is_right(&mut self) {
        self.count_at = None;
    }

    /// There are not: which ones, comparing everything says.
    pub fn count_is_wrong(&mut self, now: Instant) {
        self.count_at = None;
        self.everything_at = now;
    }

    /// It could not be done: once more in a while.
    pub fn failed(&mut self, due: Due, now: Instant, random: f64) {
        let at = now + PAUSE.mul_f64(0.5 + random);
        match due {
            Due::Count => self.count_at = Some(at),
            Due::Everything => self.everything_at = at,
        }
    }

    /// When the next is due.
    pub fn at(&self) -> Instant {
        (self.count_at).map_or(self.everything_at, |at| at.min(self.everything_at))
    }

    /// What is due now.
    pub fn due(&self, now: Instant) -> Option<Due> {
        if self.everything_at <= now {
            return Some(Due::Everything);
        }
        self.count_at
            .is_some_and(|at| at <= now)
            .then_some(Due::Count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_counted_after_a_resume_and_compared_every_hour() {
        let start = Instant::now();
        let mut reconcile = Reconcile::new(start, PERIOD, 0.5);
        assert_eq!(reconcile.at(), start + PERIOD);
        assert_eq!(reconcile.due(start + PERIOD - Duration::from_secs(1)), None);
        assert_eq!(reconcile.due(start + PERIOD), Some(Due::Everything));

        reconcile.resumed(start, 1_000_000, 0.5);
        let at = start + Duration::from_millis(50_500);
        assert_eq!(reconcile.at(), at);
        assert_eq!(reconcile.due(at), Some(Due::Count));
        reconcile.count_is_right();
        assert_eq!(reconcile.at(), start + PERIOD);

        reconcile.count_is_wrong(start);
        assert_eq!(reconcile.due(start), Some(Due::Everything));
        reconcile.everything_is_right(start, 0.0);
        assert_eq!(reconcile.at(), start + PERIOD * 3 / 4);
    }

    #[test]
    fn what_is_overdue_after_a_long_absence_waits_for_its_turn() {
        let start = Instant::now();
        let mut reconcile = Reconcile::new(start, PERIOD, 0.5);
        let back = start + 2 * PERIOD;
        reconcile.resumed(back, 1_000_000, 1.0);
        assert_eq!(reconcile.at(), back + Duration::from_secs(101));
        assert_eq!(reconcile.due(reconcile.at()), Some(Due::Everything));
    }

    #[test]
    fn what_failed_is_tried_again_in_a_while() {
        let start = Instant::now();
        for due in [Due::Count, Due::Everything] {
            let mut reconcile = Reconcile::new(start, PERIOD, 0.5);
            reconcile.failed(due, start, 0.0);
            assert_eq!(reconcile.at(), start + PAUSE / 2);
            assert_eq!(reconcile.due(reconcile.at()), Some(due));
        }
    }
}
