//! A cluster that was wiped or restored takes no route away by itself.

use std::time::Instant;

use crate::support::{
    etcd::EtcdCluster,
    link::Link,
    load::ask,
    sample::Sample,
    waypost::{DEADLINE, Waypost, eventually, waypost},
};

#[tokio::test]
async fn a_wiped_cluster_takes_no_route_away_until_an_operator_accepts() {
    let mut etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    etcd.put(&format!("/hosts/a.test/{sample}"), "").await;
    etcd.put(&format!("/hosts/b.test/{sample}"), "").await;
    let instance = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let status = async |host: &str| ask(instance.address(), host, "/").await.status().as_u16();
    assert_eq!(status("a.test").await, 200);

    etcd.wipe();
    etcd.restart(0).await;
    let put = etcd.put(&format!("/hosts/c.test/{sample}"), "").await;
    eventually("the addition applies", async || {
        status("c.test").await == 200
    })
    .await;
    assert_eq!((status("a.test").await, status("b.test").await), (200, 200));
    let (code, ready) = instance.admin_get("/readyz").await;
    assert_eq!(code, 200);
    assert!(ready.contains("2 deletions held"), "{ready}");
    assert_eq!(instance.metric("waypost_held_deletes", &[]).await, 2.0);
    assert_eq!(instance.api("/api/status").await["held_deletes"], 2);

    let admin = instance.admin().to_string();
    let listed = waypost(&["accept", "--list", "--admin", &admin]).await;
    let expected =
        format!("{admin}: 2 deletions held\n  /hosts/a.test/{sample}\n  /hosts/b.test/{sample}\n");
    assert_eq!((listed.code, listed.stdout), (Some(0), expected));

    // Put again it is no longer held, and etcd's word about it counts at once.
    etcd.put(&format!("/hosts/a.test/{sample}"), "").await;
    eventually("one is held", async || {
        instance.metric("waypost_held_deletes", &[]).await == 1.0
    })
    .await;
    // Nobody is at the first one, which is told and keeps the others from nothing.
    let both = format!("127.0.0.1:1,{admin}");
    let accepted = waypost(&["accept", "--admin", &both]).await;
    let expected = format!("{admin}: 1 held deletions applied\n");
    assert_eq!((accepted.code, &*accepted.stdout), (Some(1), &*expected));
    assert!(accepted.stderr.contains("127.0.0.1:1"), "{accepted:?}");
    assert_eq!((status("a.test").await, status("b.test").await), (200, 404));
    let again = waypost(&["accept", "--admin", &admin]).await;
    let expected = format!("{admin}: 0 held deletions applied\n");
    assert_eq!((again.code, again.stdout), (Some(0), expected));
    let deleted = etcd.delete(&format!("/hosts/a.test/{sample}")).await;
    assert!(deleted > put);
    instance.reached(deleted).await;
    assert_eq!(status("a.test").await, 404);
    let (_, ready) = instance.admin_get("/readyz").await;
    assert_eq!(ready, "ready\n");
}

/// The history that knew the routes is gone and, compacted past our revision, so is what could show that.
#[tokio::test]
async fn a_wiped_cluster_that_was_compacted_takes_no_route_away() {
    let mut etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    for host in ["a.test", "b.test"] {
        etcd.put(&format!("/hosts/{host}/{sample}"), "").await;
    }
    let link = Link::to(&etcd.endpoints()[0]).await;
    let instance = Waypost::builder().etcd(&[link.url()]).start().await;
    link.cut();
    eventually("it notices", async || {
        instance.api("/api/status").await["connected"] == false
    })
    .await;
    etcd.wipe();
    etcd.restart(0).await;
    for _ in 0..20 {
        etcd.put("/elsewhere", "").await;
    }
    let put = etcd.put(&format!("/hosts/c.test/{sample}"), "").await;
    etcd.compact(put).await;
    link.mend(&etcd.endpoints()[0]);
    instance.reached(put).await;
    for host in ["a.test", "b.test", "c.test"] {
        let status = ask(instance.address(), host, "/").await.status();
        assert_eq!(status, 200, "{host}");
    }
    assert_eq!(instance.metric("waypost_held_deletes", &[]).await, 2.0);
    instance.log().until("it may have been wiped").await;
}

/// What the backup has is as it was, and says nothing of what came later.
#[tokio::test]
async fn a_restored_backup_that_was_compacted_takes_no_route_away() {
    let mut etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    let put = async |etcd: &EtcdCluster, host: &str| {
        etcd.put(&format!("/hosts/{host}/{sample}"), "").await
    };
    put(&etcd, "a.test").await;
    put(&etcd, "b.test").await;
    let backup = etcd.back_up("backup").await;
    let mut known = 0;
    for host in ["c.test", "d.test", "e.test"] {
        known = put(&etcd, host).await;
    }
    let link = Link::to(&etcd.endpoints()[0]).await;
    let instance = Waypost::builder().etcd(&[link.url()]).start().await;
    link.cut();
    eventually("it notices", async || {
        instance.api("/api/status").await["connected"] == false
    })
    .await;
    etcd.restore(&backup);
    etcd.restart_together(&[0]).await;
    let mut revision = 0;
    while revision <= known + 10 {
        revision = etcd.put("/elsewhere", "").await;
    }
    etcd.compact(revision).await;
    link.mend(&etcd.endpoints()[0]);
    instance.reached(revision).await;
    for host in ["a.test", "b.test", "c.test", "d.test", "e.test"] {
        let status = ask(instance.address(), host, "/").await.status();
        assert_eq!(status, 200, "{host}");
    }
    assert_eq!(instance.metric("waypost_held_deletes", &[]).await, 3.0);
    instance
        .log()
        .until("no key vouches for what is missing")
        .await;
}

/// Within one history etcd's word counts at once, and be it about the last key. What is left of the routes vouches for
/// the history when what happened is compacted away.
#[tokio::test]
async fn what_is_deleted_while_etcd_is_away_and_compacted_is_not_held() {
    let mut etcd = EtcdCluster::start(3).await;
    let sample = Sample::start().await;
    let kept = format!("/hosts/kept.test/{sample}");
    etcd.put(&format!("/hosts/a.test/{sample}"), "").await;
    etcd.put(&kept, "").await;
    let member = etcd.endpoints()[0].clone();
    let instance = Waypost::builder().etcd(&[member]).start().await;
    etcd.kill(0);
    eventually("it notices", async || {
        instance.api("/api/status").await["connected"] == false
    })
    .await;
    let deleted = etcd.delete(&format!("/hosts/a.test/{sample}")).await;
    etcd.compact(deleted).await;
    etcd.restart(0).await;
    let back = Instant::now();
    instance.reached(deleted).await;
    assert!(back.elapsed() < DEADLINE, "{:?}", back.elapsed());
    let gone = ask(instance.address(), "a.test", "/").await.status();
    assert_eq!(gone, 404);
    let deleted = etcd.delete(&kept).await;
    instance.reached(deleted).await;
    let gone = ask(instance.address(), "kept.test", "/").await.status();
    assert_eq!(gone, 404);
    assert_eq!(instance.metric("waypost_held_deletes", &[]).await, 0.0);
}
