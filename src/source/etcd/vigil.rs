//! What is done beside a watch: seeing that it lives, and that we have what etcd has. Pure: says what to ask etcd next,
//! and what the answers mean.

use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use super::{
    comparison::{Comparison, Differences},
    connection::range_end,
    fault::Fault,
    identity::Reread,
    known::Known,
    ledger::fleet_prefix,
    pulse::{self, Patience, Pulse, Ring},
    reading::{Content, Page, PageRequest},
    reconcile::{Due, PERIOD, Reconcile},
};
use crate::route::Revision;

/// How often things are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long a watch may be silent: 30 s until a pulse, 5 s for that.
    pub patience: Patience,
    /// How often every key is compared with what etcd has, on average: 1 h.
    pub reconcile: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            patience: Patience::default(),
            reconcile: PERIOD,
        }
    }
}

/// The key that is put to see whether watches live.
pub fn pulse_key(prefix: &[u8]) -> Vec<u8> {
    [&fleet_prefix(prefix)[..], b"waypost/pulse"].concat()
}

/// Watches over one watch after the other. At most one thing is asked at a time.
#[derive(Debug)]
pub struct Vigil {
    prefix: Vec<u8>,
    range_end: Vec<u8>,
    /// Who puts our pulses.
    instance: u64,
    pulse: Pulse,
    reconcile: Reconcile,
    check: Option<Check>,
    random: StdRng,
}

/// What a watch goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footing {
    /// From what the last one brought.
    Resumed,
    /// From what was just read.
    Read,
}

/// What to ask etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Put this key.
    Put { key: Vec<u8>, value: Vec<u8> },
    /// Read a page of this range.
    Page {
        request: PageRequest,
        range_end: Vec<u8>,
    },
}

/// How that ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The key was put, or why not.
    Put(Result<Revision, Fault>),
    /// The page, or why there is none.
    Page(Result<Page, Fault>),
}

impl Outcome {
    /// Whether etcd doesn't know us any more, or not as we are.
    pub fn wants_fresh_login(&self) -> bool {
        let (Self::Put(Err(fault)) | Self::Page(Err(fault))) = self else {
            return false;
        };
        matches!(fault, Fault::Refused(_)) && !fault.is_want_of_rights()
    }
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until [`Vigil::wakes_at`].
    Rest,
    /// Ask this, and tell [`Vigil::answered`].
    Ask(Task),
    /// What we have is right.
    Reconciled,
    /// What we have is wrong: read everything.
    Differs(Differences),
    /// The watch is over for this reason: a new connection.
    Renew(Fault),
    /// No watch brings anything: read everything.
    Reread(Reread),
}

/// What is being asked.
#[derive(Debug)]
enum Check {
    /// To put a pulse. Refused: `Store`.
    Pulse,
    /// How far the store is. Further than we know: `Missed`.
    Store,
    /// What the watch should have brought.
    Missed(Comparison),
    /// How many keys there were at our revision, the fleet's included; then `CountFleet`.
    CountAll { revision: Revision, ours: usize },
    /// How many of them are the fleet's.
    CountFleet {
        revision: Revision,
        ours: usize,
        all: i64,
    },
    /// What there was at our revision.
    Everything(Comparison),
}

impl Vigil {
    /// For watches over the keys below `prefix`.
    pub fn over(prefix: &[u8], pace: Pace, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self {
            prefix: prefix.to_vec(),
            range_end: range_end(prefix),
            instance: random.next_u64(),
            pulse: Pulse::new(pace.patience),
            reconcile: Reconcile::new(Instant::now(), pace.reconcile, random.random()),
            check: None,
            random,
        }
    }

    /// A watch stands; what was asked over the last one is forgotten.
    pub fn standing(&mut self, now: Instant, footing: Footing, known: &Known) {
        self.check = None;
        let random = self.random.random();
        match footing {
            Footing::Resumed => {
                self.pulse.resumed(now, random);
                self.reconcile.resumed(now, known.ledger.len(), random);
            }
            Footing::Read => {
                self.pulse.started(now, random);
                self.reconcile.everything_is_right(now, random);
            }
        }
    }

    /// The watch brought something.
    pub fn heard(&mut self, now: Instant) {
        self.pulse.heard(now, self.random.random());
        if let Some(Check::Pulse | Check::Store | Check::Missed(_)) = self.check {
            self.check = None;
        }
    }

    /// When to [`ring`](Self::ring); `None` while an answer is awaited.
    pub fn wakes_at(&self) -> Option<Instant> {
        if self.check.is_some() {
            return None;
        }
        match self.pulse.at() {
            Some(at) if self.pulse.is_expecting() => Some(at),
            Some(at) => Some(at.min(self.reconcile.at())),
            None => Some(self.reconcile.at()),
        }
    }

    /// It is `now`, the watch stands, nothing is asked: what comes next?
    pub fn ring(&mut self, now: Instant, known: &Known) -> Step {
        match self.pulse.ring(now) {
            Ring::Put => self.ask(Check::Pulse),
            Ring::Look => self.ask(Check::Store),
            Ring::Dead => Step::Renew(Fault::Silent(
                "the watch does not bring what happens, our own pulse included".to_owned(),
            )),
            Ring::DeadAgain => Step::Reread(Reread::Silent),
            Ring::Nothing if self.pulse.is_expecting() => Step::Rest,
            Ring::Nothing => match self.reconcile.due(now) {
                None => Step::Rest,
                Some(Due::Count) => self.ask(Check::CountAll {
                    revision: known.revision,
                    ours: known.ledger.len(),
                }),
                Some(Due::Everything) => {
                    let at = Some(known.revision);
                    let comparison = Comparison::of(&self.prefix, &known.ledger, at);
                    self.ask(Check::Everything(comparison))
                }
            },
        }
    }

