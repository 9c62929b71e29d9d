//! A key that lives as long as somebody stands behind it: bound to a lease that is kept alive, written again whenever
//! etcd lost it, deleted at the end.
//!
//! Whoever wrote a key last owns it. A new registration takes over what it finds: that is the same service before a
//! crash, whose lease still runs. What somebody else writes afterwards is theirs, and left alone until it is gone. That
//! is why this is no [`LeaseKeeper`](super::lease::LeaseKeeper), which owns its keys and looks at them less often.

mod withdrawal;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::{sync::oneshot, task::JoinHandle, time};
use tracing::{info, warn};

pub use self::withdrawal::Withdrawal;
use super::{
    change::ChangeRecord,
    reach::{Reach, revision},
};
use crate::{
    route::Revision,
    source::etcd::{
        Lease,
        backoff::{back_off, longest_under_lease, scatter},
        fault::Fault,
    },
};

/// What is written, and for how long it stays without us.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The prefix (normalised) that the key is below.
    pub prefix: String,
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// How long it stays when nobody renews its lease.
    pub ttl: Duration,
    /// The command that does it, for the change records.
    pub command: String,
}

/// Keeps one key, in a task of its own once [started](Self::start).
pub struct Registration {
    reach: Arc<Reach>,
    leased: Leased,
    lease: Option<Lease>,
    standing: Standing,
    /// Whether a put was sent: then instances may have routed by it.
    may_be_served: bool,
    trouble: Trouble,
}

/// A registration that is being kept.
pub struct Keeper {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Registration>,
}

/// Whose the key is, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not written yet, and whatever is there is taken over; then `Ours`.
    New,
    /// Bound to our lease. Gone, it is written anew; written by somebody else, it is `Theirs`.
    Ours,
    /// Left alone. Gone, it is written, and `Ours`.
    Theirs,
}

/// Failures in a row.
#[derive(Debug, Default)]
struct Trouble {
    failures: u32,
    /// As last told to the log.
    told: Option<String>,
}

/// Who wrote the key last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    /// 0 for none.
    lease: Lease,
    mod_revision: Revision,
}

/// What to do about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is as it should be.
    Keep,
    /// Write it, if this is still its newest revision; 0: if it still isn't there.
    Write { over: Revision },
    /// Leave it to whom it belongs.
    Leave,
}

impl Standing {
    /// What to do, if the key is held like this and `lease` is ours.
    fn step(self, found: Option<Holder>, lease: Lease) -> Step {
        match found {
            Some(holder) if holder.lease == lease => Step::Keep,
            None => Step::Write { over: 0 },
            Some(holder) if self == Self::New => Step::Write {
                over: holder.mod_revision,
            },
            Some(_) => Step::Leave,
        }
    }
}

impl Registration {
    /// Asks for nothing yet.
    pub fn new(reach: Arc<Reach>, leased: Leased) -> Self {
        Self {
            reach,
            leased,
            lease: None,
            standing: Standing::New,
            may_be_served: false,
            trouble: Trouble::default(),
        }
    }

    /// Writes the key as soon as etcd lets it, and keeps it for ever, in a task of its own.
    pub fn start(self) -> Keeper {
        let (stop, stopped) = oneshot::channel();
        Keeper {
            stop,
            task: tokio::spawn(self.keep(stopped)),
        }
    }

    /// What runs is finished before it stops: a key must not be written after it was deleted.
    async fn keep(mut self, mut stopped: oneshot::Receiver<()>) -> Self {
        loop {
            let pause = match self.beat().await {
                Ok(()) => {
                    self.trouble.over();
                    // A little of it at random, so that a fleet doesn't beat in step.
                    longest_under_lease(self.leased.ttl).mul_f64(0.9 + rand::random::<f64>() / 10.0)
                }
                // What ended a connection that stood has ended those of all who are registered.
                Err(fault) => match (self.trouble.noted(&fault, &self.leased), self.lease) {
                    (1, Some(_)) => scatter(rand::random()),
                    (failures, _) => self.leased.back_off(failures),
                },
            };
            tokio::select! {
                _ = &mut stopped => return self,
                () = time::sleep(pause) => {}
            }
        }
    }

    /// Keeps the lease alive, or takes one, and sees to the key.
    async fn beat(&mut self) -> Result<(), Fault> {
        let lease = self.living_lease().await?;
        let key = self.leased.key.as_str();
        let look = Txn::new().and_then([TxnOp::get(key, None)]);
        let found = holder(&self.reach.call(async |etcd| etcd.txn(look).await).await?);
        match self.standing.step(found, lease) {
            // Also if it was written and the answer was lost.
            Step::Keep => self.standing = Standing::Ours,
            Step::Write { over } => self.write(lease, over).await?,
            Step::Leave => {
                if self.standing != Standing::Theirs {
                    warn!(
                        key,
                        "somebody else has written the key: it is theirs until it is gone"
                    );
                }
                self.standing = Standing::Theirs;
            }
        }
        Ok(())
    }

