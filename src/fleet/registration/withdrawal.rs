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
    source::etcd::fault::Fault,
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
    /// The key was gone already: etcd lost its lease, or somebody deleted it.
    Gone {
        /// What tells when every instance is done with it, if that was asked for.
        barrier: Option<Barrier<'r>>,
    },
    /// Somebody else has written the key, which stays: nobody can say that the upstream is done with.
    Theirs,
    /// The key was never written, because etcd never let it.
    Never {
        /// Why.
        error: String,
    },
}

impl Registration {
    /// Deletes the key if it is still ours, and ends the lease. Tries for as long as etcd doesn't answer; who gives up
    /// leaves the rest to the lease. With `drain` a barrier asks, for so long, whether requests still run.
    pub async fn withdraw(&self, mut drain: Option<Duration>) -> Withdrawal<'_> {
        if !self.may_be_served {
            self.end_lease().await;
            let error = self.trouble.told.clone().unwrap_or_default();
            return Withdrawal::Never { error };
        }
        let mut trouble = Trouble::default();
        loop {
            let error = match self.take_away(drain).await {
                Ok(withdrawal) => {
                    self.end_lease().await;
                    return withdrawal;
                }
                Err(error) => error,
            };
            let fault = error.downcast_ref::<Fault>();
            let is_refused = matches!(fault, Some(Fault::Refused(_)));
            // What surrounds a fault is for commands that make one change and end.
            let told = fault.map_or_else(|| format!("{error:#}"), ToString::to_string);
            let failures = trouble.noted(&told, &self.leased);
            // Once may be a login that has expired.
            if is_refused && failures > 1 && drain.take().is_some() {
                warn!("a barrier is refused: not waiting until every instance is done with it");
                continue;
            }
            time::sleep(self.leased.back_off(failures)).await;
        }
    }

    /// Nothing hangs on it any more, so it may as well run out.
    async fn end_lease(&self) {
        if let Some(lease) = self.lease {
            let revoke = self.reach.call(async |etcd| etcd.revoke(lease).await);
            let _ = revoke.await;
        }
    }

    async fn take_away(&self, drain: Option<Duration>) -> Result<Withdrawal<'_>> {
        let key = self.leased.key.as_str();
        if let Some(lease) = self.lease {
            let is_ours = Compare::lease(key, CompareOp::Equal, lease);
            let delete = vec![TxnOp::delete(key, None), self.record(" (ended)")?];
            if let Some((revision, barrier)) = self.change(is_ours, delete, drain).await? {
                return Ok(Withdrawal::Deleted { revision, barrier });
            }
        }
        // Whoever took it away need not have waited for what runs.
        let is_gone = Compare::version(key, CompareOp::Equal, 0);
        Ok(match self.change(is_gone, Vec::new(), drain).await? {
            Some((_, barrier)) => Withdrawal::Gone { barrier },
            None => Withdrawal::Theirs,
        })
    }

    /// Makes a change, with a barrier behind it if that is asked for; `None` if its condition is not met.
    async fn change(
        &self,
        condition: Compare,
        operations: Vec<TxnOp>,
        drain: Option<Duration>,
    ) -> Result<Option<(Revision, Option<Barrier<'_>>)>> {
        let conditions = vec![condition];
        let Some(timeout) = drain else {
            let txn = Txn::new().when(conditions).and_then(operations);
            let answer = self.reach.call(async |etcd| etcd.txn(txn).await).await?;
            return Ok(answer.succeeded().then(|| (revision(&answer), None)));
        };
        let change = Change {
            prefix: &self.leased.prefix,
            conditions,
            operations,
            question: Question {
                key: Some(self.leased.key.as_str().into()),
                drain: true,
            },
            timeout,
        };
        let made = change.make(&self.reach).await?;
        Ok(made.map(|barrier| (barrier.revision, Some(barrier))))
    }
}
