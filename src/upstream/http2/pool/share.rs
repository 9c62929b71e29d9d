//! How many connections without streams a worker keeps: each takes a file descriptor.

use std::rc::Rc;

use super::{Connection, Pools};
use crate::sweep::Tick;

/// What makes way at the least, where descriptors are used up.
const LEAST: usize = 16;

impl Pools {
    /// Closes the connections without streams beyond so many, those that had one longest ago first; how many are left.
    pub fn keep_idle_at_most(&self, most: usize) -> usize {
        let idle = self.idle();
        let excess = idle.len().saturating_sub(most);
        for (_, connection) in &idle[..excess] {
            connection.retire(self.sweep.now());
        }
        idle.len() - excess
    }

    /// Ends half of the connections without streams, those that had one longest ago; how many that is. Their tasks do
    /// it, when they run next.
    pub fn make_way(&self) -> usize {
        let idle = self.idle();
        let count = (idle.len() / 2).max(LEAST).min(idle.len());
        for (_, connection) in &idle[..count] {
            connection.abort();
        }
        count
    }

    /// All without streams, beginning with the one that had one longest ago.
    fn idle(&self) -> Vec<(Tick, Rc<Connection>)> {
        let mut idle = Vec::new();
        for pool in &*self.all.borrow() {
            for connection in &*pool.connections.borrow() {
                if let Some(since) = connection.idle_since()
                    && !connection.is_closing()
                {
                    idle.push((since, connection.clone()));
                }
            }
        }
        idle.sort_unstable_by_key(|&(since, _)| since);
        idle
    }
}
