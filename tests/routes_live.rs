//! Routes that change while requests run: real etcd, real upstreams, clients that count every answer.

use std::time::{Duration, Instant};

use etcd_client::TxnOp;

use crate::support::{
    etcd::EtcdCluster,
    load::{self, Client, Load, ask},
    sample::Sample,
    waypost::{Waypost, eventually, waypost},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstreams_come_and_go_and_not_one_request_fails() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let samples = three_samples().await;
    for host in ["a.test", "b.test"] {
        for sample in &samples {
            waypost
                .reached(etcd.put(&key(host, sample), "").await)
                .await;
        }
    }
    let load = Load::start(&[waypost.address()], &["a.test", "b.test"]);
    load.more(200).await;
    for round in 0..12 {
        let sample = &samples[round % 3];
        let host = ["a.test", "b.test"][round % 2];
        waypost.reached(etcd.delete(&key(host, sample)).await).await;
        load.more(60).await;
        let bodies = load.tally().bodies;
        let asked = || (host.to_owned(), sample.to_string());
        load.more(60).await;
        let after = load.tally().bodies;
        assert_eq!(bodies.get(&asked()), after.get(&asked()), "it is deleted");
        waypost
            .reached(etcd.put(&key(host, sample), "").await)
            .await;
        load.more(60).await;
        assert!(
            load.tally().bodies.get(&asked()) > after.get(&asked()),
            "it is back"
        );
    }
    load.finish().await;
}

