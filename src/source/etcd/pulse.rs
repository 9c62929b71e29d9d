//! Does the watch still bring what happens? Nothing but silence tells a watch that died from a quiet store. So whoever
//! heard nothing for a while puts a key, the pulse, which every instance then hears: one write per fleet and period.
//! Pure: says when to do what.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::time::Instant;

use crate::route::Revision;

/// So many puts without an answer in a row, and another member is asked.
const MOST_UNANSWERED: u32 = 3;
/// What a read of so many keys may be repeated after: some 4 us of etcd's time each make 4 ms in a second.
const KEYS_A_SECOND: u32 = 1_000;

/// How long a watch may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until a pulse is put; up to half of it more, so that a fleet doesn't in step.
    pub silence: Duration,
    /// From a pulse that was put until the watch must have brought it.
    pub unseen: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            unseen: Duration::from_secs(5),
        }
    }
}

/// The state of one watch after the other.
#[derive(Debug)]
pub struct Pulse {
    patience: Patience,
    state: State,
    /// The watch before this one was given up, and what it owed has not come yet.
    owed: bool,
    may_write: bool,
    unanswered: u32,
    /// A read at this revision of the store has shown nothing that the watch should have brought.
    vouched: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No watch stands, or something came lately. Silent until this moment: `Asking`.
    Listening { until: Option<Instant> },
    /// A pulse is being put, or etcd is asked whether the watch should have brought something. If it should:
    /// `Expecting`, else `Listening`.
    Asking,
    /// The watch owes us something. It comes: `Listening`. It doesn't until this moment: the watch is dead.
    Expecting { until: Instant },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Nothing yet.
    Nothing,
    /// Put a pulse.
    Put,
    /// Without the right to put: see by a read what the watch should have brought.
    Look,
    /// The watch is dead: a new one.
    Dead,
    /// A second watch has brought nothing of what it owed: read everything.
    DeadAgain,
}

impl Pulse {
    /// Before the first watch.
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            state: State::Listening { until: None },
            owed: false,
            may_write: true,
            unanswered: 0,
            vouched: 0,
        }
    }

    /// A watch stands that goes on where the last one ended; what that one owed, this one owes. `random` is from 0 to 1,
    /// here and below.
    pub fn resumed(&mut self, now: Instant, random: f64) {
        self.may_write = true;
        if self.owed {
            self.expect(now);
        } else {
            self.heard(now, random);
        }
    }

    /// A watch stands that goes on from what was just read, perhaps of another history: nothing is owed.
    pub fn started(&mut self, now: Instant, random: f64) {
        self.may_write = true;
        self.vouched = 0;
        self.heard(now, random);
    }

    /// The watch brought something, whatever it is.
    pub fn heard(&mut self, now: Instant, random: f64) {
        self.owed = false;
        self.unanswered = 0;
        self.listen(now, self.patience.silence.mul_f64(1.0 + random / 2.0));
    }

    /// When to [`ring`](Self::ring); `None` while it is asked or no watch stands.
    pub fn at(&self) -> Option<Instant> {
        match self.state {
            State::Listening { until } => until,
            State::Asking => None,
            State::Expecting { until } => Some(until),
        }
    }

    /// Whether the watch owes us something.
    pub fn is_expecting(&self) -> bool {
        matches!(self.state, State::Expecting { .. })
    }

    /// It is `now`: what is to be done?
    pub fn ring(&mut self, now: Instant) -> Ring {
        if self.at().is_none_or(|at| now < at) {
            return Ring::Nothing;
        }
        if !self.is_expecting() {
            self.state = State::Asking;
            return if self.may_write {
                Ring::Put
            } else {
                Ring::Look
            };
        }
        self.state = State::Listening { until: None };
        self.owed = !self.owed;
        if self.owed {
            Ring::Dead
        } else {
            Ring::DeadAgain
        }
    }

    /// The pulse was put, or a read has shown something that the watch has not brought: it owes us that.
    pub fn expect(&mut self, now: Instant) {
        self.unanswered = 0;
        self.state = State::Expecting {
            until: now + self.patience.unseen,
        };
    }

    /// Puts are refused for want of the right: until the next watch, none is tried.
    pub fn may_not_write(&mut self) {
        self.may_write = false;
    }

    /// Up to which revision of the store the watch is known to owe nothing.
    pub fn vouched(&self) -> Revision {
        self.vouched
    }

    /// A read at this revision of the store, over so many keys, has shown nothing that the watch owes.
    pub fn vouch(&mut self, now: Instant, revision: Revision, keys: usize, random: f64) {
        self.vouched = revision;
        self.unanswered = 0;
        let keys = u32::try_from(keys).unwrap_or(u32::MAX);
        let affordable = Duration::from_secs((keys / KEYS_A_SECOND).into());
        let silence = self.patience.silence.max(affordable);
        self.listen(now, silence.mul_f64(1.0 + random / 2.0));
    }

    /// Nothing was learned, though etcd answered: asked again when it was silent for as long once more.
    pub fn learned_nothing(&mut self, now: Instant, random: f64) {
        self.listen(now, self.patience.silence.mul_f64(1.0 + random / 2.0));
    }

    /// etcd didn't answer. Whether that was once too often.
    pub fn unanswered(&mut self, now: Instant) -> bool {
        self.unanswered += 1;
        let too_often = self.unanswered >= MOST_UNANSWERED;
        if too_often {
            self.unanswered = 0;
        }
        self.listen(now, self.patience.unseen);
        too_often
    }

    fn listen(&mut self, now: Instant, patience: Duration) {
        self.state = State::Listening {
            until: Some(now + patience),
        };
    }
}

