//! Deploys under load, as an operator makes them: nothing is lost.

use crate::support::{
    etcd::EtcdCluster,
    fleet::{assert_nothing_left, instance, run},
    load::Load,
    sample::Sample,
};

/// Each new upstream is waited for before the old one goes, and that is killed as soon as it is drained.
#[tokio::test]
async fn five_deploys_in_a_row_lose_nothing() {
    let etcd = EtcdCluster::start(1).await;
    let (one, two) = (instance(&etcd).await, instance(&etcd).await);
    let mut old = Sample::start().await;
    let put = put(&etcd, &old).await;
    assert!(put.ends_with("served by 2 instances\n"), "{put}");
    let load = Load::of_posts(&[one.address(), two.address()], &["a.test"]);
    load.more(12).await;
    let mut names = vec![old.to_string()];
    for _ in 0..5 {
        let new = Sample::start().await;
        names.push(new.to_string());
        self::put(&etcd, &new).await;
        load.more(12).await;
        let words = [
            "delete",
            "a.test",
            &old.to_string(),
            "--drain",
            "--expect",
            "2",
        ];
        let delete = run(&etcd, &words).await;
        assert_eq!(delete.code, Some(0), "{delete:?}");
        // Its listener and every connection to it are gone with it.
        drop(std::mem::replace(&mut old, new));
        load.more(12).await;
    }
    let tally = load.finish().await;
    for name in names {
        let answered = tally.bodies.get(&("a.test".to_owned(), name.clone()));
        assert!(answered.is_some(), "{name} answered nothing: {tally:?}");
    }
    assert_nothing_left(&etcd, "/hosts/").await;
}

async fn put(etcd: &EtcdCluster, sample: &Sample) -> String {
    let words = [
        "put",
        "a.test",
        &sample.to_string(),
        "--wait",
        "--expect",
        "2",
    ];
    let put = run(etcd, &words).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    put.stdout
}
