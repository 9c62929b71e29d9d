//! Where the source stands between two things that can fail: what it has, and so what comes next. Pure.

use super::{identity::Reread, known::Known, reading::CatchUp};
use crate::source::History;

/// What we have, and so what comes next.
#[derive(Debug)]
pub enum State {
    /// Nothing that a watch could go on from. Read everything, at whichever endpoint answers; on success
    /// `Watching`, or `CatchingUp` if compaction outran the read. A failure stays here.
    Snapshot {
        /// Why.
        reason: Reread,
        /// What was passed on before, to hold against what is read; `None` at the start.
        known: Option<Known>,
    },
    /// Everything, but from several revisions; a watch brings what is missing. On success `Watching`, on any
    /// failure `Snapshot`.
    CatchingUp {
        /// What was read.
        catch_up: CatchUp,
        /// Why it was read.
        reason: Reread,
        /// As in `Snapshot`.
        known: Option<Known>,
    },
    /// Everything up to this revision was passed on. A lost watch stays here and resumes at it, once the witness has
    /// vouched for the history; compaction and another history lead to `Snapshot`.
    Watching(Known),
}

impl State {
    /// Nothing is known.
    pub fn start() -> Self {
        Self::Snapshot {
            reason: Reread::Start,
            known: None,
        }
    }

    /// What was passed on last.
    pub fn known(&self) -> Option<&Known> {
        match self {
            Self::Snapshot { known, .. } | Self::CatchingUp { known, .. } => known.as_ref(),
            Self::Watching(known) => Some(known),
        }
    }

    /// No watch goes on from here: everything is to be read, for this reason unless there is one already.
    pub fn read_anew(&mut self, reason: Reread) {
        *self = match self.take() {
            Self::Watching(known) => Self::Snapshot {
                reason,
                known: Some(known),
            },
            Self::Snapshot { reason, known } | Self::CatchingUp { reason, known, .. } => {
                Self::Snapshot { reason, known }
            }
        };
    }

    /// What the cluster that answers now says of the history that we know. It counts for more than what another said
    /// before.
    pub fn judged(&mut self, verdict: Result<(), Reread>) {
        *self = match (self.take(), verdict) {
            (
                Self::Snapshot {
                    reason,
                    known: Some(known),
                },
                Ok(()),
            ) if reason.history() == History::Another => Self::Watching(known),
            (state, Ok(())) => state,
            (Self::Snapshot { known, .. } | Self::CatchingUp { known, .. }, Err(reason)) => {
                Self::Snapshot { reason, known }
            }
            (Self::Watching(known), Err(reason)) => Self::Snapshot {
                reason,
                known: Some(known),
            },
        };
    }

    /// Itself, by value; nothing is known here then.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::etcd::reading::{Everything, Page, Reading};

    fn known() -> Known {
        Known::of(b"/h/", 1, 7, &[])
    }

    fn catch_up() -> CatchUp {
        let page = |revision| Page {
            entries: Vec::new(),
            more: false,
            count: 0,
            cluster_id: 1,
            revision,
        };
        let mut reading = Reading::below(b"/h/");
        (0..3).for_each(|_| reading.restart());
        for revision in [8, 9] {
            reading.accept(page(revision)).expect("it fits");
        }
        match reading.finish() {
            Everything::Unpinned(catch_up) => catch_up,
            Everything::Pinned { .. } => panic!("it is"),
        }
    }

    /// All there are, once something was passed on.
    fn states() -> [State; 3] {
        [
            State::Watching(known()),
            State::Snapshot {
                reason: Reread::Silent,
                known: Some(known()),
            },
            State::CatchingUp {
                catch_up: catch_up(),
                reason: Reread::Silent,
                known: Some(known()),
            },
        ]
    }

    #[test]
    fn what_is_known_is_kept_until_something_else_is() {
        let reasons = [Reread::Compacted, Reread::Silent, Reread::Silent];
        for (mut state, expected) in states().into_iter().zip(reasons) {
            state.read_anew(Reread::Compacted);
            assert_eq!(state.known().map(|known| known.revision), Some(7));
            assert!(matches!(state, State::Snapshot { reason, .. } if reason == expected));
        }
        for mut state in states() {
            state.judged(Err(Reread::Behind));
            assert_eq!(state.known().map(|known| known.revision), Some(7));
            assert!(matches!(
                state,
                State::Snapshot {
                    reason: Reread::Behind,
                    ..
                }
            ));
            // The next cluster that answers is ours.
            state.judged(Ok(()));
            assert!(matches!(state, State::Watching(known) if known.revision == 7));
        }
    }

    #[test]
    fn what_is_to_be_read_within_our_history_is_read_though_it_is_ours() {
        let mut state = State::Watching(known());
        state.judged(Ok(()));
        assert!(matches!(state, State::Watching(_)));
        state.read_anew(Reread::Difference);
        state.judged(Ok(()));
        assert!(matches!(
            state,
            State::Snapshot {
                reason: Reread::Difference,
                known: Some(_)
            }
        ));
    }
}
