//! How many of its requests a route may try again: some of those of the last seconds, so that retries don't multiply
//! the load of upstreams that fail because of it.
//!
//! Each worker counts by itself. A request costs one addition to a cell of the worker's own; routes are spread over a
//! fixed number of cells by a hash, and the few that meet in one share their budget.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use crate::route::Route;

/// Over how many seconds requests and retries are counted.
const SECONDS: usize = 10;
/// So many retries per second are always allowed.
const FLOOR: u32 = 10;
/// A power of two.
const CELLS: usize = 1024;

/// The retry budgets of one worker. 80 KiB.
#[derive(Default)]
pub struct RetryBudgets {
    requests: Window,
    retries: Window,
}

impl RetryBudgets {
    /// A request came for this route.
    pub fn count(&self, route: &Route) {
        self.requests.count(cell(route));
    }

    /// Takes a retry out of the route's budget; `false` if that is exhausted.
    pub fn withdraw(&self, route: &Route) -> bool {
        let (cell, percent) = (cell(route), route.settings.retries.budget_percent);
        let is_allowed = self.retries.sum(cell) < allowed(self.requests.sum(cell), percent);
        if is_allowed {
            self.retries.count(cell);
        }
        is_allowed
    }

    /// A second is over.
    pub fn advance(&self) {
        self.requests.advance();
        self.retries.advance();
    }
}

/// How many retries so many requests allow.
fn allowed(requests: u64, percent: u8) -> u64 {
    (requests * u64::from(percent) / 100).max(u64::from(FLOOR) * SECONDS as u64)
}

/// A route keeps its name through changes of the table.
fn cell(route: &Route) -> usize {
    let address = Arc::as_ptr(&route.name).cast::<u8>().addr() as u64;
    // Fibonacci hashing: the high bits of the product depend on all bits of the address.
    let hash = address.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (hash >> (64 - CELLS.ilog2())) as usize
}

/// Counts of the last [`SECONDS`], the one that runs included.
struct Window {
    now: Box<[Cell<u32>]>,
    before: RefCell<[Box<[u32]>; SECONDS - 1]>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            now: vec![Cell::new(0); CELLS].into(),
            before: RefCell::new(std::array::from_fn(|_| vec![0; CELLS].into())),
        }
    }
}

impl Window {
    fn count(&self, cell: usize) {
        let now = &self.now[cell];
        now.set(now.get().saturating_add(1));
    }

    fn sum(&self, cell: usize) -> u64 {
        let before = self.before.borrow();
        let before = before.iter().map(|second| u64::from(second[cell]));
        before.sum::<u64>() + u64::from(self.now[cell].get())
    }

    fn advance(&self) {
        let mut before = self.before.borrow_mut();
        before.rotate_right(1);
        for (now, before) in self.now.iter().zip(&mut before[0]) {
            *before = now.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_is_allowed_and_never_less_than_the_floor() {
        for (requests, percent, expected) in [
            (0, 20, 100),
            (500, 20, 100),
            (600, 20, 120),
            (600, 0, 100),
            (600, 100, 600),
            (40_000_000_000, 100, 40_000_000_000),
        ] {
            assert_eq!(allowed(requests, percent), expected, "{requests} {percent}");
        }
    }

    #[test]
    fn counts_are_of_the_last_seconds_and_of_their_cell() {
        let window = Window::default();
        for second in 1..=3 * SECONDS as u64 {
            window.count(7);
            assert_eq!(window.sum(7), second.min(SECONDS as u64), "{second}");
            window.advance();
        }
        window.count(8);
        assert_eq!(window.sum(8), 1);
        for _ in 0..SECONDS {
            window.advance();
        }
        assert_eq!((window.sum(7), window.sum(8)), (0, 0));
    }
}