    async fn living_lease(&mut self) -> Result<Lease, Fault> {
        if let Some(lease) = self.lease {
            let renew = self.reach.call(async |etcd| etcd.keep_alive(lease).await);
            if renew.await? {
                return Ok(lease);
            }
            self.lease = None;
            warn!("etcd lost the lease; taking a new one");
        }
        let ttl = self.leased.ttl;
        let lease = self.reach.call(async |etcd| etcd.grant(ttl).await).await?;
        self.lease = Some(lease);
        Ok(lease)
    }

    /// Unless somebody was faster; then the next beat sees what there is.
    async fn write(&mut self, lease: Lease, over: Revision) -> Result<(), Fault> {
        let Leased { key, value, .. } = &self.leased;
        let options = PutOptions::new().with_lease(lease);
        let put = TxnOp::put(key.as_str(), value.as_str(), Some(options));
        let txn = Txn::new()
            .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, over)])
            .and_then([put, self.record("")?]);
        self.may_be_served = true;
        let answer = self.reach.call(async |etcd| etcd.txn(txn).await).await?;
        if !answer.succeeded() {
            return Ok(());
        }
        let revision = revision(&answer);
        match (self.standing, over) {
            (Standing::New, 0) => info!(key, revision, "registered"),
            (Standing::New, _) => info!(
                key,
                revision,
                taken_over = over,
                "registered, in place of what a put or an earlier registration had left"
            ),
            _ => info!(key, revision, "the key was gone: registered anew"),
        }
        self.standing = Standing::Ours;
        Ok(())
    }

    fn record(&self, what: &str) -> Result<TxnOp, Fault> {
        let record = ChangeRecord::of(format!("{}{what}", self.leased.command));
        let written = record.write(&self.leased.prefix);
        written.map_err(|error| Fault::Unreachable(format!("the change record: {error:#}")))
    }
}

impl Trouble {
    /// Counts one more failure, and tells the log what it has not told yet; how many there are.
    fn noted(&mut self, error: &impl ToString, leased: &Leased) -> u32 {
        let error = error.to_string();
        if self.told.as_ref() != Some(&error) {
            warn!(
                key = leased.key,
                error, "etcd could not be asked; trying on"
            );
            self.told = Some(error);
        }
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    fn over(&mut self) {
        self.failures = 0;
        if self.told.take().is_some() {
            info!("etcd answers");
        }
    }
}

impl Leased {
    fn back_off(&self, failures: u32) -> Duration {
        back_off(failures, longest_under_lease(self.ttl), rand::random())
    }
}

impl Keeper {
    /// Keeps it no longer; the key stays until it is withdrawn or its lease is over.
    ///
    /// # Errors
    ///
    /// When the task that keeps it has failed.
    pub async fn stop(self) -> anyhow::Result<Registration> {
        // Whether it still listens doesn't matter: it ends.
        let _ = self.stop.send(());
        self.task.await.context("the registration failed")
    }

    /// One whose task fails.
    #[cfg(test)]
    pub(crate) fn failing() -> Self {
        Self {
            stop: oneshot::channel().0,
            task: tokio::spawn(async { panic!("as a test asks for") }),
        }
    }
}

/// Who holds the key that the transaction read.
fn holder(answer: &TxnResponse) -> Option<Holder> {
    let TxnOpResponse::Get(read) = answer.op_responses().into_iter().next()? else {
        return None;
    };
    read.kvs().first().map(|pair| Holder {
        lease: pair.lease(),
        mod_revision: pair.mod_revision(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_writer_owns_the_key() {
        let held = |lease| {
            Some(Holder {
                lease,
                mod_revision: 7,
            })
        };
        let (ours, none, other) = (held(5), held(0), held(6));
        let anew = Step::Write { over: 0 };
        let over = Step::Write { over: 7 };
        for (standing, found, step) in [
            (Standing::New, None, anew),
            (Standing::New, ours, Step::Keep),
            (Standing::New, none, over),
            (Standing::New, other, over),
            (Standing::Ours, None, anew),
            (Standing::Ours, ours, Step::Keep),
            (Standing::Ours, none, Step::Leave),
            (Standing::Ours, other, Step::Leave),
            (Standing::Theirs, None, anew),
            (Standing::Theirs, ours, Step::Keep),
            (Standing::Theirs, other, Step::Leave),
        ] {
            assert_eq!(standing.step(found, 5), step, "{standing:?} {found:?}");
        }
    }
}
