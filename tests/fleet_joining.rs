//! Instances that can't register at once, or not at all.

use crate::support::{
    etcd::{EtcdCluster, Options},
    fleet::{TRIES, instance, registered, run, tried_for_a_while},
    load::ask,
    sample::Sample,
    waypost::Waypost,
};

/// Whoever waits for a change counts on those who may have read the routes before it. Members are asked in an order of
/// chance, so most of these begin with one that is dead.
#[tokio::test]
async fn routes_are_read_by_who_is_registered_though_members_are_dead() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/a:80", "").await;
    let mut endpoints = vec!["http://127.0.0.1:1".to_owned(); 2];
    endpoints.extend(etcd.endpoints());
    let mut instances = Vec::new();
    for _ in 0..5 {
        instances.push(Waypost::builder().etcd(&endpoints).spawn().await);
    }
    for instance in instances {
        instance.until_ready().await;
        registered(&instance).await;
        let log = instance.log().text();
        let registered = log.find("registered with the fleet").expect(&log);
        let applied = log.find("routes applied").expect(&log);
        assert!(registered < applied, "{log}");
        assert!(!log.contains("not registered"), "{log}");
    }
}

/// Who is registered stays so; nobody else can be, nor is etcd hammered because of that.
#[tokio::test]
async fn a_full_etcd_registers_nobody_and_is_left_in_peace() {
    let options = Options {
        flags: vec!["--quota-backend-bytes=2000000".to_owned()],
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    let sample = Sample::start().await;
    etcd.put(&format!("/hosts/a.test/{sample}"), "").await;
    let before = instance(&etcd).await;
    etcd.fill().await;
    let late = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    assert_eq!(ask(late.address(), "a.test", "/").await.status(), 200);
    let warning = late.log().until("not registered with the fleet").await;
    assert!(warning.contains("database space exceeded"), "{warning}");
    let calls = tried_for_a_while(&etcd, "LeaseGrant").await;
    assert!((1.0..=TRIES).contains(&calls), "{calls} leases asked for");
    assert_eq!(before.api("/api/status").await["registered"], true);

    for words in [
        &["put", "b.test", "b:80", "--wait"][..],
        &["delete", "a.test", &sample.to_string(), "--drain"],
    ] {
        let ended = run(&etcd, words).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("nothing is written"), "{ended:?}");
    }
}
