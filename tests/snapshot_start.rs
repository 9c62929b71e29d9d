//! When a start serves what `--snapshot` has: only if etcd can't say more.

use std::fs;

use etcd_client::TxnOp;

use crate::support::{
    fleet::run,
    load::Load,
    sample::Sample,
    snapshot::{Place, status, until_written},
};

/// The file is from before the drain, as after a crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_drained_since_the_file_was_written_gets_no_request() {
    let place = Place::new().await;
    let drained = Sample::start().await;
    place.put("a.test", "").await;
    let key = format!("/hosts/a.test/{drained}");
    let revision = place.etcd.put(&key, "").await;
    let mut first = place.builder().start().await;
    until_written(&first, revision).await;
    let file = fs::read(place.file()).unwrap();
    let upstream = drained.to_string();
    let deleted = run(&place.etcd, &["delete", "a.test", &upstream, "--drain"]).await;
    assert_eq!(deleted.code, Some(0), "{deleted:?}");
    first.signal("KILL");
    first.wait_exit().await;
    fs::write(place.file(), file).unwrap();
    // What is to be caught up with takes a moment.
    for batch in 0..30 {
        let put = |index| TxnOp::put(place.key(&format!("h{batch}-{index}.test")), "", None);
        place.etcd.txn((0..100).map(put).collect::<Vec<_>>()).await;
    }
    let before = drained.hits();
    let address = first.address();
    let load = Load::start(&[address], &["a.test"]);
    let listener = format!("http://{address}");
    let second = place.builder().listen(&listener).start().await;
    load.more(200).await;
    assert_eq!(drained.hits(), before);
    assert_eq!(status(&second, "h29-99.test").await, 200);
    assert_eq!(second.log().count("read all keys"), 0, "it caught up");
}

/// The file is of a history that is gone, and its revision is higher than what is waited for.
#[tokio::test]
async fn an_etcd_that_keeps_silent_is_waited_for_in_vain_and_its_revisions_are_not_reached() {
    let mut place = Place::new().await;
    let (revision, put) = place.wiped_since().await;
    assert!(put < revision);
    place.etcd.pause(0);

    let second = place.builder().spawn().await;
    let (code, ready) = second.admin_get("/readyz").await;
    assert_eq!(code, 503);
    assert!(ready.contains("no routes were read yet"), "{ready}");
    assert_eq!(status(&second, "a.test").await, 503);
    second.until_ready().await;
    assert_eq!(status(&second, "a.test").await, 200);
    let (_, ready) = second.admin_get("/readyz").await;
    assert!(ready.starts_with("ready, stale for "), "{ready}");
    let wait = format!("/api/wait?revision={put}&timeout=100ms");
    let (code, said) = second.admin_get(&wait).await;
    assert_eq!(code, 504, "{said}");
    assert!(said.contains("snapshot file"), "{said}");

    place.etcd.resume(0);
    second.reached(put).await;
    assert_eq!(status(&second, "c.test").await, 200);
}
