//! An etcd of one member that does to watches and calls what a test says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    route::Revision,
    source::{
        Change, Entry,
        etcd::{
            assembly::Response,
            fault::Fault,
            identity::{Testimony, Witness},
            reading::{Content, Page, PageRequest},
            transport::{Connect, Responses, Transport, Watch},
        },
    },
};

const CLUSTER: u64 = 1;

/// The store, and what befalls who asks it.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<Store>>);

#[derive(Default)]
pub struct Store {
    revision: Revision,
    pub history: Vec<Change>,
    watches: Vec<mpsc::UnboundedSender<Response>>,
    /// New watches stand, and bring nothing.
    pub are_watches_deaf: bool,
    /// What new watches are late for is more than we decode if asked for like this.
    pub too_large: Vec<Responses>,
    /// etcd is busy, and what it owes to new watches is still to come.
    pub is_busy: bool,
    owed: Vec<(mpsc::UnboundedSender<Response>, Response)>,
    /// What watches say whose they are; 0 is nothing.
    pub watched_cluster: u64,
    /// What becomes of puts.
    pub puts_end_in: Option<Fault>,
    /// No token is accepted but that of a later connection.
    pub tokens_until: usize,
    /// What was before it is forgotten.
    pub compacted: Revision,
    /// So many of the next fail.
    pub page_faults: usize,
    pub ask_faults: usize,
    /// Pages that fail do because what they are to show is compacted away.
    pub are_pages_compacted: bool,
    /// As though larger pages were too large for one answer.
    pub page_limit: Option<usize>,
    /// Before each page is read, these keys are put.
    pub changes_while_read: Vec<&'static str>,
    /// And something elsewhere in the store.
    pub moves_while_read: bool,
    /// And then all is compacted.
    pub compacts_while_read: bool,
    /// A watch brings what it is late for event by event.
    pub is_told_piecemeal: bool,
    /// How often each was done.
    pub connects: usize,
    pub watched: usize,
    pub puts: usize,
    pub pages: usize,
}

impl Fake {
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().expect("no test panics while it holds this")
    }

    /// Puts a key.
    pub fn put(&self, key: &str) -> Revision {
        self.store().put(key.as_bytes(), true)
    }

    /// Puts a key, and no watch that stands hears of it.
    pub fn put_unheard(&self, key: &str) -> Revision {
        self.store().put(key.as_bytes(), false)
    }

    /// What is written elsewhere in the store.
    pub fn put_elsewhere(&self) {
        self.store().revision += 1;
    }

    /// Watches that stand bring nothing any more, and don't end.
    pub fn silence_watches(&self) {
        self.store().watches.clear();
    }

    /// etcd comes to what it owes, which is so many responses.
    pub fn serve(&self) -> usize {
        let mut store = self.store();
        store.is_busy = false;
        let owed = std::mem::take(&mut store.owed);
        let count = owed.len();
        for (watch, response) in owed {
            watch.send(response).ok();
        }
        count
    }

    /// Tells everything that the watches heard last once more.
    pub fn repeat(&self) {
        let mut store = self.store();
        let again = store.history.iter().rev().take(3).rev().cloned().collect();
        store.tell(again);
    }

    /// Another history takes its place, unnoticed by the watches; what was there.
    pub fn lose_history(&self) -> Vec<Change> {
        std::mem::take(&mut self.store().history)
    }

    /// All that was there so far is forgotten, but for what it came to.
    pub fn compact(&self) {
        let mut store = self.store();
        store.compacted = store.revision;
    }

    /// Watches that stand are ended.
    pub fn end_watches(&self) {
        self.end_watches_by(0);
    }

    /// Watches that stand are ended, above 0 because what they are late for is compacted away up to there.
    pub fn end_watches_by(&self, compact_revision: Revision) {
        let over = Response {
            canceled: true,
            compact_revision,
            cancel_reason: "because".to_owned(),
            ..Response::default()
        };
        let mut store = self.store();
        store
            .watches
            .retain(|watch| watch.send(over.clone()).is_err());
    }
}

impl Store {
    fn put(&mut self, key: &[u8], heard: bool) -> Revision {
        self.revision += 1;
        let put = Change::Put(Entry {
            key: Bytes::copy_from_slice(key),
            value: Bytes::new(),
            mod_revision: self.revision,
            lease: 0,
        });
        self.history.push(put.clone());
        if heard {
            self.tell(vec![put]);
        }
        self.revision
    }

    fn tell(&mut self, events: Vec<Change>) {
        let response = Response {
            events,
            cluster_id: self.watched_cluster,
            revision: self.revision,
            ..Response::default()
        };
        self.watches
            .retain(|watch| watch.send(response.clone()).is_ok());
    }

    /// What comes in its turn.
    fn owe(&mut self, watch: &mpsc::UnboundedSender<Response>, response: Response) {
        if self.is_busy {
            self.owed.push((watch.clone(), response));
        } else {
            watch.send(response).ok();
        }
    }

    fn at(&self, revision: Revision) -> BTreeMap<Bytes, Entry> {
        let until = |change: &&Change| change.mod_revision() <= revision;
        let entries = self
            .history
            .iter()
            .take_while(until)
            .filter_map(|change| match change {
                Change::Put(entry) => Some((entry.key.clone(), entry.clone())),
                Change::Delete { .. } => None,
            });
        entries.collect()
    }
}

impl Connect for Fake {
    type Transport = Call;

    fn endpoints(&self) -> &[String] {
        static ENDPOINTS: std::sync::OnceLock<[String; 1]> = std::sync::OnceLock::new();
        ENDPOINTS.get_or_init(|| ["http://fake".to_owned()])
    }

