//! `waypost register`: a key under a lease, against real etcd and a real Waypost.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, GetOptions, Permission, PermissionType};
use tokio::time::timeout;
use waypost::fleet::change::ChangeRecord;

use crate::support::{
    etcd::EtcdCluster,
    load::ask,
    register::Register,
    sample::Sample,
    waypost::{DEADLINE, Waypost, eventually, waypost},
};

#[tokio::test]
async fn an_upstream_is_served_while_it_is_registered() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let sample = Sample::start().await;
    let (upstream, json) = (sample.to_string(), r#"{"weight": 2}"#);
    let mut register = Register::start(&etcd.endpoints(), &["A.test/x", &upstream, json]);
    let line = register.log().until("registered").await;
    let key = format!("/hosts/a.test/x/{upstream}");
    let held = Held::of(&etcd, &key).await.expect("the key");
    assert!(
        line.contains(&format!("revision={}", held.revision)),
        "{line}"
    );
    assert!(line.contains(&key), "{line}");
    assert_eq!(held.value, json);
    assert_ne!(held.lease, 0);
    let record = Held::of(&etcd, &ChangeRecord::key("/hosts/"))
        .await
        .unwrap();
    assert_eq!((record.revision, record.lease), (held.revision, 0));
    let command = format!(r#"waypost register A.test/x {upstream} {{\"weight\": 2}}"#);
    assert!(record.value.contains(&command), "{}", record.value);
    waypost.reached(held.revision).await;
    assert_eq!(ask(waypost.address(), "a.test", "/x").await.status(), 200);

    register.signal("TERM");
    assert_eq!(register.wait_exit().await, Some(0));
    assert_eq!(Held::of(&etcd, &key).await, None);
    let left = etcd.client().leases().await.unwrap();
    let left: Vec<_> = left.leases().iter().map(|lease| lease.id()).collect();
    assert!(!left.contains(&held.lease), "{left:?}");
    let record = Held::of(&etcd, &ChangeRecord::key("/hosts/"))
        .await
        .unwrap();
    assert!(record.value.contains("(ended)"), "{}", record.value);
    assert_eq!(ask(waypost.address(), "a.test", "/x").await.status(), 404);
    register.log().until("drained instances=1").await;
}

#[tokio::test]
async fn what_runs_at_the_end_is_waited_for_and_not_for_ever() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let sample = Sample::start().await;
    let upstream = sample.to_string();
    let address = waypost.address();
    for (patience, code) in [("1s", 1), ("60s", 0)] {
        let arguments = ["a.test", &*upstream, "--drain-timeout", patience];
        let mut register = Register::start(&etcd.endpoints(), &arguments);
        register.log().until("registered").await;
        eventually("it serves", async || {
            ask(address, "a.test", "/").await.status() == 200
        })
        .await;
        let request = tokio::spawn(async move { ask(address, "a.test", "/hold").await });
        sample.until_holding(1).await;
        register.signal("TERM");
        if code == 1 {
            register.log().until("1 request left").await;
            assert_eq!(register.wait_exit().await, Some(1));
            request.abort();
            sample.until_holding(0).await;
            continue;
        }
        until_draining(&etcd).await;
        sample.release();
        assert_eq!(request.await.unwrap().status(), 200);
        assert_eq!(register.wait_exit().await, Some(0));
    }
}

/// What takes the key away need not wait for what runs.
#[tokio::test]
async fn a_key_that_somebody_took_away_is_drained_all_the_same() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let address = waypost.address();
    for host in ["deleted.test", "expired.test"] {
        let sample = Sample::start().await;
        let (upstream, key) = (sample.to_string(), format!("/hosts/{host}/{sample}"));
        // It looks at its key every 200 s.
        let arguments = [host, &*upstream, "--ttl", "600s"];
        let mut register = Register::start(&etcd.endpoints(), &arguments);
        register.log().until("registered").await;
        eventually("it serves", async || {
            ask(address, host, "/").await.status() == 200
        })
        .await;
        let request = tokio::spawn(async move { ask(address, host, "/hold").await });
        sample.until_holding(1).await;
        match host {
            "deleted.test" => {
                etcd.delete(&key).await;
            }
            _ => {
                let held = Held::of(&etcd, &key).await.unwrap();
                etcd.client().lease_revoke(held.lease).await.unwrap();
            }
        }
        register.signal("TERM");
        until_draining(&etcd).await;
        sample.release();
        assert_eq!(request.await.unwrap().status(), 200);
        assert_eq!(register.wait_exit().await, Some(0), "{host}");
        register.log().until("gone already").await;
        register.log().until("drained instances=1").await;
    }
}

#[tokio::test]
async fn an_upstream_goes_when_its_register_is_killed() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let sample = Sample::start().await;
    let register = Register::start(
        &etcd.endpoints(),
        &["a.test", &sample.to_string(), "--ttl", "5s"],
    );
    register.log().until("registered").await;
    eventually("it serves", async || {
        ask(waypost.address(), "a.test", "/").await.status() == 200
    })
    .await;
    register.signal("KILL");
    eventually("its lease is over", async || {
        ask(waypost.address(), "a.test", "/").await.status() == 404
    })
    .await;
}

