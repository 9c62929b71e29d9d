//! What a process has in etcd under a lease, against real etcd.

use std::{sync::Arc, time::Duration};

use etcd_client::{PutOptions, TxnOp};
use waypost::{
    fleet::{
        lease::{LeaseKeeper, Standing},
        reach::Reach,
    },
    source::etcd::Connector,
};

use crate::support::{etcd::EtcdCluster, waypost::eventually};

const KEY: &str = "/kept";
const TTL: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_lease_is_kept_alive_and_ended_with_its_keeper() {
    let etcd = EtcdCluster::start(1).await;
    let keeper = LeaseKeeper::start(reach(&etcd), Duration::from_secs(6), Box::new(write));
    eventually("it is written", async || bound(&etcd).await.is_some()).await;
    let lease = bound(&etcd).await.unwrap();
    assert!(
        matches!(*keeper.standing().borrow(), Standing::Held { lease: held, .. } if held == lease)
    );
    let granted = left(&etcd, lease).await;
    eventually("some of its time is over", async || {
        left(&etcd, lease).await < granted
    })
    .await;
    eventually("its time begins anew", async || {
        left(&etcd, lease).await == granted
    })
    .await;
    keeper.end().await.unwrap();
    assert_eq!(bound(&etcd).await, None, "gone at once");
    assert_eq!(left(&etcd, lease).await, -1, "and its lease");
}

#[tokio::test]
async fn what_is_not_ended_runs_out() {
    let etcd = EtcdCluster::start(1).await;
    let keeper = LeaseKeeper::start(reach(&etcd), TTL, Box::new(write));
    eventually("it is written", async || bound(&etcd).await.is_some()).await;
    drop(keeper);
    assert!(bound(&etcd).await.is_some());
    eventually("it is gone", async || bound(&etcd).await.is_none()).await;
}

#[tokio::test]
async fn whatever_etcd_loses_is_written_anew() {
    let mut etcd = EtcdCluster::start(1).await;
    let keeper = LeaseKeeper::start(reach(&etcd), TTL, Box::new(write));
    eventually("it is written", async || bound(&etcd).await.is_some()).await;

    let first = bound(&etcd).await.unwrap();
    etcd.client().lease_revoke(first).await.unwrap();
    eventually("under another lease", async || {
        bound(&etcd).await.is_some_and(|lease| lease != first)
    })
    .await;

    let second = bound(&etcd).await.unwrap();
    etcd.delete(KEY).await;
    eventually("under the same lease", async || {
        bound(&etcd).await == Some(second)
    })
    .await;

    etcd.wipe();
    etcd.restart(0).await;
    eventually("in an empty etcd", async || bound(&etcd).await.is_some()).await;
    drop(keeper);
}

#[tokio::test]
async fn another_member_takes_over_before_the_lease_is_lost() {
    let mut etcd = EtcdCluster::start(3).await;
    let keeper = LeaseKeeper::start(reach(&etcd), Duration::from_secs(6), Box::new(write));
    eventually("it is written", async || bound(&etcd).await.is_some()).await;
    let lease = bound(&etcd).await.unwrap();
    let granted = left(&etcd, lease).await;
    for member in 0..3 {
        etcd.kill(member);
        eventually("some of its time is over", async || {
            left(&etcd, lease).await < granted
        })
        .await;
        eventually("its time begins anew", async || {
            left(&etcd, lease).await >= granted
        })
        .await;
        etcd.restart(member).await;
    }
    eventually("it is bound to the same lease", async || {
        bound(&etcd).await == Some(lease)
    })
    .await;
    drop(keeper);
}

fn write(lease: i64) -> Vec<TxnOp> {
    let options = PutOptions::new().with_lease(lease);
    vec![TxnOp::put(KEY, "", Some(options))]
}

fn reach(etcd: &EtcdCluster) -> Arc<Reach> {
    Reach::new(Connector::new(etcd.config()).unwrap())
}

/// The lease of the key, if it is there.
async fn bound(etcd: &EtcdCluster) -> Option<i64> {
    let answer = etcd.client().get(KEY, None).await.ok()?;
    answer.kvs().first().map(|pair| pair.lease())
}

/// The seconds that a lease has left; -1 if there is no such lease.
async fn left(etcd: &EtcdCluster, lease: i64) -> i64 {
    loop {
        // Asked of a member that is away, there is no answer.
        if let Ok(answer) = etcd.client().lease_time_to_live(lease, None).await {
            return answer.ttl();
        }
    }
}