/// The value of a pulse; for people who wonder.
pub fn value(instance: u64) -> Vec<u8> {
    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    json!({"instance": format!("{instance:016x}"), "at": at})
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(30);
    const UNSEEN: Duration = Duration::from_secs(5);

    fn started(now: Instant) -> Pulse {
        let mut pulse = Pulse::new(Patience::default());
        pulse.started(now, 0.0);
        pulse
    }

    /// Rings when it wants to; that moment, and what is to be done.
    fn ring(pulse: &mut Pulse) -> (Instant, Ring) {
        let at = pulse.at().expect("it has a moment");
        assert_eq!(pulse.ring(at - Duration::from_millis(1)), Ring::Nothing);
        (at, pulse.ring(at))
    }

    #[test]
    fn silence_leads_to_a_pulse_to_a_new_watch_and_to_a_read() {
        let start = Instant::now();
        let mut pulse = started(start);
        assert_eq!(ring(&mut pulse), (start + SILENCE, Ring::Put));
        assert_eq!(pulse.at(), None, "the answer is awaited");
        let mut now = start + SILENCE;
        pulse.expect(now);
        now += UNSEEN;
        assert_eq!(ring(&mut pulse), (now, Ring::Dead));
        assert_eq!(pulse.at(), None, "no watch stands");
        pulse.resumed(now, 0.0);
        now += UNSEEN;
        assert_eq!(ring(&mut pulse), (now, Ring::DeadAgain));
        pulse.started(now, 0.0);
        assert_eq!(ring(&mut pulse), (now + SILENCE, Ring::Put));
    }

    #[test]
    fn whatever_is_heard_starts_the_silence_anew() {
        let start = Instant::now();
        let later = start + Duration::from_secs(20);
        let listening = || started(start);
        let asking = || {
            let mut pulse = started(start);
            ring(&mut pulse);
            pulse
        };
        let expecting = || {
            let mut pulse = asking();
            pulse.expect(start);
            pulse
        };
        let owed = || {
            let mut pulse = expecting();
            ring(&mut pulse);
            pulse.resumed(start, 0.0);
            pulse
        };
        for mut pulse in [listening(), asking(), expecting(), owed()] {
            pulse.heard(later, 0.0);
            assert_eq!(ring(&mut pulse), (later + SILENCE, Ring::Put));
            pulse.expect(later);
            assert_eq!(ring(&mut pulse), (later + UNSEEN, Ring::Dead));
        }
    }

    #[test]
    fn what_is_read_is_owed_no_more() {
        let start = Instant::now();
        let mut pulse = started(start);
        ring(&mut pulse);
        pulse.expect(start);
        assert_eq!(ring(&mut pulse).1, Ring::Dead);
        pulse.started(start, 0.0);
        assert_eq!(ring(&mut pulse), (start + SILENCE, Ring::Put));
    }

    #[test]
    fn jitter_adds_up_to_half() {
        let start = Instant::now();
        let mut pulse = started(start);
        pulse.heard(start, 1.0);
        assert_eq!(pulse.at(), Some(start + SILENCE + SILENCE / 2));
    }

    #[test]
    fn who_may_not_write_looks_until_the_next_watch() {
        let start = Instant::now();
        let mut pulse = started(start);
        assert_eq!(ring(&mut pulse).1, Ring::Put);
        pulse.may_not_write();
        pulse.vouch(start, 7, 10, 0.0);
        assert_eq!(pulse.vouched(), 7);
        assert_eq!(ring(&mut pulse), (start + SILENCE, Ring::Look));
        pulse.vouch(start, 8, 1_000_000, 0.0);
        let affordable = Duration::from_secs(1_000);
        assert_eq!(ring(&mut pulse), (start + affordable, Ring::Look));
        pulse.resumed(start, 0.0);
        assert_eq!(ring(&mut pulse).1, Ring::Put);
    }

    #[test]
    fn a_third_silence_in_a_row_is_too_much() {
        let start = Instant::now();
        let mut pulse = started(start);
        for _ in 0..2 {
            for expected in [false, false, true] {
                assert_eq!(ring(&mut pulse).1, Ring::Put);
                assert_eq!(pulse.unanswered(start), expected);
                assert_eq!(pulse.at(), Some(start + UNSEEN));
            }
        }
        pulse.unanswered(start);
        pulse.unanswered(start);
        pulse.heard(start, 0.0);
        assert!(!pulse.unanswered(start), "they must be in a row");
    }

    /// A hundred instances hear the same pulse. Who is first is heard by all others 100 ms later.
    #[test]
    fn a_fleet_puts_few_pulses_a_period() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(1);
        let mut now = Instant::now();
        let start = now;
        let mut fleet: Vec<_> = (0..100).map(|_| started(now)).collect();
        let mut puts = 0;
        for pulse in &mut fleet {
            pulse.heard(now, random.random());
        }
        for _ in 0..100 {
            now = fleet.iter().filter_map(Pulse::at).min().unwrap();
            now += Duration::from_millis(100);
            puts += (fleet.iter_mut())
                .map(|pulse| pulse.ring(now))
                .filter(|ring| *ring == Ring::Put)
                .count();
            for pulse in &mut fleet {
                pulse.heard(now, random.random());
            }
        }
        assert!(now - start > 100 * SILENCE);
        assert!(puts < 250, "{puts} puts in 100 periods");
    }
}
