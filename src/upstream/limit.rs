//! How many requests may run at one time, over all workers, and who waits for their end: only where a key or a route
//! asks for a limit.

pub mod queue;

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use queue::Queue;

/// A count of running requests that cannot exceed its limit.
#[derive(Debug)]
pub struct Limit {
    /// Changes with the key it comes from: requests beyond a lowered one run to their end.
    most: AtomicU32,
    running: AtomicU32,
    /// How many wait for room here rather than anywhere.
    sought: AtomicU32,
    /// Who waits for a request to end.
    queue: Arc<Queue>,
}

/// One running request; dropping it ends it, and calls who waits for its place.
#[derive(Debug)]
pub struct Permit(Arc<Limit>);

impl Limit {
    /// Nothing runs yet.
    pub fn new(most: NonZeroU32, queue: Arc<Queue>) -> Arc<Self> {
        Arc::new(Self {
            most: most.get().into(),
            running: AtomicU32::new(0),
            sought: AtomicU32::new(0),
            queue,
        })
    }

    /// From now on so many may run.
    pub fn set_most(&self, most: NonZeroU32) {
        self.most.store(most.get(), Ordering::SeqCst);
    }

    /// How many may run.
    pub fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
    }

    /// How many run.
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    /// Whether no further one may run now.
    pub fn is_full(&self) -> bool {
        self.running() >= self.most()
    }

    /// Whether somebody waits who can use room here.
    pub fn is_sought(&self) -> bool {
        self.sought.load(Ordering::SeqCst) > 0 || self.queue.has_unbound()
    }

    /// Somebody waits for room here.
    fn seek(&self) {
        self.sought.fetch_add(1, Ordering::SeqCst);
    }

    /// Somebody does no longer.
    fn give_up(&self) {
        self.sought.fetch_sub(1, Ordering::SeqCst);
    }

    /// A place among those that run, if there is one left.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let most = self.most();
        let one_more = |running| (running < most).then_some(running + 1);
        let taken = (self.running).fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        taken.is_ok().then(|| Permit(self.clone()))
    }

    /// Who waits for it.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.queue.wake();
    }
}

/// What one request holds: its places among those that run in its route and at its upstream.
#[derive(Debug, Default)]
pub struct Permits {
    // First: with it comes the place in the route, and whoever is called by both finds both.
    of_member: Option<Permit>,
    of_route: Option<Permit>,
}

impl Permits {
    /// Takes a place at another member, in the stead of the one before; with it one in the route, where it has none
    /// yet. `false` if either is full: then nothing has changed.
    pub fn take(&mut self, route: Option<&Arc<Limit>>, member: Option<&Arc<Limit>>) -> bool {
        let needed = route.filter(|_| self.of_route.is_none());
        let of_route = needed.map(Limit::take);
        if matches!(of_route, Some(None)) {
            return false;
        }
        let of_member = member.map(Limit::take);
        if matches!(of_member, Some(None)) {
            return false;
        }
        self.of_route = self.of_route.take().or(of_route.flatten());
        self.of_member = of_member.flatten();
        true
    }

    /// Whether it has a place at the member of this limit.
    pub fn are_at(&self, member: &Arc<Limit>) -> bool {
        let of_member = self.of_member.as_ref();
        of_member.is_some_and(|permit| Arc::ptr_eq(&permit.0, member))
    }

    /// Whether it has its place in the route.
    pub fn are_in_route(&self) -> bool {
        self.of_route.is_some()
    }

    /// Gives the place at its member back.
    pub fn leave_member(&mut self) {
        self.of_member = None;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn limit(most: u32) -> Arc<Limit> {
        Limit::new(NonZeroU32::new(most).unwrap(), Arc::default())
    }

    #[test]
    fn a_limit_is_exact_over_threads() {
        let (limit, most_seen) = (limit(3), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(permit) = limit.take() {
                            most_seen.fetch_max(limit.running(), Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert!(most_seen.into_inner() <= 3);
        assert_eq!(limit.running(), 0);
    }

    #[test]
    fn a_limit_that_changes_holds_for_new_requests() {
        let limit = limit(2);
        let running = [limit.take(), limit.take()];
        assert!(limit.take().is_none());
        limit.set_most(NonZeroU32::MIN);
        let [first, second] = running;
        drop(first);
        assert!(limit.is_full(), "one still runs");
        drop(second);
        let only = limit.take();
        assert!(only.is_some() && limit.take().is_none());
        limit.set_most(NonZeroU32::new(2).unwrap());
        assert!(limit.take().is_some());
    }
}
