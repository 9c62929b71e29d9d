//! The directory source: `DIR/<host>[/<path...>]/<upstream>`, a file's content being the value. Hot-reloads through
//! inotify; a slow re-read is the safety net below it.

mod scan;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use self::scan::{DirectoryId, Files, Scan};
use super::{Entry, History, Update};
use crate::live::Live;
use crate::route::Revision;

/// A burst of events is over when there was none for this long.
const QUIET: Duration = Duration::from_millis(20);
/// But an endless one is read this long after its first.
const LONGEST_BURST: Duration = Duration::from_millis(100);
/// Between re-reads without any event.
const SAFETY_NET: Duration = Duration::from_secs(10);
/// Between attempts while the directory cannot be read.
const RETRY: Duration = Duration::from_secs(1);

/// A directory of hosts, about to be followed.
pub struct Directory {
    dir: PathBuf,
    prefix: Arc<str>,
    files: Arc<Files>,
    revision: Revision,
    watch: Option<Watch>,
    /// Rung by the watch.
    bell: Arc<Notify>,
    /// So that each is logged once.
    unreadable: BTreeSet<String>,
}

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum BadDirectory {
    /// Nothing there.
    #[error("--hosts-dir: there is no directory {}; create it (it may be empty) or correct the path", .0.display())]
    Missing(PathBuf),
    /// A file.
    #[error("--hosts-dir: {} is not a directory; name the directory that has one directory per host", .0.display())]
    NotADirectory(PathBuf),
    /// No rights, or worse.
    #[error("--hosts-dir: cannot read {dir}: {1}; check its owner and mode", dir = .0.display())]
    Unreadable(PathBuf, io::Error),
}

struct Watch {
    _watcher: RecommendedWatcher,
    /// What was there when it began: it follows these, wherever their names lead by now.
    directories: BTreeSet<DirectoryId>,
}

