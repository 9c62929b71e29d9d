//! The idle connections of one worker, by upstream, and who may open more.

mod dials;
mod own;
mod share;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use rand::RngExt;

use self::dials::Dials;
pub use self::{
    dials::{DialPlace, Granted, Wants},
    own::Owner,
};
use super::{Slot, Upstream, http1::Connection};
use crate::{
    sweep::{NEVER, Sweep, Tick},
    telemetry::metrics::UpstreamMetrics,
};

/// Upstreams that say `Keep-Alive: timeout=N` get no new request in the last second before they close.
const MARGIN: Duration = Duration::from_secs(1);
/// Idle for this long, a connection gives back its buffer.
const SHRINK_AFTER: Duration = Duration::from_secs(2);
/// By how much of its lifetime a connection may end early, so that those opened together don't end together.
const LIFETIME_JITTER: f64 = 0.1;

/// `"pool"` of an upstream's value: how its connections are kept. All of it holds for each worker by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolOptions {
    /// How long a connection may lie idle; 60 s by default. `Keep-Alive: timeout=N` of the upstream can shorten it.
    pub idle_timeout: Duration,
    /// The most idle connections that one worker keeps; 1024 by default, 0 closes each after its response.
    pub max_idle: u16,
    /// How old a connection may grow and still get a request; by default as old as it likes. Each ends up to a tenth
    /// earlier, so that they don't end together, and none in the middle of a request.
    pub lifetime: Option<Duration>,
}

impl PoolOptions {
    /// What holds where a value says nothing.
    pub const DEFAULT: Self = Self {
        idle_timeout: Duration::from_secs(60),
        max_idle: 1024,
        lifetime: None,
    };

    /// From when on a connection made now gets no further request.
    pub(super) fn end_of_life(&self, now: Tick) -> Tick {
        self.lifetime.map_or(NEVER, |lifetime| {
            let share = 1.0 - rand::rng().random_range(0.0..LIFETIME_JITTER);
            now.saturating_add(Sweep::ticks(lifetime.mul_f64(share)))
        })
    }

    /// How long a connection may lie idle, given what the upstream said of its own patience.
    fn patience(&self, keep_alive: Option<Duration>) -> Duration {
        let said = keep_alive.map(|said| said.saturating_sub(MARGIN));
        said.map_or(self.idle_timeout, |said| said.min(self.idle_timeout))
    }
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// All pools of one worker: a look-up is an index into a vector (see [`Slot`]).
pub struct Pools {
    slots: RefCell<Slots>,
    sweep: Rc<Sweep>,
}

#[derive(Default)]
struct Slots {
    /// Boxed: there may be a million upstreams, few of which have connections.
    pools: Vec<Option<Box<Pool>>>,
    /// Where there is a pool: a sweep looks at these alone.
    used: Vec<usize>,
    /// How many connections lie idle in all of them, and may: `None` for as many as like.
    idle: usize,
    most: Option<usize>,
}

struct Pool {
    generation: u32,
    upstream: Weak<Upstream>,
    /// Most recently used last: that is the one to take, being the least likely to be closed by the other side.
    idle: Vec<Idle>,
    dials: Dials,
    told: Told,
}

struct Idle {
    connection: Connection,
    /// For whom it speaks, if not for anybody.
    owner: Option<Owner>,
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
        let pool = slots.find(upstream.slot)?;
        let now = self.sweep.now();
        let before = pool.idle.len();
        let mut taken = None;
        while taken.is_none()
            && let Some(idle) = pool.idle.pop()
        {
            taken = idle.is_good(now).then_some(idle.connection);
        }
        let popped = before - pool.idle.len();
        slots.idle -= popped;
        taken
    }

    /// Sets when a connection just made is to end, if its upstream's ones have a lifetime.
    pub fn begin_life(&self, upstream: &Upstream, connection: &Connection) {
        connection.end_at(upstream.pool_options().end_of_life(self.sweep.now()));
    }

