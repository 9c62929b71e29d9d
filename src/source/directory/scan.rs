//! Reading the whole tree. A file whose stamp is the one it was last read with is not read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, DirEntry, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use super::super::Entry;
use crate::route::Revision;

/// What is read of a file at most: over the limit of a value, so that a larger one is rejected as such.
const MOST_READ: u64 = 64 * 1024 + 1;

/// A stamp younger than this when it was read proves nothing: another write may leave the same one.
const SETTLED: Duration = Duration::from_secs(2);

/// How deep a tree may be. Keys are shorter than this allows.
const DEEPEST: usize = 256;

/// Every file, by key.
pub(super) type Files = BTreeMap<Bytes, FileState>;

/// A file as it was read.
#[derive(Clone, Debug)]
pub(super) struct FileState {
    value: Bytes,
    /// The revision its content changed at.
    mod_revision: Revision,
    /// `None`: to be read again anyway.
    stamp: Option<Stamp>,
}

/// Changes when the content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    id: DirectoryId,
    size: u64,
    changed: (i64, i64),
}

/// Device and inode.
pub(super) type DirectoryId = (u64, u64);

/// The tree as it is now.
pub(super) struct Scan {
    pub(super) files: Files,
    /// Whether any key or value differs from before.
    pub(super) is_changed: bool,
    /// `path: why`. What is known of such a file stays.
    pub(super) unreadable: Vec<String>,
    /// The root, and what links lead to: a watch follows those only as they were.
    pub(super) directories: BTreeSet<DirectoryId>,
}

/// How often the tree is read anew because another one took its place meanwhile.
const READS: u32 = 5;

/// Reads the tree below `dir`; what changed since `known` changed at `revision`.
///
/// # Errors
/// `dir` itself cannot be read, or was taken away meanwhile. What cannot be read below it is not gone for that: what is
/// known of it stays.
pub(super) fn scan(
    dir: &Path,
    prefix: &str,
    known: &Files,
    revision: Revision,
) -> io::Result<Scan> {
    for _ in 0..READS {
        let (scan, read) = read(dir, prefix, known, revision)?;
        // Else what seems to be gone may be where the directory is now, or half of it is of another one.
        if read == root(dir)? {
            return Ok(scan);
        }
    }
    let reason = "it was exchanged again and again while it was read";
    Err(io::Error::other(format!("{}: {reason}", dir.display())))
}

fn root(dir: &Path) -> io::Result<DirectoryId> {
    Ok(id(&fs::metadata(dir).map_err(|error| named(dir, &error))?))
}

/// Reads it once; and which directory that was, or began as.
fn read(
    dir: &Path,
    prefix: &str,
    known: &Files,
    revision: Revision,
) -> io::Result<(Scan, DirectoryId)> {
    let mut walk = Walk {
        known,
        revision,
        scan: Scan {
            files: Files::new(),
            is_changed: false,
            unreadable: Vec::new(),
            directories: BTreeSet::new(),
        },
        above: Vec::new(),
    };
    let id = root(dir)?;
    walk.scan.directories.insert(id);
    walk.directory(dir, prefix.as_bytes(), id)?;
    let mut scan = walk.scan;
    scan.is_changed |= known.keys().any(|key| !scan.files.contains_key(key));
    Ok((scan, id))
}

/// The files as a source's entries.
pub(super) fn entries(files: &Files) -> Vec<Entry> {
    let entries = files.iter().map(|(key, file)| Entry {
        key: key.clone(),
        value: file.value.clone(),
        mod_revision: file.mod_revision,
        lease: 0,
    });
    entries.collect()
}

struct Walk<'k> {
    known: &'k Files,
    revision: Revision,
    scan: Scan,
    /// The directories we are in: a link back to one of them would have no end.
    above: Vec<DirectoryId>,
}

impl Walk<'_> {
    /// `key` is the key of what is in the directory, up to its name.
    fn directory(&mut self, dir: &Path, key: &[u8], id: DirectoryId) -> io::Result<()> {
        if self.above.contains(&id) || self.above.len() >= DEEPEST {
            return Ok(());
        }
        self.above.push(id);
        let read = self.entries_of(dir, key);
        self.above.pop();
        read
    }

    fn entries_of(&mut self, dir: &Path, key: &[u8]) -> io::Result<()> {
        for entry in fs::read_dir(dir).map_err(|error| named(dir, &error))? {
            let entry = entry.map_err(|error| named(dir, &error))?;
            let name = entry.file_name();
            if is_ignored(&name) {
                continue;
            }
            let key = [key, name.as_bytes()].concat();
            match self.entry(&entry, &key) {
                // Gone meanwhile, or a link to nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.keep(&key, &error),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &DirEntry, key: &[u8]) -> io::Result<()> {
        let path = entry.path();
        let metadata = fs::metadata(&path).map_err(|error| named(&path, &error))?;
        if metadata.is_file() {
            self.file(&path, Bytes::copy_from_slice(key), &metadata);
        } else if metadata.is_dir() {
            let child = self::id(&metadata);
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                self.scan.directories.insert(child);
            }
            self.directory(&path, &[key, b"/"].concat(), child)?;
        }
        Ok(())
    }

    /// What is known of the file, or of the files in the directory, that `key` stands for.
    fn keep(&mut self, key: &[u8], error: &io::Error) {
        self.scan.unreadable.push(error.to_string());
        let from = Bytes::copy_from_slice(key);
        let known = self.known.range(from..);
        let known = known.take_while(|(known, _)| known.starts_with(key));
        for (known, file) in
            known.filter(|(known, _)| matches!(known.get(key.len()), None | Some(b'/')))
        {
            let files = &mut self.scan.files;
            files.entry(known.clone()).or_insert_with(|| file.clone());
        }
    }

    fn file(&mut self, path: &Path, key: Bytes, metadata: &Metadata) {
        let known = self.known.get(&key);
        let stamp = Stamp {
            id: id(metadata),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if let Some(known) = known
            && known.stamp == Some(stamp)
        {
            self.scan.files.insert(key, known.clone());
            return;
        }
        let mut content = Vec::new();
        let reading =
            File::open(path).and_then(|file| file.take(MOST_READ).read_to_end(&mut content));
        let file = match (reading, known) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => return,
            (Err(error), known) => {
                self.scan
                    .unreadable
                    .push(format!("{}: {error}", path.display()));
                match known {
                    Some(known) => known.clone(),
                    None => return,
                }
            }
            (Ok(_), Some(known)) if known.value == content => FileState {
                stamp: settled(stamp),
                ..known.clone()
            },
            (Ok(_), _) => {
                self.scan.is_changed = true;
                FileState {
                    value: content.into(),
                    mod_revision: self.revision,
                    stamp: settled(stamp),
                }
            }
        };
        self.scan.files.insert(key, file);
    }
}

