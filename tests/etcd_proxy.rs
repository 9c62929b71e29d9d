//! etcd's own gRPC proxy between the instances and the cluster, as large fleets have it (docs/scale.md). It never answers
//! requests for progress, shares one watch among all who watch the same range, and joins or splits responses as it likes.

use std::{net::TcpListener, path::PathBuf, time::Duration};

use etcd_client::{Client, DeleteOptions, TxnOp};

use crate::support::{
    etcd::EtcdCluster,
    process::Process,
    rig::{Rig, key},
    waypost::{Waypost, within},
};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_and_whole_transactions_come_through_a_grpc_proxy() {
    let etcd = EtcdCluster::start(1).await;
    let proxy = GrpcProxy::start(&etcd, "one").await;
    let rig = Rig::over(
        etcd,
        Waypost::builder().etcd(std::slice::from_ref(&proxy.url)),
    )
    .await;
    rig.change(LIMIT).await;

    // Two hosts that always move together, seen by two instances that share the proxy's one watch.
    let second = Waypost::builder()
        .etcd(std::slice::from_ref(&proxy.url))
        .start()
        .await;
    let place = |host: &str, at: usize| key(host, &rig.samples[at % 2]);
    let mut last = 0;
    for flip in 0..100 {
        let mut moves = Vec::new();
        for host in ["left.test", "right.test"] {
            moves.push(TxnOp::put(place(host, flip), "", None));
            moves.push(TxnOp::delete(place(host, flip + 1), None));
        }
        last = rig.etcd.txn(moves).await;
        for instance in [&rig.waypost, &second] {
            let page = instance.api("/api/routes").await;
            let routes = page["routes"].as_array().expect("routes");
            let member = |host: &str| {
                let route = routes.iter().find(|route| route["host"] == host)?;
                Some(route["members"][0]["upstream"].clone())
            };
            assert_eq!(member("left.test"), member("right.test"), "{page}");
        }
    }
    second.reached(last).await;
    rig.waypost.reached(last).await;

    // One revision too large for one response of the proxy.
    let path = "x".repeat(900);
    for batch in 0..25 {
        let put = |index| {
            let route = format!("many-{batch}-{index}.test/{path}");
            TxnOp::put(key(&route, &rig.samples[0]), "", None)
        };
        last = rig.etcd.txn((0..100).map(put).collect::<Vec<_>>()).await;
    }
    rig.waypost.reached(last).await;
    let hosts = async |instance: &Waypost| instance.api("/api/status").await["hosts"].clone();
    let before = hosts(&rig.waypost).await.as_u64().expect("a count");
    let all = DeleteOptions::new().with_prefix();
    let many = TxnOp::delete("/hosts/many-", Some(all));
    let deleted = rig.etcd.txn([many]).await;
    within(LIMIT, "they are gone", async || {
        let status = rig.waypost.api("/api/status").await;
        let hosts = status["hosts"].as_u64().expect("a count");
        let whole = [before, before - 2500];
        assert!(whole.contains(&hosts), "half of a revision: {status}");
        status["applied_revision"].as_i64() >= Some(deleted)
    })
    .await;
    second.reached(deleted).await;
    assert_eq!(hosts(&rig.waypost).await, hosts(&second).await);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_proxy_that_dies_is_left_for_another_and_resumed_through() {
    let etcd = EtcdCluster::start(1).await;
    let mut proxies = [
        GrpcProxy::start(&etcd, "one").await,
        GrpcProxy::start(&etcd, "two").await,
    ];
    let urls = proxies.each_ref().map(|proxy| proxy.url.clone());
    let rig = Rig::over(etcd, Waypost::builder().etcd(&urls)).await;
    for _ in 0..2 {
        let location = rig.location().await;
        let used = urls.iter().position(|url| *url == location);
        let used = used.expect("one of the two");
        proxies[used].kill();
        rig.change(LIMIT).await;
        assert_ne!(rig.location().await, location);
        proxies[used].restart().await;
    }
    assert_eq!(rig.reads(), 1, "resumed, not read anew");

    // Both are away while more changes than one message holds, and then while the history is compacted.
    for is_compacted in [false, true] {
        proxies.iter_mut().for_each(GrpcProxy::kill);
        rig.until_stale(LIMIT).await;
        let gone = format!("gone-{is_compacted}.test");
        rig.etcd.put(&key(&gone, &rig.samples[0]), "").await;
        for index in 0..10 {
            let put = |name: usize| {
                let host = format!("added-{is_compacted}-{index}-{name}.test");
                TxnOp::put(key(&host, &rig.samples[0]), vec![b'x'; 60_000], None)
            };
            rig.etcd.txn((0..10).map(put).collect::<Vec<_>>()).await;
        }
        let last = rig.etcd.delete(&key(&gone, &rig.samples[0])).await;
        if is_compacted {
            rig.etcd.compact(last).await;
        }
        for proxy in &mut proxies {
            proxy.restart().await;
        }
        let added = format!("added-{is_compacted}-9-9.test");
        rig.until_status(&added, 200, LIMIT).await;
        rig.waypost.reached(last).await;
        rig.until_status(&gone, 404, LIMIT).await;
        assert_eq!(rig.reads(), 1 + usize::from(is_compacted));
    }
    rig.finish().await;
}

/// A running `etcd grpc-proxy`, ended with its owner.
struct GrpcProxy {
    url: String,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

impl GrpcProxy {
    async fn start(etcd: &EtcdCluster, name: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("its address").to_string();
        drop(free);
        let mut proxy = Self {
            url: format!("http://{address}"),
            arguments: vec![
                "grpc-proxy".to_owned(),
                "start".to_owned(),
                format!("--endpoints={}", etcd.endpoints().join(",")),
                format!("--listen-addr={address}"),
                format!("--advertise-client-url={address}"),
                format!("--data-dir={}", etcd.directory().join(name).display()),
            ],
            log: etcd.directory().join(format!("{name}.log")),
            process: None,
        };
        proxy.restart().await;
        proxy
    }

    fn kill(&mut self) {
        self.process = None;
    }

    async fn restart(&mut self) {
        self.process = Some(Process::start("etcd", &self.arguments, &self.log));
        within(LIMIT, "the proxy answers", async || {
            let asked = async {
                let mut client = Client::connect([&self.url], None).await?;
                client.get("ready", None).await
            };
            let asked = tokio::time::timeout(Duration::from_secs(2), asked).await;
            matches!(asked, Ok(Ok(_)))
        })
        .await;
    }
}
