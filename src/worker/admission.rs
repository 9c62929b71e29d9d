//! How many clients may be connected, to this process and of one address: counted over all workers.
//!
//! Who comes beyond is not left in the kernel's queue, where everybody else would stand behind: it is accepted, told so
//! where that can be said in plain text, and closed. Connections that lie idle give way first, which is the worker's part.

use std::{
    array,
    cell::Cell,
    collections::{HashMap, hash_map::Entry},
    io::Read,
    net::{IpAddr, Shutdown},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use foldhash::fast::RandomState;
use socket2::SockRef;
use tokio::{net::TcpStream, sync::watch};

use super::Opening;
use crate::{
    config::{ConnectionLimits, PerClient},
    proxy::forwarded::TrustedProxies,
    telemetry::metrics::{Limit, Metrics},
};

/// What is open, and how much of that is whose.
pub struct Admission {
    most: usize,
    most_per_client: usize,
    /// They bring the clients of many.
    exempt: Arc<TrustedProxies>,
    open: AtomicUsize,
    clients: [Mutex<HashMap<Origin, usize, RandomState>>; SHARDS],
    /// Places that workers lacked, and had no connection of their own to close for.
    wanted: AtomicUsize,
    /// Tells of each.
    crowded: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

/// Workers seldom meet in one of so many.
const SHARDS: usize = 16;

/// A flood wants a place for each of its connections; what it wanted a while ago is nothing to anybody.
const MOST_WANTED: usize = 64;
/// Whoever gave way is gone a moment later. So many more may be there meanwhile, or a sixteenth of the limit.
const LEAST_OVERLAP: usize = 4;

/// Who counts as one client: an IPv4 address, or the /64 network of an IPv6 one, which is the least that anybody gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin(u128);

/// A connection that may be served, until this is dropped.
pub struct Admitted {
    admission: Arc<Admission>,
    origin: Cell<Option<Origin>>,
}

impl Admission {
    /// Nobody yet. `share` is how many connections there may be unless the limits say otherwise.
    pub fn new(
        limits: &ConnectionLimits,
        share: usize,
        exempt: Arc<TrustedProxies>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let most = limits.process.unwrap_or(share);
        let most_per_client = match limits.per_client {
            PerClient::Half => most.div_ceil(2),
            PerClient::AtMost(count) => count,
            PerClient::Unlimited => usize::MAX,
        };
        metrics.data_plane.max_connections.set(most as i64);
        Arc::new(Self {
            most,
            most_per_client,
            exempt,
            open: AtomicUsize::new(0),
            clients: array::from_fn(|_| Mutex::default()),
            wanted: AtomicUsize::new(0),
            crowded: watch::Sender::new(()),
            metrics,
        })
    }

    /// Lets one more in, from `address`, if it may; where there are too many, `make_room` is asked whether an idle one
    /// gives way to it. Refusals are counted.
    pub fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        make_room: impl FnOnce() -> bool,
    ) -> Option<Admitted> {
        let origin = self.counted(address);
        if let Some(origin) = origin
            && !self.join(origin)
        {
            self.count(Limit::ConnectionsPerClient);
            return None;
        }
        // From here on dropping it gives back what it took.
        let admitted = Admitted {
            admission: self.clone(),
            origin: Cell::new(origin),
        };
        let others = self.open.fetch_add(1, Relaxed);
        let is_over = others.saturating_sub(self.most) >= LEAST_OVERLAP.max(self.most / 16);
        if others >= self.most && (is_over || !make_room()) {
            self.count(Limit::Connections);
            return None;
        }
        Some(admitted)
    }

    /// Asks all workers for the place of one idle connection.
    pub fn ask_for_room(&self) {
        let _ = self.wanted.fetch_update(Relaxed, Relaxed, |wanted| {
            (wanted < MOST_WANTED).then_some(wanted + 1)
        });
        self.crowded.send_replace(());
    }

    /// Gives one of the places that are wanted, if any is, by closing a connection; whether `make_room` did.
    pub fn give(&self, make_room: impl FnOnce() -> bool) -> bool {
        if !self.is_full() {
            self.wanted.store(0, Relaxed);
            return false;
        }
        let one_less = |wanted: usize| wanted.checked_sub(1);
        let is_wanted = self.wanted.fetch_update(Relaxed, Relaxed, one_less).is_ok();
        let given = is_wanted && make_room();
        if is_wanted && !given {
            // For another worker to give.
            self.wanted.fetch_add(1, Relaxed);
        }
        given
    }

    /// Whether there are as many connections as there may be.
    pub fn is_full(&self) -> bool {
        self.open.load(Relaxed) >= self.most
    }

    /// Tells when some worker needs room.
    pub fn crowded(&self) -> watch::Receiver<()> {
        self.crowded.subscribe()
    }

    fn counted(&self, address: IpAddr) -> Option<Origin> {
        let is_counted = self.most_per_client != usize::MAX && !self.exempt.contains(address);
        is_counted.then(|| Origin::of(address))
    }

    fn join(&self, origin: Origin) -> bool {
        let mut clients = self.shard(origin);
        let open = clients.entry(origin).or_default();
        // What is refused has an entry already: no limit is 0.
        let joins = *open < self.most_per_client;
        *open += usize::from(joins);
        joins
    }

    fn leave(&self, origin: Origin) {
        if let Entry::Occupied(mut entry) = self.shard(origin).entry(origin) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn shard(
        &self,
        origin: Origin,
    ) -> std::sync::MutexGuard<'_, HashMap<Origin, usize, RandomState>> {
        // Networks differ in the middle, IPv4 addresses at the end.
        let mixed = (origin.0 >> 64) ^ origin.0;
        let index = (mixed ^ (mixed >> 8)) as usize % SHARDS;
        self.clients[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, limit: Limit) {
        self.metrics.data_plane.limit_hits.count(limit);
    }
}

impl Admitted {
    /// From now on it is the connection of this client, whom a PROXY header spoke of; whether that may have one more.
    pub fn counts_for(&self, address: IpAddr) -> bool {
        if let Some(before) = self.origin.take() {
            self.admission.leave(before);
        }
        let Some(origin) = self.admission.counted(address) else {
            return true;
        };
        let joins = self.admission.join(origin);
        match joins {
            true => self.origin.set(Some(origin)),
            false => self.admission.count(Limit::ConnectionsPerClient),
        }
        joins
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Relaxed);
        if let Some(origin) = self.origin.take() {
            self.admission.leave(origin);
        }
    }
}

impl Origin {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits() & (u128::MAX << 64)),
        }
    }
}

/// Whether a client that is turned away would understand plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP, from its first byte on.
    Plain,
    /// TLS, whose handshake costs more than a refusal may.
    Tls,
}

impl Speaks {
    /// After what comes first on a listener.
    pub(super) fn of(opening: &Opening) -> Self {
        match opening.tls {
            Some(_) => Self::Tls,
            None => Self::Plain,
        }
    }
}

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    proxy-status: waypost; error=connection_limit_reached; details=\"too many client connections\"\r\n\
    content-length: 53\r\nconnection: close\r\n\r\n503 Service Unavailable: too many client connections\n";

/// Closes a connection that is not served. Nothing is waited for: the answer fits into any socket's buffer.
pub fn turn_away(stream: &TcpStream, speaks: Speaks) {
    if speaks == Speaks::Tls {
        return;
    }
    let socket = SockRef::from(stream);
    // A close with bytes unread would be a reset, which may overtake the answer.
    let _ = (&*socket).read(&mut [0; 4096]);
    let _ = socket.send(BUSY);
    let _ = socket.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests;