#[tokio::test]
async fn whatever_etcd_loses_is_registered_anew() {
    let mut etcd = EtcdCluster::start(1).await;
    let register = Register::start(&etcd.endpoints(), &["a.test", "b:80", "--ttl", "5s"]);
    let key = "/hosts/a.test/b:80";
    register.log().until("registered").await;
    let first = Held::of(&etcd, key).await.unwrap();

    etcd.client().lease_revoke(first.lease).await.unwrap();
    assert_eq!(Held::of(&etcd, key).await, None);
    let second = Held::until(&etcd, key, |held| held.lease != first.lease).await;

    etcd.delete(key).await;
    let third = Held::until(&etcd, key, |held| held.revision != second.revision).await;
    assert_eq!(third.lease, second.lease, "which was alive");

    etcd.wipe();
    etcd.restart(0).await;
    let fourth = Held::until(&etcd, key, |_| true).await;
    assert_ne!(fourth.lease, third.lease);
    assert_eq!(fourth.value, "");
}

#[tokio::test]
async fn an_etcd_that_comes_late_is_waited_for() {
    let mut etcd = EtcdCluster::start(1).await;
    etcd.kill(0);
    let register = Register::start(&etcd.endpoints(), &["a.test", "b:80"]);
    register.log().until("could not be asked").await;
    etcd.restart(0).await;
    Held::until(&etcd, "/hosts/a.test/b:80", |held| held.lease != 0).await;
    register.log().until("etcd answers").await;
}

#[tokio::test]
async fn one_member_after_another_goes_and_the_lease_stays() {
    let mut etcd = EtcdCluster::start(3).await;
    let register = Register::start(&etcd.endpoints(), &["a.test", "b:80", "--ttl", "6s"]);
    register.log().until("registered").await;
    let held = Held::of(&etcd, "/hosts/a.test/b:80").await.unwrap();
    for member in 0..3 {
        etcd.kill(member);
        // Less than a new lease has; only a renewal raises it.
        let left = async |seconds: std::ops::Range<i64>| {
            let answer = etcd.client().lease_time_to_live(held.lease, None).await;
            answer.is_ok_and(|answer| seconds.contains(&answer.ttl()))
        };
        eventually("time passes", async || left(0..5).await).await;
        eventually("the lease is renewed", async || left(5..7).await).await;
        etcd.restart(member).await;
    }
    // Our client may still be on its way back to the last of them.
    let still = Held::until(&etcd, "/hosts/a.test/b:80", |_| true).await;
    assert_eq!(still, held);
    drop(register);
}

