//! When which check is due. Pure: time is given, nobody is asked.
//!
//! So many checks a second are made at most, whatever routes ask for. When they ask for more, every interval is
//! stretched by the same factor: an upstream is then checked more rarely, never in bursts, and never at another's cost.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use rand::RngExt;
use tokio::time::Instant;

/// The most checks that begin in a second. With their connections they take some tenth of a core.
pub(super) const MOST_A_SECOND: u64 = 1000;

/// How far checks may catch up at once after nobody looked: as many as belong in this time begin together.
const CATCH_UP: Duration = Duration::from_millis(20);

/// How much an interval may differ from what was asked for, either way, so that instances don't ask in step.
const JITTER: f64 = 0.1;

/// Below this many entries a sweep is not worth its while.
const LEAST_SWEEP: usize = 1024;

/// Everything that is to be checked, ordered by when.
pub(super) struct Schedule<T> {
    waiting: BinaryHeap<Reverse<Entry<T>>>,
    is_wanted: fn(&T) -> bool,
    /// Checks in a million seconds that all intervals together ask for, those being made included.
    asked_for: u64,
    /// Before this no further check begins.
    next_turn: Instant,
    /// Size of `waiting` at which what nobody wants any more is swept.
    sweep_at: usize,
}

/// One check whose turn it is; to be given back when it was made.
#[derive(Debug)]
pub(super) struct Turn<T> {
    pub(super) what: T,
    /// By how much it is late.
    pub(super) late: Duration,
    interval: Interval,
}

/// What is new.
pub(super) struct Newcomer<T> {
    pub(super) what: T,
    pub(super) interval: Duration,
    pub(super) first: First,
}

/// When something is checked for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// As soon as its turn comes: somebody waits for it.
    AtOnce,
    /// Some time within its interval, so that what came together is not checked together.
    Spread,
}

/// In milliseconds: 49 days at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval(u32);

impl<T> Schedule<T> {
    /// Nothing to check; of what there will be, only what `is_wanted`.
    pub(super) fn new(is_wanted: fn(&T) -> bool, now: Instant) -> Self {
        Self {
            waiting: BinaryHeap::new(),
            is_wanted,
            asked_for: 0,
            next_turn: now,
            sweep_at: LEAST_SWEEP,
        }
    }

    /// How many wait for their turn, including those that nobody wants any more and that were not met yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// By how much intervals are longer than asked for: 1 where they are not.
    pub(super) fn stretch(&self) -> f64 {
        (self.asked_for as f64 / (MOST_A_SECOND * MILLION) as f64).max(1.0)
    }

    /// Takes in what is new, all of it before any gets its time: what comes together is spread together.
    pub(super) fn admit(
        &mut self,
        newcomers: impl ExactSizeIterator<Item = Newcomer<T>>,
        now: Instant,
    ) {
        if self.waiting.len() + newcomers.len() >= self.sweep_at {
            self.sweep();
        }
        let newcomers: Vec<_> = newcomers
            .map(|newcomer| {
                let interval = Interval::of(newcomer.interval);
                self.asked_for += interval.checks();
                (newcomer.what, interval, newcomer.first)
            })
            .collect();
        for (what, interval, first) in newcomers {
            let due = match first {
                First::AtOnce => now,
                First::Spread => now + self.stretched(interval).mul_f64(rand::rng().random()),
            };
            let entry = Entry {
                due,
                interval,
                what,
            };
            self.waiting.push(Reverse(entry));
        }
    }

    /// The check whose turn it is, if it is any's. What nobody wants is forgotten on the way.
    pub(super) fn take(&mut self, now: Instant) -> Option<Turn<T>> {
        loop {
            if self.waiting.peek()?.0.due > now {
                return None;
            }
            let is_wanted = self.is_wanted;
            if is_wanted(&self.waiting.peek()?.0.what) && self.next_turn > now {
                return None;
            }
            let Reverse(entry) = self.waiting.pop()?;
            let turn = Turn {
                late: now - entry.due,
                interval: entry.interval,
                what: entry.what,
            };
            if !is_wanted(&turn.what) {
                self.forget(turn);
                continue;
            }
            let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
            self.next_turn = self.next_turn.max(earliest) + PACE;
            return Some(turn);
        }
    }

