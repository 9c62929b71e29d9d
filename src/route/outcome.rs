//! What becomes of requests, held against the members they were sent to.

use std::sync::Mutex;

use super::{Member, Route};
use crate::{
    moment::Moment,
    upstream::ejection::{Counted, Ejection, Fault, Tally, Term, Window},
};

/// Held while somebody counts who is out and ejects one more, so that two workers don't do so at one time and eject
/// too many. Nobody waits for it: the next failure is as good.
static EJECTING: Mutex<()> = Mutex::new(());

impl Member {
    /// Whether it is ejected, as far as this route goes.
    pub fn ejection(&self) -> &Ejection {
        let own = self.standing.as_ref().and_then(|s| s.ejection.as_deref());
        own.unwrap_or(&self.upstream.ejection)
    }

    fn window(&self) -> Option<&Window> {
        self.standing.as_ref()?.window.as_deref()
    }

    /// Whether requests may come to it at all.
    fn takes_any_requests(&self) -> bool {
        self.weight > 0 && !self.is_alias
    }
}

/// So many members are looked at per failure, on average, to see whether one of them stands out.
const LOOKS: usize = 16;

impl Route {
    /// A request was answered well by this member.
    pub fn succeeded(&self, member: usize, now: impl FnOnce() -> Moment) {
        let member = &self.members[member];
        member.ejection().succeeded();
        if let Some(window) = member.window() {
            window.count(Counted::Success, now());
        }
    }

    /// A request failed at this member, which had been ejected `ejections` times when it was sent there. What comes of
    /// it: an ejection, or nothing.
    pub fn failed(&self, member: usize, fault: Fault, ejections: u32, now: Moment) -> Option<Term> {
        let (member, settings) = (&self.members[member], &self.settings.outlier);
        let ejection = member.ejection();
        if ejection.count() != ejections || ejection.is_in_force_at(|| now) {
            return None;
        }
        if let Some(window) = member.window() {
            let counted = match fault {
                Fault::Cut => Counted::Cut,
                _ => Counted::Failure,
            };
            window.count(counted, now);
        }
        let in_a_row = ejection.failed(fault, settings);
        let fault = match in_a_row {
            true => fault,
            false => Fault::Share(self.stands_out(member, now)?),
        };
        let Ok(_guard) = EJECTING.try_lock() else {
            return None;
        };
        if !self.may_eject(member, now) {
            ejection.spare();
            return None;
        }
        let ejected = ejection.eject(fault, settings, now);
        if let Some(window) = member.window().filter(|_| ejected.is_some()) {
            window.clear();
        }
        ejected
    }

    /// The share of failures, in percent, by which a member that failed once more has become an outlier; `None`: it hasn't.
    fn stands_out(&self, member: &Member, now: Moment) -> Option<u8> {
        let settings = &self.settings.outlier;
        let (window, percent) = member.window().zip(settings.failure_percent)?;
        let own = window.tally(now);
        let stride = (self.members.len() / LOOKS) as u64 + 1;
        if !own.failures.is_multiple_of(stride) {
            return None;
        }
        let others = self
            .siblings(member)
            .filter(|other| !std::ptr::eq(*other, member));
        let tallies = others.filter_map(|other| Some(other.window()?.tally(now)));
        let others = tallies.fold(Tally::default(), Tally::and);
        own.stands_out(percent.get(), settings.min_requests, others)
            .then(|| own.percent())
    }

    /// Those that get the same requests as this member, and itself.
    fn siblings(&self, member: &Member) -> impl Iterator<Item = &Member> {
        let role = member.role;
        let is_sibling = move |other: &&Member| other.role == role && other.takes_any_requests();
        self.members.iter().filter(is_sibling)
    }

    /// Whether `max_ejected_percent` leaves room for one more.
    fn may_eject(&self, member: &Member, now: Moment) -> bool {
        let (mut all, mut out) = (0, 0);
        for sibling in self.siblings(member) {
            all += 1;
            out += usize::from(sibling.ejection().is_in_force_at(|| now));
        }
        match usize::from(self.settings.outlier.max_ejected_percent) {
            0 => false,
            percent => out == 0 || (out + 1) * 100 <= all * percent,
        }
    }
}

#[cfg(test)]
mod tests;
