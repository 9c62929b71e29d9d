//! How many requests each upstream has in flight, over all workers.
//!
//! Each worker counts in cells that it alone writes, so that a request costs two plain stores and no other core's
//! cache line; whoever wants to know adds them up.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use super::Slot;
use crate::telemetry::cells::Cells;

/// The counts of all workers.
#[derive(Debug)]
pub struct Loads {
    workers: Box<[Cells<AtomicU32>]>,
}

/// One worker's counts: the one that may write them.
pub struct WorkerLoads {
    loads: Arc<Loads>,
    worker: usize,
    /// Two threads that counted in the same cells would lose each other's changes.
    _not_shared: PhantomData<Cell<()>>,
}

impl Loads {
    /// Nothing in flight; and the writing end of each of so many workers.
    pub fn over(workers: usize) -> (Arc<Self>, Vec<WorkerLoads>) {
        let loads = Arc::new(Self {
            workers: (0..workers).map(|_| Cells::default()).collect(),
        });
        let of_worker = |worker| WorkerLoads {
            loads: loads.clone(),
            worker,
            _not_shared: PhantomData,
        };
        let ends = (0..workers).map(of_worker).collect();
        (loads, ends)
    }

    /// Requests in flight to the upstream of this slot. What other workers change at this moment may be missing.
    pub fn of(&self, slot: Slot) -> u32 {
        let cells = self
            .workers
            .iter()
            .filter_map(|cells| cells.get(slot.index));
        let counts = cells.map(|cell| cell.load(Ordering::Relaxed));
        // A request may end on the way from one worker's count to another's, so no sum can overflow.
        counts.fold(0, u32::saturating_add)
    }
}

impl WorkerLoads {
    /// The counts of all workers.
    pub fn all(&self) -> &Loads {
        &self.loads
    }

    /// A request goes to the upstream of this slot.
    pub fn begin(&self, slot: Slot) {
        let cell = self.loads.workers[self.worker].cell(slot.index);
        cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// It has ended, or goes to another one.
    pub fn end(&self, slot: Slot) {
        let cell = self.loads.workers[self.worker].cell(slot.index);
        cell.store(
            cell.load(Ordering::Relaxed).saturating_sub(1),
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: u32) -> Slot {
        Slot {
            index,
            generation: 0,
        }
    }

    #[test]
    fn what_every_worker_has_in_flight_is_added_up() {
        let (loads, workers) = Loads::over(2);
        workers[0].begin(slot(3));
        workers[1].begin(slot(3));
        workers[1].begin(slot(3));
        workers[1].begin(slot(5000));
        assert_eq!([3, 5000, 7].map(|index| loads.of(slot(index))), [3, 1, 0]);
        workers[1].end(slot(3));
        workers[1].end(slot(5000));
        assert_eq!([3, 5000].map(|index| loads.of(slot(index))), [2, 0]);
    }
}
