//! A Waypost under load whose etcd is about to suffer: two upstreams, one host, clients that count every answer.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::{
    command::within,
    etcd::EtcdCluster,
    load::{Load, ask},
    sample::Sample,
    waypost::{Builder, Waypost},
};

/// The host that is asked for all the time.
pub const HOST: &str = "kept.test";

/// Between two requests of one client: a fault takes its time, and the machine is needed for it.
const PAUSE: Duration = Duration::from_millis(15);

/// What a fault happens to.
pub struct Rig {
    pub etcd: EtcdCluster,
    pub waypost: Waypost,
    pub samples: [Sample; 2],
    pub load: Load,
    fresh: AtomicUsize,
}

impl Rig {
    /// Over a cluster of so many members.
    pub async fn of(members: usize) -> Self {
        let etcd = EtcdCluster::start(members).await;
        let endpoints = etcd.endpoints();
        Self::over(etcd, Waypost::builder().etcd(&endpoints)).await
    }

    /// Over this cluster, which has no routes yet.
    pub async fn over(etcd: EtcdCluster, waypost: Builder) -> Self {
        let samples = [Sample::start().await, Sample::start().await];
        for sample in &samples {
            etcd.put(&key(HOST, sample), "").await;
        }
        let waypost = waypost.start().await;
        let load = Load::paced(&[waypost.address()], &[HOST], PAUSE);
        load.more(50).await;
        Self {
            etcd,
            waypost,
            samples,
            load,
            fresh: AtomicUsize::new(0),
        }
    }

    /// Adds a host and waits until it is served: how long that took from the moment etcd had it.
    pub async fn change(&self, limit: Duration) -> Duration {
        let host = format!("fresh-{}.test", self.fresh.fetch_add(1, Ordering::Relaxed));
        self.etcd.put(&key(&host, &self.samples[0]), "").await;
        let put = Instant::now();
        self.until_status(&host, 200, limit).await;
        put.elapsed()
    }

    /// Waits until requests for this host are answered so.
    pub async fn until_status(&self, host: &str, status: u16, limit: Duration) {
        let what = format!("{host} answers {status}");
        within(limit, &what, async || {
            ask(self.waypost.address(), host, "/").await.status() == status
        })
        .await;
    }

    /// Waits until it knows that changes don't reach it.
    pub async fn until_stale(&self, limit: Duration) {
        within(limit, "it is stale", async || {
            let (status, text) = self.waypost.admin_get("/readyz").await;
            assert_eq!(status, 200, "routes are still served: {text}");
            text.contains("stale for ")
        })
        .await;
    }

    /// Waits until changes reach it.
    pub async fn until_fresh(&self, limit: Duration) {
        within(limit, "it is fresh", async || {
            let (_, text) = self.waypost.admin_get("/readyz").await;
            text.starts_with("ready") && !text.contains("stale")
        })
        .await;
    }

    /// The URL of the member that it watches, or tried last.
    pub async fn location(&self) -> String {
        let status = self.waypost.api("/api/status").await;
        status["location"].as_str().expect("a URL").to_owned()
    }

    /// The index of that member.
    pub async fn member(&self) -> usize {
        let (location, endpoints) = (self.location().await, self.etcd.endpoints());
        let found = endpoints.iter().position(|url| *url == location);
        found.unwrap_or_else(|| panic!("{location} is none of {endpoints:?}"))
    }

    /// How often it read every key so far, the start included.
    pub fn reads(&self) -> usize {
        self.waypost.log().count("read all keys")
    }

    /// Ends the load; not one request may have failed, or gone elsewhere.
    pub async fn finish(self) {
        self.load.more(20).await;
        let tally = self.load.finish().await;
        let names = self.samples.each_ref().map(ToString::to_string);
        let astray = tally.bodies.keys().find(|(_, body)| !names.contains(body));
        assert_eq!(astray, None, "no upstream of {HOST}");
    }
}

/// The key of this upstream for `HOST[/PATH]`.
pub fn key(route: &str, sample: &Sample) -> String {
    format!("/hosts/{route}/{sample}")
}
