//! What etcd still knows of the past: the changes since it was last compacted, and the keys as they were at a revision.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    GetOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};
use tokio::time::timeout;

use super::{
    connection::{
        CALL_TIME, Connection, MESSAGE_BYTES, bounded, change, entry, headless, range_end, silent,
    },
    fault::Fault,
    reading::Reading,
    transport::{Transport, Watch},
};
use crate::{
    route::Revision,
    source::{Change, Entry},
};

/// How many reads one transaction may hold, by etcd's default.
const TXN_OPERATIONS: usize = 128;
/// etcd serves late watches every 100 ms; one that was silent for so long may have been served all it will get.
const QUIET: Duration = Duration::from_millis(250);
/// How often in a row that is to be confirmed.
const CONFIRMATIONS: u32 = 2;
/// For one confirmation: etcd may be looking through millions of revisions.
const CONFIRMATION_TIME: Duration = Duration::from_secs(60);

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
pub struct Past<'c> {
    connection: &'c Connection,
    prefix: Vec<u8>,
    first: Revision,
    through: Revision,
    watch: Option<WatchStream>,
    /// The newest change that came: a watch from it on has something to wait for.
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
                    if reading.accept(page) {
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
    pub async fn past(&self, prefix: &str, from: Revision) -> Result<Past<'_>, Fault> {
        Ok(Past {
            connection: self,
            prefix: prefix.into(),
            first: from.max(1),
            through: self.revision(prefix).await?,
            watch: None,
            newest: None,
            is_over: false,
        })
    }
}

impl Past<'_> {
    /// The oldest revision whose change is shown; certain once something came, or the end.
    pub fn first(&self) -> Revision {
        self.first
    }

    /// The next changes in their order, of one revision or of several, none of them split; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`Fault::Compacted`] if compaction overtook the reading, besides those of any call.
    pub async fn next(&mut self) -> Result<Option<Vec<PastChange>>, Fault> {
        let mut changes = Vec::new();
        let mut confirmations = 0;
        while !self.is_over && confirmations < CONFIRMATIONS {
            let (watch, response) = match self.watch.take() {
                None => self.start().await?,
                Some(mut watch) => match timeout(QUIET, watch.message()).await {
                    Ok(message) => (watch, message?.ok_or_else(closed)?),
                    Err(_) => {
                        self.watch = Some(watch);
                        self.confirm().await?;
                        confirmations += 1;
                        continue;
                    }
                },
            };
            let response = response.0;
            if response.canceled {
                // The newest of the compacted revisions is half there: of its deletions nothing is left.
                let oldest = response.compact_revision + 1;
                match response.compact_revision {
                    0 => {
                        let reason = response.cancel_reason;
                        return Err(Fault::Refused(format!("etcd ended the watch: {reason}")));
                    }
                    _ if self.newest.is_some() || oldest <= self.first => {
                        return Err(Fault::Compacted);
                    }
                    _ => self.first = oldest,
                }
                continue;
            }
            self.watch = Some(watch);
            confirmations = 0;
            changes.extend(response.events.into_iter().filter_map(past_change));
            let Some(last) = changes.last().map(|past: &PastChange| &past.change) else {
                continue;
            };
            self.newest = Some((last.key().clone(), last.mod_revision()));
            if !response.fragment {
                self.is_over = last.mod_revision() >= self.through;
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

    /// The watch, and its first response: it stands, or what it is to show is compacted away.
    async fn start(&self) -> Result<(WatchStream, WatchResponse), Fault> {
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
        let mut watch = bounded("starting the watch", watch).await?;
        let first = timeout(CALL_TIME, watch.message()).await;
        let first = first.map_err(|_| silent("starting the watch"))??;
        Ok((watch, first.ok_or_else(closed)?))
    }

    /// Waits until etcd has served a late watch that it was asked for after ours: both are served in one pass, so
    /// that ours got its share before or with it. Progress requests would not do: etcd 3.4 answers them at once, and
    /// a gRPC proxy never.
    async fn confirm(&self) -> Result<(), Fault> {
        let (key, revision) = match &self.newest {
            Some((key, revision)) => (&key[..], *revision),
            // Nothing is sure to come; but what creates a watch waits for the pass under way.
            None => (&self.prefix[..], self.through),
        };
        let end = [key, b"\0"].concat();
        let confirmed = async {
            let mut watch = self.connection.watch(key, &end, revision).await?;
            loop {
                let response = watch.response().await?;
                let has_come = match self.newest {
                    Some(_) => !response.events.is_empty(),
                    None => response.created,
                };
                if has_come || response.canceled {
                    return Ok(());
                }
            }
        };
        match timeout(CONFIRMATION_TIME, confirmed).await {
            Ok(result) => result,
            Err(_) => Err(Fault::Silent(format!(
                "etcd has not served its history within {} s",
                CONFIRMATION_TIME.as_secs()
            ))),
        }
    }
}

fn closed() -> Fault {
    Fault::Unreachable("etcd closed the watch".to_owned())
}

fn past_change(event: etcd_client::proto::PbEvent) -> Option<PastChange> {
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
