//! This instance as the fleet knows it: registered from before its first read of the routes until it has answered
//! the last barrier.

use std::{future, sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    acknowledge::Acknowledger,
    lease::{LeaseKeeper, Standing, TTL},
    reach::{Reach, revision},
    records::{self, InstanceRecord},
};
use crate::{
    barrier,
    gate::Gate,
    live::{Live, Registration},
    source::etcd::{backoff::SHORTEST, fault::Fault},
    telemetry::metrics::Metrics,
};

/// How long the first read of the routes waits for the registration: for a member that is silent, and another after it.
const REGISTER_TIME: Duration = Duration::from_secs(4);

/// How long leaving may take: whoever waits for us learns the rest from the lease's end.
const LEAVE_TIME: Duration = Duration::from_secs(2);

/// This instance in its fleet. Dropped without [`Instance::leave`], it leaves all the same, but nobody waits for that.
pub struct Instance {
    standing: watch::Receiver<Standing>,
    leave: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// What an instance needs of its process.
pub struct Means {
    /// The way to etcd.
    pub reach: Arc<Reach>,
    /// Tells which barriers stand, and is told whether we are registered.
    pub live: Arc<Live>,
    /// Likewise.
    pub metrics: Arc<Metrics>,
    /// Tells what the workers do.
    pub gate: Gate,
}

impl Instance {
    /// Begins to register below `prefix`, and to answer barriers. To be called within a runtime.
    pub fn register(record: &InstanceRecord, prefix: &str, means: Means) -> anyhow::Result<Self> {
        let key = format!("{}{}", records::instances(prefix), record.id);
        let value = serde_json::to_vec(record)?;
        let write = {
            let key = key.clone();
            move |lease| {
                let options = PutOptions::new().with_lease(lease);
                vec![TxnOp::put(key.as_str(), value.as_slice(), Some(options))]
            }
        };
        means.live.registration.send_replace(Registration {
            instance: Some(record.id.clone()),
            ..Registration::default()
        });
        let registered = Registered {
            keeper: LeaseKeeper::start(means.reach.clone(), TTL, Box::new(write)),
            acknowledger: Acknowledger {
                id: record.id.clone(),
                prefix: prefix.to_owned(),
                reach: means.reach,
                live: means.live,
                gate: means.gate,
            },
            metrics: means.metrics,
            key,
        };
        let (leave, told) = oneshot::channel();
        Ok(Self {
            standing: registered.keeper.standing(),
            leave,
            task: tokio::spawn(registered.run(told)),
        })
    }

    /// Ends when this instance is registered, etcd refuses that, or 4 s are over: before that, routes are not to be
    /// read.
    pub fn tried(&self) -> impl Future<Output = ()> + use<> {
        let mut standing = self.standing.clone();
        async move {
            let _ = timeout(REGISTER_TIME, standing.wait_for(is_decided)).await;
        }
    }

    /// Ends when as many attempts to register failed as there are members, and never once etcd has answered. Where no
    /// member answers, nobody can wait for this instance, nor can it know better than what it has on disk.
    pub fn alone(&self, members: usize) -> impl Future<Output = ()> + use<> {
        let mut standing = self.standing.clone();
        async move {
            let mut failures = 0;
            while !is_decided(&standing.borrow_and_update()) {
                if failures == members {
                    return;
                }
                if standing.changed().await.is_err() {
                    break;
                }
                failures += 1;
            }
            future::pending().await
        }
    }

    /// Answers the last barriers and deregisters, in at most 2 s. No request may run any more.
    pub async fn leave(self) {
        if self.leave.send(()).is_ok() {
            let _ = self.task.await;
        }
    }
}

/// Whether etcd has said yes or no. What may be the fault of one member is asked of another.
fn is_decided(standing: &Standing) -> bool {
    match standing {
        Standing::New => false,
        Standing::Held { .. } => true,
        Standing::Out(fault) => fault.is_refusal(),
    }
}

/// The task behind an [`Instance`].
struct Registered {
    key: String,
    keeper: LeaseKeeper,
    acknowledger: Acknowledger,
    metrics: Arc<Metrics>,
}

impl Registered {
    async fn run(self, leave: oneshot::Receiver<()>) {
        tokio::select! {
            () = self.tell_standing() => {}
            () = self.acknowledger.answer_all() => {}
            _ = leave => {}
        }
        if timeout(LEAVE_TIME, self.leave()).await.is_err() {
            warn!("could not leave the fleet in time; it takes this instance for lost");
        }
    }

