//! File descriptors: every connection is one, and a process may have so many. When they are used up, connections that
//! lie idle make way for those that are needed.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

use crate::telemetry::metrics::Metrics;

/// With fewer than this, a busy instance runs out of them.
const FEW: u64 = 4096;
/// Of all descriptors, one in so many may be an idle connection to an upstream.
const IDLE_SHARE: u64 = 4;
/// What the process itself may need: listeners, etcd, the admin API, logs, health checks.
const RESERVED: u64 = 64;
/// With less nothing would work at all.
const LEAST_CLIENTS: usize = 16;
/// How often an open that failed for want of a descriptor is tried again, and how long each waits for one at most.
const TRIES: usize = 2;
const RELIEF: Duration = Duration::from_millis(50);
/// After so long without a failure the next one is news.
const OVER: Duration = Duration::from_secs(10);
/// Failures that go on are told of again after so long.
const AGAIN: Duration = Duration::from_secs(60);

/// The file descriptors of this process. Costs nothing as long as there are any.
pub struct Descriptors {
    limit: u64,
    metrics: Arc<Metrics>,
    /// Counts the times when there was none.
    wanted: watch::Sender<u64>,
    /// Counts the times when some were given back.
    freed: watch::Sender<u64>,
    episode: Mutex<Episode>,
}

impl Descriptors {
    /// Raises the soft limit of the process to the hard one, and logs what it is then: the soft one is 1,024 nearly
    /// everywhere, for the sake of programs that use `select`.
    pub fn raise(metrics: Arc<Metrics>) -> Arc<Self> {
        let before = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: before.maximum,
            maximum: before.maximum,
        };
        if before.current != before.maximum
            && let Err(error) = setrlimit(Resource::Nofile, raised)
        {
            warn!(%error, "the limit on open files could not be raised");
        }
        let limit = limit();
        match limit < FEW {
            true => warn!(
                limit,
                "few file descriptors: each connection takes one; raise the hard limit on open files \
                 (LimitNOFILE= of systemd, docker run --ulimit nofile=)"
            ),
            false => info!(limit, "file descriptors"),
        }
        Arc::new(Self::new(limit, metrics))
    }

    fn new(limit: u64, metrics: Arc<Metrics>) -> Self {
        Self {
            limit,
            metrics,
            wanted: watch::Sender::new(0),
            freed: watch::Sender::new(0),
            episode: Mutex::default(),
        }
    }

    /// The most connections to upstreams that each of the `workers` may keep idle.
    pub fn idle_share(&self, workers: usize) -> usize {
        let share = self.limit / IDLE_SHARE / workers.max(1) as u64;
        usize::try_from(share).unwrap_or(usize::MAX)
    }

    /// The most clients that may be connected, unless it is said: each needs another one for its upstream, and the
    /// process some for itself.
    pub fn client_share(&self) -> usize {
        let share = self.limit.saturating_sub(RESERVED) / 2;
        usize::try_from(share)
            .unwrap_or(usize::MAX)
            .max(LEAST_CLIENTS)
    }

    /// Warns if so many clients may be connected, by the limits, that there are not as many descriptors.
    pub fn look_at(&self, max_connections: usize) {
        let possible = self.limit.saturating_sub(RESERVED);
        if max_connections as u64 > possible {
            warn!(
                max_connections,
                limit = self.limit,
                "--max-connections is more than there are file descriptors, of which each client takes one and its upstream \
                 another: clients beyond would wait unanswered; set it to half of them or less, or raise the hard limit on \
                 open files (LimitNOFILE= of systemd, docker run --ulimit nofile=)"
            );
        }
    }

    /// Opens what takes a descriptor. If there is none, idle connections make way and it is tried again, with a short
    /// wait for them.
    pub async fn open<T, F>(&self, open: impl Fn() -> F) -> io::Result<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        for _ in 0..TRIES {
            match open().await {
                Err(error) if are_lacking(&error) => self.relief(&error).await,
                opened => return opened,
            }
        }
        let opened = open().await;
        if let Err(error) = &opened
            && are_lacking(error)
        {
            self.note(error);
        }
        opened
    }

    /// Notes that there was none, asks idle connections to make way, and waits until some have, or for a moment.
    pub async fn relief(&self, error: &io::Error) {
        self.note(error);
        let mut freed = self.freed.subscribe();
        self.wanted.send_modify(|times| *times += 1);
        // Whether some came or time is over: the next try will tell.
        let _ = timeout(RELIEF, freed.changed()).await;
    }

    /// Changes whenever idle connections are to make way.
    pub fn wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// Idle connections have made way.
    pub fn freed(&self) {
        self.freed.send_modify(|times| *times += 1);
    }

    fn note(&self, error: &io::Error) {
        self.metrics.data_plane.descriptor_shortages.inc();
        let mut episode = self.episode.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = episode.note(Instant::now()) {
            warn!(
                %error,
                limit = self.limit,
                times,
                "out of file descriptors: idle connections to upstreams are closed, and what still finds none waits or \
                 fails; raise the limit on open files (LimitNOFILE= of systemd, docker run --ulimit nofile=)"
            );
        }
    }
}

