//! The etcd that all cases share.

use std::{cell::Cell, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{GetOptions, TxnOp};
use rand::RngExt;
use tokio::{
    sync::RwLock,
    time::{Instant, sleep, timeout_at},
};
use waypost::source::Entry;

use super::view::Keys;
use crate::support::etcd::EtcdCluster;

/// Until an etcd that was started anew answers.
const ANSWERED: Duration = Duration::from_secs(30);
/// Of leases, in seconds: none runs out by itself.
const TTL: i64 = 3600;

/// The etcd of all cases. It ends and starts between writes alone, so that it is known what was written.
#[derive(Clone)]
pub struct Store(Arc<RwLock<EtcdCluster>>);

impl Store {
    pub async fn start() -> Self {
        Self(Arc::new(RwLock::new(EtcdCluster::start(1).await)))
    }

    pub async fn endpoint(&self) -> String {
        self.0.read().await.endpoints().remove(0)
    }

    pub async fn txn(&self, operations: Vec<TxnOp>) -> i64 {
        self.0.read().await.txn(operations).await
    }

    pub async fn grant(&self) -> i64 {
        let etcd = self.0.read().await;
        let granted = again_and_again(async || etcd.client().lease_grant(TTL, None).await).await;
        granted.id()
    }

    pub async fn revoke(&self, lease: i64) {
        let etcd = self.0.read().await;
        again_and_again(async || match etcd.client().lease_revoke(lease).await {
            // By a try whose answer was lost.
            Err(error) if error.to_string().contains("lease not found") => Ok(()),
            answer => answer.map(|_| ()),
        })
        .await;
    }

    pub async fn compact(&self, revision: i64) {
        let etcd = self.0.read().await;
        again_and_again(async || match etcd.client().compact(revision, None).await {
            // By another case.
            Err(error) if error.to_string().contains("has been compacted") => Ok(()),
            answer => answer.map(|_| ()),
        })
        .await;
    }

    /// What there is below the prefix, at this revision or now; `None` if that is compacted away.
    pub async fn read(&self, prefix: &str, at: i64) -> Option<Keys> {
        let etcd = self.0.read().await;
        let answer = again_and_again(async || {
            let options = GetOptions::new().with_prefix().with_revision(at);
            match etcd.client().get(prefix, Some(options)).await {
                Err(error) if error.to_string().contains("has been compacted") => Ok(None),
                answer => answer.map(Some),
            }
        })
        .await?;
        let keys = answer.kvs().iter().map(|pair| {
            let entry = Entry {
                key: Bytes::copy_from_slice(pair.key()),
                value: Bytes::copy_from_slice(pair.value()),
                mod_revision: pair.mod_revision(),
                lease: pair.lease(),
            };
            (entry.key.clone(), entry)
        });
        Some(keys.collect())
    }

    pub async fn restart_again_and_again(&self, restarts: &Cell<usize>) {
        loop {
            let uptime = rand::rng().random_range(100..1_000);
            sleep(Duration::from_millis(uptime)).await;
            let mut etcd = self.0.write().await;
            match rand::random() {
                true => etcd.kill(0),
                false => etcd.stop(0).await,
            }
            etcd.restart(0).await;
            restarts.set(restarts.get() + 1);
        }
    }
}

/// As etcd may have just been started anew.
async fn again_and_again<T>(mut call: impl AsyncFnMut() -> Result<T, etcd_client::Error>) -> T {
    let deadline = Instant::now() + ANSWERED;
    loop {
        match timeout_at(deadline, call()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) if Instant::now() > deadline => panic!("etcd does not answer: {error}"),
            Ok(Err(_)) => sleep(Duration::from_millis(20)).await,
            Err(_) => panic!("etcd does not answer"),
        }
    }
}