    async fn connect(&self, _: &str) -> Result<Call, Fault> {
        let mut store = self.store();
        store.connects += 1;
        Ok(Call {
            fake: self.clone(),
            token: store.connects,
        })
    }
}

/// A connection.
pub struct Call {
    fake: Fake,
    token: usize,
}

impl Call {
    fn store(&self) -> Result<MutexGuard<'_, Store>, Fault> {
        let store = self.fake.store();
        if self.token < store.tokens_until {
            return Err(Fault::Refused("invalid auth token".to_owned()));
        }
        Ok(store)
    }
}

impl Transport for Call {
    type Watch = Stream;

    async fn page(&self, request: PageRequest, range_end: &[u8]) -> Result<Page, Fault> {
        tokio::task::yield_now().await;
        let mut store = self.store()?;
        store.pages += 1;
        failing(&mut store.page_faults).map_err(|fault| match store.are_pages_compacted {
            true => Fault::Compacted,
            false => fault,
        })?;
        for key in store.changes_while_read.clone() {
            store.put(key.as_bytes(), true);
        }
        if store.moves_while_read {
            store.revision += 1;
        }
        if store.compacts_while_read {
            store.compacted = store.revision;
        }
        if request.revision.is_some_and(|at| at < store.compacted) {
            return Err(Fault::Compacted);
        }
        let range = Bytes::copy_from_slice(&request.start)..Bytes::copy_from_slice(range_end);
        let keys = store.at(request.revision.unwrap_or(store.revision));
        let all: Vec<Entry> = keys.range(range).map(|(_, entry)| entry.clone()).collect();
        let limit = usize::try_from(request.limit).expect("a limit");
        let limit = limit.min(store.page_limit.unwrap_or(usize::MAX));
        let mut entries = all.clone();
        entries.truncate(limit);
        if request.content == Content::Count {
            entries.clear();
        }
        Ok(Page {
            more: entries.len() < all.len(),
            count: i64::try_from(all.len()).expect("a count"),
            entries,
            cluster_id: CLUSTER,
            revision: store.revision,
        })
    }

    async fn ask(&self, witness: &Witness, revision: Revision) -> Result<Testimony, Fault> {
        let mut store = self.store()?;
        failing(&mut store.ask_faults)?;
        if revision < store.compacted {
            return Ok(Testimony::Compacted);
        }
        Ok(Testimony::Read {
            cluster_id: CLUSTER,
            found: (store.at(revision).get(&witness.key)).map(Witness::from),
        })
    }

    async fn put(&self, key: &[u8], _: Vec<u8>) -> Result<Revision, Fault> {
        let mut store = self.store()?;
        store.puts += 1;
        match &store.puts_end_in {
            Some(fault) => Err(fault.clone()),
            None => Ok(store.put(key, true)),
        }
    }

    async fn watch(
        &self,
        _: &[u8],
        _: &[u8],
        revision: Revision,
        asked: Responses,
    ) -> Result<Stream, Fault> {
        let mut store = self.store()?;
        store.watched += 1;
        let (sender, responses) = mpsc::unbounded_channel();
        let created = Response {
            created: true,
            revision: store.revision,
            ..Response::default()
        };
        sender.send(created).expect("the receiver is here");
        if !store.are_watches_deaf {
            let since = |change: &&Change| change.mod_revision() >= revision;
            let late: Vec<_> = store.history.iter().filter(since).cloned().collect();
            let most = if store.is_told_piecemeal {
                1
            } else {
                late.len().max(1)
            };
            for events in late.chunks(most) {
                let response = Response {
                    events: events.to_vec(),
                    revision: store.revision,
                    ..Response::default()
                };
                store.owe(&sender, response);
            }
            store.watches.push(sender.clone());
        }
        let is_too_large = store.too_large.contains(&asked) && revision < store.revision;
        Ok(Stream {
            fake: self.fake.clone(),
            sender,
            responses,
            asked: 0,
            is_too_large,
        })
    }
}

fn failing(faults: &mut usize) -> Result<(), Fault> {
    let Some(fewer) = faults.checked_sub(1) else {
        return Ok(());
    };
    *faults = fewer;
    Err(Fault::Unreachable("a broken connection".to_owned()))
}

/// A watch that is never over by itself.
pub struct Stream {
    fake: Fake,
    sender: mpsc::UnboundedSender<Response>,
    responses: mpsc::UnboundedReceiver<Response>,
    /// How many second watches were asked for.
    asked: i64,
    is_too_large: bool,
}

impl Watch for Stream {
    async fn response(&mut self) -> Result<Response, Fault> {
        match self.responses.recv().await {
            Some(response) if self.is_too_large && !response.created => Err(Fault::TooLarge),
            Some(response) => Ok(response),
            None => std::future::pending().await,
        }
    }

    async fn ask(&mut self, key: &[u8], revision: Revision) -> Result<(), Fault> {
        self.asked += 1;
        let response = Response {
            watch_id: self.asked,
            ..Response::default()
        };
        let created = Response {
            created: true,
            ..response.clone()
        };
        self.sender.send(created).ok();
        let mut store = self.fake.store();
        let is_meant = |change: &&Change| change.key() == key && change.mod_revision() >= revision;
        let events: Vec<_> = store.history.iter().filter(is_meant).cloned().collect();
        assert!(!events.is_empty(), "etcd has none, and never answers");
        store.owe(&self.sender, Response { events, ..response });
        Ok(())
    }

    async fn take_back(&mut self, _: i64) -> Result<(), Fault> {
        Ok(())
    }
}