impl Directory {
    /// Looks whether there is such a directory. Its files become keys below `prefix`.
    ///
    /// # Errors
    /// It is missing, no directory, or cannot be read.
    pub fn open(dir: PathBuf, prefix: &str) -> Result<Self, BadDirectory> {
        match std::fs::read_dir(&dir) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BadDirectory::Missing(dir));
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(BadDirectory::NotADirectory(dir));
            }
            Err(error) => return Err(BadDirectory::Unreadable(dir, error)),
        }
        Ok(Self {
            // Events name what they are about as the watch was asked for.
            dir: std::path::absolute(&dir).unwrap_or(dir),
            prefix: prefix.into(),
            files: Arc::default(),
            revision: 0,
            watch: None,
            bell: Arc::default(),
            unreadable: BTreeSet::new(),
        })
    }

    /// Every file as a key, once, and the files that cannot be read, as `path: why`.
    ///
    /// # Errors
    /// Names the directory that cannot be read.
    pub fn read(&self) -> io::Result<(Vec<Entry>, Vec<String>)> {
        let scan = scan::scan(&self.dir, &self.prefix, &self.files, self.revision + 1)?;
        Ok((scan::entries(&scan.files), scan.unreadable))
    }

    /// Sends a snapshot now, and another one whenever a file changed, until nobody listens. While the directory
    /// cannot be read what was read last stays in force, and `live.status` says so.
    pub async fn run(mut self, live: Arc<Live>, updates: mpsc::Sender<Update>) {
        loop {
            let began = Instant::now();
            let pause = match self.scan().await {
                Ok(scan) => {
                    let is_watch_stale = self.follow(&scan);
                    if let Some(update) = self.update(scan)
                        && updates.send(update).await.is_err()
                    {
                        return;
                    }
                    self.report(&live, None);
                    if is_watch_stale {
                        // What changed between the reading and the new watch rang no bell.
                        continue;
                    }
                    // A large tree on a slow disk must not be read all the time.
                    SAFETY_NET.max(began.elapsed() * 50)
                }
                Err(error) => {
                    self.report(&live, Some(error.to_string()));
                    RETRY
                }
            };
            tokio::select! {
                () = self.burst() => {}
                () = sleep(pause) => {}
                () = updates.closed() => return,
            }
        }
    }

    async fn scan(&self) -> io::Result<Scan> {
        let (dir, prefix) = (self.dir.clone(), self.prefix.clone());
        let (files, next) = (self.files.clone(), self.revision + 1);
        let reading = move || scan::scan(&dir, &prefix, &files, next);
        match tokio::task::spawn_blocking(reading).await {
            Ok(scan) => scan,
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The end of a burst of events.
    async fn burst(&self) {
        self.bell.notified().await;
        let more = async { while timeout(QUIET, self.bell.notified()).await.is_ok() {} };
        let _ = timeout(LONGEST_BURST, more).await;
    }

    /// Watches what the scan found, if that is not what is watched. Whether it was not.
    fn follow(&mut self, scan: &Scan) -> bool {
        let directories = &scan.directories;
        if let Some(watch) = &self.watch
            && watch.directories == *directories
        {
            return false;
        }
        match watch(&self.dir, self.bell.clone()) {
            Ok(watcher) => {
                self.watch = Some(Watch {
                    _watcher: watcher,
                    directories: directories.clone(),
                });
                true
            }
            Err(error) => {
                warn!(
                    directory = %self.dir.display(),
                    "cannot watch for changes, reading every {} s instead: {error}; \
                     if it is a limit, raise fs.inotify.max_user_watches",
                    SAFETY_NET.as_secs()
                );
                false
            }
        }
    }

    /// The news, if any. The first scan always is.
    fn update(&mut self, scan: Scan) -> Option<Update> {
        for problem in &scan.unreadable {
            if !self.unreadable.contains(problem) {
                warn!("file not read, its last good content stays in force: {problem}");
            }
        }
        self.unreadable = scan.unreadable.into_iter().collect();
        if !scan.is_changed && self.revision > 0 {
            // With what is new about the files' stamps.
            self.files = Arc::new(scan.files);
            return None;
        }
        self.revision += 1;
        let entries = scan::entries(&scan.files);
        self.files = Arc::new(scan.files);
        Some(Update::Snapshot {
            history: History::Continued,
            entries,
            revision: self.revision,
            cluster_id: None,
            last_good: Vec::new(),
        })
    }

    fn report(&self, live: &Live, error: Option<String>) {
        live.status.send_if_modified(|status| {
            let is_connected = error.is_none();
            let observed = (self.revision > 0).then_some(self.revision);
            if status.connected == is_connected
                && status.observed == observed
                && status.error == error
            {
                return false;
            }
            match &error {
                Some(error) if status.connected || status.error.is_none() => {
                    warn!("hosts directory not readable, the last routes stay in force: {error}");
                }
                None if !status.connected => {
                    info!(directory = %self.dir.display(), "following the hosts directory");
                }
                _ => {}
            }
            if is_connected {
                status.stale_since = None;
            } else {
                status.stale_since.get_or_insert_with(Instant::now);
            }
            status.connected = is_connected;
            status.observed = observed;
            status.error = error;
            true
        });
    }
}

/// Rings `bell` at every change below `dir`, and of `dir` itself: it may be a link that is led elsewhere.
fn watch(dir: &Path, bell: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let root = dir.to_owned();
    let mut watcher =
        notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            Ok(event) if !is_change(&event, &root) => {}
            // An error may stand for events that are lost.
            Ok(_) | Err(_) => bell.notify_one(),
        })?;
    if let Some(parent) = dir.parent() {
        // Not ours, perhaps: the safety net covers what goes unnoticed without it.
        let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
    }
    watcher.watch(dir, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Our own reading makes events too.
fn is_change(event: &notify::Event, root: &Path) -> bool {
    let is_reading = matches!(event.kind, EventKind::Access(kind)
        if kind != AccessKind::Close(AccessMode::Write));
    let is_below = event.paths.iter().any(|path| path.starts_with(root));
    event.need_rescan() || !is_reading && is_below
}

#[cfg(test)]
mod tests;
