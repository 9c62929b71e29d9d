//! The access log: one line per request, written when its body ends or is dropped. Never blocks a worker.
//!
//! A worker renders a line into a buffer of its thread and appends it to a queue of bytes; one thread writes the
//! queue out, in batches, so that a busy instance makes few system calls. A full queue drops lines, and counts them.

mod line;

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use http::{HeaderValue, Method, Version};

use super::metrics::Metrics;
use crate::config::{AccessLogConfig, AccessLogFormat};

/// Bytes that may wait; some 20,000 lines.
const QUEUE_BYTES: usize = 8 << 20;

/// The writer rests this long after each batch: lines gather meanwhile, and a worker wakes it that much less often.
const BATCH: Duration = Duration::from_millis(20);

/// What is known of a finished request.
#[derive(Debug)]
pub struct Record<'a> {
    /// When its first byte came.
    pub time: SystemTime,
    /// Who sent it.
    pub client: SocketAddr,
    /// Who that did so for, as trusted proxies say.
    pub forwarded_for: Option<IpAddr>,
    /// Its method.
    pub method: &'a Method,
    /// Its canonical host; empty if it had none.
    pub host: &'a str,
    /// Path and query as they came.
    pub target: &'a str,
    /// The version the client spoke.
    pub version: Version,
    /// `Referer`.
    pub referer: Option<&'a HeaderValue>,
    /// `User-Agent`.
    pub user_agent: Option<&'a HeaderValue>,
    /// The status answered; 499 when the client left before the head.
    pub status: u16,
    /// Why, if not from the upstream, or how the body broke off: an RFC 9209 error name or our own word.
    pub reason: Option<&'static str>,
    /// The route that served it.
    pub route: Option<&'a str>,
    /// The upstream of the last attempt.
    pub upstream: Option<&'a str>,
    /// Body bytes from the client.
    pub request_bytes: u64,
    /// Body bytes to the client.
    pub response_bytes: u64,
    /// First byte of the request to the end of the response.
    pub total: Duration,
    /// Spent connecting to the upstream; `None` on a pooled connection.
    pub connect: Option<Duration>,
    /// To the upstream's response head.
    pub first_byte: Option<Duration>,
    /// Attempts beyond the first.
    pub retries: u32,
    /// The revision of the table it was routed by.
    pub revision: i64,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// A handle to the log; cheap to clone, one per worker.
#[derive(Clone, Debug)]
pub struct AccessLog {
    format: AccessLogFormat,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    /// Opens the file (appending to it) or standard output, and starts the thread that writes.
    pub fn open(config: &AccessLogConfig, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let output = match &config.path {
            Some(path) => Output::File(open(path)?),
            None => Output::Stdout(io::stdout()),
        };
        let log = Self {
            format: config.format,
            queue: Arc::default(),
            metrics,
        };
        let writer = Writer {
            output,
            queue: log.queue.clone(),
            metrics: log.metrics.clone(),
            failing: false,
        };
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || writer.run())
            .context("could not start the thread of the access log")?;
        Ok(log)
    }

    /// Queues one line; drops (and counts) it when the queue is full.
    pub fn write(&self, record: &Record<'_>) {
        line::with_rendered(self.format, record, |line| {
            if !self.queue.push(line) {
                self.metrics.access_log_dropped.inc();
            }
        });
    }

    /// Writes out what is queued and ends the log; lines that come later are dropped. Waits for `patience` at most,
    /// since whoever reads standard output may have stopped. Returns whether everything was written.
    pub fn close(&self, patience: Duration) -> bool {
        self.queue.close(patience)
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("--access-log: could not open {}", path.display()))
}

