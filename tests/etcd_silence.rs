//! Watches of real etcd that fall silent, or lose an event, while everything else works: the source notices, and what
//! it tells converges.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use waypost::{
    config::{EtcdConfig, EtcdUser, Password},
    source::{
        Update,
        etcd::{Etcd, Pace, Patience},
    },
};

use crate::support::{
    deaf_link::DeafLink,
    etcd::{EtcdCluster, Options},
    follower::{Follower, PREFIX},
    waypost::within,
};

/// With the patience of an instance these tests would take minutes.
const PACE: Pace = Pace {
    patience: Patience {
        silence: Duration::from_millis(500),
        unseen: Duration::from_secs(2),
    },
    reconcile: Duration::from_secs(3600),
};
const LIMIT: Duration = Duration::from_secs(30);
const PULSE: &str = "/hosts/@waypost/pulse";

#[tokio::test]
async fn a_watch_that_silently_stopped_is_replaced() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let link = DeafLink::to(&etcd.endpoints()[0]).await;
    let mut follower = follow(&etcd, &link, PACE);
    follower.until_keys(&[PULSE, "/hosts/a/a:80"]).await;
    link.silence();
    etcd.put("/hosts/b/b:80", "").await;
    let expected = [PULSE, "/hosts/a/a:80", "/hosts/b/b:80"];
    while !follower.keys.keys().eq(expected) {
        let update = follower.next().await;
        assert!(!matches!(update, Update::Snapshot { .. }), "{update:?}");
    }
    assert!(link.connections() >= 2);
}

#[tokio::test]
async fn changes_arrive_though_no_watch_brings_anything() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let link = DeafLink::to(&etcd.endpoints()[0]).await;
    let mut follower = follow(&etcd, &link, PACE);
    follower.until_keys(&[PULSE, "/hosts/a/a:80"]).await;
    link.silence_for_good();
    etcd.put("/hosts/b/b:80", "").await;
    follower
        .until_keys(&[PULSE, "/hosts/a/a:80", "/hosts/b/b:80"])
        .await;
    etcd.delete("/hosts/a/a:80").await;
    follower.until_keys(&[PULSE, "/hosts/b/b:80"]).await;
}

/// Later events arrive, so that nothing but a comparison can tell.
#[tokio::test]
async fn an_event_that_the_watch_lost_is_found_by_comparing() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let link = DeafLink::to(&etcd.endpoints()[0]).await;
    let pace = Pace {
        patience: Patience::default(),
        reconcile: Duration::from_secs(4),
    };
    let mut follower = follow(&etcd, &link, pace);
    follower.snapshot().await;
    follower.until_connected().await;
    link.lose_one();
    etcd.delete("/hosts/a/a:80").await;
    within(LIMIT, "the event is lost", async || link.has_lost()).await;
    etcd.put("/hosts/b/b:80", "").await;
    follower.until_keys(&["/hosts/b/b:80"]).await;
    assert_eq!(link.connections(), 1);
}

/// etcd takes deletions alone: a watch that lives is kept, one that died is noticed all the same.
#[tokio::test]
async fn a_full_etcd_is_looked_at_by_reads() {
    let options = Options {
        flags: vec!["--quota-backend-bytes=2000000".to_owned()],
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    etcd.put("/hosts/a/a:80", "").await;
    etcd.put("/hosts/b/b:80", "").await;
    etcd.fill().await;
    let link = DeafLink::to(&etcd.endpoints()[0]).await;
    let mut follower = follow(&etcd, &link, PACE);
    follower
        .until_keys(&["/hosts/a/a:80", "/hosts/b/b:80"])
        .await;
    until_looked_at(&link).await;
    link.silence();
    etcd.delete("/hosts/a/a:80").await;
    follower.until_keys(&["/hosts/b/b:80"]).await;
    assert!(link.connections() >= 2);
}

#[tokio::test]
async fn who_may_only_read_looks_by_reads() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let mut root = with_a_reader(&etcd).await;
    let link = DeafLink::to(&etcd.endpoints()[0]).await;
    let config = EtcdConfig {
        endpoints: vec![link.url()],
        user: Some(EtcdUser {
            name: "reader".to_owned(),
            password: Password::Text("secret".to_owned()),
        }),
        ..etcd.config()
    };
    let mut follower = following(config, PACE);
    follower.until_keys(&["/hosts/a/a:80"]).await;
    // Written elsewhere: etcd has come further, and the watch owes nothing.
    root.put("/elsewhere", "", None).await.unwrap();
    until_looked_at(&link).await;
    assert!(!follower.keys.contains_key(PULSE));
    link.silence();
    root.put("/hosts/b/b:80", "", None).await.unwrap();
    follower
        .until_keys(&["/hosts/a/a:80", "/hosts/b/b:80"])
        .await;
    assert!(link.connections() >= 2);
}

/// Several times, and over the connections that there are.
async fn until_looked_at(link: &DeafLink) {
    let (connections, answers) = (link.connections(), link.answers());
    within(LIMIT, "etcd is looked at", async || {
        link.answers() >= answers + 8
    })
    .await;
    assert_eq!(link.connections(), connections, "the watch was kept");
}

fn follow(etcd: &EtcdCluster, link: &DeafLink, pace: Pace) -> Follower {
    let config = EtcdConfig {
        endpoints: vec![link.url()],
        ..etcd.config()
    };
    following(config, pace)
}

fn following(config: EtcdConfig, pace: Pace) -> Follower {
    let source = Etcd::new(config, PREFIX.to_owned()).expect("a usable configuration");
    Follower::following(source.paced(pace))
}

/// Switches authentication on; a client of root, and a `reader` who may read below the prefix.
async fn with_a_reader(etcd: &EtcdCluster) -> Client {
    let mut client = etcd.client();
    client.user_add("root", "root", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_add("reader", "secret", None).await.unwrap();
    client.role_add("reader").await.unwrap();
    client.user_grant_role("reader", "reader").await.unwrap();
    let read = Permission::new(PermissionType::Read, PREFIX).with_prefix();
    client.role_grant_permission("reader", read).await.unwrap();
    client.auth_enable().await.unwrap();
    let login = ConnectOptions::new().with_user("root", "root");
    Client::connect(etcd.endpoints(), Some(login))
        .await
        .unwrap()
}
