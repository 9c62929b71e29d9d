//! What etcd's history does while we are away, under a Waypost that serves: grown large, compacted, lost, or another's.

use std::time::Duration;

use etcd_client::{DeleteOptions, TxnOp};

use crate::support::{
    etcd::{EtcdCluster, Options},
    link::Link,
    rig::{HOST, Rig, key},
    soak,
    waypost::{Waypost, within},
};

const LIMIT: Duration = Duration::from_secs(30);

/// The deletes are honoured though no event of them is left, one of them compacted at its very revision; and the table
/// that serves meanwhile is never without the routes that stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_while_away_is_made_up_for_without_an_empty_moment() {
    let (rig, link) = rig_by_link(Options::default()).await;
    let sample = &rig.samples[0];
    for host in ["gone.test", "moved.test"] {
        rig.etcd.put(&key(host, sample), "").await;
    }
    rig.until_status("moved.test", 200, LIMIT).await;
    for round in 1..=3 {
        // Newer than what will be missing, so that it vouches for the history.
        let kept = rig.etcd.put(&key("kept.test", sample), "").await;
        rig.waypost.reached(kept).await;
        link.cut();
        rig.until_stale(LIMIT).await;
        let moved = [
            TxnOp::delete(key("moved.test", &rig.samples[(round + 1) % 2]), None),
            TxnOp::put(key("moved.test", &rig.samples[round % 2]), "", None),
        ];
        rig.etcd.txn(moved).await;
        let added = format!("added-{round}.test");
        rig.etcd.put(&key(&added, sample), "").await;
        let deleted = rig.etcd.delete(&key("gone.test", sample)).await;
        rig.etcd.compact(deleted).await;
        link.mend(&rig.etcd.endpoints()[0]);
        within(LIMIT, "the difference is applied", async || {
            let page = rig.waypost.api("/api/routes").await;
            let routes = page["routes"].as_array().expect("routes");
            let find = |host: &str| routes.iter().find(|route| route["host"] == host);
            let kept = find(HOST).unwrap_or_else(|| panic!("{HOST} is missing: {page}"));
            assert_eq!(kept["members"].as_array().map(Vec::len), Some(2), "{page}");
            let moved =
                find("moved.test").unwrap_or_else(|| panic!("moved.test is missing: {page}"));
            assert_eq!(moved["members"].as_array().map(Vec::len), Some(1), "{page}");
            find(&added).is_some() && find("gone.test").is_none()
        })
        .await;
        assert_eq!(rig.reads(), 1 + round, "read anew once for each compaction");
        rig.until_fresh(LIMIT).await;
        rig.etcd.put(&key("gone.test", sample), "").await;
        rig.until_status("gone.test", 200, LIMIT).await;
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_over_more_than_four_mebibytes_loses_no_request() {
    let (rig, link) = rig_by_link(Options::default()).await;
    link.cut();
    rig.until_stale(LIMIT).await;
    let mut last = 0;
    for index in 0..12 {
        let put = |name: usize| {
            let key = key(&format!("added-{index}-{name}.test"), &rig.samples[0]);
            TxnOp::put(key, vec![b'x'; 60_000], None)
        };
        last = rig.etcd.txn((0..10).map(put).collect::<Vec<_>>()).await;
    }
    link.mend(&rig.etcd.endpoints()[0]);
    within(LIMIT, "all of it is applied", async || {
        let status = rig.waypost.api("/api/status").await;
        let hosts = status["hosts"].as_u64().expect("a count");
        assert_eq!(hosts % 10, 1, "half of a transaction: {status}");
        status["applied_revision"].as_i64() >= Some(last)
    })
    .await;
    for host in ["added-0-0.test", "added-11-9.test"] {
        rig.until_status(host, 200, LIMIT).await;
    }
    assert_eq!(rig.reads(), 1, "resumed, not read anew");
    rig.finish().await;
}

/// It is larger than what etcd takes in one request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_is_deleted_at_one_revision_is_seen_whole() {
    let options = Options {
        flags: vec!["--max-request-bytes=200000".to_owned()],
        ..Options::default()
    };
    let (rig, _link) = rig_by_link(options).await;
    let path = "x".repeat(800);
    let mut last = 0;
    for batch in 0..15 {
        let puts: Vec<_> = (0..100)
            .map(|index| {
                key(
                    &format!("many-{batch}-{index}.test/{path}"),
                    &rig.samples[0],
                )
            })
            .map(|key| TxnOp::put(key, "", None))
            .collect();
        last = rig.etcd.txn(puts).await;
    }
    rig.waypost.reached(last).await;
    let all = DeleteOptions::new().with_prefix();
    let deleted = rig
        .etcd
        .txn([TxnOp::delete("/hosts/many-", Some(all))])
        .await;
    within(LIMIT, "they are gone", async || {
        let status = rig.waypost.api("/api/status").await;
        let hosts = status["hosts"].as_u64().expect("a count");
        assert!([1, 1501].contains(&hosts), "half of a revision: {status}");
        status["applied_revision"].as_i64() >= Some(deleted)
    })
    .await;
    let status = rig.waypost.api("/api/status").await;
    assert_eq!(status["hosts"], 1, "{status}");
    rig.finish().await;
}

