//! What had happened before a watch stood, and whether the watch has brought it all. Pure.
//!
//! What happened may be none of ours, so that nothing comes: then a second watch is asked for a [`Proof`].

use std::time::Duration;

use tokio::time::Instant;

use super::{
    assembly::Response,
    proof::{Proof, Said, Wants},
};
use crate::route::Revision;

/// Where nothing can be asked for, such a silence must do: etcd serves late watches every 100 ms.
const QUIET: Duration = Duration::from_secs(1);
/// And such a one where an answer is owed; whoever is between us and etcd may keep it.
const OWED: Duration = Duration::from_secs(30);

/// What one watch is late for.
#[derive(Debug)]
pub struct Backlog {
    /// What etcd was at when the watch stood.
    through: Revision,
    proof: Proof,
    last_heard: Instant,
}

impl Backlog {
    /// Of a watch that stands since `now`, when etcd was at this revision.
    pub fn through(revision: Revision, now: Instant) -> Self {
        Self {
            through: revision,
            proof: Proof::default(),
            last_heard: now,
        }
    }

    /// The revision up to which it goes.
    pub fn end(&self) -> Revision {
        self.through
    }

    /// The watch brought something.
    pub fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.proof.heard_ours();
    }

    /// Whether all of it has come, if everything up to `revision` has.
    pub fn is_over(&self, revision: Revision, now: Instant) -> bool {
        revision >= self.through || self.proof.is_given() || self.silence_ends() <= now
    }

    /// When silence alone means that all of it has come.
    pub fn silence_ends(&self) -> Instant {
        let patience = match self.proof.is_owed_an_answer() {
            true => OWED,
            false => QUIET,
        };
        self.last_heard + patience
    }

    /// Whether there is a question that etcd has not answered.
    pub fn is_owed_an_answer(&self) -> bool {
        self.proof.is_owed_an_answer()
    }

    /// The second watch was asked for.
    pub fn asked(&mut self) {
        self.proof.asked(Wants::Event);
    }

    /// A response to another watch than ours; the second watch, if that is answered and of no more use.
    pub fn answered(&mut self, response: &Response) -> Option<i64> {
        match self.proof.heard_another(response) {
            Said::Answered(of_no_more_use) => of_no_more_use,
            Said::Nothing | Said::Refused => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::source::Change;

    fn created(watch_id: i64) -> Response {
        Response {
            watch_id,
            created: true,
            ..Response::default()
        }
    }

    fn event(watch_id: i64) -> Response {
        Response {
            watch_id,
            events: vec![Change::Delete {
                key: Bytes::from_static(b"/h/a"),
                mod_revision: 3,
            }],
            ..Response::default()
        }
    }

    fn canceled(watch_id: i64, compact_revision: Revision) -> Response {
        Response {
            watch_id,
            canceled: true,
            compact_revision,
            ..Response::default()
        }
    }

    fn ask(backlog: &mut Backlog, watch_id: i64) {
        assert!(!backlog.is_owed_an_answer());
        backlog.asked();
        assert_eq!(backlog.answered(&created(watch_id)), None);
    }

    #[test]
    fn two_answers_in_a_row_are_proof() {
        let now = Instant::now();
        let mut backlog = Backlog::through(9, now);
        ask(&mut backlog, 1);
        assert_eq!(backlog.answered(&event(1)), Some(1));
        assert!(!backlog.is_over(8, now), "a pass may be under way still");
        ask(&mut backlog, 2);
        assert_eq!(backlog.answered(&canceled(1, 0)), None, "taken back");
        assert_eq!(backlog.answered(&canceled(2, 5)), None);
        assert!(backlog.is_over(8, now), "compacted away is an answer");
    }

    #[test]
    fn what_comes_in_between_voids_the_answers() {
        let now = Instant::now();
        let mut backlog = Backlog::through(9, now);
        ask(&mut backlog, 1);
        backlog.answered(&event(1));
        ask(&mut backlog, 2);
        backlog.heard(now);
        backlog.answered(&event(2));
        ask(&mut backlog, 3);
        backlog.answered(&event(3));
        assert!(!backlog.is_over(8, now));
        assert!(backlog.is_over(9, now), "it is all there");
    }

    #[test]
    fn silence_means_something_where_nothing_can_be_asked() {
        let now = Instant::now();
        let mut backlog = Backlog::through(9, now);
        backlog.heard(now + QUIET / 2);
        assert!(!backlog.is_over(8, now + QUIET));
        assert!(backlog.is_over(8, now + QUIET * 3 / 2));
        backlog.asked();
        assert!(!backlog.is_over(8, now + OWED));
        let mut refused = canceled(-1, 0);
        refused.created = true;
        assert_eq!(backlog.answered(&refused), None);
        assert!(backlog.is_owed_an_answer(), "once is enough");
        assert!(backlog.is_over(8, now + OWED + QUIET));
    }
}
