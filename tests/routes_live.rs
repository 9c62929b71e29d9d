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

#[tokio::test]
async fn round_robin_is_exact_over_all_workers_and_connections() {
    let waypost = Waypost::builder().flag("--workers", 3).start().await;
    let samples = three_samples().await;
    for sample in &samples {
        waypost.put("a.test", sample, "").await;
    }
    // Each connection is of some worker.
    let mut clients = Vec::new();
    for _ in 0..24 {
        clients.push(Client::connect(waypost.address()).await.unwrap());
    }
    for round in 1..=100 {
        let client = &mut clients[round * 7 % 24];
        assert_eq!(client.get("a.test", "/").await.unwrap().status(), 200);
        let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(most - least <= 1, "after {round}: {hits:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_robin_is_exact_under_concurrent_load() {
    let waypost = Waypost::builder().flag("--workers", 3).start().await;
    let samples = three_samples().await;
    for sample in &samples {
        waypost.put("a.test", sample, "").await;
    }
    let (address, mut tasks) = (waypost.address(), tokio::task::JoinSet::new());
    for _ in 0..12 {
        tasks.spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            for _ in 0..25 {
                assert_eq!(client.get("a.test", "/").await.unwrap().status(), 200);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
    assert_eq!(hits, [100, 100, 100]);
}

#[tokio::test]
async fn random_is_roughly_uniform_and_weights_count() {
    let waypost = Waypost::builder().flag("--balance", "random").start().await;
    let samples = three_samples().await;
    for sample in &samples {
        waypost.put("a.test", sample, "").await;
    }
    let (mut client, mut last, mut repeats) = (
        Client::connect(waypost.address()).await.unwrap(),
        String::new(),
        0,
    );
    for _ in 0..600 {
        let body = client.get("a.test", "/").await.unwrap().into_body();
        repeats += usize::from(body == last);
        last = body;
    }
    // Mean 200, standard deviation 11.5.
    let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
    assert!(
        hits.iter().all(|hits| (130..=270).contains(hits)),
        "{hits:?}"
    );
    assert!(
        (130..=270).contains(&repeats),
        "{repeats} repeats: that is no chance"
    );

    waypost.put("b.test", &samples[0], r#"{"weight": 3}"#).await;
    waypost.put("b.test", &samples[1], "").await;
    waypost
        .put("b.test", "@settings", r#"{"balance": "round-robin"}"#)
        .await;
    let before: Vec<_> = samples.iter().map(Sample::hits).collect();
    for _ in 0..40 {
        client.get("b.test", "/").await.unwrap();
    }
    let more: Vec<_> = samples
        .iter()
        .zip(before)
        .map(|(s, before)| s.hits() - before)
        .collect();
    assert_eq!(more, [30, 10, 0]);
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
async fn a_rejected_key_is_shown_everywhere_and_the_last_good_version_serves() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let (good, other) = (Sample::start().await, Sample::start().await);
    waypost
        .reached(etcd.put(&key("a.test", &good), "").await)
        .await;
    waypost
        .reached(etcd.put(&key("a.test", &other), "").await)
        .await;
    let bad = etcd.put(&key("a.test", &good), r#"{"weight": -1}"#).await;
    let worse = etcd.put("/hosts/a.test/nonsense", "").await;
    etcd.put("/hosts/a.test/@settings", r#"{"sticky": {"cookie": "x"}}"#)
        .await;
    let last = etcd.put("/hosts/a.test//10.0.0.1:80", "").await;
    waypost.reached(last).await;

    let rejected = waypost.api("/api/rejected").await["rejected"].clone();
    let rejected = rejected.as_array().unwrap();
    assert_eq!(rejected.len(), 4, "{rejected:?}");
    let of = |key: &str| {
        rejected
            .iter()
            .find(|rejected| rejected["key"] == key)
            .expect(key)
    };
    let weight = of(&key("a.test", &good));
    assert!(
        weight["reason"].as_str().unwrap().contains("weight"),
        "{weight}"
    );
    assert_eq!(weight["mod_revision"], bad);
    assert_eq!(weight["last_good_in_force"], true);
    let nonsense = of("/hosts/a.test/nonsense");
    assert_eq!(nonsense["mod_revision"], worse);
    assert_eq!(nonsense["last_good_in_force"], false);
    let settings = of("/hosts/a.test/@settings");
    assert!(
        settings["reason"]
            .as_str()
            .unwrap()
            .contains("not supported yet"),
        "{settings}"
    );
    assert_eq!(waypost.metric("waypost_rejected_keys", &[]).await, 4.0);
    assert_eq!(waypost.api("/api/status").await["rejected_keys"], 4);
    for key in [
        &key("a.test", &good),
        "/hosts/a.test/nonsense",
        "/hosts/a.test//10.0.0.1:80",
    ] {
        waypost.log().until(key).await;
    }
    for _ in 0..4 {
        assert_eq!(ask(waypost.address(), "a.test", "/").await.status(), 200);
    }
    assert_eq!((good.hits(), other.hits()), (2, 2), "both serve");

    // What is mended or deleted is rejected no more.
    etcd.put(&key("a.test", &good), r#"{"weight": 2}"#).await;
    etcd.delete("/hosts/a.test/nonsense").await;
    etcd.delete("/hosts/a.test/@settings").await;
    waypost
        .reached(etcd.delete("/hosts/a.test//10.0.0.1:80").await)
        .await;
    assert_eq!(
        waypost.api("/api/rejected").await["rejected"],
        serde_json::json!([])
    );
    assert_eq!(waypost.metric("waypost_rejected_keys", &[]).await, 0.0);
}

#[tokio::test]
async fn exact_hosts_beat_wildcards_which_beat_the_star_and_longer_paths_win() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let mut samples = Vec::new();
    let routes = [
        "*",
        "*.test",
        "*.b.test",
        "a.b.test",
        "a.b.test/api",
        "a.b.test/api/v1",
    ];
    for route in routes {
        let sample = Sample::start().await;
        waypost
            .reached(etcd.put(&key(route, &sample), "").await)
            .await;
        samples.push(sample);
    }
    let served = async |host: &str, path: &str| {
        let answer = ask(waypost.address(), host, path).await;
        let by = samples
            .iter()
            .position(|sample| sample.to_string() == *answer.body());
        by.map(|index| routes[index])
    };
    for (host, path, route) in [
        ("a.b.test", "/", "a.b.test"),
        ("A.B.test.:80", "/", "a.b.test"),
        ("a.b.test", "/api", "a.b.test/api"),
        ("a.b.test", "/api/x", "a.b.test/api"),
        ("a.b.test", "/apix", "a.b.test"),
        ("a.b.test", "/api/v1/x", "a.b.test/api/v1"),
        ("x.b.test", "/api", "*.b.test"),
        ("x.y.b.test", "/", "*.b.test"),
        ("b.test", "/", "*.test"),
        ("test", "/", "*"),
        ("127.0.0.1", "/", "*"),
    ] {
        assert_eq!(served(host, path).await, Some(route), "{host}{path}");
    }
    // Removed, the next best takes over at once.
    for (gone, next) in [(3, "*.b.test"), (2, "*.test"), (1, "*")] {
        waypost
            .reached(etcd.delete(&key(routes[gone], &samples[gone])).await)
            .await;
        if gone == 3 {
            assert_eq!(ask(waypost.address(), "a.b.test", "/").await.status(), 404);
            for longer in [4, 5] {
                waypost
                    .reached(etcd.delete(&key(routes[longer], &samples[longer])).await)
                    .await;
            }
        }
        assert_eq!(served("a.b.test", "/").await, Some(next));
    }
    waypost
        .reached(etcd.delete(&key("*", &samples[0])).await)
        .await;
    assert_eq!(ask(waypost.address(), "a.b.test", "/").await.status(), 404);
}

#[tokio::test]
async fn names_are_resolved_and_unknown_ones_are_shown() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let sample = Sample::start().await;
    let named = format!("/hosts/a.test/localhost:{}", sample.port());
    waypost.reached(etcd.put(&named, "").await).await;
    eventually("resolved", async || {
        ask(waypost.address(), "a.test", "/").await.status() == 200
    })
    .await;
    let members = async || {
        let page = waypost.api("/api/routes?host=a.test").await;
        page["routes"][0]["members"].clone()
    };
    let member = members().await[0].clone();
    assert_eq!(member["upstream"], sample.to_string());
    assert_eq!(
        (&member["key"], &member["resolved"]),
        (&named.clone().into(), &true.into())
    );
    // A changed value is no reason to be without an address for a moment.
    let load = Load::start(&[waypost.address()], &["a.test"]);
    for weight in 2..8 {
        let value = format!(r#"{{"weight": {weight}}}"#);
        waypost.reached(etcd.put(&named, value).await).await;
        assert_eq!(members().await[0]["weight"], weight);
        load.more(20).await;
    }
    load.finish().await;

    // Nor is a name that takes the place of an address.
    let load = Load::start(&[waypost.address()], &["a.test"]);
    let address = key("a.test", &sample);
    for _ in 0..5 {
        let to_address = [
            TxnOp::delete(named.clone(), None),
            TxnOp::put(address.clone(), "", None),
        ];
        waypost.reached(etcd.txn(to_address).await).await;
        load.more(20).await;
        let to_name = [
            TxnOp::delete(address.clone(), None),
            TxnOp::put(named.clone(), "", None),
        ];
        waypost.reached(etcd.txn(to_name).await).await;
        load.more(20).await;
    }
    load.finish().await;

    waypost
        .reached(etcd.put("/hosts/b.test/nobody.invalid:80", "").await)
        .await;
    let answer = ask(waypost.address(), "b.test", "/").await;
    assert!(matches!(answer.status().as_u16(), 502 | 503), "{answer:?}");
    let members = waypost.api("/api/routes?host=b.test").await["routes"][0]["members"].clone();
    assert_eq!(members[0]["resolved"], false);
    waypost.log().until("nobody.invalid").await;
}

#[tokio::test]
async fn keys_of_any_bytes_leave_the_rest_alone() {
    let (etcd, waypost) = etcd_and_waypost().await;
    let sample = Sample::start().await;
    waypost
        .reached(etcd.put(&key("a.test", &sample), "").await)
        .await;
    let mut client = etcd.client();
    let mut last = 0;
    let long = [b"/hosts/a.test/".to_vec(), vec![b'x'; 5000]].concat();
    for key in [
        &b"/hosts/\xff\xfe/1.1.1.1:1"[..],
        b"/hosts/",
        b"/hosts/a.test",
        b"/hosts/\0/\0:1",
        &long,
    ] {
        let answer = client.put(key, vec![0xff; 200_000], None).await.unwrap();
        last = answer.header().unwrap().revision();
    }
    waypost.reached(last).await;
    assert_eq!(ask(waypost.address(), "a.test", "/").await.status(), 200);
    let rejected = waypost.api("/api/rejected").await;
    assert_eq!(
        rejected["rejected"].as_array().unwrap().len(),
        5,
        "{rejected}"
    );
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
