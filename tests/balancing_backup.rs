//! `"backup": true`: who gets requests only while all others are out.

use crate::support::{
    load::Client,
    origin::Refusing,
    sample::Sample,
    waypost::{Waypost, eventually},
};

const HOST: &str = "a.test";

#[tokio::test]
async fn a_backup_gets_requests_only_while_all_others_are_out() {
    for balance in ["round-robin", "random", "least-request", "hash"] {
        let waypost = Waypost::builder().flag("--balance", balance).start().await;
        let [serving, backup] = [Sample::start().await, Sample::start().await];
        waypost
            .put(HOST, &backup, r#"{"backup": true, "weight": 100}"#)
            .await;
        waypost.put(HOST, &serving, "").await;
        let mut client = Client::connect(waypost.address()).await.unwrap();
        for _ in 0..30 {
            assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
        }
        assert_eq!((serving.hits(), backup.hits()), (30, 0), "{balance}");

        let refusing = [Refusing::new(), Refusing::new()];
        for refusing in &refusing {
            waypost.put(HOST, refusing, "").await;
        }
        for _ in 0..30 {
            assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
        }
        assert_eq!((serving.hits(), backup.hits()), (60, 0), "{balance}");

        waypost.delete(HOST, &serving).await;
        for _ in 0..30 {
            assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
        }
        assert_eq!((serving.hits(), backup.hits()), (60, 30), "{balance}");

        waypost.put(HOST, &serving, "").await;
        let answered = async || {
            let before = (serving.hits(), backup.hits());
            assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
            (serving.hits(), backup.hits()) == (before.0 + 1, before.1)
        };
        eventually("the serving upstream has them again", answered).await;
    }
}

#[tokio::test]
async fn a_route_of_backups_alone_is_served_and_a_draining_backup_is_none() {
    let waypost = Waypost::builder().start().await;
    let [backup, draining] = [Sample::start().await, Sample::start().await];
    waypost.put(HOST, &backup, r#"{"backup": true}"#).await;
    waypost
        .put(HOST, &draining, r#"{"backup": true, "drain": true}"#)
        .await;
    let mut client = Client::connect(waypost.address()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
    }
    assert_eq!((backup.hits(), draining.hits()), (10, 0));
    waypost.delete(HOST, &backup).await;
    let answer = client.get(HOST, "/").await.unwrap();
    assert_eq!(answer.status(), 503);
}