/// Lines on their way to the writer.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    /// Signalled when the queue stops being empty, when it is closed, and when the writer is done.
    news: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    bytes: Vec<u8>,
    lines: u64,
    closed: bool,
    done: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state
            .lock()
            .expect("no code panics while holding this lock")
    }

    fn push(&self, line: &[u8]) -> bool {
        let mut state = self.lock();
        if state.closed || state.bytes.len() + line.len() > QUEUE_BYTES {
            return false;
        }
        let was_empty = state.bytes.is_empty();
        state.bytes.extend_from_slice(line);
        state.lines += 1;
        drop(state);
        if was_empty {
            self.news.notify_all();
        }
        true
    }

    /// Waits for lines and moves them to `batch`; returns how many, or `None` at the end.
    fn take(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut state = self.lock();
        while state.bytes.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .news
                .wait(state)
                .expect("no code panics while holding this lock");
        }
        batch.clear();
        std::mem::swap(batch, &mut state.bytes);
        Some(std::mem::take(&mut state.lines))
    }

    /// Rests for [`BATCH`]; not when closed.
    fn rest(&self) {
        let until = Instant::now() + BATCH;
        let mut state = self.lock();
        while !state.closed {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return;
            };
            let woken = self.news.wait_timeout(state, left);
            state = woken.expect("no code panics while holding this lock").0;
        }
    }

    fn close(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        state.closed = true;
        self.news.notify_all();
        let waited = self
            .news
            .wait_timeout_while(state, patience, |state| !state.done)
            .expect("no code panics while holding this lock");
        waited.0.done
    }
}

enum Output {
    File(File),
    Stdout(io::Stdout),
}

struct Writer {
    output: Output,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    /// Whether the last batch failed: an outage is logged once.
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        while let Some(lines) = self.queue.take(&mut batch) {
            self.write(&batch, lines);
            self.queue.rest();
        }
        self.queue.lock().done = true;
        self.queue.news.notify_all();
    }

    fn write(&mut self, batch: &[u8], lines: u64) {
        let written = match &mut self.output {
            Output::File(file) => file.write_all(batch),
            Output::Stdout(stdout) => stdout.write_all(batch).and_then(|()| stdout.flush()),
        };
        match written {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("the access log is being written again");
            }
            Ok(()) => {}
            Err(error) => {
                self.metrics.access_log_dropped.inc_by(lines);
                if !self.failing {
                    self.failing = true;
                    tracing::error!(%error, "could not write the access log; lines are lost");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<'static> {
        Record {
            time: SystemTime::UNIX_EPOCH,
            client: ([127, 0, 0, 1], 1234).into(),
            forwarded_for: None,
            method: &Method::GET,
            host: "a.test",
            target: "/",
            version: Version::HTTP_11,
            referer: None,
            user_agent: None,
            status: 200,
            reason: None,
            route: None,
            upstream: None,
            request_bytes: 0,
            response_bytes: 0,
            total: Duration::ZERO,
            connect: None,
            first_byte: None,
            retries: 0,
            revision: 1,
            tls: false,
        }
    }

    #[test]
    fn every_line_queued_before_close_is_in_the_file_after_what_it_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        std::fs::write(&path, "an older line\n").unwrap();
        let config = AccessLogConfig {
            format: AccessLogFormat::Json,
            path: Some(path.clone()),
        };
        let metrics = Metrics::new();
        let log = AccessLog::open(&config, metrics.clone()).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                let log = log.clone();
                scope.spawn(move || (0..500).for_each(|_| log.write(&record())));
            }
        });
        assert!(log.close(Duration::from_secs(10)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("an older line\n{"));
        assert_eq!(text.lines().count(), 2001);
        assert!(text.lines().skip(1).all(|line| line.ends_with('}')));
        assert_eq!(metrics.access_log_dropped.get(), 0);

        log.write(&record());
        assert_eq!(metrics.access_log_dropped.get(), 1, "written after close");
    }

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_blocking() {
        let log = AccessLog {
            format: AccessLogFormat::Combined,
            queue: Arc::default(),
            metrics: Metrics::new(),
        };
        let long = "x".repeat(1 << 20);
        let target = Record {
            target: &long,
            ..record()
        };
        (0..10).for_each(|_| log.write(&target));
        assert_eq!(log.metrics.access_log_dropped.get(), 3);
        assert_eq!(log.queue.lock().lines, 7);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let config = AccessLogConfig {
            format: AccessLogFormat::Json,
            path: Some("/nonexistent/access.log".into()),
        };
        let error = AccessLog::open(&config, Metrics::new()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("--access-log"), "{text}");
        assert!(text.contains("/nonexistent/access.log"), "{text}");
    }
}
