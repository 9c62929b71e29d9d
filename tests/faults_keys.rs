//! Keys that nobody should have written, leases that run out, and an etcd that is full, under a Waypost that serves.

use std::time::Duration;

use etcd_client::{PutOptions, TxnOp};

use crate::support::{
    etcd::{EtcdCluster, Options},
    link::Link,
    load,
    rig::{HOST, Rig, key},
    sample::Sample,
    soak,
    waypost::{Waypost, within},
};

const LIMIT: Duration = Duration::from_secs(30);

/// etcd takes requests of up to 1.5 MiB.
const HUGE: usize = 1_500_000;

/// Written while it serves, and there at the next start: each is rejected alone, counted and shown, whatever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisoned_keys_are_rejected_alone_by_watch_and_at_the_start() {
    let rig = Rig::of(1).await;
    let poison = poison();
    let mut client = rig.etcd.client();
    let mut last = 0;
    for (key, value) in &poison {
        let answer = client.put(key.clone(), value.clone(), None).await;
        last = answer.expect("etcd takes it").header().unwrap().revision();
    }
    rig.waypost.reached(last).await;
    let later = Waypost::builder().etcd(&rig.etcd.endpoints()).start().await;
    for waypost in [&rig.waypost, &later] {
        let shown = waypost.api("/api/rejected").await;
        assert_eq!(shown["total"], poison.len(), "{shown}");
        let metric = waypost.metric("waypost_rejected_keys", &[]).await;
        assert_eq!(metric, poison.len() as f64);
        let answer = load::ask(waypost.address(), HOST, "/").await;
        assert_eq!(answer.status(), 200);
    }
    rig.change(LIMIT).await;
    for (key, _) in &poison {
        client.delete(key.clone(), None).await.unwrap();
    }
    within(LIMIT, "none is left", async || {
        rig.waypost.api("/api/rejected").await["total"] == 0
    })
    .await;
    rig.finish().await;
}

fn poison() -> Vec<(Vec<u8>, Vec<u8>)> {
    let below = |rest: &[u8]| [b"/hosts/", rest].concat();
    let mut poison = vec![
        // Keys.
        (below(b""), Vec::new()),
        (below(b"poison.test"), Vec::new()),
        (below(b"poison.test/"), Vec::new()),
        (below(b"poison.test//10.0.0.1:80"), Vec::new()),
        (below(b"poison.test/10.0.0.1"), Vec::new()),
        (below(b"poison.test/10.0.0.1:99999"), Vec::new()),
        (below(b"poison.test/@unheard"), Vec::new()),
        (below(b"po ison.test/10.0.0.1:80"), Vec::new()),
        (below(b"*.*.test/10.0.0.1:80"), Vec::new()),
        (below(b"\xff\xfe/10.0.0.1:80"), Vec::new()),
        (below(b"\0/\0:1"), Vec::new()),
        (
            below(&[&b"poison.test/"[..], &[b'x'; 60_000]].concat()),
            Vec::new(),
        ),
        (
            below(&[&vec![b'h'; HUGE][..], b"/10.0.0.1:80"].concat()),
            Vec::new(),
        ),
    ];
    // Values.
    let json = |text: String| text.into_bytes();
    let values = [
        json(r#"{"weight": -1}"#.to_owned()),
        json(r#"{"weigth": 1}"#.to_owned()),
        json(r#"{"weight": 1, "weight": 2}"#.to_owned()),
        json(format!(r#"{{"tls": {{"sni": "{}"}}}}"#, "x".repeat(HUGE))),
        json(format!(r#"{{"x": {}"#, "[".repeat(HUGE))),
    ];
    for (index, value) in values.into_iter().enumerate() {
        poison.push((
            below(format!("poison-{index}.test/10.0.0.1:80").as_bytes()),
            value,
        ));
    }
    poison
}

/// Two spellings of one key: the upstream is asked until the last of them is gone, and counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_written_twice_lives_until_both_are_gone() {
    let rig = Rig::of(1).await;
    let sample = &rig.samples[0];
    let spellings = [key("twice.test", sample), key("Twice.test.", sample)];
    for spelling in &spellings {
        rig.waypost.reached(rig.etcd.put(spelling, "").await).await;
    }
    let served = async || {
        load::ask(rig.waypost.address(), "twice.test", "/")
            .await
            .status()
            .as_u16()
    };
    for (spelling, status) in spellings.iter().zip([200, 404]) {
        assert_eq!(served().await, 200);
        rig.waypost.reached(rig.etcd.delete(spelling).await).await;
        assert_eq!(served().await, status, "without {spelling}");
    }
    rig.finish().await;
}

/// Nobody keeps it alive: its upstream gets nothing new, and what runs there is finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_lease_drains_its_upstream() {
    let rig = Rig::of(1).await;
    let leased = Sample::start().await;
    let mut client = rig.etcd.client();
    let lease = client.lease_grant(1, None).await.unwrap().id();
    let bound = PutOptions::new().with_lease(lease);
    // Its own host, and a share of the one under load.
    for host in ["leased.test", HOST] {
        let put = client
            .put(key(host, &leased), "", Some(bound.clone()))
            .await;
        let revision = put.unwrap().header().unwrap().revision();
        rig.waypost.reached(revision).await;
    }
    let address = rig.waypost.address();
    let running =
        ["/hold", "/stream"].map(|path| tokio::spawn(load::get(address, "leased.test", path)));
    leased.until_holding(2).await;
    rig.until_status("leased.test", 404, LIMIT).await;
    within(LIMIT, "it gets nothing new", async || {
        let before = leased.hits();
        rig.load.more(50).await;
        leased.hits() == before
    })
    .await;
    leased.release();
    let [held, streamed] = running.map(|running| async { running.await.unwrap().unwrap() });
    assert_eq!(*held.await.body(), leased.to_string());
    assert_eq!(streamed.await.body(), "part\npart\n");
    let tally = rig.load.finish().await;
    assert!(
        tally
            .bodies
            .contains_key(&(HOST.to_owned(), leased.to_string()))
    );
}

/// Puts are refused; what is there is served, deletes arrive, and neither the watch nor a resume is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_is_followed_on() {
    let options = Options {
        flags: vec!["--quota-backend-bytes=2000000".to_owned()],
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    let link = Link::to(&etcd.endpoints()[0]).await;
    let rig = Rig::over(etcd, Waypost::builder().etcd(&[link.url()])).await;
    let gone = key("gone.test", &rig.samples[0]);
    rig.etcd.put(&gone, "").await;
    rig.until_status("gone.test", 200, LIMIT).await;
    rig.etcd.fill().await;

    let uptime = async || rig.waypost.api("/api/status").await["uptime_seconds"].as_f64();
    let (begun, length) = (uptime().await.unwrap(), soak::seconds(2, 120));
    within(2 * length, "a while has passed", async || {
        let (_, text) = rig.waypost.admin_get("/readyz").await;
        assert_eq!(text, "ready\n");
        uptime().await > Some(begun + length.as_secs_f64())
    })
    .await;
    assert_eq!(rig.waypost.log().count("no connection to etcd"), 0);
    let tries = link.tries();
    rig.etcd.txn([TxnOp::delete(gone, None)]).await;
    rig.until_status("gone.test", 404, LIMIT).await;
    assert_eq!(link.tries(), tries, "no new connection");

    link.cut();
    rig.until_stale(LIMIT).await;
    link.mend(&rig.etcd.endpoints()[0]);
    rig.until_fresh(LIMIT).await;
    assert_eq!(rig.reads(), 1, "resumed, not read anew");
    rig.finish().await;
}
