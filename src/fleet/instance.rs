//! This instance as the fleet knows it: registered from before its first read of the routes until it has answered
//! the last barrier.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    acknowledge::Acknowledger,
    lease::{Keeper, Standing, TTL},
    reach::Reach,
    records::{self, InstanceRecord},
};
use crate::{
    barrier,
    gate::Gate,
    live::{Live, Registration},
    route::Revision,
    source::etcd::{backoff::SHORTEST, fault::Fault},
    telemetry::metrics::Metrics,
};

/// How long the first read of the routes waits for the registration. An etcd that is slower will be slow to be read.
const REGISTER_TIME: Duration = Duration::from_secs(3);

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
                Txn::new().and_then([TxnOp::put(key.as_str(), value.as_slice(), Some(options))])
            }
        };
        means.live.registration.send_replace(Registration {
            instance: Some(record.id.clone()),
            ..Registration::default()
        });
        let registered = Registered {
            keeper: Keeper::start(means.reach.clone(), TTL, Box::new(write)),
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

    /// Ends when registering has been tried once, or etcd is slow about it: before that, routes are not to be read.
    pub fn tried(&self) -> impl Future<Output = ()> + use<> {
        let mut standing = self.standing.clone();
        async move {
            let tried = standing.wait_for(|standing| *standing != Standing::New);
            let _ = timeout(REGISTER_TIME, tried).await;
        }
    }

    /// Answers the last barriers and deregisters, in at most 2 s. No request may run any more.
    pub async fn leave(self) {
        if self.leave.send(()).is_ok() {
            let _ = self.task.await;
        }
    }
}

/// The task behind an [`Instance`].
struct Registered {
    key: String,
    keeper: Keeper,
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

    async fn tell_standing(&self) {
        let mut standing = self.keeper.standing();
        let mut source = self.acknowledger.live.status.subscribe();
        loop {
            let now = standing.borrow_and_update().clone();
            self.tell(&now);
            let is_connected = source.borrow_and_update().connected;
            if is_connected && !matches!(now, Standing::Held { .. }) {
                self.keeper.try_now();
            }
            tokio::select! {
                _ = standing.changed() => {}
                _ = source.wait_for(|source| source.connected != is_connected) => {}
            }
        }
    }

    fn tell(&self, standing: &Standing) {
        let (is_registered, error) = match standing {
            Standing::Held { .. } => (true, None),
            Standing::Out(fault) => (false, Some(fault.to_string())),
            Standing::New | Standing::Contested => (false, None),
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
        match (before.is_registered, is_registered) {
            (false, true) => info!(instance = %self.acknowledger.id, "registered with the fleet"),
            (_, false) if now.error.is_some() && before.error.is_none() => warn!(
                instance = %self.acknowledger.id,
                error = now.error,
                "not registered with the fleet: `--wait` and `--drain` don't know of this instance, which serves all the same"
            ),
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
        let looked_at: Revision = answer.header().map_or(0, |header| header.revision());
        for answer in answer.op_responses() {
            let TxnOpResponse::Get(found) = answer else {
                continue;
            };
            for pair in found.kvs() {
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