    /// Gives back a check that was begun at `began` and has ended: it is due again an interval after it began, but not
    /// before `now`.
    pub(super) fn give_back(&mut self, turn: Turn<T>, began: Instant, now: Instant) {
        if !(self.is_wanted)(&turn.what) {
            return self.forget(turn);
        }
        let jitter = rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER);
        let due = began + self.stretched(turn.interval).mul_f64(jitter);
        self.waiting.push(Reverse(Entry {
            due: due.max(now),
            interval: turn.interval,
            what: turn.what,
        }));
    }

    /// When [`take`](Self::take) is worth another try.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = self.waiting.peek()?;
        Some(first.0.due.max(self.next_turn))
    }

    fn forget(&mut self, turn: Turn<T>) {
        self.asked_for -= turn.interval.checks();
    }

    fn stretched(&self, interval: Interval) -> Duration {
        Duration::from_millis(interval.0.into()).mul_f64(self.stretch())
    }

    fn sweep(&mut self) {
        let (is_wanted, asked_for) = (self.is_wanted, &mut self.asked_for);
        self.waiting.retain(|Reverse(entry)| {
            let stays = is_wanted(&entry.what);
            if !stays {
                *asked_for -= entry.interval.checks();
            }
            stays
        });
        self.waiting.shrink_to(self.waiting.len() * 2);
        self.sweep_at = (self.waiting.len() * 2).max(LEAST_SWEEP);
    }
}

const MILLION: u64 = 1_000_000;

/// From one check to the next, of all.
const PACE: Duration = Duration::from_nanos(1_000_000_000 / MOST_A_SECOND);

impl Interval {
    fn of(interval: Duration) -> Self {
        Self(
            u32::try_from(interval.as_millis())
                .unwrap_or(u32::MAX)
                .max(1),
        )
    }

    /// Checks in a million seconds: whole numbers, so that sums stay exact however often they change.
    fn checks(self) -> u64 {
        1000 * MILLION / u64::from(self.0)
    }
}

struct Entry<T> {
    due: Instant,
    interval: Interval,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn newcomers(
        count: usize,
        interval: Duration,
        first: First,
    ) -> impl ExactSizeIterator<Item = Newcomer<usize>> {
        (0..count).map(move |what| Newcomer {
            what,
            interval,
            first,
        })
    }

    /// Runs checks that take no time until `end`; when each began, by what.
    fn run(
        schedule: &mut Schedule<usize>,
        mut now: Instant,
        end: Instant,
    ) -> Vec<(Instant, usize)> {
        let mut begun = Vec::new();
        while let Some(next) = schedule.next().filter(|next| *next < end) {
            now = now.max(next);
            while let Some(turn) = schedule.take(now) {
                begun.push((now, turn.what));
                schedule.give_back(turn, now, now);
            }
        }
        begun
    }

    fn by_what(begun: &[(Instant, usize)]) -> HashMap<usize, Vec<Instant>> {
        let mut by_what = HashMap::<_, Vec<_>>::new();
        for (at, what) in begun {
            by_what.entry(*what).or_default().push(*at);
        }
        by_what
    }

