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
    pools: RefCell<Vec<Option<Pool>>>,
    sweep: Rc<Sweep>,
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
            pools: RefCell::default(),
            sweep,
        }
    }

    /// The most recently used idle connection that can still be used.
    pub fn take(&self, upstream: &Upstream) -> Option<Connection> {
        let mut pools = self.pools.borrow_mut();
        let pool = pools.get_mut(upstream.slot.index as usize)?.as_mut()?;
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
        let mut pools = self.pools.borrow_mut();
        let index = upstream.slot.index as usize;
        if pools.len() <= index {
            pools.resize_with(index + 1, || None);
        }
        let slot = &mut pools[index];
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
        for slot in self.pools.borrow_mut().iter_mut() {
            let Some(pool) = slot else { continue };
            if pool.upstream.strong_count() == 0 {
                *slot = None;
                continue;
            }
            pool.idle.retain(|idle| {
                let keep = idle.until > now && idle.connection.is_usable();
                if keep && idle.since <= shrink_before {
                    idle.connection.shrink();
                }
                keep
            });
        }
    }
}