/// Wiped and started with the same flags, it has the same `cluster_id`. Nobody puts the routes back, and yet they serve;
/// what is written then is served at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_cluster_loses_no_request_and_additions_apply_at_once() {
    let (mut rig, link) = rig_by_link(Options::default()).await;
    for others in [0, 20] {
        // A history of its own.
        for _ in 0..5 {
            rig.change(LIMIT).await;
        }
        link.cut();
        rig.until_stale(LIMIT).await;
        rig.etcd.wipe();
        rig.etcd.restart(0).await;
        // Past our revision, or not.
        for _ in 0..others {
            rig.etcd.put("/elsewhere", "").await;
        }
        let reads = rig.reads();
        link.mend(&rig.etcd.endpoints()[0]);
        rig.change(LIMIT).await;
        assert_eq!(rig.reads(), reads + 1);
        assert!(rig.waypost.metric("waypost_held_deletes", &[]).await >= 7.0);
    }
    assert!(rig.waypost.log().count("it was wiped or restored") > 0);
    rig.finish().await;
}

/// Put back as it was at an earlier revision, and then written past ours: only the witness tells. What the backup lacks
/// serves on for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_loses_no_request_and_additions_apply_at_once() {
    let (mut rig, link) = rig_by_link(Options::default()).await;
    rig.change(LIMIT).await;
    let backup = rig.etcd.back_up("backup").await;
    let known = rig.etcd.put(&key("late.test", &rig.samples[0]), "").await;
    rig.until_status("late.test", 200, LIMIT).await;
    link.cut();
    rig.until_stale(LIMIT).await;
    rig.etcd.restore(&backup);
    rig.etcd.restart_together(&[0]).await;
    let mut revision = 0;
    while revision <= known + 10 {
        revision = rig.etcd.put("/elsewhere", "").await;
    }
    link.mend(&rig.etcd.endpoints()[0]);
    rig.change(LIMIT).await;
    assert_eq!(rig.reads(), 2, "read anew once");
    rig.waypost.log().until("not in its history").await;
    rig.until_status("late.test", 200, LIMIT).await;
    assert_eq!(rig.waypost.metric("waypost_held_deletes", &[]).await, 1.0);
    if soak::is_soak() {
        // Less than half of the hosts, and nothing moves: 30 s.
        rig.until_status("late.test", 404, 2 * LIMIT).await;
    }
    rig.finish().await;
}

async fn rig_by_link(options: Options) -> (Rig, Link) {
    let etcd = EtcdCluster::start_with(1, options).await;
    let link = Link::to(&etcd.endpoints()[0]).await;
    let rig = Rig::over(etcd, Waypost::builder().etcd(&[link.url()])).await;
    (rig, link)
}
