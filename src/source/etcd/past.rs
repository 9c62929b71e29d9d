//! What etcd still knows of the past: the changes since it was last compacted, and the keys as they were at a revision.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    GetOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
    proto::{PbEvent, PbWatchResponse},
};
use tokio::time::{Instant, timeout};

use super::{
    connection::{
        CALL_TIME, Connection, MESSAGE_BYTES, bounded, change, entry, headless, range_end, silent,
    },
    fault::Fault,
    proof::{Proof, Said, Wants},
    reading::Reading,
    transport::Transport,
};
use crate::{
    route::Revision,
    source::{Change, Entry},
};

/// How many reads one transaction may hold, by etcd's default.
const TXN_OPERATIONS: usize = 128;
/// etcd serves late watches every 100 ms; one that was silent for so long may have been served all it will get.
const QUIET: Duration = Duration::from_millis(250);
/// For one answer to whether that was all: etcd may be looking through millions of revisions, or up what a million keys were before.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// A change, and what it replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastChange {
    /// The change.
    pub change: Change,
    /// What the key was before: `None` if it was not there, or if that is compacted away.
    pub before: Option<Entry>,
    /// Whether the key was not there before.
    pub is_new: bool,
}

/// The changes below a prefix from one revision on, up to the one that etcd was at when it was asked.
///
/// When it is quiet, a second watch is asked for a proof that this was all.
pub struct Past<'c> {
    connection: &'c Connection,
    prefix: Vec<u8>,
    first: Revision,
    through: Revision,
    stream: Option<WatchStream>,
    /// The id of our watch on the stream.
    watch: i64,
    proof: Proof,
    /// When the proof was asked for last.
    asked: Instant,
    /// The beginning of a revision whose end is still to come.
    begun: Vec<PastChange>,
    /// The newest change that came.
    newest: Option<(Bytes, Revision)>,
    is_over: bool,
}

impl Connection {
    /// The revision that etcd is at.
    pub async fn revision(&self, prefix: &str) -> Result<Revision, Fault> {
        let options = GetOptions::new().with_count_only();
        let mut kv = self.kv.clone();
        let answer = bounded("asking for the revision", kv.get(prefix, Some(options))).await?;
        Ok(answer.header().ok_or_else(headless)?.revision())
    }

    /// Everything below the prefix as it was at this revision, ordered by key.
    ///
    /// # Errors
    ///
    /// [`Fault::Compacted`] and [`Fault::FutureRevision`] besides those of any call.
    pub async fn entries_at(&self, prefix: &str, at: Revision) -> Result<Vec<Entry>, Fault> {
        let end = range_end(prefix.as_bytes());
        let mut reading = Reading::at(prefix.as_bytes(), at);
        loop {
            match self.page(reading.request(), &end).await {
                Ok(page) => {
                    if reading.accept(page)? {
                        return Ok(reading.into_entries());
                    }
                }
                Err(Fault::TooLarge) if reading.shrink() => {}
                Err(Fault::Silent(_)) if reading.has_begun() && reading.shrink() => {}
                Err(fault) => return Err(fault),
            }
        }
    }

    /// One key at each of these revisions.
    pub async fn versions(
        &self,
        key: &str,
        revisions: &[Revision],
    ) -> Result<Vec<Option<Entry>>, Fault> {
        let read =
            |&revision: &Revision| TxnOp::get(key, Some(GetOptions::new().with_revision(revision)));
        self.read(revisions.iter().map(read).collect()).await
    }

    /// Each of these keys as it is now, read in transactions of many.
    pub async fn newest(&self, keys: &[&[u8]]) -> Result<Vec<Option<Entry>>, Fault> {
        let read = |key: &&[u8]| TxnOp::get(*key, None);
        self.read(keys.iter().map(read).collect()).await
    }

