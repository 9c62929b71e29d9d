//! The last good routes on disk, so that an instance starts with etcd down, and goes on from there when it is up.
//!
//! The publisher tells what is to be kept, as [`Frame`]s; a [`Writer`] brings the newest of them to the [`Disk`], and
//! nobody waits for it. `format` knows the bytes.

mod disk;
mod format;
#[cfg(test)]
pub mod testing;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use imbl::OrdMap;
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

pub use self::{
    disk::{Disk, Unreadable},
    format::Damage,
};
use super::Entry;
use crate::{route::Revision, telemetry::metrics::Metrics};

/// Between the end of a write and the next, at least; longer after a write that took long.
const PAUSE: Duration = Duration::from_secs(1);
/// So that a disk is busy with it for under a twentieth of the time.
const PAUSE_PER_WRITE: u32 = 20;
/// Between writes where only the head has news: often enough that etcd still knows its revision at the next start.
const HEAD_PAUSE: Duration = Duration::from_secs(10);

/// How long the last write may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The cluster that it comes from.
    pub cluster_id: u64,
    /// All up to here is in it.
    pub revision: Revision,
    /// When etcd last said so.
    pub confirmed: SystemTime,
    /// What etcd had.
    pub entries: Vec<Entry>,
    /// What was in force in place of what etcd had: the last good versions of rejected keys, and keys that it lacked.
    pub kept: Vec<Entry>,
}

impl Stored {
    /// For how long it was not confirmed by now; not at all by a clock that went backwards.
    pub fn age(&self) -> Duration {
        self.confirmed.elapsed().unwrap_or_default()
    }
}

/// What a file is to say. Cheap to clone, for its maps are persistent.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What etcd has.
    pub entries: Versions,
    /// What is in force in place of that.
    pub kept: Versions,
    /// The key that moves the revision and says nothing else, apart so that it changes neither of the two.
    pub pulse: Option<Version>,
    /// Another number whenever one of the two, or the cluster, is another.
    pub version: u64,
    /// The cluster that it comes from.
    pub cluster_id: u64,
    /// All up to here is in it.
    pub revision: Revision,
    /// When etcd last said so.
    pub confirmed: SystemTime,
}

/// Keys, and what they say.
pub type Versions = OrdMap<Bytes, Version>;

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its value.
    pub value: Bytes,
    /// The revision that last changed it.
    pub mod_revision: Revision,
    /// The lease it is bound to; 0 for none.
    pub lease: i64,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            entries: Versions::new(),
            kept: Versions::new(),
            pulse: None,
            version: 0,
            cluster_id: 0,
            revision: 0,
            confirmed: UNIX_EPOCH,
        }
    }
}

/// Writes frames to a disk, in a task of its own.
#[derive(Debug)]
pub struct Writer {
    finish: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Starts to write what comes: the newest frame, each whole file at most every second.
    pub fn start(
        disk: Disk,
        frames: watch::Receiver<Option<Frame>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (finish, told) = oneshot::channel();
        let writing = Writing {
            disk: Some(disk),
            schedule: Schedule::default(),
            metrics,
        };
        Self {
            finish,
            task: tokio::spawn(writing.run(frames, told)),
        }
    }

    /// Writes what is not written yet, in at most 5 s, and ends.
    pub async fn finish(self) {
        let _ = self.finish.send(());
        if timeout(PATIENCE, self.task).await.is_err() {
            warn!(
                "the newest routes could not be written to the snapshot in time; it has older ones"
            );
        }
    }
}

/// The task behind a [`Writer`].
struct Writing {
    /// `None` only if writing to it panicked.
    disk: Option<Disk>,
    schedule: Schedule,
    metrics: Arc<Metrics>,
}

