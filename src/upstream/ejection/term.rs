//! One ejection: until when, why, and the how many-th in a row; packed into a word.

use std::time::Duration;

use super::Fault;
use crate::moment::Moment;

/// One ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// When the upstream gets requests again.
    pub until: Moment,
    /// Ejections in a row, this one included.
    pub times: u8,
    /// What it did last.
    pub fault: Fault,
}

/// It grows up to so many times the first.
const MOST_TIMES: u8 = 10;
/// It grows no longer than this; `ejection` itself may be.
const LONGEST: Duration = Duration::from_secs(300);

impl Term {
    /// The one that begins now. It is as many times `ejection` long as there were in a row; for each `ejection` that
    /// the upstream has stayed in, one of those is forgotten (as Envoy does).
    pub(super) fn begin(
        before: Option<Self>,
        fault: Fault,
        ejection: Duration,
        now: Moment,
    ) -> Self {
        let in_a_row = before.map_or(0, |before| {
            let stayed_in = now.since(before.until).as_millis();
            let forgotten = stayed_in / ejection.as_millis().max(1);
            let forgotten = u8::try_from(forgotten).unwrap_or(u8::MAX);
            before.times.saturating_sub(forgotten)
        });
        let times = (in_a_row + 1).min(MOST_TIMES);
        let length = (ejection * u32::from(times)).min(LONGEST.max(ejection));
        Self {
            until: now.after(length),
            times,
            fault,
        }
    }
}

// From the lowest bit: 40 of `until`, 8 of `times`, 8 of what the fault says beside its kind, 4 of that kind, and whether
// anybody needs to look at `until` still.
const TIMES: u32 = 40;
const DETAIL: u32 = 48;
const KIND: u32 = 56;
const OPEN: u64 = 1 << 63;
const UNTIL: u64 = (1 << TIMES) - 1;

/// As a word that is open. Moments beyond 34 years of the process are cut.
pub(super) fn packed(term: &Term) -> u64 {
    let (kind, detail) = coded(term.fault);
    OPEN | (term.until.as_millis().min(UNTIL))
        | (u64::from(term.times) << TIMES)
        | (u64::from(detail) << DETAIL)
        | (u64::from(kind) << KIND)
}

/// What [`packed`] made; `None` of 0.
pub(super) fn unpacked(bits: u64) -> Option<Term> {
    let byte = |at: u32| ((bits >> at) & 0xFF) as u8;
    let times = byte(TIMES);
    (times > 0).then_some(Term {
        until: Moment::from_millis(bits & UNTIL),
        times,
        fault: decoded(byte(KIND) & 0xF, byte(DETAIL))?,
    })
}

/// Its kind, and what it says beside that.
fn coded(fault: Fault) -> (u8, u8) {
    match fault {
        Fault::Connect => (0, 0),
        Fault::ConnectTimeout => (1, 0),
        Fault::Tls => (2, 0),
        Fault::Reset => (3, 0),
        Fault::Malformed => (4, 0),
        Fault::Timeout => (5, 0),
        Fault::Status(status) => (6, status.saturating_sub(FIRST_STATUS).min(99) as u8),
        Fault::Cut => (7, 0),
        Fault::Share(percent) => (8, percent),
    }
}

fn decoded(kind: u8, detail: u8) -> Option<Fault> {
    Some(match kind {
        0 => Fault::Connect,
        1 => Fault::ConnectTimeout,
        2 => Fault::Tls,
        3 => Fault::Reset,
        4 => Fault::Malformed,
        5 => Fault::Timeout,
        6 => Fault::Status(FIRST_STATUS + u16::from(detail)),
        7 => Fault::Cut,
        8 => Fault::Share(detail),
        _ => return None,
    })
}

/// Lower ones are no faults.
const FIRST_STATUS: u16 = 500;

/// Whether it may be in force.
pub(super) fn is_open(bits: u64) -> bool {
    bits & OPEN != 0
}

/// It is over: nobody needs the clock to know that.
pub(super) fn closed(bits: u64) -> u64 {
    bits & !OPEN
}