    /// What was asked is answered. What the watch has brought meanwhile is in `known`.
    pub fn answered(&mut self, now: Instant, outcome: Outcome, known: &Known) -> Step {
        // Whatever was heard since it was asked has made it pointless.
        let Some(check) = self.check.take() else {
            return Step::Rest;
        };
        match outcome {
            Outcome::Put(result) => self.pulse_answered(now, result),
            Outcome::Page(Ok(page)) if page.cluster_id != known.identity.cluster_id => {
                Step::Renew(Fault::Unreachable("another cluster answers".to_owned()))
            }
            Outcome::Page(Ok(page)) => self.page_answered(now, check, &page, known),
            Outcome::Page(Err(fault)) => self.page_failed(now, check, fault),
        }
    }

    /// A pulse of ours: its key and its value.
    pub fn pulse(&self) -> (Vec<u8>, Vec<u8>) {
        (pulse_key(&self.prefix), pulse::value(self.instance))
    }

    fn pulse_answered(&mut self, now: Instant, result: Result<Revision, Fault>) -> Step {
        match result {
            Ok(_) => {
                self.pulse.expect(now);
                Step::Rest
            }
            Err(fault @ Fault::Silent(_)) => self.unanswered(now, fault),
            Err(fault) => {
                if fault.is_want_of_rights() {
                    self.pulse.may_not_write();
                }
                self.ask(Check::Store)
            }
        }
    }

    fn page_answered(&mut self, now: Instant, check: Check, page: &Page, known: &Known) -> Step {
        match check {
            Check::Pulse => Step::Rest,
            Check::Store if page.revision < known.revision => Step::Renew(Fault::FutureRevision),
            Check::Store if page.revision <= known.revision.max(self.pulse.vouched()) => {
                let random = self.random.random();
                self.pulse.vouch(now, page.revision, 0, random);
                Step::Rest
            }
            Check::Store => {
                let comparison = Comparison::of(&self.prefix, &known.ledger, None);
                self.ask(Check::Missed(comparison))
            }
            Check::Missed(mut comparison) => {
                if !comparison.accept(page) {
                    return self.ask(Check::Missed(comparison));
                }
                let (differences, revision) = comparison.finish();
                if differences.count() > 0 {
                    self.pulse.expect(now);
                } else {
                    let random = self.random.random();
                    (self.pulse).vouch(now, revision, known.ledger.len(), random);
                }
                Step::Rest
            }
            Check::CountAll { revision, ours } => self.ask(Check::CountFleet {
                revision,
                ours,
                all: page.count,
            }),
            Check::CountFleet { ours, all, .. } => {
                let theirs = all.saturating_sub(page.count);
                if usize::try_from(theirs) == Ok(ours) {
                    self.reconcile.count_is_right();
                    return Step::Reconciled;
                }
                self.reconcile.count_is_wrong(now);
                Step::Rest
            }
            Check::Everything(mut comparison) => {
                if !comparison.accept(page) {
                    return self.ask(Check::Everything(comparison));
                }
                let (differences, _) = comparison.finish();
                self.reconcile
                    .everything_is_right(now, self.random.random());
                if differences.count() > 0 {
                    return Step::Differs(differences);
                }
                Step::Reconciled
            }
        }
    }

    fn page_failed(&mut self, now: Instant, mut check: Check, fault: Fault) -> Step {
        // Once connected anew, the witness says what to make of that.
        if fault == Fault::FutureRevision {
            return Step::Renew(fault);
        }
        let is_too_much = matches!(fault, Fault::TooLarge | Fault::Silent(_));
        if let Check::Missed(comparison) | Check::Everything(comparison) = &mut check
            && is_too_much
            && comparison.shrink()
        {
            return self.ask(check);
        }
        let random = self.random.random();
        match check {
            Check::Pulse | Check::Store | Check::Missed(_) => {
                if matches!(fault, Fault::Silent(_)) {
                    return self.unanswered(now, fault);
                }
                self.pulse.learned_nothing(now, random);
            }
            Check::CountAll { .. } | Check::CountFleet { .. } => {
                self.reconcile.failed(Due::Count, now, random);
            }
            Check::Everything(_) => self.reconcile.failed(Due::Everything, now, random),
        }
        Step::Rest
    }

    fn unanswered(&mut self, now: Instant, fault: Fault) -> Step {
        if self.pulse.unanswered(now) {
            return Step::Renew(fault);
        }
        Step::Rest
    }

    fn ask(&mut self, check: Check) -> Step {
        let task = self.task(&check);
        self.check = Some(check);
        Step::Ask(task)
    }

    fn task(&self, check: &Check) -> Task {
        let count = |start: Vec<u8>, range_end, revision| Task::Page {
            request: PageRequest {
                start,
                limit: 1,
                revision,
                content: Content::Count,
            },
            range_end,
        };
        let fleet = fleet_prefix(&self.prefix);
        let pulse = pulse_key(&self.prefix);
        match check {
            Check::Pulse => {
                let (key, value) = self.pulse();
                Task::Put { key, value }
            }
            Check::Store => {
                let behind = [&pulse[..], b"\0"].concat();
                count(pulse, behind, None)
            }
            Check::CountAll { revision, .. } => {
                let start = self.prefix.clone();
                count(start, self.range_end.clone(), Some(*revision))
            }
            Check::CountFleet { revision, .. } => {
                let behind = range_end(&fleet);
                count(fleet, behind, Some(*revision))
            }
            Check::Missed(comparison) | Check::Everything(comparison) => Task::Page {
                request: comparison.request(),
                range_end: self.range_end.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
