//! Upstreams: who they are, and what is known of each across routes and workers.
//!
//! An upstream's identity is its address plus its dialling options. As long as any table or running request
//! holds its [`Upstream`], it lives; once no member of the table dials it, each worker's next sweep closes the idle
//! connections it still has to it (see [`pool`]).

pub mod address;
pub mod balancer;
pub mod client_fields;
pub mod dial;
pub mod ejection;
pub mod health;
pub mod http1;
pub mod http2;
pub mod limit;
pub mod load;
pub mod pool;
pub mod proxy_protocol;
pub mod request_body;
pub mod standing;
#[cfg(test)]
pub mod testing;
pub mod tls;
pub mod transport;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

pub use address::{Address, Endpoint};
use arc_swap::ArcSwapOption;
use dial::Alternative;
use ejection::Ejection;
pub use pool::PoolOptions;
pub use proxy_protocol::ProxyProtocol;

use crate::telemetry::metrics::{Metrics, UpstreamMetrics};

/// What makes two upstreams the same one: where it is and how it is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Where to connect.
    pub endpoint: Endpoint,
    /// TLS towards the upstream, if its key asks for it.
    pub tls: Option<Arc<TlsOptions>>,
    /// The HTTP version spoken to it.
    pub protocol: Protocol,
    /// How its connections are kept, if its key says other than the defaults.
    pub pool: Option<Arc<PoolOptions>>,
    /// The header that tells it of clients, if its key asks for one. Then each connection speaks for one client.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// `"tls"` of an upstream's value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// The name sent as SNI and verified; the host part of the address when absent.
    pub sni: Option<Box<str>>,
    /// A PEM file of certificate authorities; the system's own when absent.
    pub ca: Option<Box<str>>,
    /// Accept any certificate.
    pub insecure: bool,
    /// Whom we say we are, to upstreams that ask for a certificate.
    pub client: Option<ClientFiles>,
}

/// `"cert"` and `"key"` of `"tls"`: who we are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientFiles {
    /// A PEM file with our certificate, and what leads from it to an authority.
    pub cert: Box<str>,
    /// A PEM file with its private key.
    pub key: Box<str>,
}

/// `"protocol"` of an upstream's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 through our own codec.
    #[default]
    Http1,
    /// HTTP/2, by prior knowledge or ALPN.
    H2,
}

/// One upstream, shared by every route that names it.
pub struct Upstream {
    /// Where it is and how it is dialled.
    pub identity: Identity,
    /// Its place in each worker's pools.
    pub slot: Slot,
    /// Its address as text, for logs, `Proxy-Status` and metrics.
    pub name: Arc<str>,
    /// Its counters, resolved once.
    pub metrics: Arc<UpstreamMetrics>,
    /// Whether it is out, for routes with the default outlier settings.
    pub ejection: Ejection,
    /// How many members of the table dial it.
    members: AtomicU32,
    /// Where else it can be dialled.
    alternative: ArcSwapOption<Alternative>,
    slots: Arc<Slots>,
}

impl Upstream {
    /// From now on it may be dialled here as well: the same upstream by the other address family.
    pub fn fall_back_to(&self, address: Option<SocketAddr>) {
        let known = self.alternative.load();
        if known.as_deref().map(Alternative::address) != address {
            let alternative = address.map(|address| Arc::new(Alternative::at(address)));
            self.alternative.store(alternative);
        }
    }

    /// The table has one more member that dials it.
    pub fn enlist(&self) {
        self.members.fetch_add(1, Ordering::Relaxed);
    }

    /// The table has one less.
    pub fn delist(&self) {
        self.members.fetch_sub(1, Ordering::Relaxed);
    }

    /// How its connections are kept.
    pub fn pool_options(&self) -> &PoolOptions {
        let options = self.identity.pool.as_deref();
        options.unwrap_or(&PoolOptions::DEFAULT)
    }

    /// Whether the table has a member that dials it. Requests that run hold the route they came by, and with it upstreams
    /// that were removed since.
    pub fn is_listed(&self) -> bool {
        self.members.load(Ordering::Relaxed) > 0
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.name).finish()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.slots.free(self.slot);
    }
}

/// A dense index into per-worker tables, with a generation that tells a reused index from its former owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The index; small, because freed ones are reused.
    pub index: u32,
    /// Grows with each reuse of the index.
    pub generation: u32,
}

#[derive(Default)]
struct Slots {
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    next: u32,
    free: Vec<Slot>,
}

impl Slots {
    fn allocate(&self) -> Slot {
        let mut state = self
            .state
            .lock()
            .expect("no code panics while holding this lock");
        state.free.pop().unwrap_or_else(|| {
            let index = state.next;
            state.next += 1;
            Slot {
                index,
                generation: 0,
            }
        })
    }

    fn free(&self, slot: Slot) {
        let mut state = self
            .state
            .lock()
            .expect("no code panics while holding this lock");
        state.free.push(Slot {
            index: slot.index,
            generation: slot.generation.wrapping_add(1),
        });
    }
}

/// Hands out one [`Upstream`] per [`Identity`]; the publisher owns it.
pub struct Registry {
    known: HashMap<Identity, Weak<Upstream>>,
    slots: Arc<Slots>,
    metrics: Arc<Metrics>,
    /// Size of `known` at which dead entries are swept.
    sweep_at: usize,
}

impl Registry {
    /// An empty registry whose upstreams count in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            known: HashMap::new(),
            slots: Arc::default(),
            metrics,
            sweep_at: 1024,
        }
    }

    /// The upstream of this identity: the living one, else a new one.
    pub fn upstream(&mut self, identity: &Identity) -> Arc<Upstream> {
        if let Some(upstream) = self.known.get(identity).and_then(Weak::upgrade) {
            return upstream;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, upstream| upstream.strong_count() > 0);
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        let name: Arc<str> = identity.endpoint.to_string().into();
        let metrics = self.metrics.upstream(&name);
        let upstream = Arc::new(Upstream {
            identity: identity.clone(),
            slot: self.slots.allocate(),
            ejection: Ejection::counted_by(metrics.ejected.clone()),
            metrics,
            name,
            members: AtomicU32::new(0),
            alternative: ArcSwapOption::empty(),
            slots: self.slots.clone(),
        });
        self.known
            .insert(identity.clone(), Arc::downgrade(&upstream));
        upstream
    }
}
