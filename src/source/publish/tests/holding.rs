//! Deletions that another history brings wait; those of one history don't.

use super::*;

const FIVE: [(&str, &str, Revision); 5] = [
    ("a.example/10.0.0.1:80", "", 90),
    ("b.example/10.0.0.1:80", "", 91),
    ("c.example/10.0.0.1:80", "", 92),
    ("d.example/10.0.0.1:80", "", 93),
    ("e.example/10.0.0.1:80", "", 94),
];

#[tokio::test(start_paused = true)]
async fn few_deletions_of_another_history_are_held_until_they_are_still() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE).await;
    let mut restored = FIVE[..3].to_vec();
    restored.push(("new.example/10.0.0.1:80", "", 5));
    let started = tokio::time::Instant::now();
    bench.another(7, &restored).await;
    assert_eq!(bench.hosts(), 6, "additions apply at once");
    assert_eq!(
        bench.held(),
        [
            "/hosts/d.example/10.0.0.1:80",
            "/hosts/e.example/10.0.0.1:80"
        ]
    );

    tokio::time::sleep(held::STILL / 2).await;
    bench
        .put("e.example/10.0.0.1:80", "{\"weight\": 2}", 8)
        .await;
    assert_eq!(bench.held(), ["/hosts/d.example/10.0.0.1:80"]);
    let member = &bench.route("e.example", "/").expect("served").members[0];
    assert_eq!((member.weight, member.key.mod_revision), (2, 8));
    // Other changes don't count as motion.
    tokio::time::sleep(held::STILL / 2).await;
    bench.put("f.example/10.0.0.1:80", "", 9).await;
    assert_eq!(bench.hosts(), 7);
    let mut tables = bench.live.applied.subscribe();
    tables.changed().await.expect("it runs");
    assert_eq!(started.elapsed(), held::STILL + held::STILL / 2);
    assert_eq!(bench.held(), [""; 0]);
    assert!(bench.route("d.example", "/").is_none());
    assert_eq!(bench.hosts(), 6);
}