impl Writing {
    async fn run(
        mut self,
        mut frames: watch::Receiver<Option<Frame>>,
        mut finish: oneshot::Receiver<()>,
    ) {
        let mut is_over = false;
        loop {
            let frame = frames.borrow_and_update().clone();
            let due = frame.and_then(|frame| self.schedule.due(&frame).map(|due| (frame, due)));
            let next = match due {
                Some((frame, (work, at))) if is_over || at <= Instant::now() => {
                    self.write(frame, work).await;
                    if !is_over {
                        continue;
                    }
                    return;
                }
                Some((_, (_, at))) => Some(at),
                None => None,
            };
            if is_over || self.disk.is_none() {
                return;
            }
            tokio::select! {
                biased;
                _ = &mut finish => is_over = true,
                changed = frames.changed() => is_over = changed.is_err(),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    async fn write(&mut self, frame: Frame, work: Work) {
        let Some(mut disk) = self.disk.take() else {
            return;
        };
        let begun = Instant::now();
        let what = Mark::of(&frame);
        let write = move || {
            let written = match work {
                Work::Head => disk.refresh(&frame).map(|done| match done {
                    true => Ok(()),
                    false => disk.replace(&frame),
                }),
                Work::Everything => Ok(disk.replace(&frame)),
            };
            (disk, written.and_then(|written| written))
        };
        let outcome = match spawn_blocking(write).await {
            Ok((disk, outcome)) => {
                let outcome = outcome.map_err(|error| (disk.path().to_owned(), error));
                self.disk = Some(disk);
                outcome
            }
            Err(error) => return error!(%error, "the snapshot is no longer written"),
        };
        let metrics = &self.metrics.control_plane;
        let was_failing = self.schedule.is_failing();
        self.schedule
            .did(what, outcome.is_ok(), begun, Instant::now());
        match outcome {
            Ok(()) => {
                metrics.snapshot_writes.inc();
                metrics.snapshot_revision.set(what.revision);
                if was_failing {
                    info!(
                        revision = what.revision,
                        "the snapshot can be written again"
                    );
                } else {
                    debug!(revision = what.revision, ?work, "wrote the snapshot");
                }
            }
            Err((path, error)) => {
                metrics.snapshot_write_failures.inc();
                if was_failing {
                    debug!(%error, "the snapshot still can't be written");
                } else {
                    warn!(
                        file = %path.display(),
                        %error,
                        "the snapshot can't be written, what it has gets old; trying again for ever"
                    );
                }
            }
        }
    }
}

/// When to write what. Pure.
#[derive(Debug, Default)]
struct Schedule {
    /// What the file has; `None` if that isn't known.
    written: Option<Mark>,
    /// When the last try ended, and how long it took.
    last: Option<(Instant, Duration)>,
    is_failing: bool,
}

/// Which frame it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    version: u64,
    revision: Revision,
    confirmed: SystemTime,
}

/// How much is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// A new file.
    Everything,
    /// How far the keys of the old one still hold.
    Head,
}

impl Mark {
    fn of(frame: &Frame) -> Self {
        Self {
            version: frame.version,
            revision: frame.revision,
            confirmed: frame.confirmed,
        }
    }
}

impl Schedule {
    /// What is to be written of this frame, and when; `None` if all of it is.
    fn due(&self, frame: &Frame) -> Option<(Work, Instant)> {
        let frame = Mark::of(frame);
        if self.written == Some(frame) {
            return None;
        }
        let work = match self.written {
            Some(written) if written.version == frame.version => Work::Head,
            _ => Work::Everything,
        };
        let at = self.last.map(|(end, took)| match work {
            Work::Everything => end + PAUSE.max(took * PAUSE_PER_WRITE),
            Work::Head => end + HEAD_PAUSE,
        });
        Some((work, at.unwrap_or_else(Instant::now)))
    }

    fn did(&mut self, what: Mark, is_done: bool, begun: Instant, ended: Instant) {
        self.last = Some((ended, ended - begun));
        self.is_failing = !is_done;
        self.written = is_done.then_some(what);
    }

    fn is_failing(&self) -> bool {
        self.is_failing
    }
}

#[cfg(test)]
mod tests;