    /// Keeps a connection for the next request, or gives it to one that waits for it; `keep_alive` is what the
    /// upstream said of its patience.
    pub fn put(
        &self,
        upstream: &Arc<Upstream>,
        connection: Connection,
        keep_alive: Option<Duration>,
    ) {
        let patience = upstream.pool_options().patience(keep_alive);
        let owner = connection.owner();
        if patience.is_zero() || owner.as_ref().is_some_and(Owner::has_left) {
            return;
        }
        let since = self.sweep.now();
        let until = since.saturating_add(Sweep::ticks(patience) - 1);
        let idle = Idle {
            until: until.min(connection.ends()),
            since,
            connection,
            owner,
        };
        if idle.until > since {
            self.slots.borrow_mut().keep(upstream, idle);
        }
    }

    /// Closes what has expired, died, or lost its upstream, and tells how many are left. Called about once a second.
    pub fn sweep(&self) {
        let now = self.sweep.now();
        let shrink_before = now.saturating_sub(Sweep::ticks(SHRINK_AFTER));
        let Slots {
            pools, used, idle, ..
        } = &mut *self.slots.borrow_mut();
        *idle = 0;
        used.retain(|&index| {
            let Some(pool) = &mut pools[index] else {
                return false;
            };
            let upstream = pool.upstream.upgrade();
            let is_listed = upstream.is_some_and(|upstream| upstream.is_listed());
            pool.idle.retain(|idle| {
                let keep = is_listed && idle.is_good(now);
                if keep && idle.since <= shrink_before {
                    idle.connection.shrink();
                }
                keep
            });
            *idle += pool.idle.len();
            pool.dials.sweep();
            if pool.dials.are_running() || !pool.idle.is_empty() {
                pool.told.tell(pool.idle.len());
                return true;
            }
            pools[index] = None;
            false
        });
    }
}

impl Slots {
    /// The pool of whoever has this slot, if there is one.
    fn find(&mut self, slot: Slot) -> Option<&mut Pool> {
        let pool = self.pools.get_mut(slot.index as usize)?.as_deref_mut()?;
        (pool.generation == slot.generation).then_some(pool)
    }

    /// The pool of this upstream, empty if it had none.
    fn pool(&mut self, upstream: &Arc<Upstream>) -> &mut Pool {
        let index = upstream.slot.index as usize;
        if self.pools.len() <= index {
            self.pools.resize_with(index + 1, || None);
        }
        let slot = &mut self.pools[index];
        if slot.is_none() {
            self.used.push(index);
        }
        // Of another generation: its upstream is gone, so nobody dials it or waits for it.
        if let Some(gone) = slot.take_if(|pool| pool.generation != upstream.slot.generation) {
            self.idle -= gone.idle.len();
        }
        slot.get_or_insert_with(|| Box::new(Pool::of(upstream)))
    }
}

impl Pool {
    fn of(upstream: &Arc<Upstream>) -> Self {
        Self {
            generation: upstream.slot.generation,
            upstream: Arc::downgrade(upstream),
            idle: Vec::new(),
            dials: Dials::default(),
            told: Told {
                metrics: upstream.metrics.clone(),
                idle: 0,
            },
        }
    }

    /// For a request that waits, else for the next one, if there are not `most` already; whether there is one more now.
    fn keep(&mut self, idle: Idle, most: usize) -> bool {
        if idle.owner.is_some() {
            return self.keep_own(idle, most);
        }
        if self.idle.len() < most
            && let Some(idle) = self.dials.offer(idle)
        {
            self.idle.push(idle);
            return true;
        }
        false
    }
}

impl Idle {
    fn is_good(&self, now: Tick) -> bool {
        self.until > now && self.connection.is_usable()
    }
}

/// What a worker has told of a pool's size. Told by the sweep, so that a request pays nothing for it; taken back when
/// the pool goes.
struct Told {
    metrics: Arc<UpstreamMetrics>,
    idle: usize,
}

impl Told {
    fn tell(&mut self, idle: usize) {
        if idle != self.idle {
            self.metrics.idle.add(idle as i64 - self.idle as i64);
            self.idle = idle;
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell(0);
    }
}

#[cfg(test)]
mod tests;
