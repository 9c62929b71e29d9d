//! Reloads certificates when their files change.
//!
//! Watched are directories, not files, so that a file replaced by rename (most tools) and a symlink that is turned
//! (certbot's `live/`, Kubernetes' `..data`) are seen. A slow look at the files themselves finds what no event
//! tells: network file systems, a directory that was itself replaced, an event queue that overflowed.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{TlsStore, disk, reload_each};

/// How long the files must be quiet: a certificate and its key are written one after the other.
const SETTLE: Duration = Duration::from_millis(100);
/// How often at most to wait for quiet, so that a directory that never rests is read all the same.
const SETTLE_ROUNDS: usize = 20;
/// How often to look at the files without any event.
const POLL: Duration = Duration::from_secs(10);

/// Keeps the stores as their files are; runs until dropped. What can't be used is logged once, and the old stays.
pub async fn watch(stores: Vec<Arc<TlsStore>>) {
    if stores.is_empty() {
        return std::future::pending().await;
    }
    let stores: Arc<[Arc<TlsStore>]> = stores.into();
    let event = Arc::new(Notify::new());
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        // The watcher is armed before the files are looked at, so no change falls in between.
        let _watcher = arm(&stores, event.clone());
        let current = update(stores.clone(), known).await;
        while !current.outdated(&stores).await {
            tokio::select! {
                () = event.notified() => {}
                _ = poll.tick() => {}
            }
        }
        known = Some(current);
        for _ in 0..SETTLE_ROUNDS {
            if timeout(SETTLE, event.notified()).await.is_err() {
                break;
            }
        }
    }
}

/// What the last reload saw.
struct Known {
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    problems: BTreeSet<String>,
}

impl Known {
    async fn outdated(&self, stores: &Arc<[Arc<TlsStore>]>) -> bool {
        let stores = stores.clone();
        blocking(move || stamps(&stores)).await != self.stamps
    }
}

/// Reloads and says which problems are new; those of the very first reload were said when the stores were loaded.
async fn update(stores: Arc<[Arc<TlsStore>]>, known: Option<Known>) -> Known {
    blocking(move || {
        let stamps = stamps(&stores);
        let problems = reload_each(&stores);
        if let Some(known) = known {
            for problem in problems.difference(&known.problems) {
                tracing::warn!("certificate not reloaded, what was in use stays: {problem}");
            }
        }
        Known { stamps, problems }
    })
    .await
}

/// Runs `work` where it may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down; it drops this task at its next await.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What tells a changed file from the same one, symlinks followed.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
    /// Seconds and nanoseconds; moves when `modified` was set back (`cp -p`, `rsync -t`).
    changed: (i64, i64),
}

fn stamps(stores: &[Arc<TlsStore>]) -> Vec<(PathBuf, Option<Stamp>)> {
    let files: BTreeSet<_> = stores
        .iter()
        .flat_map(|store| disk::files(&store.sources))
        .collect();
    let stamp = |path: &PathBuf| -> io::Result<Stamp> {
        let metadata = std::fs::metadata(path)?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    };
    files
        .into_iter()
        .map(|path| {
            let stamp = stamp(&path).ok();
            (path, stamp)
        })
        .collect()
}

/// Watches the directories; `None`, with a warning, where the system refuses.
fn arm(stores: &[Arc<TlsStore>], event: Arc<Notify>) -> Option<RecommendedWatcher> {
    arm_with(stores, move |_| event.notify_one())
}

/// As [`arm`], with what to do about a change.
fn arm_with(
    stores: &[Arc<TlsStore>],
    changed: impl Fn(&notify::Event) + Send + 'static,
) -> Option<RecommendedWatcher> {
    let directories: BTreeSet<_> = stores
        .iter()
        .flat_map(|store| disk::directories(&store.sources))
        .collect();
    let watcher = notify::recommended_watcher(move |found: notify::Result<notify::Event>| {
        if let Ok(found) = found
            && !is_reading(&found.kind)
        {
            changed(&found);
        }
    });
    let mut watcher = watcher
        .inspect_err(|error| tracing::warn!(%error, "certificate changes are only seen every 10 s"))
        .ok()?;
    for directory in directories {
        if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
            tracing::warn!(
                directory = %directory.display(),
                %error,
                "certificate changes are only seen every 10 s"
            );
        }
    }
    Some(watcher)
}

/// Our own reading is reported too; taken for a change, it would wake us for ever.
fn is_reading(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use notify::event::{CreateKind, ModifyKind};
    use tempfile::tempdir;

    use super::{super::testing::write_pair, *};
    use crate::config::ListenerTls;

    #[test]
    fn only_reading_is_no_change() {
        let cases = [
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), true),
            (EventKind::Access(AccessKind::Close(AccessMode::Read)), true),
            (
                EventKind::Access(AccessKind::Close(AccessMode::Write)),
                false,
            ),
            (EventKind::Create(CreateKind::File), false),
            (EventKind::Modify(ModifyKind::Any), false),
            (EventKind::Any, false),
        ];
        for (kind, expected) in cases {
            assert_eq!(is_reading(&kind), expected, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn a_reload_does_not_wake_the_watcher() {
        let dir = tempdir().unwrap();
        let files = write_pair(dir.path(), "a", &["a.example"]);
        let store = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
        let stores: Arc<[_]> = Arc::from([Arc::new(store)]);
        // Events come in order, so after reading, a change and its wake-up, nothing of the reading can be left.
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (log, event) = (seen.clone(), Arc::new(Notify::new()));
        let woken = event.clone();
        let _watcher = arm_with(&stores, move |found| {
            log.lock().unwrap().push(found.clone());
            woken.notify_one();
        });
        update(stores.clone(), None).await;
        assert!(reload_each(&stores).is_empty());
        fs::remove_file(&files.key).unwrap();
        event.notified().await;
        let seen = seen.lock().unwrap();
        assert!(seen[0].kind.is_remove(), "{seen:?}");
    }
}