#[tokio::test]
async fn the_latest_writer_owns_the_key() {
    let etcd = EtcdCluster::start(1).await;
    let key = "/hosts/a.test/b:80";
    let arguments = ["a.test", "b:80", "--ttl", "5s"];
    etcd.put(key, "left by hand").await;
    let mut first = Register::start(&etcd.endpoints(), &arguments);
    first.log().until("registered, in place of").await;
    let by_first = Held::of(&etcd, key).await.unwrap();
    assert_ne!(by_first.lease, 0);

    // As after a crash, or while another container starts.
    let mut second = Register::start(&etcd.endpoints(), &arguments);
    second.log().until("registered, in place of").await;
    let by_second = Held::of(&etcd, key).await.unwrap();
    assert_ne!(by_second.lease, by_first.lease);
    first.log().until("theirs until it is gone").await;
    assert_eq!(Held::of(&etcd, key).await, Some(by_second), "no quarrel");

    second.signal("TERM");
    assert_eq!(second.wait_exit().await, Some(1), "nobody vouches");
    second.log().until("no instance is registered").await;
    let again = Held::until(&etcd, key, |held| held.lease == by_first.lease).await;

    // Whoever puts the key by hand keeps it.
    let by_hand = etcd.put(key, r#"{"drain": true}"#).await;
    assert!(by_hand > again.revision);
    first.signal("TERM");
    assert_eq!(first.wait_exit().await, Some(1), "it may be in use");
    let held = Held::of(&etcd, key).await.unwrap();
    assert_eq!((held.revision, held.lease), (by_hand, 0));
    first.log().until("left as it is").await;
}

#[tokio::test]
async fn an_etcd_that_is_gone_at_the_end_holds_nobody_up() {
    let mut etcd = EtcdCluster::start(1).await;
    let mut register = Register::start(&etcd.endpoints(), &["a.test", "b:80"]);
    register.log().until("registered").await;
    etcd.kill(0);
    register.signal("INT");
    let code = timeout(DEADLINE, register.wait_exit()).await;
    assert_eq!(code, Ok(Some(1)));
    register.log().until("goes with its lease").await;
    let log = register.log().text();
    assert!(!log.contains("nothing is written"), "{log}");

    let mut register = Register::start(&etcd.endpoints(), &["a.test", "b:80"]);
    register.log().until("could not be asked").await;
    register.signal("HUP");
    let code = timeout(Duration::from_secs(4), register.wait_exit()).await;
    assert_eq!(code, Ok(Some(1)));
    register
        .log()
        .until("never let the upstream be added")
        .await;
}

#[tokio::test]
async fn without_the_right_to_a_barrier_it_goes_without_one() {
    let etcd = EtcdCluster::start(1).await;
    let mut root = etcd.client();
    root.user_add("root", "root", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("blog", "secret", None).await.unwrap();
    root.role_add("blog").await.unwrap();
    for prefix in ["/hosts/a.test/", "/waypost/hosts/"] {
        let right = Permission::new(PermissionType::Readwrite, prefix).with_prefix();
        root.role_grant_permission("blog", right).await.unwrap();
    }
    root.user_grant_role("blog", "blog").await.unwrap();
    root.auth_enable().await.unwrap();
    let login = ConnectOptions::new().with_user("root", "root");
    let mut root = Client::connect(etcd.endpoints(), Some(login))
        .await
        .unwrap();

    let password = etcd.directory().join("password");
    std::fs::write(&password, "secret").unwrap();
    let password = password.display().to_string();
    let login = ["--etcd-user", "blog", "--etcd-password-file", &password];
    let arguments = [&["a.test", "b:80"][..], &login].concat();
    let mut register = Register::start(&etcd.endpoints(), &arguments);
    register.log().until("registered").await;
    register.signal("TERM");
    assert_eq!(register.wait_exit().await, Some(1), "nobody vouches");
    register.log().until("a barrier is refused").await;
    let left = root.get("/hosts/a.test/b:80", None).await.unwrap();
    assert!(left.kvs().is_empty());
}

#[tokio::test]
async fn mistakes_are_named_and_nothing_is_run() {
    let directory = tempfile::tempdir().unwrap();
    let ran = directory.path().join("ran");
    let marker = ran.display().to_string();
    for (arguments, code, words) in [
        (&["a.test"][..], 2, "UPSTREAM"),
        (&["", "b:80"], 1, "HOST is empty"),
        (&["@waypost", "b:80"], 1, "Waypost's own"),
        (&["a.test", "b"], 1, "no upstream"),
        (&["a.test", "b:99999"], 1, "port"),
        (&["a.test", "b/c:80"], 1, "behind the host"),
        (&["a.test", "@settings", "{}"], 1, "waypost put"),
        (&["a.test", "b:80", "{weight: 5}"], 1, "not a JSON object"),
        (&["a.test", "b:80", r#"{"weight": -1}"#], 1, "weight"),
        (&["a.test", "b:80", "--ttl", "4s"], 2, "at least 5s"),
        (&["a.test", "b:80", "--ttl", "5500ms"], 2, "whole seconds"),
        (&["a.test", "b:80", "--ttl", "soon"], 2, "--ttl"),
        (
            &["a.test", "b:80", "--health-path", "healthz"],
            2,
            "starts with /",
        ),
        (
            &["a.test", "b:80", "--health-path", "/a b"],
            2,
            "--health-path",
        ),
        (&["a.test", "b:80", "--probe", "localhost"], 2, "--probe"),
        (&["a.test", "b:80", "--log", "loud"], 2, "--log"),
        (&["a.test", "b:80", "--etcd", "ftp://a"], 2, "ftp"),
        (&["a.test", "b:80", "--prefix", "/"], 2, "--prefix"),
        (
            &[
                "a.test",
                "b:80",
                "--etcd",
                "https://a",
                "--etcd-ca",
                "/none",
            ],
            1,
            "/none",
        ),
    ] {
        let mut all = vec!["register"];
        all.extend(arguments);
        all.extend(["--", "touch", &marker]);
        let ended = waypost(&all).await;
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(words), "{arguments:?}: {ended:?}");
        assert!(!ran.exists(), "{arguments:?}");
    }
}

/// Whether an instance says that one request is left.
pub async fn is_draining(etcd: &EtcdCluster) -> bool {
    let all = GetOptions::new().with_prefix();
    let answers = etcd.client().get("/waypost/hosts/acks/", Some(all)).await;
    let answers = answers.expect("an answer");
    let mut answers = (answers.kvs().iter()).filter_map(|pair| pair.value_str().ok());
    answers.any(|answer| answer.contains(r#""requests":1"#))
}

/// Waits until an instance says so.
pub async fn until_draining(etcd: &EtcdCluster) {
    eventually("a request is waited for", async || is_draining(etcd).await).await;
}

/// How a key is in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub value: String,
    pub lease: i64,
    pub revision: i64,
}

impl Held {
    pub async fn of(etcd: &EtcdCluster, key: &str) -> Option<Self> {
        let answer = etcd.client().get(key, None).await.ok()?;
        let pair = answer.kvs().first()?;
        Some(Self {
            value: pair.value_str().expect("text").to_owned(),
            lease: pair.lease(),
            revision: pair.mod_revision(),
        })
    }

    /// Waits until it is there, and so.
    pub async fn until(etcd: &EtcdCluster, key: &str, is_so: impl Fn(&Self) -> bool) -> Self {
        let mut found = None;
        eventually(key, async || {
            found = Self::of(etcd, key).await.filter(&is_so);
            found.is_some()
        })
        .await;
        found.expect("it is there")
    }
}
