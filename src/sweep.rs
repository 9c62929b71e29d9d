//! Time limits without timers: every limit is a stamp, and one sweep per worker compares them all.
//!
//! A tokio timer per request costs 0.3 to 0.5 us; a stamp costs a store. The price is precision: a limit is
//! noticed up to one [`TICK`] late.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// How often limits are compared.
pub const TICK: Duration = Duration::from_millis(50);

/// A moment, in [`TICK`]s since the worker started.
pub type Tick = u32;

/// How late a sweep may come on a busy machine. What is beyond was a stall of ours (a stopped process, a paused virtual
/// machine, a starved core), and is nobody's delay but ours.
const LATE: Tick = 4;

/// The worker's coarse clock and every deadline that is armed.
#[derive(Default)]
pub struct Sweep {
    now: Cell<Tick>,
    deadlines: RefCell<Vec<Rc<DeadlineCell>>>,
    spare: RefCell<Vec<Rc<DeadlineCell>>>,
}

struct DeadlineCell {
    /// [`NEVER`] while disarmed.
    at: Cell<Tick>,
    waker: RefCell<Option<Waker>>,
}

/// The tick that does not come.
pub const NEVER: Tick = Tick::MAX;

impl Sweep {
    /// The current tick.
    pub fn now(&self) -> Tick {
        self.now.get()
    }

    /// Ticks that make up at least `duration`.
    pub fn ticks(duration: Duration) -> Tick {
        // One more than the quotient: the current tick is already partly over.
        Tick::try_from(duration.as_millis() / TICK.as_millis() + 1).unwrap_or(NEVER - 1)
    }

    /// Moves the clock and wakes every task whose deadline has passed. After a stall deadlines are put off by as much:
    /// what answered meanwhile was not read yet, and what was armed since then was armed by a clock that stood still.
    pub fn advance(&self, now: Tick) {
        let stalled = now
            .saturating_sub(self.now.replace(now))
            .saturating_sub(LATE);
        for cell in self.deadlines.borrow().iter() {
            if stalled > 0 && cell.at.get() != NEVER {
                cell.at
                    .set(cell.at.get().saturating_add(stalled).min(NEVER - 1));
            }
            if cell.at.get() <= now
                && let Some(waker) = cell.waker.take()
            {
                waker.wake();
            }
        }
    }

    /// A deadline, not armed yet. Cells are reused, so that this allocates only at a new peak of requests.
    pub fn deadline(self: &Rc<Self>) -> Deadline {
        let cell = self.spare.borrow_mut().pop().unwrap_or_else(|| {
            let cell = Rc::new(DeadlineCell {
                at: Cell::new(NEVER),
                waker: RefCell::new(None),
            });
            self.deadlines.borrow_mut().push(cell.clone());
            cell
        });
        Deadline {
            cell,
            sweep: self.clone(),
        }
    }
}

/// One armed or disarmed deadline; dropping it disarms it.
pub struct Deadline {
    cell: Rc<DeadlineCell>,
    sweep: Rc<Sweep>,
}

impl Deadline {
    /// Fires once `duration` from now has passed.
    pub fn arm(&self, duration: Duration) {
        self.cell.at.set(
            self.sweep
                .now()
                .saturating_add(Sweep::ticks(duration))
                .min(NEVER - 1),
        );
    }

    /// Fires at `tick`; `None` disarms it.
    pub fn arm_at(&self, tick: Option<Tick>) {
        self.cell.at.set(tick.unwrap_or(NEVER));
    }

    /// Never fires, until armed again.
    pub fn disarm(&self) {
        self.cell.at.set(NEVER);
    }

    /// Ready when it has fired; else the task is woken when it does.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.cell.at.get() <= self.sweep.now() {
            return Poll::Ready(());
        }
        let mut waker = self.cell.waker.borrow_mut();
        match &*waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// `future`'s output, or `None` when the deadline fires first.
    pub async fn limit<F: Future>(&self, future: F) -> Option<F::Output> {
        limit(Some(self), future).await
    }
}

/// `future`'s output, or `None` when the deadline, if there is one, fires first.
pub async fn limit<F: Future>(deadline: Option<&Deadline>, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match (future.as_mut().poll(cx), deadline) {
        (Poll::Ready(output), _) => Poll::Ready(Some(output)),
        (Poll::Pending, Some(deadline)) => deadline.poll(cx).map(|()| None),
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.disarm();
        self.cell.waker.take();
        self.sweep.spare.borrow_mut().push(self.cell.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(deadline: &Deadline) -> bool {
        deadline
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn a_deadline_fires_after_its_duration_and_not_before() {
        let sweep = Rc::new(Sweep::default());
        let deadline = sweep.deadline();
        deadline.arm(TICK * 2);
        for (now, fired) in [(0, false), (1, false), (2, false), (3, true), (4, true)] {
            sweep.advance(now);
            assert_eq!(poll(&deadline), fired, "at tick {now}");
        }
        deadline.disarm();
        assert!(!poll(&deadline));
    }

    #[test]
    fn a_stall_of_ours_is_no_delay_of_others() {
        let sweep = Rc::new(Sweep::default());
        let (deadline, unarmed) = (sweep.deadline(), sweep.deadline());
        deadline.arm(TICK * 20);
        sweep.advance(2);
        let resumed = 1_000;
        for now in resumed..resumed + 19 - LATE {
            sweep.advance(now);
            assert!(!poll(&deadline), "at tick {now}");
        }
        sweep.advance(resumed + 19 - LATE);
        assert!(poll(&deadline));
        assert!(!poll(&unarmed));
    }

    #[test]
    fn cells_are_reused_and_come_back_disarmed() {
        let sweep = Rc::new(Sweep::default());
        let first = sweep.deadline();
        first.arm(Duration::ZERO);
        drop(first);
        let second = sweep.deadline();
        sweep.advance(100);
        assert!(!poll(&second));
        assert_eq!(sweep.deadlines.borrow().len(), 1);
    }
}
