//! Faults of etcd and of the way there: none makes the source miss a change, or believe another history.

use std::time::{Duration, Instant};

use etcd_client::TxnOp;
use waypost::{
    live::Status,
    source::{
        Change, History, Update,
        etcd::{Etcd, read_all},
    },
};

use crate::support::{
    etcd::EtcdCluster,
    follower::{Follower, PREFIX},
    link::Link,
};

#[tokio::test]
async fn a_resume_over_more_than_four_mebibytes_keeps_every_revision_whole() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let (mut follower, link) = follow_by_link(&etcd).await;
    let known = follower.snapshot().await;
    follower.until_connected().await;
    link.cut();
    follower.until_disconnected().await;
    for index in 0..10 {
        let half = || vec![b'x'; 500_000];
        etcd.txn([
            TxnOp::put(format!("/hosts/h{index}/a:80"), half(), None),
            TxnOp::put(format!("/hosts/h{index}/b:80"), half(), None),
        ])
        .await;
    }
    link.mend(&etcd.endpoints()[0]);
    let mut heard = known;
    while heard < known + 10 {
        let Update::Changes { changes, revision } = follower.next().await else {
            panic!("expected changes, not a snapshot");
        };
        let mut revisions: Vec<_> = changes.iter().map(Change::mod_revision).collect();
        assert!(revisions.is_sorted());
        revisions.dedup();
        assert_eq!(
            (changes.len(), *revisions.last().unwrap()),
            (2 * revisions.len(), revision)
        );
        heard = revision;
    }
    assert_eq!(follower.keys.len(), 21);
}

/// etcd sends a thousand revisions at once. The last one is of another key, so none of our changes tells that it has come.
#[tokio::test]
async fn a_resume_from_far_behind_is_stale_until_it_has_caught_up() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let link = Link::to(&etcd.endpoints()[0]).await;
    let mut config = etcd.config();
    config.endpoints = vec![link.url()];
    let source = Etcd::new(config, PREFIX.to_owned()).expect("a usable configuration");
    let mut follower = Follower::with_room(source, 1);
    let mut known = follower.snapshot().await;
    follower.until_connected().await;
    link.cut();
    follower.until_disconnected().await;
    let mut last = 0;
    for _ in 0..1_200 {
        last = etcd.put("/hosts/b/b:80", "").await;
    }
    etcd.put("/elsewhere", "").await;
    link.mend(&etcd.endpoints()[0]);
    let mut parts = 0;
    while known < last {
        let status = follower
            .until_status(|status| caught_up_to(status, last + 1).is_some_and(|at| at > known))
            .await;
        assert!(status.stale_since.is_some(), "{status:?}");
        (_, known) = follower.changes().await;
        assert_eq!(caught_up_to(&status, last + 1), Some(known));
        parts += 1;
    }
    assert!(parts > 1, "etcd sent all at once");
    let begun = Instant::now();
    let mut statuses = follower.live.status.subscribe();
    let status = loop {
        tokio::select! {
            status = statuses.wait_for(|status| status.connected) => {
                break status.expect("the status lives as long as its reader").clone();
            }
            _ = follower.next() => {}
        }
    };
    assert!(status.stale_since.is_none());
    // A pulse would tell as well, half a minute later.
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// The revision that the watch has brought, of those through `through`; `None` if the status tells of something else.
fn caught_up_to(status: &Status, through: i64) -> Option<i64> {
    let revision = status
        .error
        .as_ref()?
        .strip_prefix("catching up with etcd: ")?
        .strip_suffix(&format!(" of {through}"))?;
    revision.parse().ok()
}

#[tokio::test]
async fn a_restarted_member_is_resumed_without_missing_or_repeating_a_change() {
    let mut etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let mut follower = Follower::of(etcd.config());
    let mut revision = follower.snapshot().await;
    for round in 0..3 {
        follower.until_connected().await;
        etcd.kill(0);
        let status = follower.until_disconnected().await;
        assert!(status.stale_since.is_some());
        etcd.restart(0).await;
        let key = format!("/hosts/r{round}/a:80");
        etcd.put(&key, "").await;
        revision += 1;
        assert_eq!(
            follower.changes().await,
            (vec![format!("+{key}")], revision)
        );
    }
    let status = follower.until_status(|status| status.connected).await;
    assert_eq!((status.stale_since, status.error), (None, None));
}

#[tokio::test]
async fn a_lost_quorum_is_no_silence() {
    let mut etcd = EtcdCluster::start(3).await;
    etcd.put("/hosts/a/a:80", "").await;
    let mut config = etcd.config();
    config.endpoints.truncate(1);
    let mut follower = Follower::of(config);
    follower.snapshot().await;
    follower.until_connected().await;
    etcd.kill(1);
    etcd.kill(2);
    let status = follower.until_disconnected().await;
    assert!(status.stale_since.is_some());
    etcd.restart(1).await;
    let put = etcd.put("/hosts/b/b:80", "").await;
    assert_eq!(
        follower.changes().await,
        (vec!["+/hosts/b/b:80".to_owned()], put)
    );
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let mut config = etcd.config();
    config.endpoints.insert(0, "http://127.0.0.1:1".to_owned());
    let (entries, _) = read_all(&config, PREFIX)
        .await
        .expect("the second endpoint answers");
    assert_eq!(entries.len(), 1);
    let mut follower = Follower::of(config);
    follower.until_keys(&["/hosts/a/a:80"]).await;
    follower.until_connected().await;
}

