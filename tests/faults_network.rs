//! Packets that vanish, in network namespaces of the test's own: nobody is told, and a change still arrives.

use std::time::Duration;

use crate::support::{
    etcd::{EtcdCluster, Options, Place},
    link::Link,
    network::{Between, Network, Node, in_network},
    rig::Rig,
    soak,
    waypost::{Waypost, within},
};

/// As FAULTS.md has it, for another member to take over from a silent one.
const TAKEOVER: Duration = Duration::from_secs(20);
const PROMPT: Duration = Duration::from_secs(5);

/// No FIN and no RST: only the keepalive (15 s) tells, or the pulse.
#[test]
fn a_member_whose_packets_vanish_is_left_for_another() {
    in_network(3, async |network| {
        let rig = rig(&network).await;
        for _ in 0..soak::rounds(1, 6) {
            let lost = rig.member().await;
            network.drop_packets(Between::Hub(lost));
            put_beside(&rig, lost).await;
            rig.until_status("beside.test", 200, TAKEOVER).await;
            assert_ne!(rig.member().await, lost);
            network.mend();
            rig.etcd.delete(&beside(&rig)).await;
            rig.until_status("beside.test", 404, PROMPT).await;
        }
        assert_eq!(rig.reads(), 1, "resumed, not read anew");
        rig.finish().await;
    });
}

/// It answers us as ever, but the other two no longer hear it.
#[test]
fn a_member_in_a_minority_is_left_for_the_majority() {
    in_network(3, async |network| {
        let rig = rig(&network).await;
        for _ in 0..soak::rounds(1, 6) {
            let alone = rig.member().await;
            network.drop_packets(Between::Others(alone));
            put_beside(&rig, alone).await;
            rig.until_status("beside.test", 200, TAKEOVER).await;
            assert_ne!(rig.member().await, alone);
            rig.until_fresh(PROMPT).await;
            network.mend();
            rig.etcd.delete(&beside(&rig)).await;
            rig.until_status("beside.test", 404, PROMPT).await;
        }
        assert_eq!(rig.reads(), 1, "resumed, not read anew");
        rig.finish().await;
    });
}

async fn rig(network: &Network) -> Rig {
    let etcd = cluster(network).await;
    let endpoints = etcd.endpoints();
    Rig::over(etcd, Waypost::builder().etcd(&endpoints)).await
}

async fn cluster(network: &Network) -> EtcdCluster {
    let place = |node: &Node| Place {
        address: node.address,
        entering: node.entering().to_vec(),
    };
    let options = Options {
        places: network.nodes().iter().map(place).collect(),
        ..Options::default()
    };
    EtcdCluster::start_with(3, options).await
}

fn beside(rig: &Rig) -> String {
    format!("/hosts/beside.test/{}", rig.samples[0])
}

/// A host more, written by the members that are not in trouble.
async fn put_beside(rig: &Rig, in_trouble: usize) {
    let others: Vec<_> = (0..3).filter(|member| *member != in_trouble).collect();
    let client = rig.etcd.client_of(&others).await;
    // If that was the leader there is another one soon.
    within(TAKEOVER, "the others write", async || {
        let mut client = client.clone();
        let put = client.put(beside(rig), "", None);
        matches!(
            tokio::time::timeout(Duration::from_secs(1), put).await,
            Ok(Ok(_))
        )
    })
    .await;
}

/// It no longer hears the others, and is asked first, alone: it is behind, which is not another history.
#[test]
fn a_lagging_follower_that_is_asked_first_is_no_false_alarm() {
    in_network(3, async |network| {
        let etcd = cluster(&network).await;
        let leader = etcd.leader().await;
        let lagging = (leader + 1) % 3;
        let link = Link::to(&etcd.endpoints()[leader]).await;
        let rig = Rig::over(etcd, Waypost::builder().etcd(&[link.url()])).await;
        for _ in 0..soak::rounds(1, 6) {
            network.drop_packets(Between::Others(lagging));
            put_beside(&rig, lagging).await;
            rig.until_status("beside.test", 200, TAKEOVER).await;
            link.cut();
            rig.until_stale(PROMPT).await;
            let tries = link.tries();
            link.mend(&rig.etcd.endpoints()[lagging]);
            within(TAKEOVER, "it was asked twice", async || {
                link.tries() >= tries + 2
            })
            .await;
            rig.until_stale(PROMPT).await;
            network.mend();
            rig.until_fresh(TAKEOVER).await;
            rig.until_status("beside.test", 200, TAKEOVER).await;
            rig.etcd.delete(&beside(&rig)).await;
            rig.until_status("beside.test", 404, TAKEOVER).await;
            link.mend(&rig.etcd.endpoints()[leader]);
        }
        assert_eq!(rig.reads(), 1, "nothing was read anew");
        rig.finish().await;
    });
}

/// The same over links of the test's own, which need no root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_lets_nothing_through_is_left_for_another() {
    let etcd = EtcdCluster::start(3).await;
    let mut links = Vec::new();
    for endpoint in etcd.endpoints() {
        links.push(Link::to(&endpoint).await);
    }
    let urls: Vec<_> = links.iter().map(Link::url).collect();
    let rig = Rig::over(etcd, Waypost::builder().etcd(&urls)).await;
    let location = rig.location().await;
    let held = urls
        .iter()
        .position(|url| *url == location)
        .expect("a link");
    links[held].hold();
    rig.change(TAKEOVER).await;
    assert_ne!(rig.location().await, location);
    links[held].release();
    assert_eq!(rig.reads(), 1, "resumed, not read anew");
    rig.finish().await;
}

/// Far away is not gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_is_no_fault() {
    let etcd = EtcdCluster::start(1).await;
    let link = Link::to(&etcd.endpoints()[0]).await;
    let rig = Rig::over(etcd, Waypost::builder().etcd(&[link.url()])).await;
    let tries = link.tries();
    link.delay(Duration::from_millis(400));
    for _ in 0..soak::rounds(3, 60) {
        let took = rig.change(PROMPT).await;
        assert!(took >= Duration::from_millis(300), "{took:?}");
    }
    assert_eq!(link.tries(), tries, "no new connection");
    rig.finish().await;
}