    async fn read(&self, reads: Vec<TxnOp>) -> Result<Vec<Option<Entry>>, Fault> {
        let mut found = Vec::with_capacity(reads.len());
        for reads in reads.chunks(TXN_OPERATIONS) {
            let answer = self.txn(Txn::new().and_then(reads)).await?;
            for response in answer.op_responses() {
                if let TxnOpResponse::Get(mut answer) = response {
                    found.push(answer.take_kvs().into_iter().next().map(entry));
                }
            }
        }
        Ok(found)
    }

    /// What changed below the prefix, from revision `from` on or from the oldest one that is not compacted away.
    ///
    /// # Errors
    ///
    /// [`Fault::FutureRevision`] if etcd has not come to the revision before `from`, besides those of any call.
    pub async fn past(&self, prefix: &str, from: Revision) -> Result<Past<'_>, Fault> {
        let through = self.revision(prefix).await?;
        // The very next one is no mistake: who keeps a journal asks for it.
        if from > through + 1 {
            return Err(Fault::FutureRevision);
        }
        Ok(Past {
            connection: self,
            prefix: prefix.into(),
            first: from.max(1),
            through,
            stream: None,
            watch: 0,
            proof: Proof::default(),
            asked: Instant::now(),
            begun: Vec::new(),
            newest: None,
            is_over: from > through,
        })
    }

    /// Some key below the prefix, and the revision that last changed it.
    async fn any_key(&self, prefix: &[u8]) -> Result<Option<(Bytes, Revision)>, Fault> {
        let options = GetOptions::new()
            .with_range(range_end(prefix))
            .with_keys_only()
            .with_limit(1);
        let mut kv = self.kv.clone();
        let mut answer = bounded("asking for a key", kv.get(prefix, Some(options))).await?;
        let found = answer.take_kvs().into_iter().next().map(entry);
        Ok(found.map(|entry| (entry.key, entry.mod_revision)))
    }
}

