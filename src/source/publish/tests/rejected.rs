//! Keys that are no good: rejected alone, with their last good version in force.

use super::*;

#[tokio::test]
async fn a_rejected_key_keeps_its_last_good_version() {
    let bench = Bench::start();
    let key = "a.example/10.0.0.1:80";
    bench.snapshot(1, &[(key, "{\"weight\": 7}", 1)]).await;
    bench.put(key, "{\"weight\": -1}", 2).await;
    bench.put("b.example/10.0.0.1:99999", "", 3).await;
    bench
        .put("c.example/10.0.0.1:80", "{\"wieght\": 1}", 4)
        .await;
    assert_eq!(
        bench.rejected(),
        [
            ("/hosts/a.example/10.0.0.1:80".to_owned(), true),
            ("/hosts/b.example/10.0.0.1:99999".to_owned(), false),
            ("/hosts/c.example/10.0.0.1:80".to_owned(), false),
        ]
    );
    assert_eq!(bench.metrics.control_plane.rejected_keys.get(), 3);
    let member = &bench.route("a.example", "/").expect("served").members[0];
    assert_eq!((member.weight, member.key.mod_revision), (7, 1));
    assert!(bench.route("c.example", "/").is_none());

    bench.delete("b.example/10.0.0.1:99999", 5).await;
    bench.put("c.example/10.0.0.1:80", "", 6).await;
    bench.delete(key, 7).await;
    assert_eq!(bench.rejected(), []);
    assert_eq!(bench.metrics.control_plane.rejected_keys.get(), 0);
    assert!(bench.route("a.example", "/").is_none());
    assert!(bench.route("c.example", "/").is_some());
}

#[tokio::test]
async fn of_very_many_rejected_keys_the_first_are_shown_and_all_are_counted() {
    let bench = Bench::start();
    let keys: Vec<_> = (0..rejections::SHOWN + 5)
        .map(|number| format!("h{number}/no-upstream"))
        .collect();
    let entries: Vec<_> = keys.iter().map(|key| (&**key, "", 1)).collect();
    bench.snapshot(1, &entries).await;
    let rejected = bench.live.rejected.load();
    assert_eq!(rejected.shown.len(), rejections::SHOWN);
    assert_eq!(rejected.total, rejections::SHOWN + 5);
}

/// Both are shown in logs, in JSON and in terminals.
#[tokio::test]
async fn a_hostile_key_makes_no_endless_reason_and_no_control_characters() {
    let bench = Bench::start();
    let value = format!("{{\"{}\": 1}}", "\\n\\u001b[2J".repeat(5_000));
    bench
        .snapshot(1, &[("a.example/10.0.0.1:80", &value, 1)])
        .await;
    let rejected = bench.live.rejected.load();
    let reason = &rejected.shown[0].reason;
    assert!(reason.len() < 2_000, "{} bytes", reason.len());
    assert!(!reason.contains(char::is_control), "{reason:?}");
}

#[tokio::test]
async fn a_key_rejected_in_another_history_can_be_mended_and_deleted_there() {
    let bench = Bench::start();
    let (mended, deleted) = ("a.example/10.0.0.1:80", "b.example/10.0.0.1:80");
    bench
        .snapshot(100, &[(mended, "", 90), (deleted, "", 91)])
        .await;
    let bad = "{\"weight\": -1}";
    bench
        .snapshot(5, &[(mended, bad, 3), (deleted, bad, 4)])
        .await;
    assert_eq!(bench.rejected().len(), 2);
    bench.put(mended, "{\"weight\": 7}", 6).await;
    bench.delete(deleted, 7).await;
    let route = bench.route("a.example", "/").expect("served");
    assert_eq!(route.members[0].weight, 7);
    assert!(bench.route("b.example", "/").is_none());
    assert_eq!(bench.rejected(), []);
}

#[test]
fn checking_tells_what_publishing_would_reject() {
    let entries = [
        entry("a.example/10.0.0.1:80", "any text", 1),
        entry("a.example/10.0.0.1", "", 2),
        entry("a.example/@settings", "{}", 3),
        entry("b.example/@settings", "{\"balance\": 5}", 4),
        entry("@waypost/pulse", "", 5),
    ];
    let rejected = check("/hosts/", &entries);
    let keys: Vec<_> = rejected.iter().map(|rejected| &*rejected.key).collect();
    assert_eq!(
        keys,
        ["/hosts/a.example/10.0.0.1", "/hosts/b.example/@settings"]
    );
}
