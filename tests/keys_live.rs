//! What keys mean while they come and go: precedence, names, and those that are rejected.

use etcd_client::TxnOp;

use crate::support::{
    etcd::EtcdCluster,
    load::{Load, ask},
    sample::Sample,
    waypost::{Waypost, eventually},
};

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
    etcd.put("/hosts/a.test/@settings", r#"{"mirror": "b:80"}"#)
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
            .contains("unknown field `mirror`"),
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

async fn etcd_and_waypost() -> (EtcdCluster, Waypost) {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    (etcd, waypost)
}

fn key(route: &str, sample: &Sample) -> String {
    format!("/hosts/{route}/{sample}")
}
