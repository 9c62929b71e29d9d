//! The idle connections of one worker, by upstream.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Upstream, http1::Connection};
use crate::sweep::{Sweep, Tick};

/// How long a connection may lie idle when the upstream doesn't say.
const IDLE: Duration = Duration::from_secs(60);
/// Upstreams that say `Keep-Alive: timeout=N` get no new request in the last second before they close.
const MARGIN: Duration = Duration::from_secs(1);
/// The most idle connections to one upstream that one worker keeps.
const MAX_IDLE: usize = 1024;
/// Idle for this long, a connection gives back its buffer.
const SHRINK_AFTER: Duration = Duration::from_secs(2);

/// All pools of one worker: a look-up is an index into a vector (see [`super::Slot`]).
pub struct Pools {
    slots: RefCell<Slots>,
    sweep: Rc<Sweep>,
}

#[derive(Default)]
struct Slots {
    pools: Vec<Option<Pool>>,
    /// Where there is a pool: with a million upstreams, few have connections, and a sweep looks at these alone.
    used: Vec<usize>,
}

struct Pool {
    generation: u32,
    upstream: Weak<Upstream>,
    /// Most recently used last: that is the one to take, being the least likely to be closed by the other side.
    idle: Vec<Idle>,
}

struct Idle {
    connection: Connection,
    since: Tick,
    until: Tick,
}

impl Pools {
    /// No connections yet.
    pub fn new(sweep: Rc<Sweep>) -> Self {
        Self {
            slots: RefCell::default(),
            sweep,
        }
    }

    /// The most recently used idle connection that can still be used.
    pub fn take(&self, upstream: &Upstream) -> Option<Connection> {
        let mut slots = self.slots.borrow_mut();
        let pool = slots
            .pools
            .get_mut(upstream.slot.index as usize)?
            .as_mut()?;
        if pool.generation != upstream.slot.generation {
            return None;
        }
        let now = self.sweep.now();
        while let Some(idle) = pool.idle.pop() {
            if idle.until > now && idle.connection.is_usable() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request; `keep_alive` is what the upstream said of its patience.
    pub fn put(
        &self,
        upstream: &Arc<Upstream>,
        connection: Connection,
        keep_alive: Option<Duration>,
    ) {
        let patience =
            keep_alive.map_or(IDLE, |said| said.min(IDLE + MARGIN).saturating_sub(MARGIN));
        if patience.is_zero() {
            return;
        }
        let Slots { pools, used } = &mut *self.slots.borrow_mut();
        let index = upstream.slot.index as usize;
        if pools.len() <= index {
            pools.resize_with(index + 1, || None);
        }
        let slot = &mut pools[index];
        if slot.is_none() {
            used.push(index);
        }
        if slot
            .as_ref()
            .is_none_or(|pool| pool.generation != upstream.slot.generation)
        {
            let (generation, upstream) = (upstream.slot.generation, Arc::downgrade(upstream));
            *slot = Some(Pool {
                generation,
                upstream,
                idle: Vec::new(),
            });
        }
        let pool = slot.as_mut().expect("filled just now");
        if pool.idle.len() < MAX_IDLE {
            let since = self.sweep.now();
            pool.idle.push(Idle {
                connection,
                since,
                until: since + Sweep::ticks(patience) - 1,
            });
        }
    }

    /// Closes what has expired, died, or lost its upstream. Called about once a second.
    pub fn sweep(&self) {
        let now = self.sweep.now();
        let shrink_before = now.saturating_sub(Sweep::ticks(SHRINK_AFTER));
        let Slots { pools, used } = &mut *self.slots.borrow_mut();
        used.retain(|&index| {
            let Some(pool) = &mut pools[index] else {
                return false;
            };
            if pool.upstream.strong_count() > 0 {
                pool.idle.retain(|idle| {
                    let keep = idle.until > now && idle.connection.is_usable();
                    if keep && idle.since <= shrink_before {
                        idle.connection.shrink();
                    }
                    keep
                });
                if !pool.idle.is_empty() {
                    return true;
                }
            }
            pools[index] = None;
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        telemetry::metrics::Metrics,
        upstream::{Endpoint, Identity, Protocol, Registry, transport::Transport},
    };

    /// An upstream, a connection to it, and the upstream's end of that.
    async fn connected(registry: &mut Registry) -> (Arc<Upstream>, Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let near = TcpStream::connect(address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let upstream = registry.upstream(&Identity {
            endpoint: Endpoint::Tcp {
                address,
                name: None,
            },
            tls: None,
            protocol: Protocol::Http1,
        });
        (upstream, Connection::new(Transport::Tcp(near)), far)
    }

    #[tokio::test]
    async fn connections_live_until_their_time_is_over_or_their_upstream_is_gone() {
        let sweep = Rc::new(Sweep::default());
        let pools = Pools::new(sweep.clone());
        let mut registry = Registry::new(Metrics::new());
        let (upstream, connection, mut far) = connected(&mut registry).await;

        pools.put(&upstream, connection, Some(Duration::from_secs(5)));
        pools.sweep();
        let connection = pools.take(&upstream).expect("an idle connection");
        assert!(pools.take(&upstream).is_none(), "there was but one");

        // The upstream closes after 5 s, so in the last of them it gets no request.
        pools.put(&upstream, connection.clone(), Some(Duration::from_secs(5)));
        sweep.advance(Sweep::ticks(Duration::from_secs(4)) + 1);
        assert!(pools.take(&upstream).is_none(), "its time is over");

        pools.put(&upstream, connection, None);
        let slot = upstream.slot;
        drop(upstream);
        pools.sweep();
        assert_eq!(
            far.read(&mut [0]).await.unwrap(),
            0,
            "closed with its upstream"
        );

        // Whoever gets the slot next finds none of its former owner's connections.
        let (successor, connection, _far) = connected(&mut registry).await;
        assert_eq!(successor.slot.index, slot.index);
        assert!(pools.take(&successor).is_none());
        pools.put(&successor, connection, None);
        pools.sweep();
        assert!(pools.take(&successor).is_some(), "swept, not dropped");
    }
}
