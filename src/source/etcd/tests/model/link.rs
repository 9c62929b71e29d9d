//! A connection to one member of the model.

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use tokio::time::sleep;

use super::super::super::{
    connection::{CALL_TIME, silent},
    fault::Fault,
    identity::{Testimony, Witness},
    reading::{Content, Page, PageRequest},
    transport::{Responses, Transport},
};
use super::{Model, State, stream::Stream};
use crate::{route::Revision, source::Entry};

/// A connection; once cut, it stays so.
#[derive(Clone)]
pub struct Link {
    pub(super) model: Model,
    pub(super) member: usize,
    cuts: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    Failed,
    Refused,
}

impl Link {
    pub fn to(model: &Model, member: usize) -> Self {
        let cuts = model.state().members[member].cuts;
        Self {
            model: model.clone(),
            member,
            cuts,
        }
    }

    /// Why nothing comes over it any more.
    pub(super) fn broken(&self, state: &State) -> Option<Fault> {
        let member = &state.members[self.member];
        (member.is_down || member.cuts != self.cuts)
            .then(|| Fault::Unreachable("the connection is broken".to_owned()))
    }

    /// A request and its answer, each of which takes its time and may be lost.
    pub(super) async fn call<T: Send>(
        &self,
        answer: impl FnOnce(&mut State) -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        self.travel().await?;
        let answer = answer(&mut self.model.state());
        self.travel().await?;
        answer
    }

    async fn travel(&self) -> Result<(), Fault> {
        let (fate, delay) = self.fate();
        // Not even a moment, sometimes: then nothing can come in between.
        if !delay.is_zero() {
            sleep(delay).await;
        }
        match fate {
            Fate::Lost => {
                sleep(CALL_TIME).await;
                Err(silent("the model"))
            }
            Fate::Failed => Err(Fault::Unreachable("etcdserver: no leader".to_owned())),
            Fate::Refused => Err(Fault::Refused("invalid auth token".to_owned())),
            Fate::Arrives => match self.broken(&self.model.state()) {
                Some(fault) => Err(fault),
                None => Ok(()),
            },
        }
    }

    fn fate(&self) -> (Fate, Duration) {
        let state = &mut *self.model.state();
        let delay = state.delay();
        if state.members[self.member].is_silent {
            return (Fate::Lost, delay);
        }
        if !state.happens(state.weather.lost_calls) {
            return (Fate::Arrives, delay);
        }
        state.note("a call failed");
        let fates = [Fate::Lost, Fate::Failed, Fate::Refused];
        (fates[state.random.random_range(0..fates.len())], delay)
    }
}

impl Transport for Link {
    type Watch = Stream;

    /// Linearizable, so a lagging member answers like any other.
    async fn page(&self, request: PageRequest, range_end: &[u8]) -> Result<Page, Fault> {
        let range = Bytes::from(request.start.clone())..Bytes::copy_from_slice(range_end);
        self.call(|state| {
            let is_further = request.start.ends_with(b"\0");
            if request.limit > 100 && state.happens(state.weather.lost_calls) {
                state.note("a page was too large");
                return Err(Fault::TooLarge);
            }
            let limit = usize::try_from(request.limit).expect("a positive limit");
            let limit = match request.content {
                Content::Count => 0,
                Content::Entries | Content::Keys => limit.min(state.weather.page_limit),
            };
            let history = state.history();
            let keys = history.read(request.revision)?;
            let entry = |entry: &Entry| Entry {
                value: match request.content {
                    Content::Entries => entry.value.clone(),
                    Content::Keys | Content::Count => Bytes::new(),
                },
                ..entry.clone()
            };
            let found = || keys.range(range.clone()).map(|(_, entry)| entry);
            let count = found().count();
            let page = Page {
                entries: found().take(limit).map(entry).collect(),
                more: count > limit,
                count: i64::try_from(count).expect("few"),
                cluster_id: history.cluster_id,
                revision: history.revision(),
            };
            if page.more {
                state.note("a read took several pages");
            }
            if is_further && request.revision.is_none() {
                state.note("a read gave up its pin");
            }
            Ok(page)
        })
        .await
    }

    async fn ask(&self, witness: &Witness, revision: Revision) -> Result<Testimony, Fault> {
        self.call(|state| {
            let history = state.history();
            Ok(match history.read(Some(revision)) {
                Err(Fault::Compacted) => Testimony::Compacted,
                Err(_) => Testimony::FutureRevision,
                Ok(keys) => Testimony::Read {
                    cluster_id: history.cluster_id,
                    found: keys.get(&witness.key).map(Witness::from),
                },
            })
        })
        .await
    }

    async fn put(&self, key: &[u8], value: Vec<u8>) -> Result<Revision, Fault> {
        self.call(|_| Ok(())).await?;
        Ok(self.model.change(|state| {
            state.note("a pulse");
            let history = state.history();
            history.put(key, value);
            history.revision()
        }))
    }

    async fn watch(
        &self,
        _prefix: &[u8],
        _range_end: &[u8],
        revision: Revision,
        _: Responses,
    ) -> Result<Stream, Fault> {
        self.call(|_| Ok(())).await?;
        Ok(Stream::over(self.clone(), revision))
    }
}
