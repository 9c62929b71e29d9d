//! How many connections a worker keeps idle for all upstreams together: each takes a file descriptor, and those of one
//! upstream must not be what another lacks.

use std::sync::Arc;

use super::{Idle, Pools, Slots};
use crate::{sweep::Tick, upstream::Upstream};

/// Looking for the oldest goes through all of them, so beyond the bound one in so many is closed at a time.
const AT_A_TIME: usize = 8;
/// What makes way at the least, where descriptors are used up.
const LEAST: usize = 16;

impl Pools {
    /// The same, with at most so many idle connections.
    pub fn keeping(self, most: usize) -> Self {
        self.keep_at_most(most);
        self
    }

    /// Keeps at most so many connections idle from now on.
    pub fn keep_at_most(&self, most: usize) {
        let mut slots = self.slots.borrow_mut();
        slots.most = Some(most);
        slots.keep_bound();
    }

    /// Closes half of the idle connections, those that were used longest ago; how many that is.
    pub fn make_way(&self) -> usize {
        let mut slots = self.slots.borrow_mut();
        let count = (slots.idle / 2).max(LEAST);
        slots.close_oldest(count)
    }
}

impl Slots {
    /// For a request that waits, else for the next one; in place of what was used longest ago, if there are too many.
    pub(super) fn keep(&mut self, upstream: &Arc<Upstream>, idle: Idle) {
        let most = usize::from(upstream.pool_options().max_idle);
        if self.pool(upstream).keep(idle, most) {
            self.idle += 1;
            self.keep_bound();
        }
    }

    fn keep_bound(&mut self) {
        if let Some(most) = self.most
            && self.idle > most
        {
            self.close_oldest(self.idle - most + most / AT_A_TIME);
        }
    }

    /// Closes so many idle connections, if there are, wherever they lie; how many that was.
    fn close_oldest(&mut self, count: usize) -> usize {
        let count = count.min(self.idle);
        let pools = (self.used.iter()).filter_map(|&index| self.pools[index].as_deref());
        let mut ages: Vec<Tick> = pools
            .flat_map(|pool| pool.idle.iter().map(|idle| idle.since))
            .collect();
        let Some(last) = count.checked_sub(1).filter(|&last| last < ages.len()) else {
            return 0;
        };
        let (older, &mut newest, _) = ages.select_nth_unstable(last);
        // Ticks are coarse: of those put back in the same one as the last, not all go.
        let mut ties = count - older.iter().filter(|&&since| since < newest).count();
        for &index in &self.used {
            let Some(pool) = &mut self.pools[index] else {
                continue;
            };
            pool.idle.retain(|idle| {
                let is_tie = idle.since == newest && ties > 0;
                ties -= usize::from(is_tie);
                idle.since >= newest && !is_tie
            });
        }
        self.idle -= count;
        count
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::{
        super::{
            PoolOptions,
            tests::{listening, pools},
        },
        *,
    };
    use crate::{
        telemetry::metrics::Metrics,
        upstream::{Registry, http1::Connection, transport::Transport},
    };

    /// Several upstreams whose connections are kept by one worker.
    struct Kept {
        pools: Pools,
        upstreams: Vec<Arc<Upstream>>,
        /// The upstreams' ends.
        far: Vec<UnixStream>,
    }

    impl Kept {
        async fn by(pools: Pools, upstreams: usize) -> Self {
            let mut registry = Registry::new(Metrics::new());
            let mut made = Vec::new();
            for _ in 0..upstreams {
                made.push(listening(&mut registry, PoolOptions::DEFAULT).await.0);
            }
            Self {
                pools,
                upstreams: made,
                far: Vec::new(),
            }
        }

        fn put(&mut self, upstream: usize, count: usize) {
            for _ in 0..count {
                let (near, far) = UnixStream::pair().expect("a pair of sockets");
                let connection = Connection::new(Transport::Unix(near));
                self.pools.put(&self.upstreams[upstream], connection, None);
                self.far.push(far);
            }
        }

        /// How many each upstream has, counted anew.
        fn count(&self) -> Vec<i64> {
            let counted = self.pools.slots.borrow().idle;
            self.pools.sweep();
            let counts: Vec<_> = (self.upstreams.iter())
                .map(|upstream| upstream.metrics.idle.get())
                .collect();
            assert_eq!(counts.iter().sum::<i64>(), counted as i64, "miscounted");
            counts
        }
    }

    #[tokio::test]
    async fn who_was_used_longest_ago_makes_room_for_others() {
        let (sweep, pools) = pools();
        let mut kept = Kept::by(pools.keeping(16), 3).await;
        kept.put(0, 12);
        sweep.advance(1);
        kept.put(1, 4);
        assert_eq!(kept.count(), [12, 4, 0]);
        sweep.advance(2);
        // One too many, and an eighth besides, so that the next ones need not look.
        kept.put(2, 1);
        assert_eq!(kept.count(), [9, 4, 1]);
        kept.put(2, 2);
        assert_eq!(kept.count(), [9, 4, 3]);
        // What is used is young.
        sweep.advance(3);
        let all: Vec<_> = std::iter::from_fn(|| kept.pools.take(&kept.upstreams[0])).collect();
        assert_eq!((all.len(), kept.count()), (9, vec![0, 4, 3]));
        for connection in all {
            kept.pools.put(&kept.upstreams[0], connection, None);
        }
        kept.put(0, 30);
        let counts = kept.count();
        assert_eq!((counts[1], counts[2]), (0, 0), "{counts:?}");
        assert!((14..=16).contains(&counts[0]), "{counts:?}");
        // The other protocol needs some.
        kept.pools.keep_at_most(8);
        assert!((7..=8).contains(&kept.count()[0]));
    }

    #[tokio::test]
    async fn half_of_all_makes_way_where_descriptors_are_lacking() {
        let (sweep, pools) = pools();
        let mut kept = Kept::by(pools, 3).await;
        assert_eq!(kept.pools.make_way(), 0);
        for upstream in 0..3 {
            kept.put(upstream, 20);
            sweep.advance(sweep.now() + 1);
        }
        assert_eq!((kept.pools.make_way(), kept.count()), (30, vec![0, 10, 20]));
        assert_eq!((kept.pools.make_way(), kept.count()), (16, vec![0, 0, 14]));
        assert_eq!((kept.pools.make_way(), kept.count()), (14, vec![0, 0, 0]));
    }

    #[tokio::test]
    async fn nothing_is_kept_where_nothing_may_be() {
        let (_, pools) = pools();
        let mut kept = Kept::by(pools.keeping(0), 1).await;
        kept.put(0, 3);
        assert_eq!(kept.count(), [0]);
    }
}
