//! The last good version of a key that was bad before the instance came, and had no snapshot.

use std::collections::BTreeMap;

use crate::support::{
    etcd::EtcdCluster,
    load::ask,
    sample::Sample,
    waypost::{Waypost, eventually},
};

const BAD: &str = r#"{"weight": "many"}"#;

#[tokio::test]
async fn a_first_start_finds_the_last_good_version_of_a_bad_key() {
    let etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    let key = |host: &str| format!("/hosts/{host}/{sample}");
    let put = async |host: &str, values: &[&str]| {
        let mut revisions = Vec::new();
        for value in values {
            revisions.push(etcd.put(&key(host), *value).await);
        }
        revisions
    };
    let once = put("once.test", &["first", r#"{"weight": 3}"#, BAD]).await;
    put("never.test", &[BAD, BAD]).await;
    put("deleted.test", &[""]).await;
    etcd.delete(&key("deleted.test")).await;
    put("deleted.test", &[BAD]).await;
    put("deep.test", &[&[""][..], &[BAD; 8]].concat()).await;
    put("too-deep.test", &[&[""][..], &[BAD; 9]].concat()).await;
    put("settings.test", &[""]).await;
    let settings = "/hosts/settings.test/@settings";
    etcd.put(settings, r#"{"redirect_https": true}"#).await;
    etcd.put(settings, r#"{"redirect_https": 5}"#).await;
    etcd.put("/hosts/settings.test/not an upstream", "").await;

    let expected = [
        ("once.test", 200, Some(true)),
        ("never.test", 404, Some(false)),
        ("deleted.test", 404, Some(false)),
        ("deep.test", 200, Some(true)),
        ("too-deep.test", 404, Some(false)),
        ("settings.test", 308, None),
    ];
    let instance = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let rejected = rejected(&instance).await;
    for (host, status, good) in expected {
        assert_eq!(
            ask(instance.address(), host, "/").await.status(),
            status,
            "{host}"
        );
        assert_eq!(rejected.get(&key(host)).copied(), good, "{host}");
    }
    assert!(rejected[settings]);
    assert!(!rejected["/hosts/settings.test/not an upstream"]);
    assert_eq!(rejected.len(), 7);
    let routes = instance.api("/api/routes?host=once.test").await;
    let member = &routes["routes"][0]["members"][0];
    assert_eq!(
        (&member["weight"], &member["mod_revision"]),
        (&3.into(), &once[1].into())
    );
    etcd.put(&key("never.test"), "").await;
    eventually("it is mended", async || {
        ask(instance.address(), "never.test", "/").await.status() == 200
    })
    .await;

    // What etcd doesn't remember nobody finds, and the rest is served all the same.
    let last = etcd.put(&key("good.test"), "").await;
    etcd.compact(last).await;
    let late = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    assert_eq!(ask(late.address(), "once.test", "/").await.status(), 404);
    assert_eq!(ask(late.address(), "good.test", "/").await.status(), 200);
    assert!(!self::rejected(&late).await[&key("once.test")]);
}

/// Each rejected key, and whether its last good version is in force.
async fn rejected(instance: &Waypost) -> BTreeMap<String, bool> {
    let shown = instance.api("/api/rejected").await;
    let keys = shown["rejected"].as_array().expect("a list").iter();
    let of = |key: &serde_json::Value| {
        let name = key["key"].as_str().expect("a key").to_owned();
        (name, key["last_good_in_force"].as_bool().expect("a word"))
    };
    keys.map(of).collect()
}
