//! The end of a registration: its key is deleted, unless it is somebody else's by now, with a barrier behind it.

use std::time::Duration;

use anyhow::Result;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use tokio::time;
use tracing::warn;

use super::{Registration, Trouble, revision};
use crate::{
    barrier::Question,
    fleet::barrier::{Barrier, Change},
    route::Revision,
    source::etcd::{Lease, fault::Fault},
};

/// How a registration ended.
pub enum Withdrawal<'r> {
    /// The key is deleted.
    Deleted {
        /// At this revision.
        revision: Revision,
        /// What tells when every instance is done with it, if that was asked for.
        barrier: Option<Barrier<'r>>,
    },
    /// There was nothing of ours: never written, expired, deleted or written by somebody else.
    NotOurs,
}

impl Registration {
    /// Deletes the key if it is still ours, and ends the lease. Tries for as long as etcd doesn't answer; who gives up
    /// leaves the rest to the lease. With `drain` a barrier asks, for so long, whether requests still run.
    pub async fn withdraw(&self, mut drain: Option<Duration>) -> Withdrawal<'_> {
        let Some(lease) = self.lease else {
            return Withdrawal::NotOurs;
        };
        let mut trouble = Trouble::default();
        loop {
            let error = match self.delete(lease, drain).await {
                Ok(withdrawal) => {
                    // Nothing hangs on it any more, so it may as well run out.
                    let revoke = self.reach.call(async |etcd| etcd.revoke(lease).await);
                    let _ = revoke.await;
                    return withdrawal;
                }
                Err(error) => error,
            };
            let is_refused = matches!(error.downcast_ref(), Some(Fault::Refused(_)));
            let failures = trouble.noted(&format!("{error:#}"), &self.leased);
            // Once may be a login that has expired.
            if is_refused && failures > 1 && drain.take().is_some() {
                warn!("a barrier is refused: not waiting until every instance is done with it");
                continue;
            }
            time::sleep(self.leased.back_off(failures)).await;
        }
    }

    async fn delete(&self, lease: Lease, drain: Option<Duration>) -> Result<Withdrawal<'_>> {
        let key = self.leased.key.as_str();
        let conditions = vec![Compare::lease(key, CompareOp::Equal, lease)];
        let operations = vec![TxnOp::delete(key, None), self.record(" (ended)")?];
        let Some(timeout) = drain else {
            let txn = Txn::new().when(conditions).and_then(operations);
            let answer = self.reach.call(async |etcd| etcd.txn(txn).await).await?;
            return Ok(match answer.succeeded() {
                true => Withdrawal::Deleted {
                    revision: revision(&answer),
                    barrier: None,
                },
                false => Withdrawal::NotOurs,
            });
        };
        let change = Change {
            prefix: &self.leased.prefix,
            conditions,
            operations,
            question: Question {
                key: Some(key.into()),
                drain: true,
            },
            timeout,
        };
        Ok(match change.make(&self.reach).await? {
            Some(barrier) => Withdrawal::Deleted {
                revision: barrier.revision,
                barrier: Some(barrier),
            },
            None => Withdrawal::NotOurs,
        })
    }
}