#[tokio::test]
async fn a_request_that_runs_on_a_deleted_upstream_is_finished() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let (old, new) = (Sample::start().await, Sample::start().await);
    waypost
        .reached(etcd.put(&key("a.test", &old), "").await)
        .await;
    let address = waypost.address();
    let ask = |path| tokio::spawn(load::get(address, "a.test", path));
    let running = [ask("/hold"), ask("/stream")];
    old.until_holding(2).await;
    let replaced = [
        TxnOp::delete(key("a.test", &old), None),
        TxnOp::put(key("a.test", &new), "", None),
    ];
    waypost.reached(etcd.txn(replaced).await).await;
    let answer = ask("/").await.unwrap().unwrap();
    assert_eq!(*answer.body(), new.to_string());
    // And when the whole host goes.
    waypost
        .reached(etcd.delete(&key("a.test", &new)).await)
        .await;
    assert_eq!(ask("/").await.unwrap().unwrap().status(), 404);
    old.release();
    let [held, streamed] = running.map(|running| async { running.await.unwrap().unwrap() });
    assert_eq!(*held.await.body(), old.to_string());
    assert_eq!(streamed.await.body(), "part\npart\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_dies_fails_no_request_while_another_lives() {
    let waypost = Waypost::builder().start().await;
    let survivor = Sample::start().await;
    waypost.put("a.test", &survivor, "").await;
    let load = Load::start(&[waypost.address()], &["a.test"]);
    for _ in 0..4 {
        let doomed = Sample::start().await;
        waypost.put("a.test", &doomed, "").await;
        load.more(100).await;
        assert!(doomed.hits() > 0);
        // Its key stays.
        drop(doomed);
        load.more(150).await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_requests_go_on_and_staleness_is_told() {
    let (mut etcd, waypost) = etcd_and_waypost().await;
    let samples = three_samples().await;
    for sample in &samples {
        waypost
            .reached(etcd.put(&key("a.test", sample), "").await)
            .await;
    }
    let load = Load::start(&[waypost.address()], &["a.test"]);
    load.more(100).await;
    etcd.kill(0);
    eventually("stale", async || {
        waypost.admin_get("/readyz").await.1.contains("stale")
    })
    .await;
    let (status, text) = waypost.admin_get("/readyz").await;
    assert_eq!(status, 200, "routes are still served: {text}");
    let api = waypost.api("/api/status").await;
    assert_eq!(api["connected"], false);
    assert!(
        api["stale_seconds"].is_number() && api["error"].is_string(),
        "{api}"
    );
    assert_eq!(waypost.metric("waypost_source_connected", &[]).await, 0.0);
    load.more(300).await;

    etcd.restart(0).await;
    let revision = etcd.delete(&key("a.test", &samples[0])).await;
    waypost.reached(revision).await;
    load.more(100).await;
    assert_eq!(
        waypost.admin_get("/readyz").await,
        (200, "ready\n".to_owned())
    );
    assert_eq!(waypost.metric("waypost_source_connected", &[]).await, 1.0);
    let before = samples[0].hits();
    load.more(100).await;
    assert_eq!(samples[0].hits(), before, "it is deleted");
    load.finish().await;
}

#[tokio::test]
async fn a_start_without_etcd_answers_503_until_etcd_is_there() {
    let mut etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    etcd.put(&key("a.test", &sample), "").await;
    etcd.kill(0);
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).spawn().await;
    let endpoint = etcd.endpoints()[0].clone();
    let names_it = async || {
        let (status, text) = waypost.admin_get("/readyz").await;
        assert_eq!(status, 503, "{text}");
        text.contains("no routes were read yet") && text.contains(&endpoint)
    };
    eventually("it says what it waits for", names_it).await;
    let answer = ask(waypost.address(), "a.test", "/").await;
    assert_eq!(answer.status(), 503, "not 404: nobody knows the routes");
    assert!(answer.headers().contains_key("proxy-status"));
    assert_eq!(waypost.admin_get("/livez").await.0, 200);

    etcd.restart(0).await;
    waypost.until_ready().await;
    assert_eq!(ask(waypost.address(), "a.test", "/").await.status(), 200);
    assert_eq!(ask(waypost.address(), "b.test", "/").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_moves_two_hosts_is_seen_whole() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let (one, two) = (Sample::start().await, Sample::start().await);
    let put = |host: &str, sample| TxnOp::put(key(host, sample), "", None);
    let delete = |host: &str, sample| TxnOp::delete(key(host, sample), None);
    waypost
        .reached(etcd.txn([put("a.test", &one), put("b.test", &one)]).await)
        .await;

    // Through the API: one page is of one table.
    let address = waypost.admin();
    let reader = tokio::spawn(async move {
        let mut client = Client::connect(address).await.unwrap();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 2 {
            let page = client
                .get("admin", "/api/routes")
                .await
                .unwrap()
                .into_body();
            let page: serde_json::Value = serde_json::from_str(&page).unwrap();
            let upstreams: Vec<_> = (page["routes"].as_array().unwrap().iter())
                .map(|route| {
                    let members = route["members"].as_array().unwrap();
                    assert_eq!(members.len(), 1, "{page}");
                    members[0]["upstream"].to_string()
                })
                .collect();
            assert_eq!(upstreams.len(), 2, "{page}");
            assert_eq!(upstreams[0], upstreams[1], "half a transaction");
            seen.insert(upstreams[0].clone());
        }
    });
    let load = Load::start(&[waypost.address()], &["a.test", "b.test"]);
    for round in 0..40 {
        let (from, to) = if round % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        let moved = [
            delete("a.test", from),
            put("a.test", to),
            delete("b.test", from),
            put("b.test", to),
        ];
        let revision = etcd.txn(moved).await;
        waypost.reached(revision).await;
        // Every request that begins now goes to the new one.
        for host in ["a.test", "b.test"] {
            assert_eq!(
                ask(waypost.address(), host, "/").await.body(),
                &to.to_string()
            );
        }
    }
    load.finish().await;
    reader.await.unwrap();
}

#[tokio::test]
async fn a_change_is_served_at_once() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let sample = Sample::start().await;
    let mut client = Client::connect(waypost.address()).await.unwrap();
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let host = format!("h{round}.test");
        etcd.put(&key(&host, &sample), "").await;
        let put = Instant::now();
        while client.get(&host, "/").await.unwrap().status() != 200 {}
        slowest = slowest.max(put.elapsed());
    }
    // Milliseconds; the rest is for machines with much else to do.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test]
async fn two_instances_follow_the_same_cluster() {
    let (etcd, one) = etcd_and_waypost().await;
    let two = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let sample = Sample::start().await;
    let revision = etcd.put(&key("a.test", &sample), "").await;
    let admins = format!("{},{}", one.admin(), two.admin());
    let waited = waypost(&["wait", &revision.to_string(), "--admin", &admins]).await;
    assert_eq!(waited.code, Some(0), "{waited:?}");
    for instance in [&one, &two] {
        assert_eq!(ask(instance.address(), "a.test", "/").await.status(), 200);
    }
}

async fn etcd_and_waypost() -> (EtcdCluster, Waypost) {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    (etcd, waypost)
}

async fn three_samples() -> Vec<Sample> {
    vec![
        Sample::start().await,
        Sample::start().await,
        Sample::start().await,
    ]
}

fn key(route: &str, sample: &Sample) -> String {
    format!("/hosts/{route}/{sample}")
}