fn settled(stamp: Stamp) -> Option<Stamp> {
    let seconds = u64::try_from(stamp.changed.0).ok()?;
    let changed = UNIX_EPOCH + Duration::from_secs(seconds);
    let age = SystemTime::now().duration_since(changed).ok()?;
    (age > SETTLED).then_some(stamp)
}

fn id(metadata: &Metadata) -> DirectoryId {
    (metadata.dev(), metadata.ino())
}

/// What editors leave beside a file they write, hidden files, and the `..data` of a mounted ConfigMap (whose files
/// are links into it).
fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".")
        || name.ends_with(b"~")
        || [&b".swp"[..], b".swx", b".tmp"]
            .iter()
            .any(|ending| name.ends_with(ending))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As when many hosts are removed while the tree is read: what else is there must not be taken for gone.
    #[test]
    fn directories_that_vanish_while_they_are_read_hide_no_others() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let host = dir.path().join("a.example");
        fs::create_dir(&host).expect("a directory");
        fs::write(host.join("10.0.0.1:80"), "").expect("a file");
        let mut walk = Walk {
            known: &Files::new(),
            revision: 1,
            scan: Scan {
                files: Files::new(),
                is_changed: false,
                unreadable: Vec::new(),
                directories: BTreeSet::new(),
            },
            above: Vec::new(),
        };
        for inode in 0..DEEPEST as u64 {
            let gone = walk.directory(&dir.path().join("gone"), b"/hosts/gone/", (0, inode));
            gone.expect_err("there is none");
        }
        walk.directory(&host, b"/hosts/a.example/", (0, 0))
            .expect("readable");
        assert_eq!(walk.scan.files.len(), 1);
    }

    /// Taken away, or exchanged for one with other hosts, at another moment of the reading each time.
    #[test]
    fn a_tree_that_goes_while_it_is_read_is_seen_whole_or_not_at_all() {
        const HOSTS: usize = 100;
        let parent = tempfile::tempdir().expect("a temporary directory");
        let [dir, away, other] = ["hosts", "away", "other"].map(|name| parent.path().join(name));
        for (tree, name) in [(&dir, "a"), (&other, "b")] {
            for number in 0..HOSTS {
                let host = tree.join(format!("{name}{number}.example"));
                fs::create_dir_all(&host).expect("a directory");
                fs::write(host.join("10.0.0.1:80"), "").expect("a file");
            }
        }
        let mv = |from: &Path, to: &Path| fs::rename(from, to).expect("it is there");
        for round in 0..200 {
            let is_exchanged = round % 2 == 1;
            let read = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_micros(round * 20));
                    mv(&dir, &away);
                    if is_exchanged {
                        mv(&other, &dir);
                    }
                });
                scan(&dir, "/hosts/", &Files::new(), 1)
            });
            if let Ok(scan) = read {
                let is_old = |key: &Bytes| key.starts_with(b"/hosts/a");
                let old = scan.files.keys().filter(|key| is_old(key)).count();
                let whole = (scan.files.len(), old % HOSTS);
                assert_eq!(whole, (HOSTS, 0), "{old} of the old ones, round {round}");
            }
            if is_exchanged {
                mv(&dir, &other);
            }
            mv(&away, &dir);
        }
    }

    #[test]
    fn only_a_stamp_that_was_old_when_it_was_read_proves_that_nothing_changed() {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("it is after 1970");
        let now = i64::try_from(now.as_secs()).expect("it is before 292277026596");
        for (changed, is_settled) in [
            (now - 60, true),
            (now, false),
            (now + 60, false),
            (-1, false),
        ] {
            let stamp = Stamp {
                id: (1, 1),
                size: 0,
                changed: (changed, 0),
            };
            assert_eq!(settled(stamp).is_some(), is_settled, "{}", changed - now);
        }
    }
}