    #[test]
    fn each_is_checked_every_interval_give_or_take_a_tenth() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(|_| true, begin);
        schedule.admit(newcomers(100, 5 * SECOND, First::Spread), begin);
        assert_eq!(schedule.stretch(), 1.0);
        let begun = run(&mut schedule, begin, begin + 60 * SECOND);
        let by_what = by_what(&begun);
        assert_eq!(by_what.len(), 100);
        let mut intervals = Vec::new();
        for times in by_what.values() {
            assert!(times[0] - begin <= 5 * SECOND);
            intervals.extend(times.windows(2).map(|pair| pair[1] - pair[0]));
        }
        // A turn may have to wait for the pace: a millisecond for each that is due at the same time.
        let within = Duration::from_millis(4500)..Duration::from_millis(5520);
        assert!(intervals.iter().all(|interval| within.contains(interval)));
        let (least, most) = (intervals.iter().min(), intervals.iter().max());
        assert!(
            most.unwrap().saturating_sub(*least.unwrap()) > SECOND / 2,
            "no jitter"
        );
        let first_half = by_what
            .values()
            .filter(|times| times[0] - begin < 5 * SECOND / 2);
        assert!((20..80).contains(&first_half.count()), "not spread");
    }

    #[test]
    fn a_hundred_thousand_are_checked_in_turn_at_a_bounded_even_rate() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(|_| true, begin);
        schedule.admit(newcomers(100_000, 5 * SECOND, First::Spread), begin);
        assert_eq!(schedule.stretch(), 20.0);
        let begun = run(&mut schedule, begin, begin + 300 * SECOND);
        let mut a_second = vec![0; 300];
        for (at, _) in &begun {
            a_second[(*at - begin).as_secs() as usize] += 1;
        }
        // What one catches up with is the next one's.
        let most = MOST_A_SECOND as usize + 21;
        assert!(
            a_second.iter().all(|checks| *checks <= most),
            "{a_second:?}"
        );
        let least = MOST_A_SECOND as usize * 8 / 10;
        assert!(
            a_second[..290].iter().all(|checks| *checks >= least),
            "{a_second:?}"
        );
        let by_what = by_what(&begun);
        assert_eq!(by_what.len(), 100_000, "nobody is left out");
        let times = by_what.values().map(Vec::len);
        let (fewest, most) = (times.clone().min(), times.max());
        assert!(fewest >= Some(2) && most <= Some(4), "{fewest:?} {most:?}");
    }

    #[test]
    fn who_waits_for_the_first_check_gets_it_at_once_within_the_rate() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(|_| true, begin);
        schedule.admit(newcomers(3000, 60 * SECOND, First::AtOnce), begin);
        let begun = run(&mut schedule, begin, begin + 10 * SECOND);
        assert_eq!(begun.len(), 3000);
        let took = begun.last().unwrap().0 - begin;
        assert!((2 * SECOND..4 * SECOND).contains(&took), "{took:?}");
    }

    #[test]
    fn a_check_that_took_longer_than_its_interval_is_due_when_it_ends() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(|_| true, begin);
        schedule.admit(newcomers(1, SECOND, First::AtOnce), begin);
        let turn = schedule.take(begin).expect("due");
        assert_eq!(schedule.next(), None, "it is not due while it is made");
        let ended = begin + 10 * SECOND;
        schedule.give_back(turn, begin, ended);
        assert_eq!(schedule.next(), Some(ended));
    }

    #[test]
    fn what_nobody_wants_is_forgotten_and_asks_for_nothing() {
        fn is_even(what: &usize) -> bool {
            what.is_multiple_of(2)
        }
        let begin = Instant::now();
        let mut schedule = Schedule::new(is_even, begin);
        schedule.admit(newcomers(10, SECOND, First::Spread), begin);
        let begun = run(&mut schedule, begin, begin + 2 * SECOND);
        assert!(begun.iter().all(|(_, what)| is_even(what)));
        assert_eq!(schedule.waiting(), 5);
        assert_eq!(schedule.asked_for, 5 * MILLION);
        // Those that would be due in an hour only.
        for _ in 0..100 {
            schedule.admit(newcomers(100, 3600 * SECOND, First::Spread).map(odd), begin);
        }
        assert!(
            schedule.waiting() < 2 * LEAST_SWEEP,
            "{}",
            schedule.waiting()
        );
        schedule.sweep();
        assert_eq!(schedule.waiting(), 5);
        assert_eq!(schedule.asked_for, 5 * MILLION);
    }

    fn odd(newcomer: Newcomer<usize>) -> Newcomer<usize> {
        let what = newcomer.what * 2 + 1;
        Newcomer { what, ..newcomer }
    }
}
