//! The file of `--snapshot`: damaged, torn, on a full disk, and where none can be.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use etcd_client::TxnOp;

use crate::support::{
    snapshot::{Place, end, status, until_written},
    waypost::eventually,
};

#[tokio::test]
async fn a_damaged_snapshot_is_passed_over_with_one_warning_and_replaced() {
    let place = Place::new().await;
    let revision = place.put("a.test", "").await;
    let first = place.builder().start().await;
    until_written(&first, revision).await;
    end(first).await;
    let whole = fs::read(place.file()).unwrap();
    let changed = |index: usize| {
        let mut file = whole.clone();
        file[index] ^= 2;
        file
    };
    let cases = [
        (
            whole[..whole.len() - 1].to_vec(),
            "/hosts/",
            "it is truncated",
        ),
        (Vec::new(), "/hosts/", "it is truncated"),
        (changed(whole.len() - 1), "/hosts/", "its checksum is wrong"),
        (
            b"127.0.0.1 localhost\n".to_vec(),
            "/hosts/",
            "it is no snapshot of Waypost's",
        ),
        (changed(16), "/hosts/", "it was written by a newer version"),
        (
            whole.clone(),
            "/x/",
            "it is of the prefix /hosts/, ours is /x/",
        ),
    ];
    for (bytes, prefix, why) in cases {
        fs::write(place.file(), &bytes).unwrap();
        let instance = place.builder().flag("--prefix", prefix).start().await;
        let line = instance.log().until("the snapshot is passed over").await;
        assert!(line.contains(why) && line.contains("WARN"), "{line}");
        assert!(line.contains(&place.file().display().to_string()), "{line}");
        until_written(&instance, 1).await;
        assert_eq!(
            instance.log().count("the snapshot"),
            1,
            "{}",
            instance.log().text()
        );
        let code = if prefix == "/hosts/" { 200 } else { 404 };
        assert_eq!(status(&instance, "a.test").await, code);
        end(instance).await;
        let next = place.builder().flag("--prefix", prefix).start().await;
        next.log().until("read the snapshot").await;
        end(next).await;
    }
}

/// Killed while it writes, time and again: what was there before is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_write_leaves_a_whole_file() {
    let place = Place::new().await;
    for batch in 0..100 {
        let put = |index| {
            TxnOp::put(
                place.key(&format!("h{batch}-{index}.test")),
                vec![b'x'; 1000],
                None,
            )
        };
        place.etcd.txn((0..100).map(put).collect::<Vec<_>>()).await;
    }
    let draft = place.directory.path().join("snapshot.tmp");
    let revision = place.put("a.test", "").await;
    let first = place.builder().start().await;
    until_written(&first, revision).await;
    end(first).await;
    let mut torn = 0;
    for round in 0..5 {
        let mut instance = place.builder().start().await;
        instance.log().until("read the snapshot").await;
        let writing = async {
            loop {
                place.put(&format!("round-{round}.test"), "").await;
            }
        };
        let begun = async {
            eventually("it writes", async || draft.exists()).await;
        };
        tokio::select! {
            () = writing => {}
            () = begun => {}
        }
        instance.signal("KILL");
        assert_eq!(instance.wait_exit().await, None);
        torn += usize::from(draft.exists());
    }
    assert!(torn > 0, "no write was cut off");
    let last = place.builder().start().await;
    last.log().until("read the snapshot").await;
    assert_eq!(status(&last, "a.test").await, 200);
    assert_eq!(status(&last, "h99-99.test").await, 200);
    assert_eq!(last.log().count("passed over"), 0);
    let revision = place.put("b.test", "").await;
    until_written(&last, revision).await;
    eventually("the torn file is gone", async || !draft.exists()).await;
}

#[tokio::test]
async fn a_full_disk_is_said_once_and_leaves_the_old_file() {
    let place = Place::new().await;
    let Some(disk) = SmallDisk::mount(place.directory.path()) else {
        return;
    };
    let file = disk.0.join("snapshot");
    let revision = place.put("a.test", "").await;
    let instance = place.builder_at(&file).start().await;
    until_written(&instance, revision).await;
    let before = fs::read(&file).unwrap();
    let large = |index: usize| place.key(&format!("large-{index}.test"));
    let put = |index| TxnOp::put(large(index), vec![b'x'; 60_000], None);
    place.etcd.txn((0..8).map(put).collect::<Vec<_>>()).await;
    eventually("it tries again and again", async || {
        instance
            .metric("waypost_snapshot_write_failures_total", &[])
            .await
            >= 2.0
    })
    .await;
    assert_eq!(status(&instance, "large-7.test").await, 200);
    assert_eq!(instance.log().count("the snapshot can't be written"), 1);
    assert_eq!(fs::read(&file).unwrap(), before);
    let delete = |index| TxnOp::delete(large(index), None);
    let deleted = place.etcd.txn((0..8).map(delete).collect::<Vec<_>>()).await;
    until_written(&instance, deleted).await;
    instance
        .log()
        .until("the snapshot can be written again")
        .await;
}

#[tokio::test]
async fn a_file_system_gone_read_only_is_read_and_written_again_later() {
    let mut place = Place::new().await;
    let Some(disk) = SmallDisk::mount(place.directory.path()) else {
        return;
    };
    let file = disk.0.join("snapshot");
    let revision = place.put("a.test", "").await;
    let first = place.builder_at(&file).start().await;
    until_written(&first, revision).await;
    end(first).await;
    disk.remount("ro");
    place.etcd.kill_all();

    let second = place.builder_at(&file).start().await;
    assert_eq!(status(&second, "a.test").await, 200);
    let line = second.log().until("tried again for ever").await;
    assert!(
        line.contains("WARN") && line.contains("--snapshot"),
        "{line}"
    );
    place.etcd.restart(0).await;
    second.log().until("the snapshot can't be written").await;
    disk.remount("rw");
    let put = place.put("b.test", "").await;
    until_written(&second, put).await;
    // It has the lock by now.
    let third = place.builder_at(&file).run_to_end().await;
    assert!(third.stderr.contains("another instance"), "{third:?}");
}

#[tokio::test]
async fn a_place_that_can_not_be_written_fails_the_start() {
    let place = Place::new().await;
    let _first = place.builder().start().await;
    let missing = place.directory.path().join("missing/snapshot");
    let directory = place.directory.path();
    for (file, words) in [
        (place.file().as_path(), "another instance"),
        (missing.as_path(), "missing/snapshot"),
        (directory, "is a directory"),
    ] {
        let ended = place.builder_at(file).run_to_end().await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for word in ["--snapshot", words] {
            assert!(ended.stderr.contains(word), "{}", ended.stderr);
        }
    }
}

/// A file system of 256 KiB, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` for who may not mount; then it says so.
    fn mount(directory: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: mounting a small tmpfs needs root");
            return None;
        }
        let place = directory.join("disk");
        fs::create_dir(&place).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "none"])
            .arg(&place)
            .status();
        assert!(mount.is_ok_and(|status| status.success()), "no tmpfs");
        Some(Self(place))
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let mount = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .status();
        assert!(mount.is_ok_and(|status| status.success()), "{options}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, as whoever has files open there may end a moment later.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