impl Past<'_> {
    /// The oldest revision whose change is shown; certain once something came, or the end.
    pub fn first(&self) -> Revision {
        self.first
    }

    /// The next changes in their order, of one revision or of several, none of them split; `None` at the end. etcd sends
    /// a thousand revisions at once, in fragments: what is whole is given on, so that one fragment and one revision are
    /// held at most.
    ///
    /// # Errors
    ///
    /// [`Fault::Compacted`] if compaction overtook the reading, besides those of any call.
    pub async fn next(&mut self) -> Result<Option<Vec<PastChange>>, Fault> {
        let mut changes = std::mem::take(&mut self.begun);
        while !self.is_over && !self.proof.is_given() {
            let Some(response) = self.receive().await? else {
                self.ask().await?;
                continue;
            };
            if response.watch_id != self.watch {
                self.hear(&response).await?;
                continue;
            }
            if response.canceled {
                self.begin_later(&response)?;
                continue;
            }
            self.proof.heard_ours();
            changes.extend(response.events.into_iter().filter_map(past_change));
            let Some(last) = changes.last().map(|past: &PastChange| &past.change) else {
                continue;
            };
            let revision = last.mod_revision();
            self.newest = Some((last.key().clone(), revision));
            if !response.fragment {
                self.is_over = revision >= self.through;
                return Ok(Some(changes));
            }
            let whole = changes.partition_point(|past| past.change.mod_revision() < revision);
            if whole > 0 {
                self.begun = changes.split_off(whole);
                return Ok(Some(changes));
            }
        }
        self.is_over = true;
        match changes.is_empty() {
            true => Ok(None),
            false => Err(Fault::Unreachable(
                "etcd sent half of a revision and no more".to_owned(),
            )),
        }
    }

    /// What the stream brings; `None` when it is quiet, and nothing was asked.
    async fn receive(&mut self) -> Result<Option<PbWatchResponse>, Fault> {
        loop {
            let Some(stream) = &mut self.stream else {
                return self.start().await.map(Some);
            };
            let is_owed_an_answer = self.proof.is_owed_an_answer();
            let patience = match is_owed_an_answer {
                true => CALL_TIME,
                false => QUIET,
            };
            if let Ok(message) = timeout(patience, stream.message()).await {
                return Ok(Some(message?.ok_or_else(closed)?.0));
            }
            if !is_owed_an_answer {
                return Ok(None);
            }
            if self.asked.elapsed() > ANSWER_TIME {
                return Err(Fault::Silent(format!(
                    "etcd has not served its history within {} s",
                    ANSWER_TIME.as_secs()
                )));
            }
            // Busy, or gone?
            self.connection.any_key(&self.prefix).await?;
        }
    }

    /// The watch, and its first response: it stands, or what it is to show is compacted away.
    async fn start(&mut self) -> Result<PbWatchResponse, Fault> {
        let options = WatchOptions::new()
            .with_range(range_end(&self.prefix))
            .with_start_revision(self.first)
            .with_prev_key()
            .with_fragment();
        let mut client = self
            .connection
            .client
            .watch_client()
            .max_decoding_message_size(MESSAGE_BYTES);
        let watch = client.watch(self.prefix.clone(), Some(options));
        let mut stream = bounded("starting the watch", watch).await?;
        let first = timeout(CALL_TIME, stream.message()).await;
        let first = first.map_err(|_| silent("starting the watch"))??;
        let first = first.ok_or_else(closed)?.0;
        self.stream = Some(stream);
        self.watch = first.watch_id;
        Ok(first)
    }

    /// Our watch was ended: by compaction, or because etcd refuses it.
    fn begin_later(&mut self, response: &PbWatchResponse) -> Result<(), Fault> {
        // The newest of the compacted revisions is half there: of its deletions nothing is left.
        let oldest = response.compact_revision + 1;
        match response.compact_revision {
            0 => Err(ended(response)),
            _ if self.newest.is_some() || oldest <= self.first => Err(Fault::Compacted),
            _ => {
                self.first = oldest;
                self.stream = None;
                self.proof = Proof::default();
                Ok(())
            }
        }
    }

    /// Asks for an event that etcd has; where there is no key, so that nothing is sure to come, just for a watch:
    /// that is taken up between two passes.
    async fn ask(&mut self) -> Result<(), Fault> {
        let known = match &self.newest {
            Some(newest) => Some(newest.clone()),
            None => self.connection.any_key(&self.prefix).await?,
        };
        let wants = match &known {
            Some(_) => Wants::Event,
            None => Wants::Watch,
        };
        let (key, revision) = known.unwrap_or((self.prefix.clone().into(), self.through));
        let stream = self.stream.as_mut().ok_or_else(closed)?;
        let options = WatchOptions::new().with_start_revision(revision);
        bounded("asking for the end", stream.watch(key, Some(options))).await?;
        self.proof.asked(wants);
        self.asked = Instant::now();
        Ok(())
    }

    /// A response to another watch than ours.
    async fn hear(&mut self, response: &PbWatchResponse) -> Result<(), Fault> {
        match self.proof.heard_another(response) {
            Said::Answered(Some(watch)) => {
                let stream = self.stream.as_mut().ok_or_else(closed)?;
                bounded("taking the question back", stream.cancel(watch)).await
            }
            Said::Answered(None) | Said::Nothing => Ok(()),
            Said::Refused => Err(ended(response)),
        }
    }
}

fn ended(response: &PbWatchResponse) -> Fault {
    Fault::Refused(format!("etcd ended the watch: {}", response.cancel_reason))
}

fn closed() -> Fault {
    Fault::Unreachable("etcd closed the watch".to_owned())
}

fn past_change(event: PbEvent) -> Option<PastChange> {
    let is_new = event
        .kv
        .as_ref()
        .is_some_and(|pair| pair.create_revision == pair.mod_revision);
    let before = event.prev_kv.clone();
    Some(PastChange {
        change: change(event)?,
        before: before.map(|pair| Entry {
            mod_revision: pair.mod_revision,
            lease: pair.lease,
            key: pair.key.into(),
            value: pair.value.into(),
        }),
        is_new,
    })
}
