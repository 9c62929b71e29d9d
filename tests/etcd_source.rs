//! The etcd source against real etcd: what it tells, in which order, and that no fault makes it miss a change.

use std::time::{Duration, Instant};

use etcd_client::{DeleteOptions, TxnOp};
use waypost::source::{Change, Update, etcd::read_all};

use crate::support::{
    etcd::{EtcdCluster, Options},
    follower::{Follower, PREFIX},
    link::Link,
};

#[tokio::test]
async fn a_snapshot_comes_first_and_then_every_change_in_order() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/host", "before the prefix").await;
    etcd.put("/hosts0", "behind the prefix").await;
    let read_at = etcd.put("/hosts/a/10.0.0.1:80", "{}").await;
    let mut follower = Follower::of(etcd.config());
    assert_eq!(follower.snapshot().await, read_at);
    assert_eq!(
        follower.keys.keys().collect::<Vec<_>>(),
        ["/hosts/a/10.0.0.1:80"]
    );
    follower.until_connected().await;

    etcd.put("/hosts/b/10.0.0.1:80", "").await;
    etcd.put("/hostsandmore", "not ours").await;
    etcd.put("/hosts/@waypost/pulse", "ours, though no route")
        .await;
    let third = etcd.delete("/hosts/a/10.0.0.1:80").await;
    // One update may cover several revisions.
    let (mut heard, mut revision) = (Vec::new(), 0);
    while revision < third {
        let (changes, up_to) = follower.changes().await;
        heard.extend(changes);
        revision = up_to;
    }
    assert_eq!(revision, third);
    assert_eq!(
        heard,
        [
            "+/hosts/b/10.0.0.1:80",
            "+/hosts/@waypost/pulse",
            "-/hosts/a/10.0.0.1:80"
        ]
    );
    let status = follower
        .until_status(|status| status.observed >= Some(third))
        .await;
    assert_eq!(
        (status.location, status.stale_since),
        (etcd.endpoints()[0].clone(), None)
    );
}

#[tokio::test]
async fn a_key_that_is_no_text_arrives_as_it_is() {
    let etcd = EtcdCluster::start(1).await;
    let mut follower = Follower::of(etcd.config());
    follower.snapshot().await;
    let key = b"/hosts/\xff\x00/10.0.0.1:80".to_vec();
    etcd.txn([TxnOp::put(key.clone(), b"\xfe".to_vec(), None)])
        .await;
    let Update::Changes { changes, .. } = follower.next().await else {
        panic!("expected changes");
    };
    let [Change::Put(entry)] = &changes[..] else {
        panic!("expected one put: {changes:?}");
    };
    assert_eq!((&entry.key[..], &entry.value[..]), (&key[..], &b"\xfe"[..]));
}

#[tokio::test]
async fn a_transaction_of_more_than_four_mebibytes_is_one_update() {
    let options = Options {
        flags: flags(&["--max-txn-ops=1000", "--max-request-bytes=8388608"]),
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    let mut follower = Follower::of(etcd.config());
    follower.snapshot().await;
    let puts: Vec<_> = (0..600)
        .map(|index| TxnOp::put(format!("/hosts/h{index:03}/a:80"), vec![b'x'; 10_000], None))
        .collect();
    let revision = etcd.txn(puts).await;
    let (changes, up_to) = follower.changes().await;
    assert_eq!((changes.len(), up_to), (600, revision));
}

/// etcd cuts responses at the size it limits requests to (and half a MiB more), but deletes a range of any size at one
/// revision: 1.5 MiB of keys here, so three fragments.
#[tokio::test]
async fn a_revision_in_several_fragments_is_one_update() {
    let options = Options {
        flags: flags(&["--max-request-bytes=200000"]),
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    let long = "x".repeat(1_000);
    for batch in 0..15 {
        let puts: Vec<_> = (0..100)
            .map(|index| TxnOp::put(format!("/hosts/{batch}-{index}-{long}/a:80"), "", None))
            .collect();
        etcd.txn(puts).await;
    }
    let mut follower = Follower::of(etcd.config());
    follower.snapshot().await;
    assert_eq!(follower.keys.len(), 1_500);
    follower.until_connected().await;
    let all = DeleteOptions::new().with_prefix();
    let revision = etcd.txn([TxnOp::delete(PREFIX, Some(all))]).await;
    let (changes, up_to) = follower.changes().await;
    assert_eq!((changes.len(), up_to), (1_500, revision));
}

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
async fn a_change_after_the_leader_died_arrives_within_five_seconds() {
    let mut etcd = EtcdCluster::start(3).await;
    etcd.put("/hosts/a/a:80", "").await;
    let mut follower = Follower::of(etcd.config());
    follower.until_keys(&["/hosts/a/a:80"]).await;
    follower.until_connected().await;
    for key in ["/hosts/b/b:80", "/hosts/c/c:80"] {
        let leader = etcd.leader().await;
        etcd.kill(leader);
        let put = etcd.put(key, "").await;
        let written = Instant::now();
        assert_eq!(follower.changes().await, (vec![format!("+{key}")], put));
        assert!(
            written.elapsed() < Duration::from_secs(5),
            "{:?}",
            written.elapsed()
        );
        etcd.restart(leader).await;
    }
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
async fn timed_notices_move_the_revision_past_the_changes_of_others() {
    let options = Options {
        flags: flags(&["--experimental-watch-progress-notify-interval=100ms"]),
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    let mut follower = Follower::of(etcd.config());
    follower.snapshot().await;
    let others = etcd.put("/elsewhere", "").await;
    loop {
        let Update::Progress { revision } = follower.next().await else {
            panic!("expected progress");
        };
        if revision == others {
            break;
        }
    }
    let ours = etcd.put("/hosts/a/a:80", "").await;
    assert_eq!(
        follower.changes().await,
        (vec!["+/hosts/a/a:80".to_owned()], ours)
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
    assert_eq!(follower.snapshot().await, last);
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

#[tokio::test]
async fn more_than_one_page_is_one_snapshot() {
    let etcd = EtcdCluster::start(1).await;
    for batch in 0..200 {
        let puts: Vec<_> = (0..120)
            .map(|index| TxnOp::put(format!("/hosts/h{batch}-{index}/a:80"), "", None))
            .collect();
        etcd.txn(puts).await;
    }
    let revision = etcd.put("/hosts/a/a:80", "").await;
    let (entries, read_at) = read_all(&etcd.config(), PREFIX).await.expect("a read");
    assert_eq!((entries.len(), read_at), (24_001, revision));
    assert!(entries.is_sorted_by(|one, next| one.key < next.key));
}

/// 66 MiB: more than one message may have, in fewer keys than the first page asks for.
#[tokio::test]
async fn large_values_are_read_in_smaller_pages() {
    let etcd = EtcdCluster::start(1).await;
    for index in 0..66 {
        etcd.put(&format!("/hosts/h{index}/a:80"), vec![b'x'; 1 << 20])
            .await;
    }
    let mut follower = Follower::of(etcd.config());
    follower.snapshot().await;
    assert_eq!(follower.keys.len(), 66);
    assert!(follower.keys.values().all(|value| value.len() == 1 << 20));
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

async fn follow_by_link(etcd: &EtcdCluster) -> (Follower, Link) {
    let link = Link::to(&etcd.endpoints()[0]).await;
    let mut config = etcd.config();
    config.endpoints = vec![link.url()];
    (Follower::of(config), link)
}

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|&flag| flag.to_owned()).collect()
}
