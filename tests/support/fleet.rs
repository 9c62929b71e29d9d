//! Several instances on one etcd, and what they tell one another through it.

use std::time::{Duration, Instant};

use etcd_client::{GetOptions, KeyValue};
use tokio::process::Child;

use super::{
    etcd::EtcdCluster,
    waypost::{Ended, Waypost, command, ended, eventually, waypost},
};

/// How often an instance that is refused may try again in a [while](tried_for_a_while); without pauses it is hundreds.
pub const TRIES: f64 = 10.0;
const WHILE: Duration = Duration::from_secs(3);

/// An instance of the fleet of `/hosts/`, ready and registered; it drains without delay.
pub async fn instance(etcd: &EtcdCluster) -> Waypost {
    instance_below("/hosts/", &etcd.endpoints()).await
}

/// The same below another prefix, or by another way.
pub async fn instance_below(prefix: &str, endpoints: &[String]) -> Waypost {
    let waypost = Waypost::builder()
        .etcd(endpoints)
        .flag("--drain-delay", "0s")
        .flag("--prefix", prefix)
        .start()
        .await;
    registered(&waypost).await;
    waypost
}

/// Waits until the fleet knows of it; its id.
pub async fn registered(waypost: &Waypost) -> String {
    eventually("it is registered", async || {
        waypost.api("/api/status").await["registered"] == true
    })
    .await;
    id(waypost).await
}

/// What the fleet knows it by.
pub async fn id(waypost: &Waypost) -> String {
    let status = waypost.api("/api/status").await;
    status["instance"].as_str().expect("an id").to_owned()
}

/// Runs a command on this cluster to its end.
pub async fn run(etcd: &EtcdCluster, arguments: &[&str]) -> Ended {
    let endpoints = etcd.endpoints().join(",");
    waypost(&[arguments, &["--etcd", &endpoints]].concat()).await
}

/// A command that waits, begun: its barrier stands.
pub struct Begun {
    child: Child,
    /// The id of its barrier.
    pub barrier: String,
}

impl Begun {
    /// Begins a command on this cluster; there is no other barrier.
    pub async fn new(etcd: &EtcdCluster, arguments: &[&str]) -> Self {
        let endpoints = etcd.endpoints().join(",");
        let arguments = [arguments, &["--etcd", &endpoints]].concat();
        let child = command(&arguments).spawn().expect("the binary runs");
        let mut barrier = None;
        eventually("its barrier stands", async || {
            let folder = "/hosts/@waypost/barriers/";
            barrier = (below(etcd, folder).await.first())
                .map(|pair| text(pair.key())[folder.len()..].to_owned());
            barrier.is_some()
        })
        .await;
        let barrier = barrier.expect("found just now");
        Self { child, barrier }
    }

    /// Its end, which is near.
    pub async fn ended(self) -> Ended {
        ended(self.child).await
    }

    /// What this instance has answered so far.
    pub async fn answer(&self, etcd: &EtcdCluster, instance: &str) -> Option<serde_json::Value> {
        let key = format!("/waypost/hosts/acks/{}/{instance}", self.barrier);
        let pairs = below(etcd, &key).await;
        let pair = pairs.first()?;
        Some(serde_json::from_slice(pair.value()).expect("JSON"))
    }

    /// Waits until this instance has so many requests left.
    pub async fn until_left(&self, etcd: &EtcdCluster, instance: &str, requests: usize) {
        let what = format!("{instance} has {requests} requests left");
        eventually(&what, async || {
            let answer = self.answer(etcd, instance).await;
            answer.is_some_and(|answer| {
                answer["requests"] == requests && answer["done"] == (requests == 0)
            })
        })
        .await;
    }

    /// Kills it: nobody takes its barrier away.
    pub fn kill(mut self) {
        self.child.start_kill().expect("it runs");
    }
}

/// How many calls of this method etcd answers within a while.
pub async fn tried_for_a_while(etcd: &EtcdCluster, method: &str) -> f64 {
    let (begun, before) = (Instant::now(), etcd.calls(method).await);
    eventually("a while has passed", async || begun.elapsed() > WHILE).await;
    etcd.calls(method).await - before
}

/// Everything below a folder.
pub async fn below(etcd: &EtcdCluster, folder: &str) -> Vec<KeyValue> {
    let all = GetOptions::new().with_prefix();
    let mut answer = etcd.client().get(folder, Some(all)).await.expect("kvs");
    answer.take_kvs()
}

/// That no barrier is left, nor any answer to one.
pub async fn assert_nothing_left(etcd: &EtcdCluster, prefix: &str) {
    for folder in [
        format!("{prefix}@waypost/barriers/"),
        format!("/waypost{prefix}acks/"),
    ] {
        let keys: Vec<_> = (below(etcd, &folder).await.iter())
            .map(|pair| text(pair.key()))
            .collect();
        assert!(keys.is_empty(), "{keys:?}");
    }
}

/// Revokes the lease of an instance, as etcd does when its time is over.
pub async fn expire(etcd: &EtcdCluster, instance: &str) {
    let key = format!("/waypost/hosts/instances/{instance}");
    let pairs = below(etcd, &key).await;
    let lease = pairs.first().expect("it is registered").lease();
    etcd.client().lease_revoke(lease).await.expect("revoked");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("our keys are text")
}
