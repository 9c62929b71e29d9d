//! Connections that speak for one client: a PROXY header told the upstream of it, so nobody else may have them. They lie
//! among the idle ones of the upstream, and end with their client.

use std::{cell::Cell, rc::Rc};

use super::{Idle, Pool, Pools};
use crate::upstream::{Upstream, http1::Connection};

/// A client's connection, as the pools know it: whether it has left.
#[derive(Clone, Debug, Default)]
pub struct Owner(Rc<Cell<bool>>);

impl Owner {
    /// Whether its client has left: what comes back for it is of use to nobody.
    pub(super) fn has_left(&self) -> bool {
        self.0.get()
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Pools {
    /// The most recently used idle connection of this owner's that can still be used.
    pub fn take_own(&self, upstream: &Upstream, owner: &Owner) -> Option<Connection> {
        let mut slots = self.slots.borrow_mut();
        let now = self.sweep.now();
        loop {
            let pool = slots.find(upstream.slot)?;
            // Who asks often is found near the end.
            let at = (pool.idle.iter()).rposition(|idle| idle.owner.as_ref() == Some(owner))?;
            let idle = pool.idle.remove(at);
            slots.idle -= 1;
            if idle.is_good(now) {
                return Some(idle.connection);
            }
        }
    }

    /// Closes the idle connections of an owner whose client is gone. Those that still run are closed at their end.
    pub fn leave(&self, owner: &Owner) {
        owner.0.set(true);
        let slots = &mut *self.slots.borrow_mut();
        for &index in &slots.used {
            let Some(pool) = &mut slots.pools[index] else {
                continue;
            };
            // All of a pool are somebody's, or none is.
            if pool.idle.first().is_some_and(|idle| idle.owner.is_some()) {
                let before = pool.idle.len();
                (pool.idle).retain(|idle| idle.owner.as_ref() != Some(owner));
                slots.idle -= before - pool.idle.len();
            }
        }
    }
}

impl Pool {
    /// For the next request of its owner alone, in place of the one used longest ago if there are `most` already: whoever
    /// has that may never ask again. Whether there is one more now.
    pub(super) fn keep_own(&mut self, idle: Idle, most: usize) -> bool {
        let is_full = self.idle.len() >= most;
        if is_full {
            if self.idle.is_empty() {
                return false;
            }
            self.idle.remove(0);
        }
        self.idle.push(idle);
        !is_full
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        task::{Context, Waker},
        time::Duration,
    };

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::{
        super::{
            PoolOptions, Sweep, Wants,
            dials::{DialPlace, Granted, MOST_DIALS},
            tests::{connect, listening, pools},
        },
        *,
    };
    use crate::{telemetry::metrics::Metrics, upstream::Registry};

    /// An upstream, and owners with connections to it.
    struct Owned {
        sweep: Rc<Sweep>,
        pools: Pools,
        upstream: Arc<Upstream>,
        listener: TcpListener,
    }

    impl Owned {
        async fn with(options: PoolOptions) -> Self {
            let (sweep, pools) = pools();
            let mut registry = Registry::new(Metrics::new());
            let (upstream, listener) = listening(&mut registry, options).await;
            Self {
                sweep,
                pools,
                upstream,
                listener,
            }
        }

        /// A connection that speaks for this owner lies idle; the upstream's end of it.
        async fn idle(&self, owner: &Owner) -> TcpStream {
            let (connection, far) = connect(&self.listener).await;
            connection.belongs_to(owner.clone());
            self.pools.put(&self.upstream, connection, None);
            far
        }

        fn take(&self, owner: &Owner) -> Option<Connection> {
            self.pools.take_own(&self.upstream, owner)
        }

        /// How many lie idle, counted in both ways.
        fn count(&self) -> usize {
            let counted = self.pools.slots.borrow().idle;
            self.pools.sweep();
            assert_eq!(self.upstream.metrics.idle.get(), counted as i64);
            counted
        }
    }

    async fn is_closed(mut far: TcpStream) -> bool {
        let read = tokio::time::timeout(Duration::from_secs(10), far.read(&mut [0])).await;
        matches!(read, Ok(Ok(0)))
    }

    #[tokio::test]
    async fn nobody_gets_what_speaks_for_another() {
        let owned = Owned::with(PoolOptions::DEFAULT).await;
        let (one, two) = (Owner::default(), Owner::default());
        let _far = [owned.idle(&one).await, owned.idle(&one).await];
        let _other = owned.idle(&two).await;
        assert!(owned.take(&Owner::default()).is_none());
        let taken = owned.take(&two).expect("its own");
        assert!(owned.take(&two).is_none(), "there was but one");
        assert_eq!(owned.count(), 2);
        owned.pools.put(&owned.upstream, taken, None);
        let all: Vec<_> = std::iter::from_fn(|| owned.take(&one)).collect();
        assert_eq!((all.len(), owned.count()), (2, 1));
    }

    #[tokio::test]
    async fn nobody_who_waits_for_any_connection_gets_what_speaks_for_another() {
        let owned = Owned::with(PoolOptions::DEFAULT).await;
        let mut places: Vec<DialPlace<'_>> = Vec::new();
        for _ in 0..MOST_DIALS {
            match owned.pools.grant(&owned.upstream, Wants::Any).await {
                Granted::Dial(place) => places.push(place),
                Granted::Connection(_) => panic!("nobody gave one"),
            }
        }
        let mut waiting = Box::pin(owned.pools.grant(&owned.upstream, Wants::Any));
        let cx = &mut Context::from_waker(Waker::noop());
        let is_waiting = waiting.as_mut().poll(cx).is_pending();
        assert!(is_waiting, "every place is taken");
        let owner = Owner::default();
        let _far = owned.idle(&owner).await;
        assert!(waiting.as_mut().poll(cx).is_pending());
        assert!(owned.take(&owner).is_some());
        places.pop();
        assert!(matches!(waiting.await, Granted::Dial(_)));
    }

    #[tokio::test]
    async fn what_speaks_for_a_client_ends_with_it() {
        let owned = Owned::with(PoolOptions::DEFAULT).await;
        let (one, two) = (Owner::default(), Owner::default());
        let far = [owned.idle(&one).await, owned.idle(&one).await];
        let _other = owned.idle(&two).await;
        let (running, end) = connect(&owned.listener).await;
        running.belongs_to(one.clone());
        owned.pools.leave(&one);
        assert_eq!(owned.count(), 1);
        for far in far {
            assert!(is_closed(far).await);
        }
        // What its last request ran on.
        owned.pools.put(&owned.upstream, running, None);
        assert!(is_closed(end).await);
        assert_eq!(owned.count(), 1);
        assert!(owned.take(&two).is_some());
    }

    #[tokio::test]
    async fn the_one_used_longest_ago_makes_way_and_time_ends_them_like_any() {
        let two_seconds = PoolOptions {
            max_idle: 2,
            idle_timeout: Duration::from_secs(2),
            lifetime: None,
        };
        let owned = Owned::with(two_seconds).await;
        let owners = [(); 3].map(|()| Owner::default());
        let first = owned.idle(&owners[0]).await;
        let _second = owned.idle(&owners[1]).await;
        let _third = owned.idle(&owners[2]).await;
        assert!(is_closed(first).await);
        assert_eq!(owned.count(), 2);
        assert!(owned.take(&owners[0]).is_none());
        owned.sweep.advance(Sweep::ticks(Duration::from_secs(2)));
        assert!(owned.take(&owners[1]).is_none(), "its time is over");
        owned.pools.sweep();
        assert_eq!(owned.count(), 0);

        let none = PoolOptions {
            max_idle: 0,
            ..PoolOptions::DEFAULT
        };
        let owned = Owned::with(none).await;
        let far = owned.idle(&owners[0]).await;
        assert!(is_closed(far).await);
        assert_eq!(owned.count(), 0);
    }
}
