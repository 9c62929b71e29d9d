//! What an origin saw: its connections and its requests.

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::waypost::{DEADLINE, eventually};

const PAUSE: Duration = Duration::from_millis(2);

// The states in which a FIN of ours is not acknowledged, as /proc/net/tcp tells them.
const FIN_WAIT_1: &str = "04";
const LAST_ACK: &str = "09";
const CLOSING: &str = "0B";

/// Connections counted, and requests of this type kept.
pub struct Seen<T> {
    connections: AtomicUsize,
    ended: AtomicUsize,
    requests: Mutex<Vec<T>>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self {
            connections: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            requests: Mutex::default(),
        }
    }
}

impl<T: Clone> Seen<T> {
    /// The number of this new connection, counted from 1.
    pub fn connection_began(&self) -> usize {
        self.connections.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn connection_ended(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    pub fn note(&self, request: T) {
        self.requests.lock().unwrap().push(request);
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<T> {
        self.requests.lock().unwrap().clone()
    }

    /// The latest request.
    pub fn latest(&self) -> T {
        let requests = self.requests.lock().unwrap();
        requests.last().expect("it was asked").clone()
    }

    /// Waits until there were this many requests.
    pub async fn asked(&self, count: usize) {
        eventually("the origin is asked", async || {
            self.requests.lock().unwrap().len() >= count
        })
        .await;
    }

    /// Waits until so many connections have ended, and the peers of those of this port were told so.
    pub async fn closed(&self, count: usize, port: Option<u16>) {
        let ended = || self.ended.load(Ordering::SeqCst);
        let all = async {
            while ended() < count || port.is_some_and(has_fins_under_way) {
                sleep(PAUSE).await;
            }
        };
        let waited = timeout(DEADLINE, all).await;
        assert!(
            waited.is_ok(),
            "{count} connections to be closed, {} are",
            ended()
        );
    }
}

/// Whether the end of a connection that is closed here is yet to arrive. A kernel that is short of TCP memory leaves
/// a FIN for the next retransmission (`tcp_send_fin`), 200 ms later.
fn has_fins_under_way(port: u16) -> bool {
    let sockets = fs::read_to_string("/proc/net/tcp").expect("Linux");
    let port = format!(":{port:04X}");
    sockets.lines().skip(1).any(|socket| {
        let mut columns = socket.split_ascii_whitespace().skip(1);
        let is_ours = columns.next().is_some_and(|local| local.ends_with(&port));
        is_ours && matches!(columns.nth(1), Some(FIN_WAIT_1 | LAST_ACK | CLOSING))
    })
}