    /// Tells how the registration is, for ever: whether that can be told must not end the instance.
    async fn tell_standing(&self) {
        let mut standing = self.keeper.standing();
        let mut source = self.acknowledger.live.status.subscribe();
        let (mut was_connected, mut has_warned) = (false, false);
        loop {
            let now = standing.borrow_and_update().clone();
            self.tell(&now, was_connected, &mut has_warned);
            let is_connected = source.borrow_and_update().connected;
            // Only when etcd is back: whatever it refuses, it refuses again at once.
            if is_connected && !was_connected && !matches!(now, Standing::Held { .. }) {
                self.keeper.try_now();
            }
            was_connected = is_connected;
            let is_kept = tokio::select! {
                changed = standing.changed() => changed.is_ok(),
                _ = source.wait_for(|source| source.connected != is_connected) => true,
            };
            if !is_kept {
                let ended = Fault::Unreachable("nobody keeps the registration any more".to_owned());
                self.tell(&Standing::Out(ended), true, &mut has_warned);
                return future::pending().await;
            }
        }
    }

    /// While the source is not connected either, it is the source that warns of it.
    fn tell(&self, standing: &Standing, is_source_connected: bool, has_warned: &mut bool) {
        let (is_registered, error) = match standing {
            Standing::Held { .. } => (true, None),
            Standing::Out(fault) => (false, Some(fault.to_string())),
            Standing::New => (false, None),
        };
        let now = Registration {
            instance: Some(self.acknowledger.id.clone()),
            is_registered,
            error,
        };
        let registered = &self.metrics.control_plane.registered;
        registered.set(i64::from(is_registered));
        let before = self
            .acknowledger
            .live
            .registration
            .send_replace(now.clone());
        match standing {
            Standing::Held { .. } => {
                if !before.is_registered {
                    info!(instance = %self.acknowledger.id, "registered with the fleet");
                }
                *has_warned = false;
            }
            Standing::Out(fault)
                if !*has_warned
                    && (before.is_registered || is_source_connected || fault.is_refusal()) =>
            {
                warn!(
                    instance = %self.acknowledger.id,
                    error = now.error,
                    "not registered with the fleet: `--wait` and `--drain` don't know of this instance, which serves all the same"
                );
                *has_warned = true;
            }
            _ => {}
        }
    }

    /// No request runs any more, so every barrier can be answered. One that is new since it was looked for keeps us
    /// registered: who wrote it counts on our answer.
    async fn leave(self) {
        if *self.keeper.standing().borrow() == Standing::New {
            return;
        }
        loop {
            match self.try_leave().await {
                Ok(true) => break,
                Ok(false) => {}
                Err(fault) => {
                    debug!(%fault, "could not leave the fleet yet");
                    sleep(SHORTEST).await;
                }
            }
        }
        if let Err(fault) = self.keeper.end().await {
            debug!(%fault, "the lease of this instance is left to its end");
        }
    }

    async fn try_leave(&self) -> Result<bool, Fault> {
        let folder = barrier::folder(&self.acknowledger.prefix);
        let options = GetOptions::new().with_prefix();
        let look = Txn::new().and_then([TxnOp::get(folder.as_str(), Some(options))]);
        let answer = self
            .acknowledger
            .reach
            .call(async |etcd| etcd.txn(look).await)
            .await?;
        let looked_at = revision(&answer);
        for answer in answer.op_responses() {
            let TxnOpResponse::Get(found) = answer else {
                continue;
            };
            // The answer to one without a lease would stay for ever.
            for pair in found.kvs().iter().filter(|pair| pair.lease() != 0) {
                if let Some(id) = barrier::id(&self.acknowledger.prefix, pair.key()) {
                    self.acknowledger
                        .answer_at_the_end(id, pair.lease())
                        .await?;
                }
            }
        }
        let none_is_newer =
            Compare::create_revision(folder.as_str(), CompareOp::Less, looked_at + 1).with_prefix();
        let deregister = Txn::new()
            .when([none_is_newer])
            .and_then([TxnOp::delete(self.key.as_str(), None)]);
        let answer = self
            .acknowledger
            .reach
            .call(async |etcd| etcd.txn(deregister).await)
            .await?;
        Ok(answer.succeeded())
    }
}
