use std::{
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::PathBuf,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, UNIX_EPOCH},
};

use rustix::io::Errno;
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
        (path("new/"), ["new/", "name a file"]),
        (path("new/."), ["new/.", "name a file"]),
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

/// Runs this elsewhere, so that a test fails where it hangs.
fn promptly<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(what()));
    told.recv_timeout(Duration::from_secs(20))
        .expect("it ends soon")
}

fn make_pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn a_pipe_or_a_link_in_the_place_of_the_lock_is_refused_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let lock = directory.path().join("snapshot.lock");
    let target = directory.path().join("target");
    for plant in [
        &|| make_pipe(&lock),
        &|| symlink(&target, &lock).unwrap() as _,
        &|| fs::create_dir(&lock).unwrap() as _,
    ] as [&dyn Fn(); 3]
    {
        plant();
        let path = path.clone();
        let error = promptly(move || Disk::open(&path, "/hosts/").unwrap_err());
        let error = format!("{error:#}");
        assert!(error.contains("--snapshot"), "{error}");
        assert!(error.contains(&lock.display().to_string()), "{error}");
        let _ = fs::remove_file(&lock);
    }
    assert!(!target.exists());
}

#[test]
fn a_pipe_in_the_place_of_the_file_is_not_waited_for() {
    let (_directory, disk) = disk();
    make_pipe(disk.path());
    let error = promptly(move || disk.read().unwrap_err());
    assert!(error.to_string().contains("pipe"), "{error}");
}

#[test]
fn a_file_that_others_may_write_is_not_believed() {
    let (_directory, mut disk) = disk();
    disk.replace(&frame(7)).unwrap();
    for (mode, is_believed) in [(0o644, true), (0o620, false), (0o602, false), (0o600, true)] {
        fs::set_permissions(disk.path(), fs::Permissions::from_mode(mode)).unwrap();
        match disk.read() {
            Ok(stored) => assert!(stored.is_some() && is_believed, "{mode:o}"),
            Err(error) => {
                assert!(!is_believed, "{mode:o}: {error}");
                assert!(error.to_string().contains("may write it"), "{error}");
            }
        }
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: giving a file to another user needs root");
        return;
    }
    chown(disk.path(), Some(65534), None).unwrap();
    let error = disk.read().unwrap_err().to_string();
    assert!(error.contains("belongs to user 65534"), "{error}");
}

#[test]
fn a_directory_that_can_not_be_flushed_fails_no_write() {
    let (_directory, mut disk) = disk();
    // A socket can't be.
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = File::from(std::os::fd::OwnedFd::from(socket));
    assert!(socket.sync_all().is_err());
    for (directory, revision) in [(Some(socket), 7), (None, 8)] {
        disk.directory = directory;
        disk.replace(&frame(revision)).unwrap();
        assert_eq!(disk.read().unwrap().unwrap().revision, revision);
    }
}

/// What takes memory is only what is as it was written.
#[test]
fn a_sparse_file_of_any_length_is_refused() {
    let (_directory, mut disk) = disk();
    disk.replace(&frame(7)).unwrap();
    let written = fs::read(disk.path()).unwrap();
    for (length, why) in [
        (1 << 26, "its checksum is wrong"),
        (LARGEST_BODY + 1, "it has over 16 GiB"),
    ] {
        let mut head = Head::find(&written[..BODY_AT]).unwrap();
        head.sequence = 1;
        head.body_length = length;
        let file = File::options().write(true).open(disk.path()).unwrap();
        file.set_len(BODY_AT as u64 + length).unwrap();
        file.write_all_at(&head.slot(), head.offset()).unwrap();
        assert_eq!(disk.read().unwrap_err().to_string(), why);
    }
}

#[test]
fn what_may_pass_fails_no_start() {
    for (error, passes) in [
        (Errno::ROFS, true),
        (Errno::NOSPC, true),
        (Errno::DQUOT, true),
        (Errno::IO, true),
        (Errno::NOENT, false),
        (Errno::ACCESS, false),
        (Errno::NOTDIR, false),
    ] {
        assert_eq!(may_pass(&error.into()), passes, "{error:?}");
    }
}
