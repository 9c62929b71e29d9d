//! What is on disk is vouched for, once, before anything else is told.

use super::*;
use crate::source::Entry;

/// A source that goes on from `/h/a` at this revision.
fn resuming(etcd: &Fake, a: Revision) -> mpsc::Receiver<Update> {
    let (sender, updates) = mpsc::channel(64);
    let live = Live::new(Status::before("etcd", ""));
    let known = Entry {
        key: "/h/a".into(),
        value: bytes::Bytes::new(),
        mod_revision: a,
        lease: 0,
    };
    let source = Etcd::over(etcd.clone(), PREFIX.to_owned(), 1).resuming(1, a, &[known]);
    tokio::spawn(source.run(live, sender));
    updates
}

#[tokio::test(start_paused = true)]
async fn a_pulse_tells_how_far_the_store_is() {
    let etcd = Fake::default();
    let a = etcd.put("/h/a");
    etcd.put("/h/b");
    // Of this the watch will never tell.
    etcd.put_elsewhere();
    etcd.store().is_told_piecemeal = true;
    let mut updates = resuming(&etcd, a);
    assert!(matches!(
        updates.recv().await,
        Some(Update::Vouched { through: 4 })
    ));
    for expected in [2, 4] {
        let update = updates.recv().await;
        assert!(
            matches!(update, Some(Update::Changes { revision, .. }) if revision == expected),
            "{update:?}"
        );
    }
    etcd.end_watches();
    etcd.put("/h/c");
    let update = updates.recv().await;
    assert!(matches!(update, Some(Update::Changes { .. })), "{update:?}");
    assert_eq!(etcd.store().puts, 1);
}

#[tokio::test(start_paused = true)]
async fn where_no_pulse_can_be_put_everything_is_read() {
    for refusal in [
        Fault::Refused("etcdserver: permission denied".to_owned()),
        Fault::Unreachable("etcdserver: mvcc: database space exceeded".to_owned()),
    ] {
        let etcd = Fake::default();
        let a = etcd.put("/h/a");
        etcd.put("/h/b");
        etcd.store().puts_end_in = Some(refusal);
        let update = resuming(&etcd, a).recv().await;
        let Some(Update::Snapshot {
            history, entries, ..
        }) = update
        else {
            panic!("{update:?}");
        };
        assert_eq!((history, entries.len()), (History::Continued, 2));
    }
}
