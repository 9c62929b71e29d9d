use std::{
    os::unix::fs::{PermissionsExt, symlink},
    time::{Duration, UNIX_EPOCH},
};

use tempfile::TempDir;

use super::*;
use crate::source::snapshot::testing::{frame, stored_of};

fn disk() -> (TempDir, Disk) {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(&directory).unwrap();
    (directory, disk)
}

fn open(directory: &TempDir) -> anyhow::Result<Disk> {
    Disk::open(&directory.path().join("snapshot"), "/hosts/")
}

#[test]
fn what_is_written_is_found_again() {
    let (directory, mut disk) = disk();
    assert!(disk.read().unwrap().is_none());
    disk.replace(&frame(7)).unwrap();
    assert_eq!(disk.read().unwrap(), Some(stored_of(&frame(7))));
    let mode = fs::metadata(disk.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    disk.replace(&frame(8)).unwrap();
    drop(disk);
    let disk = open(&directory).unwrap();
    assert_eq!(disk.read().unwrap(), Some(stored_of(&frame(8))));
    assert!(!directory.path().join("snapshot.tmp").exists());
}

#[test]
fn a_refreshed_head_is_the_newest_and_a_torn_one_is_not() {
    let (_directory, mut disk) = disk();
    assert!(!disk.refresh(&frame(8)).unwrap(), "there is no file");
    disk.replace(&frame(7)).unwrap();
    let inode = |disk: &Disk| fs::metadata(disk.path()).unwrap().ino();
    let before = inode(&disk);
    for revision in 8..12 {
        let moved = Frame {
            confirmed: UNIX_EPOCH + Duration::from_secs(u64::try_from(revision).unwrap()),
            ..frame(revision)
        };
        assert!(disk.refresh(&moved).unwrap());
        assert_eq!(disk.read().unwrap(), Some(stored_of(&moved)));
    }
    assert_eq!(inode(&disk), before, "nothing else was written");
    // Half of the next one.
    let (file, head) = disk.current.as_ref().unwrap();
    let torn = head.next(&frame(12));
    file.write_all_at(&torn.slot()[..20], torn.offset())
        .unwrap();
    assert_eq!(disk.read().unwrap().unwrap().revision, 11);
}

#[test]
fn a_file_that_was_taken_away_is_not_refreshed() {
    let (directory, mut disk) = disk();
    disk.replace(&frame(7)).unwrap();
    fs::remove_file(disk.path()).unwrap();
    assert!(!disk.refresh(&frame(8)).unwrap());
    disk.replace(&frame(8)).unwrap();
    let copy = directory.path().join("copy");
    fs::copy(disk.path(), &copy).unwrap();
    fs::rename(&copy, disk.path()).unwrap();
    assert!(!disk.refresh(&frame(9)).unwrap());
    assert_eq!(disk.read().unwrap().unwrap().revision, 8);
}

#[test]
fn what_fails_leaves_the_old_file() {
    let (directory, mut disk) = disk();
    disk.replace(&frame(7)).unwrap();
    // Whoever may write everywhere still can't replace a directory that has something in it.
    let draft = directory.path().join("snapshot.tmp");
    fs::create_dir_all(draft.join("x")).unwrap();
    disk.replace(&frame(8)).unwrap_err();
    assert_eq!(disk.read().unwrap().unwrap().revision, 7);
    fs::remove_dir_all(&draft).unwrap();
    // What a crash left is in nobody's way, and leads nowhere.
    let other = directory.path().join("other");
    fs::write(&other, "another's").unwrap();
    symlink(&other, &draft).unwrap();
    disk.replace(&frame(9)).unwrap();
    assert_eq!(disk.read().unwrap().unwrap().revision, 9);
    assert_eq!(fs::read(&other).unwrap(), b"another's");
}

#[test]
fn a_place_where_nothing_can_be_written_is_refused() {
    let (directory, disk) = disk();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("file"), "").unwrap();
    for (place, words) in [
        (path("snapshot"), ["another instance", "snapshot"]),
        (path("missing/snapshot"), ["directory", "missing/snapshot"]),
        (path("file/snapshot"), ["directory", "file/snapshot"]),
        (
            directory.path().to_owned(),
            ["is a directory", "name a file"],
        ),
        (PathBuf::from("/"), ["--snapshot", "names no file"]),
        (PathBuf::from("/dev/null"), ["device", "name a file"]),
    ] {
        let error = format!("{:#}", Disk::open(&place, "/hosts/").unwrap_err());
        for word in ["--snapshot", words[0], words[1]] {
            assert!(error.contains(word), "{error}");
        }
    }
    drop(disk);
    open(&directory).expect("the lock goes with its owner");
}

#[test]
fn what_can_not_be_read_says_why() {
    let (_directory, disk) = disk();
    fs::write(disk.path(), "no snapshot").unwrap();
    let read = || disk.read().unwrap_err().to_string();
    assert!(read().contains("no snapshot of Waypost's"), "{}", read());
    // A head that promises more than any disk has.
    let mut file = io::Cursor::new(Vec::new());
    format::write(&mut file, &frame(7), "/hosts/").unwrap();
    let file = file.into_inner();
    let mut head = Head::find(&file[..BODY_AT]).unwrap();
    head.body_length = u64::MAX;
    let promising = [
        &file[..format::SLOT],
        &head.slot(),
        &file[2 * format::SLOT..],
    ]
    .concat();
    fs::write(disk.path(), promising).unwrap();
    assert_eq!(read(), "it is truncated");
    fs::remove_file(disk.path()).unwrap();
    fs::create_dir(disk.path()).unwrap();
    assert!(read().contains("directory"), "{}", read());
}
