//! Keeps what one process has in etcd there for as long as the process lives, and no longer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Txn, TxnOp};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::debug;

use super::reach::{Reach, revision};
use crate::{
    route::Revision,
    source::etcd::{
        Lease,
        backoff::{SHORTEST, back_off, longest_under_lease},
        fault::Fault,
    },
};

/// How long what is bound to a lease outlives a process that was killed.
pub const TTL: Duration = Duration::from_secs(15);

/// The longest wait after a refusal: a missing right is not granted within seconds, and each login costs etcd a hash.
const LONGEST_REFUSED: Duration = Duration::from_secs(60);

/// Every so many beats it is looked up whether what was written is still there.
const LOOK_EVERY: u32 = 6;

/// How long the end may take; after that the lease runs out by itself.
const END_TIME: Duration = Duration::from_secs(3);

/// The id that no lease has.
const NONE: Lease = 0;

/// What is written under a lease: puts that are bound to it, made in one transaction.
pub type Write = dyn Fn(Lease) -> Vec<TxnOp> + Send + Sync;

/// Whether what is to be in etcd is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is written yet.
    New,
    /// It is there.
    Held {
        /// The lease it is bound to.
        lease: Lease,
        /// The revision that wrote it.
        revision: Revision,
    },
    /// It is not there, or will soon not be; tried again for ever.
    Out(Fault),
}

/// Keeps a lease, and what was written under it: grants it, keeps it alive, and begins anew when etcd has lost it.
/// Dropped without [`LeaseKeeper::end`], it leaves all to the lease's own end, as a killed process does.
pub struct LeaseKeeper {
    reach: Arc<Reach>,
    standing: watch::Receiver<Standing>,
    now: Arc<Notify>,
    lease: Arc<AtomicI64>,
    task: JoinHandle<()>,
}

impl LeaseKeeper {
    /// Begins to keep what `write` writes. It is written again, under a new lease, whenever the lease is lost, and
    /// under the same one when nothing is bound to it any more or an answer was missed.
    pub fn start(reach: Arc<Reach>, ttl: Duration, write: Box<Write>) -> Self {
        let (tell, standing) = watch::channel(Standing::New);
        let now = Arc::new(Notify::new());
        let current = Arc::new(AtomicI64::new(NONE));
        let keeping = Keeping {
            reach: reach.clone(),
            ttl,
            write,
            tell,
            now: now.clone(),
            current: current.clone(),
            lease: None,
            written: None,
            beats: 0,
        };
        Self {
            reach,
            standing,
            now,
            lease: current,
            task: tokio::spawn(keeping.run()),
        }
    }

    /// Whether it is there now, and news of that.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Etcd answers, so nothing is to be waited for.
    pub fn try_now(&self) {
        self.now.notify_one();
    }

    /// Ends the lease, and what is bound to it goes with it.
    ///
    /// # Errors
    ///
    /// Why it is still there; it goes when the lease's time is over.
    pub async fn end(self) -> Result<(), Fault> {
        self.task.abort();
        let lease = self.lease.load(Ordering::Relaxed);
        if lease == NONE {
            return Ok(());
        }
        let revoke = async {
            loop {
                let call = self.reach.call(async |etcd| etcd.revoke(lease).await);
                match call.await {
                    Err(fault) => debug!(%fault, "the lease could not be ended"),
                    Ok(()) => return,
                }
                sleep(back_off(1, TTL, rand::random())).await;
            }
        };
        let ended = timeout(END_TIME, revoke).await;
        ended.map_err(|_| Fault::Silent("the lease could not be ended in time".to_owned()))
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task behind a [`LeaseKeeper`].
struct Keeping {
    reach: Arc<Reach>,
    ttl: Duration,
    write: Box<Write>,
    tell: watch::Sender<Standing>,
    now: Arc<Notify>,
    /// The lease there is, for whoever ends it.
    current: Arc<AtomicI64>,
    /// The same, and until when etcd certainly keeps it.
    lease: Option<(Lease, Instant)>,
    /// The revision that wrote what is bound to it.
    written: Option<Revision>,
    beats: u32,
}

impl Keeping {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let pause = match self.step().await {
                Ok(pause) => {
                    failures = 0;
                    pause
                }
                Err(fault) => {
                    failures += 1;
                    self.failed(&fault);
                    let longest = match (&fault, self.written) {
                        (Fault::Refused(_), None) => LONGEST_REFUSED,
                        _ => longest_under_lease(self.ttl),
                    };
                    back_off(failures, longest, rand::random())
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.now.notified() => {}
            }
        }
    }

    /// Does what is due; how long nothing is after it.
    async fn step(&mut self) -> Result<Duration, Fault> {
        let Some((lease, _)) = self.lease else {
            let begun = Instant::now();
            let ttl = self.ttl;
            let lease = self.reach.call(async |etcd| etcd.grant(ttl).await).await?;
            self.lease = Some((lease, begun + ttl));
            self.current.store(lease, Ordering::Relaxed);
            return Ok(Duration::ZERO);
        };
        if self.written.is_none() {
            return self.write(lease).await;
        }
        self.beat(lease).await
    }

    async fn write(&mut self, lease: Lease) -> Result<Duration, Fault> {
        let txn = Txn::new().and_then((self.write)(lease));
        let call = self.reach.call(async |etcd| etcd.txn(txn).await);
        let answer = match call.await {
            Err(fault) if fault.is_lost_lease() => return Ok(self.lost()),
            answer => answer?,
        };
        let revision = revision(&answer);
        self.written = Some(revision);
        self.beats = 0;
        self.tell.send_replace(Standing::Held { lease, revision });
        Ok(self.until_next_beat())
    }

    async fn beat(&mut self, lease: Lease) -> Result<Duration, Fault> {
        let begun = Instant::now();
        let is_alive = (self.reach)
            .call(async |etcd| etcd.keep_alive(lease).await)
            .await?;
        if !is_alive {
            return Ok(self.lost());
        }
        self.lease = Some((lease, begun + self.ttl));
        self.beats += 1;
        let is_doubtful = !matches!(*self.tell.borrow(), Standing::Held { .. });
        if self.beats.is_multiple_of(LOOK_EVERY) || is_doubtful {
            let look = self
                .reach
                .call(async |etcd| etcd.keys_bound(lease).await)
                .await;
            match look {
                Ok(None) => return Ok(self.lost()),
                Ok(Some(0)) => {
                    debug!("what was written is gone from etcd, its lease is not");
                    self.written = None;
                    return Ok(Duration::ZERO);
                }
                // Who may write need not have the right to look.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        if let (true, Some(revision)) = (is_doubtful, self.written) {
            self.tell.send_replace(Standing::Held { lease, revision });
        }
        Ok(self.until_next_beat())
    }

    /// Forgets a lease that etcd has not, and begins anew at once.
    fn lost(&mut self) -> Duration {
        debug!("etcd does not have the lease any more");
        self.lease = None;
        self.written = None;
        SHORTEST
    }

    fn failed(&mut self, fault: &Fault) {
        debug!(%fault, "the lease could not be kept");
        // Until its time is over, what is bound to it is there.
        let is_there = self.written.is_some();
        if is_there && (self.lease).is_some_and(|(_, until)| Instant::now() < until) {
            return;
        }
        self.tell.send_replace(Standing::Out(fault.clone()));
    }

    /// A third of the lease's time, a little of it at random.
    fn until_next_beat(&self) -> Duration {
        longest_under_lease(self.ttl).mul_f64(0.9 + rand::random::<f64>() / 10.0)
    }
}
