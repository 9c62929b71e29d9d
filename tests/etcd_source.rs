//! The etcd source against real etcd: what it tells, in which order, and how much at once.

use etcd_client::{DeleteOptions, TxnOp};
use waypost::source::{
    Change, Update,
    etcd::{Etcd, read_all},
};

use crate::support::{
    etcd::{EtcdCluster, Options},
    follower::{Follower, PREFIX},
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
async fn a_source_goes_on_from_what_is_known_if_the_cluster_vouches_for_it() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "x").await;
    etcd.put("/hosts/b/b:80", "").await;
    let (entries, revision) = read_all(&etcd.config(), PREFIX).await.unwrap();
    let answer = etcd.client().get("any", None).await.unwrap();
    let cluster_id = answer.header().expect("a header").cluster_id();
    let deleted = etcd.delete("/hosts/b/b:80").await;
    let source = || Etcd::new(etcd.config(), PREFIX.to_owned()).unwrap();

    let known = source().resuming(cluster_id, revision, &entries);
    let mut follower = Follower::following(known);
    let Update::Vouched { through } = follower.next().await else {
        panic!("expected its word");
    };
    assert_eq!(through, deleted + 1, "a pulse was put");
    let changes = ["-/hosts/b/b:80", "+/hosts/@waypost/pulse"];
    assert_eq!(
        follower.changes().await,
        (changes.map(str::to_owned).to_vec(), through)
    );

    let elsewhere = source().resuming(cluster_id + 1, revision, &entries);
    assert_eq!(Follower::following(elsewhere).snapshot().await, through);
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
    // Fragments are asked for where a whole one is too large.
    let source = Etcd::new(etcd.config(), PREFIX.to_owned()).expect("a usable configuration");
    let mut follower = Follower::following(source.taking_at_most(1 << 20));
    follower.snapshot().await;
    assert_eq!(follower.keys.len(), 1_500);
    follower.until_connected().await;
    let all = DeleteOptions::new().with_prefix();
    let revision = etcd.txn([TxnOp::delete(PREFIX, Some(all))]).await;
    let (changes, up_to) = follower.changes().await;
    assert_eq!((changes.len(), up_to), (1_500, revision));
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let etcd = EtcdCluster::start(1).await;
    let mut idle = Follower::of(etcd.config());
    idle.snapshot().await;
    idle.until_connected().await;
    idle.hang_up().await;

    let mut unreachable = etcd.config();
    unreachable.endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let waiting = Follower::of(unreachable);
    waiting.until_disconnected().await;
    waiting.hang_up().await;
}

/// A receiver that stands still holds the watch back, however much is written; nothing is lost.
#[tokio::test]
async fn a_slow_receiver_gets_everything_in_the_end() {
    let etcd = EtcdCluster::start(1).await;
    let mut follower = Follower::of(etcd.config());
    follower.snapshot().await;
    follower.until_connected().await;
    let mut last = 0;
    for index in 0..500 {
        last = etcd
            .put(&format!("/hosts/h{index}/a:80"), vec![b'x'; 20_000])
            .await;
    }
    let mut revision = 0;
    while revision < last {
        revision = follower.changes().await.1;
    }
    assert_eq!(follower.keys.len(), 500);
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

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|&flag| flag.to_owned()).collect()
}