/// As at a start with etcd down, or where it is away for a while.
#[tokio::test(start_paused = true)]
async fn deletions_are_still_only_while_changes_would_be_heard_of() {
    let bench = Bench::start();
    let connect = |is_connected| {
        let set = |status: &mut Status| status.connected = is_connected;
        bench.live.status.send_modify(set);
    };
    let pass = async |time| {
        tokio::time::sleep(time).await;
        bench.held().len()
    };
    bench.snapshot(100, &FIVE).await;
    bench.another(7, &FIVE[..3]).await;
    assert_eq!(pass(held::STILL - Duration::from_secs(1)).await, 2);
    connect(false);
    assert_eq!(pass(10 * held::STILL).await, 2);
    connect(true);
    assert_eq!(pass(held::STILL - Duration::from_secs(1)).await, 2);
    assert_eq!(pass(Duration::from_secs(2)).await, 0);

    connect(false);
    bench.another(8, &FIVE[..2]).await;
    assert_eq!(pass(10 * held::STILL).await, 1);
    connect(true);
    assert_eq!(pass(held::STILL - Duration::from_secs(1)).await, 1);
    assert_eq!(pass(Duration::from_secs(2)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn half_of_the_hosts_goes_only_by_an_operators_word() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE[..4]).await;
    bench.another(7, &FIVE[..2]).await;
    tokio::time::sleep(10 * held::STILL).await;
    assert_eq!((bench.held().len(), bench.hosts()), (2, 4));
    assert_eq!(bench.acceptance.accept().await, Some(2));
    assert_eq!((bench.held().len(), bench.hosts()), (0, 2));
    assert_eq!(bench.live.table.load().revision, 7);
    assert_eq!(bench.acceptance.accept().await, Some(0));
}

/// A host that keeps another upstream is not removed, so all five may lose one by themselves.
#[tokio::test(start_paused = true)]
async fn a_host_counts_as_removed_only_without_its_last_upstream() {
    let bench = Bench::start();
    let second = FIVE.map(|(key, ..)| key.replace("0.1:80", "0.2:80"));
    let second: Vec<_> = second.iter().map(|key| (&**key, "", 95)).collect();
    bench.snapshot(100, &[&FIVE[..], &second].concat()).await;
    bench.another(7, &FIVE).await;
    assert_eq!((bench.held().len(), bench.hosts()), (5, 5));
    tokio::time::sleep(2 * held::STILL).await;
    assert_eq!((bench.held().len(), bench.hosts()), (0, 5));
    assert_eq!(bench.upstreams("a.example"), ["10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_while_etcd_is_away() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE).await;
    bench.another(7, &FIVE[..4]).await;
    bench
        .live
        .status
        .send_modify(|status| status.connected = false);
    tokio::time::sleep(5 * held::STILL).await;
    assert_eq!(bench.held().len(), 1);
    bench
        .live
        .status
        .send_modify(|status| status.connected = true);
    tokio::time::sleep(2 * held::STILL).await;
    assert_eq!((bench.held().len(), bench.hosts()), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn within_one_history_deletions_apply_at_once_and_held_ones_stay_held() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE).await;
    bench.another(7, &FIVE[..3]).await;
    let keys = bench.held();
    let two = [FIVE[0], FIVE[1]].map(|(key, value, _)| (key, value, 6));
    bench.snapshot(9, &two).await;
    assert_eq!(bench.held(), keys);
    assert_eq!(bench.hosts(), 4);
    for (key, revision) in [(FIVE[0].0, 10), (FIVE[1].0, 11)] {
        bench.delete(key, revision).await;
    }
    assert_eq!(
        bench.hosts(),
        2,
        "what etcd deletes is gone, the last key too"
    );
    // The set grows with the next wipe, and shrinks with what is there again.
    bench.put("new.example/10.0.0.1:80", "", 12).await;
    bench.another(1, &[FIVE[3]]).await;
    assert_eq!(
        bench.held(),
        [
            "/hosts/e.example/10.0.0.1:80",
            "/hosts/new.example/10.0.0.1:80"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_held_key_that_comes_back_bad_is_rejected_and_its_last_good_version_stays() {
    let bench = Bench::start();
    let key = "a.example/10.0.0.1:80";
    bench
        .snapshot(
            100,
            &[(key, "{\"weight\": 7}", 90), ("b.example/x", "", 91)],
        )
        .await;
    bench.another(2, &[]).await;
    assert_eq!(bench.rejected(), [], "a rejected key that is gone is gone");
    bench.put(key, "{\"weight\": -1}", 3).await;
    assert_eq!(bench.held(), [""; 0]);
    assert_eq!(bench.rejected(), [(format!("/hosts/{key}"), true)]);
    assert_eq!(
        bench.route("a.example", "/").expect("served").members[0].weight,
        7
    );
    bench.delete(key, 4).await;
    assert_eq!((bench.hosts(), bench.rejected().len()), (0, 0));
}

/// The key is served on, so nobody may be told that it is gone, or that all of this revision is in force.
#[tokio::test]
async fn a_barrier_behind_a_held_deletion_is_not_passed() {
    let bench = Bench::start();
    let (lost, kept) = (
        ("lost.example/10.0.0.1:80", "", 8),
        ("kept.example/10.0.0.1:80", "", 9),
    );
    bench.snapshot(9, &[lost, kept]).await;
    let barriers = [
        ("@waypost/barriers/any", "{}", 4),
        (
            "@waypost/barriers/kept",
            r#"{"key": "/hosts/kept.example/10.0.0.1:80"}"#,
            4,
        ),
        (
            "@waypost/barriers/lost",
            r#"{"key": "/hosts/lost.example/10.0.0.1:80", "drain": true}"#,
            4,
        ),
    ];
    bench.another(4, &[&[kept], &barriers[..]].concat()).await;
    assert_eq!(bench.held(), ["/hosts/lost.example/10.0.0.1:80"]);
    let rejection = async |id: &str| {
        let mut open = bench.live.barriers.subscribe();
        let open = open.wait_for(|open| open.contains_key(id)).await.unwrap();
        open[id].rejection.clone()
    };
    for (id, expected) in [
        ("any", Some("deletions are held")),
        ("kept", None),
        ("lost", Some("its deletion is held")),
    ] {
        let rejection = rejection(id).await;
        let is_so = match expected {
            Some(text) => rejection
                .as_ref()
                .is_some_and(|said| said.starts_with(text)),
            None => rejection.is_none(),
        };
        assert!(is_so, "{id}: {rejection:?}");
    }

    assert_eq!(bench.acceptance.accept().await, Some(1));
    bench.put("@waypost/barriers/later", "{}", 5).await;
    assert_eq!(rejection("later").await, None);
}
