//! Whether a watch that began in the past has brought all there was. Pure.
//!
//! No answer of etcd says so: progress requests don't (etcd 3.4 answers them at once, and a gRPC proxy never), and silence
//! doesn't either, as etcd says nothing while it looks up what a late watch is to bring. So a second watch asks over the
//! same stream for something that etcd has for sure. Both are served in passes, one after the other, and what is for
//! one stream is sent in its order. The first answer shows that a pass has begun since ours was due, the second that it
//! is over, and all it had for us sent before.

use etcd_client::proto::PbWatchResponse;

use super::assembly::Response;
use crate::route::Revision;

/// How many answers in a row are proof, with nothing of ours between them.
const ANSWERS: u32 = 2;

/// What is asked about one watch, and what that has shown so far.
#[derive(Debug, Default)]
pub struct Proof {
    question: Option<Question>,
    answers: u32,
}

/// The second watch.
#[derive(Debug)]
struct Question {
    /// `None` until etcd says so.
    watch: Option<i64>,
    wants: Wants,
    /// Something of ours came after it was asked: its answer shows nothing.
    is_void: bool,
}

/// What answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// An event that etcd has.
    Event,
    /// That the watch is taken up, which happens between two passes: where nothing is sure to come.
    Watch,
}

/// What a response to another watch than ours says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that was asked.
    Nothing,
    /// Etcd doesn't let us ask: the question stays owed, so that it isn't asked again and again.
    Refused,
    /// The answer, after which this watch is of no more use; `None` if it is over by itself.
    Answered(Option<i64>),
}

/// What of a response matters here.
#[derive(Clone, Copy, Debug)]
pub struct Sign {
    watch_id: i64,
    created: bool,
    canceled: bool,
    compact_revision: Revision,
    has_events: bool,
}

impl Proof {
    /// Our watch brought something.
    pub fn heard_ours(&mut self) {
        self.answers = 0;
        if let Some(question) = &mut self.question {
            question.is_void = true;
        }
    }

    /// Whether our watch has brought all there was.
    pub fn is_given(&self) -> bool {
        self.answers >= ANSWERS
    }

    /// Whether there is a question that etcd has not answered.
    pub fn is_owed_an_answer(&self) -> bool {
        self.question.is_some()
    }

    /// The second watch was asked for.
    pub fn asked(&mut self, wants: Wants) {
        self.question = Some(Question {
            watch: None,
            wants,
            is_void: false,
        });
    }

    /// A response to another watch than ours: the second one, or an earlier one that is taken back already.
    pub fn heard_another(&mut self, sign: impl Into<Sign>) -> Said {
        let sign = sign.into();
        let Some(question) = &mut self.question else {
            return Said::Nothing;
        };
        let is_taken_up = question.watch.is_none() && sign.created;
        if is_taken_up {
            question.watch = Some(sign.watch_id);
        }
        if question.watch != Some(sign.watch_id) {
            return Said::Nothing;
        }
        if sign.canceled && sign.compact_revision == 0 {
            self.answers = 0;
            return Said::Refused;
        }
        // Who tells that an event is compacted away has come to it, too.
        let has_come = match question.wants {
            Wants::Event => sign.has_events || sign.canceled,
            Wants::Watch => true,
        };
        if !has_come {
            return Said::Nothing;
        }
        self.answers = match question.is_void {
            true => 0,
            false => self.answers + 1,
        };
        self.question = None;
        Said::Answered((!sign.canceled).then_some(sign.watch_id))
    }
}

impl From<&Response> for Sign {
    fn from(response: &Response) -> Self {
        Self {
            watch_id: response.watch_id,
            created: response.created,
            canceled: response.canceled,
            compact_revision: response.compact_revision,
            has_events: !response.events.is_empty(),
        }
    }
}

impl From<&PbWatchResponse> for Sign {
    fn from(response: &PbWatchResponse) -> Self {
        Self {
            watch_id: response.watch_id,
            created: response.created,
            canceled: response.canceled,
            compact_revision: response.compact_revision,
            has_events: !response.events.is_empty(),
        }
    }
}
