use std::fs;

use super::{
    testing::{frame, stored_of},
    *,
};

fn mark(frame: &Frame) -> Mark {
    Mark::of(frame)
}

#[tokio::test(start_paused = true)]
async fn a_file_is_written_once_a_second_and_its_head_every_ten() {
    let (mut schedule, start) = (Schedule::default(), Instant::now());
    assert_eq!(schedule.due(&frame(7)), Some((Work::Everything, start)));
    let took = Duration::from_millis(10);
    schedule.did(mark(&frame(7)), true, start, start + took);
    assert_eq!(schedule.due(&frame(7)), None);
    let next = start + took + PAUSE;
    assert_eq!(schedule.due(&frame(8)), Some((Work::Everything, next)));
    // Only the revision, or only the time, is another.
    let moved = Frame {
        revision: 9,
        ..frame(7)
    };
    let confirmed = Frame {
        confirmed: SystemTime::now(),
        ..frame(7)
    };
    for quiet in [moved, confirmed] {
        assert_eq!(
            schedule.due(&quiet),
            Some((Work::Head, start + took + HEAD_PAUSE))
        );
    }
    // A slow disk has its rest.
    let took = Duration::from_millis(400);
    schedule.did(mark(&frame(8)), true, start, start + took);
    assert_eq!(
        schedule.due(&frame(9)),
        Some((Work::Everything, start + 21 * took))
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_everything_is_written() {
    let (mut schedule, start) = (Schedule::default(), Instant::now());
    schedule.did(mark(&frame(7)), true, start, start);
    schedule.did(mark(&frame(8)), false, start, start);
    assert!(schedule.is_failing());
    assert_eq!(
        schedule.due(&frame(7)),
        Some((Work::Everything, start + PAUSE))
    );
    schedule.did(mark(&frame(8)), true, start, start);
    assert!(!schedule.is_failing());
}

#[test]
fn a_clock_that_went_backwards_makes_it_new() {
    let confirmed = SystemTime::now() + Duration::from_secs(3600);
    let stored = Stored {
        confirmed,
        ..stored_of(&frame(7))
    };
    assert_eq!(stored.age(), Duration::ZERO);
}

/// Waits until it is so.
async fn within(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting)
        .await
        .expect("it is so in time");
}

#[tokio::test]
async fn what_is_newest_at_the_end_is_written_and_a_failure_is_no_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let metrics = Metrics::new();
    let (tell, frames) = watch::channel(None);
    let disk = Disk::open(&path, "/hosts/").unwrap();
    let writer = Writer::start(disk, frames, metrics.clone());
    let control_plane = &metrics.control_plane;
    let until = async |revision: Revision| {
        within(|| control_plane.snapshot_revision.get() == revision).await;
    };
    tell.send_replace(Some(frame(7)));
    until(7).await;
    // In the way of the draft.
    let draft = directory.path().join("snapshot.tmp");
    fs::create_dir_all(draft.join("x")).unwrap();
    tell.send_replace(Some(frame(8)));
    within(|| control_plane.snapshot_write_failures.get() > 0).await;
    fs::remove_dir_all(&draft).unwrap();
    until(8).await;
    // Long before its time, and though nobody can send any more.
    tell.send_replace(Some(frame(9)));
    drop(tell);
    writer.finish().await;
    assert_eq!(control_plane.snapshot_revision.get(), 9);
    let disk = Disk::open(&path, "/hosts/").expect("the lock is free again");
    assert_eq!(disk.read().unwrap(), Some(stored_of(&frame(9))));
}