/// Its sockets accept and nothing answers. Followers start at a random member, so some of these do at the paused one.
#[tokio::test]
async fn a_paused_member_is_left_for_another() {
    let etcd = EtcdCluster::start(3).await;
    etcd.put("/hosts/a/a:80", "").await;
    let paused = (etcd.leader().await + 1) % 3;
    etcd.pause(paused);
    let started = Instant::now();
    let followers: Vec<_> = (0..8).map(|_| Follower::of(etcd.config())).collect();
    for mut follower in followers {
        follower.until_keys(&["/hosts/a/a:80"]).await;
        follower.until_connected().await;
    }
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    etcd.resume(paused);
}

#[tokio::test]
async fn compaction_while_away_leads_to_a_snapshot() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    etcd.put("/hosts/b/b:80", "").await;
    let (mut follower, link) = follow_by_link(&etcd).await;
    follower.snapshot().await;
    follower.until_connected().await;
    link.cut();
    follower.until_disconnected().await;
    etcd.delete("/hosts/a/a:80").await;
    let last = etcd.put("/hosts/c/c:80", "").await;
    etcd.compact(last).await;
    link.mend(&etcd.endpoints()[0]);
    let Update::Snapshot {
        revision, history, ..
    } = follower.next().await
    else {
        panic!("expected a snapshot");
    };
    assert_eq!((revision, history), (last, History::Continued));
    assert_eq!(
        follower.keys.keys().collect::<Vec<_>>(),
        ["/hosts/b/b:80", "/hosts/c/c:80"]
    );
    follower.until_connected().await;
    let next = etcd.put("/hosts/d/d:80", "").await;
    assert_eq!(
        follower.changes().await,
        (vec!["+/hosts/d/d:80".to_owned()], next)
    );
}

/// The tombstone goes with the compaction, and a watch from the revision after ours would neither see it nor fail.
#[tokio::test]
async fn a_delete_compacted_at_its_own_revision_while_away_is_seen() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    etcd.put("/hosts/b/b:80", "").await;
    let (mut follower, link) = follow_by_link(&etcd).await;
    follower.snapshot().await;
    follower.until_connected().await;
    link.cut();
    follower.until_disconnected().await;
    let deleted = etcd.delete("/hosts/a/a:80").await;
    etcd.compact(deleted).await;
    link.mend(&etcd.endpoints()[0]);
    follower.until_keys(&["/hosts/b/b:80"]).await;
}

/// Wiped and started with the same flags, a cluster has the same `cluster_id`.
#[tokio::test]
async fn a_wiped_cluster_is_read_anew_whether_it_passed_our_revision_or_not() {
    let mut etcd = EtcdCluster::start(1).await;
    etcd.put("/elsewhere", "").await;
    let known = etcd.put("/hosts/a/a:80", "").await;
    for others in [0, 10] {
        let (mut follower, link) = follow_by_link(&etcd).await;
        follower.snapshot().await;
        follower.until_connected().await;
        link.cut();
        follower.until_disconnected().await;
        etcd.wipe();
        etcd.restart(0).await;
        for _ in 0..others {
            etcd.put("/elsewhere", "").await;
        }
        let revision = etcd.put(&format!("/hosts/b{others}/b:80"), "").await;
        assert_eq!(revision > known, others > 0);
        link.mend(&etcd.endpoints()[0]);
        assert_eq!(follower.snapshot().await, revision);
        assert_eq!(
            follower.keys.keys().collect::<Vec<_>>(),
            [&format!("/hosts/b{others}/b:80")]
        );
        follower.until_connected().await;
    }
}

#[tokio::test]
async fn another_cluster_behind_the_same_address_is_read_anew() {
    let (etcd, other) = tokio::join!(EtcdCluster::start(1), EtcdCluster::start(1));
    etcd.put("/hosts/a/a:80", "").await;
    other.put("/hosts/a/a:80", "").await;
    other.put("/hosts/b/b:80", "").await;
    let (mut follower, link) = follow_by_link(&etcd).await;
    follower.snapshot().await;
    follower.until_connected().await;
    link.cut();
    follower.until_disconnected().await;
    link.mend(&other.endpoints()[0]);
    follower.snapshot().await;
    assert_eq!(follower.keys.len(), 2);
}

/// Past our revision and compacted, nothing is left of what a witness could vouch with.
#[tokio::test]
async fn another_history_that_is_compacted_is_no_gap_in_ours() {
    let (mut etcd, other) = tokio::join!(EtcdCluster::start(1), EtcdCluster::start(1));
    for is_wiped in [true, false] {
        etcd.put("/hosts/a/a:80", "").await;
        etcd.put("/hosts/b/b:80", "").await;
        let (mut follower, link) = follow_by_link(&etcd).await;
        follower.snapshot().await;
        follower.until_connected().await;
        link.cut();
        follower.until_disconnected().await;
        if is_wiped {
            etcd.wipe();
            etcd.restart(0).await;
        }
        let there = if is_wiped { &etcd } else { &other };
        for _ in 0..20 {
            there.put("/elsewhere", "").await;
        }
        let last = there.put("/hosts/c/c:80", "").await;
        there.compact(last).await;
        link.mend(&there.endpoints()[0]);
        let Update::Snapshot {
            revision, history, ..
        } = follower.next().await
        else {
            panic!("expected a snapshot");
        };
        assert_eq!((revision, history), (last, History::Another));
        assert_eq!(follower.keys.keys().collect::<Vec<_>>(), ["/hosts/c/c:80"]);
    }
}

async fn follow_by_link(etcd: &EtcdCluster) -> (Follower, Link) {
    let link = Link::to(&etcd.endpoints()[0]).await;
    let mut config = etcd.config();
    config.endpoints = vec![link.url()];
    (Follower::of(config), link)
}
