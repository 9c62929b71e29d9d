//! `--snapshot`: what the next start makes of what an instance has on disk.

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use etcd_client::TxnOp;

use crate::support::{
    fleet::below,
    snapshot::{Place, end, status, until_status, until_written},
    waypost::{eventually, get},
};

#[tokio::test]
async fn a_start_without_etcd_serves_the_snapshot_and_then_catches_up() {
    let mut place = Place::new().await;
    let revision = place.put("a.test", "").await;
    let first = place.builder().start().await;
    first.log().until("there is no snapshot yet").await;
    until_written(&first, revision).await;
    let mode = fs::metadata(place.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // The end waits for no second to pass.
    let last = place.put("b.test", "").await;
    first.reached(last).await;
    end(first).await;
    let ended = Instant::now();

    place.etcd.kill_all();
    let second = place.builder().start().await;
    let codes = [("a.test", 200), ("b.test", 200), ("c.test", 404)];
    for (host, code) in codes {
        assert_eq!(status(&second, host).await, code, "{host}");
    }
    let old = ended.elapsed().as_secs_f64();
    let (code, ready) = second.admin_get("/readyz").await;
    assert_eq!(code, 200);
    assert!(ready.starts_with("ready, stale for "), "{ready}");
    let state = second.api("/api/status").await;
    assert_eq!(state["applied_revision"], last);
    assert_eq!(
        (&state["ready"], &state["connected"]),
        (&true.into(), &false.into())
    );
    assert!(
        state["stale_seconds"].as_f64().unwrap() >= old,
        "as old as the file: {state}"
    );
    let stale = second.metric("waypost_source_stale_seconds", &[]).await;
    assert!(stale >= old, "{stale}");
    assert_eq!(
        second.metric("waypost_snapshot_writes_total", &[]).await,
        0.0
    );

    // It is as old at the next start without etcd.
    end(second).await;
    let third = place.builder().start().await;
    let stale = third.metric("waypost_source_stale_seconds", &[]).await;
    assert!(stale >= old, "{stale}");

    place.etcd.restart(0).await;
    let put = place.put("c.test", "").await;
    place.etcd.delete(&place.key("a.test")).await;
    until_status(&third, "c.test", 200).await;
    until_status(&third, "a.test", 404).await;
    eventually("nothing more is to come", async || {
        third.admin_get("/readyz").await == (200, "ready\n".to_owned())
    })
    .await;
    assert_eq!(third.metric("waypost_source_stale_seconds", &[]).await, 0.0);
    until_written(&third, put + 1).await;
    assert_eq!(
        third.log().count("read all keys"),
        0,
        "{}",
        third.log().text()
    );
}

#[tokio::test]
async fn a_restart_reads_only_what_changed() {
    let place = Place::new().await;
    for batch in 0..10 {
        let put = |index| {
            TxnOp::put(
                place.key(&format!("h{batch}-{index}.test")),
                vec![b'x'; 4096],
                None,
            )
        };
        place.etcd.txn((0..100).map(put).collect::<Vec<_>>()).await;
    }
    let last = place.put("a.test", "").await;
    let sent = async || {
        let address = place.etcd.endpoints()[0]
            .trim_start_matches("http://")
            .parse()
            .unwrap();
        let (_, text) = get(address, "/metrics").await.unwrap();
        let name = "etcd_network_client_grpc_sent_bytes_total ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("etcd counts it").parse::<f64>().unwrap()
    };
    let before = sent().await;
    let first = place.builder().start().await;
    until_written(&first, last).await;
    end(first).await;
    let everything = sent().await - before;
    assert!(everything > 4_000_000.0, "{everything}");

    let put = place.put("b.test", "").await;
    let deleted = place.etcd.delete(&place.key("a.test")).await;
    let before = sent().await;
    let second = place.builder().start().await;
    second.reached(deleted).await;
    let codes = [("a.test", 404), ("b.test", 200), ("h9-99.test", 200)];
    for (host, code) in codes {
        assert_eq!(status(&second, host).await, code, "{host}");
    }
    until_written(&second, put).await;
    // Soon the keys are counted, and found to be right.
    eventually("it is reconciled", async || {
        second.metric("waypost_source_reconciles_total", &[]).await == 1.0
    })
    .await;
    assert_eq!(
        second
            .metric("waypost_source_reconcile_differences_total", &[])
            .await,
        0.0
    );
    let changes = sent().await - before;
    assert!(
        changes < everything / 20.0,
        "{changes} of {everything} bytes"
    );
    assert_eq!(second.log().count("read all keys"), 0);
}

#[tokio::test]
async fn a_rejected_key_keeps_its_last_good_version_over_a_restart() {
    let mut place = Place::new().await;
    place.put("a.test", "").await;
    place.put("b.test", "{\"weight\": -1}").await;
    let first = place.builder().start().await;
    let bad = place.put("a.test", "{\"weight\": -1}").await;
    first.reached(bad).await;
    end(first).await;
    place.etcd.kill_all();
    let second = place.builder().start().await;
    assert_eq!(
        (
            status(&second, "a.test").await,
            status(&second, "b.test").await
        ),
        (200, 404)
    );
    let rejected = second.api("/api/rejected").await;
    let shown = |index: usize| {
        let key = &rejected["rejected"][index];
        let text = |name: &str| key[name].as_str().unwrap().to_owned();
        (
            text("key"),
            key["last_good_in_force"].as_bool(),
            key["mod_revision"].as_i64(),
        )
    };
    assert_eq!(rejected["total"], 2);
    assert_eq!(shown(0), (place.key("a.test"), Some(true), Some(bad)));
    assert_eq!((shown(1).0, shown(1).1), (place.key("b.test"), Some(false)));
    place.etcd.restart(0).await;
    let mended = place.put("a.test", "").await;
    second.reached(mended).await;
    assert_eq!(second.metric("waypost_rejected_keys", &[]).await, 1.0);
}

#[tokio::test]
async fn a_snapshot_of_a_wiped_cluster_takes_no_route_away() {
    let mut place = Place::new().await;
    let (_, put) = place.wiped_since().await;

    let second = place.builder().start().await;
    until_status(&second, "c.test", 200).await;
    assert_eq!(
        (
            status(&second, "a.test").await,
            status(&second, "b.test").await
        ),
        (200, 200)
    );
    eventually("both are held", async || {
        second.metric("waypost_held_deletes", &[]).await == 2.0
    })
    .await;
    // The revision went back, so this is the first one that the new cluster wrote.
    eventually("the new history is on disk", async || {
        second.metric("waypost_snapshot_writes_total", &[]).await >= 1.0
            && second.metric("waypost_snapshot_revision", &[]).await >= put as f64
    })
    .await;
    end(second).await;

    // They are held at the next start too, with etcd and without.
    let third = place.builder().start().await;
    third.log().until("watching etcd").await;
    assert_eq!(third.api("/api/status").await["held_deletes"], 2);
    assert_eq!(
        third.log().count("read all keys"),
        0,
        "it knows this history"
    );
    end(third).await;
    place.etcd.kill_all();
    let fourth = place.builder().start().await;
    for host in ["a.test", "b.test", "c.test"] {
        assert_eq!(status(&fourth, host).await, 200, "{host}");
    }
    assert_eq!(fourth.api("/api/status").await["held_deletes"], 2);
}

/// The pulse is no change that a whole file is written for; yet a read after compaction shows it.
#[tokio::test]
async fn what_was_deleted_and_compacted_since_is_deleted() {
    let place = Place::new().await;
    place.put("a.test", "").await;
    let revision = place.put("b.test", "").await;
    let first = place.builder().start().await;
    until_written(&first, revision).await;
    let pulse = place.etcd.put("/hosts/@waypost/pulse", "another's").await;
    first.reached(pulse).await;
    end(first).await;
    place.etcd.put("/elsewhere", "").await;
    let deleted = place.etcd.delete(&place.key("b.test")).await;
    place.etcd.compact(deleted).await;
    let second = place.builder().start().await;
    second.reached(deleted).await;
    second
        .log()
        .until("the changes since our revision are compacted away")
        .await;
    assert_eq!(
        (
            status(&second, "a.test").await,
            status(&second, "b.test").await
        ),
        (200, 404)
    );
    assert_eq!(second.metric("waypost_held_deletes", &[]).await, 0.0);
}

/// Whoever waits for a change counts on those who may serve the routes before it, be they from a disk.
#[tokio::test]
async fn the_snapshot_is_served_by_who_is_registered_though_members_are_dead() {
    let place = Place::new().await;
    let revision = place.put("a.test", "").await;
    let first = place.builder().start().await;
    until_written(&first, revision).await;
    end(first).await;
    let mut endpoints = vec!["http://127.0.0.1:1".to_owned(); 2];
    endpoints.extend(place.etcd.endpoints());
    for _ in 0..5 {
        let instance = place.builder().etcd(&endpoints).start().await;
        let registered = below(&place.etcd, "/waypost/hosts/instances/").await;
        assert_eq!(registered.len(), 1, "{}", instance.log().text());
        end(instance).await;
    }
}