/// Whether this says that the process (EMFILE), or the machine (ENFILE), has no descriptor left.
pub fn are_lacking(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

/// How many descriptors the process may have.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Failures that follow each other are one event to who reads the log.
#[derive(Debug, Default)]
pub struct Episode {
    /// When the latest failure was.
    last: Option<Instant>,
    /// When it was told of.
    told: Option<Instant>,
    /// Failures not told of yet.
    times: u64,
}

impl Episode {
    /// One more failure; how many there are to tell of, if it is time to.
    pub fn note(&mut self, now: Instant) -> Option<u64> {
        let ago = |then: Option<Instant>| then.map(|then| now.saturating_duration_since(then));
        let is_news = ago(self.last.replace(now)).is_none_or(|ago| ago >= OVER);
        if is_news {
            self.times = 0;
        }
        self.times += 1;
        let is_due = is_news || ago(self.told).is_none_or(|ago| ago >= AGAIN);
        is_due.then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.times)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn of(limit: u64) -> Descriptors {
        Descriptors::new(limit, Metrics::new())
    }

    fn none_left() -> io::Error {
        Errno::MFILE.into()
    }

    #[test]
    fn a_quarter_may_lie_idle_however_many_workers_there_are() {
        for (limit, workers, each) in [(20_000, 2, 2500), (256, 2, 32), (1024, 1, 256)] {
            assert_eq!(of(limit).idle_share(workers), each, "{limit}, {workers}");
        }
    }

    #[test]
    fn clients_leave_as_many_to_upstreams() {
        for (limit, clients) in [
            (10_064, 5000),
            (160, 48),
            (32, 16),
            (u64::MAX, usize::MAX / 2 - 32),
        ] {
            assert_eq!(of(limit).client_share(), clients, "{limit}");
        }
    }

    #[test]
    fn failures_that_go_on_are_told_of_once_a_minute() {
        let begun = Instant::now();
        let mut episode = Episode::default();
        let told: Vec<_> = [0, 1, 2, 9, 18, 27, 36, 45, 54, 60, 61, 80, 81]
            .map(|seconds| episode.note(begun + Duration::from_secs(seconds)))
            .into();
        let mut expected = vec![None; 13];
        expected[0] = Some(1);
        expected[9] = Some(9);
        // After a quiet time: another event.
        expected[11] = Some(1);
        assert_eq!(told, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_descriptor_is_tried_again_once_some_are_free() {
        let descriptors = of(1);
        let (is_free, tries) = (Cell::new(false), Cell::new(0));
        let open = || async {
            tries.set(tries.get() + 1);
            is_free.get().then_some(()).ok_or_else(none_left)
        };
        let mut wanted = descriptors.wanted();
        let make_way = async {
            wanted.changed().await.expect("it is there");
            is_free.set(true);
            descriptors.freed();
        };
        let begun = tokio::time::Instant::now();
        let (opened, ()) = tokio::join!(descriptors.open(open), make_way);
        opened.expect("there was one then");
        assert_eq!((tries.get(), begun.elapsed()), (2, Duration::ZERO));

        // Nobody has any to give: it ends all the same.
        is_free.set(false);
        let error = descriptors.open(open).await.expect_err("there is none");
        assert!(are_lacking(&error) && begun.elapsed() <= RELIEF * 3);
        assert_eq!(tries.get(), 2 + TRIES + 1);
    }

    #[tokio::test]
    async fn other_failures_are_nobodys_want() {
        let (descriptors, tries) = (of(1), Cell::new(0));
        let refused = || async {
            tries.set(tries.get() + 1);
            Err::<(), _>(io::Error::from(Errno::CONNREFUSED))
        };
        descriptors.open(refused).await.expect_err("refused");
        assert_eq!(tries.get(), 1);
        assert!(!descriptors.wanted().has_changed().expect("it is there"));
    }
}
