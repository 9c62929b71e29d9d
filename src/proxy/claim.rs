//! A member for a request, with the right to run there: at once, or after a wait in the route's queue.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{error::Failure, journey::Journey, record::RequestRecord, tries::Tries};
use crate::{
    route::{
        Member, Revision, Route, RouteLimits,
        pick::{Ask, Nobody},
    },
    sweep::Deadline,
    telemetry::metrics::DataPlaneMetrics,
    upstream::limit::{Limit, queue::Seeks},
};

/// How often a pick is repeated whose last place another worker took meanwhile.
const MAX_CONTESTS: usize = 8;

/// How often who waits longest looks by itself: nobody calls when a member comes back that was ejected or unhealthy.
const LOOK: Duration = Duration::from_millis(100);

/// Why a wait ended without a member.
pub(super) enum Unclaimed {
    /// It took too long, too many wait already, or nobody is left to wait for.
    Failed(Failure),
    /// The table has changed: its revision, and what it has now.
    Rerouted(Revision, Option<Arc<Route>>),
}

/// Who asks for a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    Newcomer,
    /// It waited for its turn.
    Called,
}

impl Journey<'_> {
    /// A member that was not tried, with a place for the request where places are limited.
    pub(super) fn claim(&self, tries: &Tries, record: &mut RequestRecord) -> Result<usize, Nobody> {
        match &self.route.limits {
            None => self.route.pick(self.ask(&tries.members)),
            Some(limits) => self.claim_place(limits, Asker::Newcomer, tries, record),
        }
    }

    /// The same member again, where it still has room.
    pub(super) fn claim_same(&self, index: usize, record: &mut RequestRecord) -> bool {
        let Some(limits) = &self.route.limits else {
            return true;
        };
        let limit = self.route.members[index].limit.as_ref();
        if limit.is_some_and(|limit| record.permits.are_at(limit)) {
            return true;
        }
        record.permits.take(limits.requests.as_ref(), limit)
    }

    fn claim_place(
        &self,
        limits: &RouteLimits,
        asker: Asker,
        tries: &Tries,
        record: &mut RequestRecord,
    ) -> Result<usize, Nobody> {
        let of_route = limits.requests.as_ref();
        let is_route_full = || of_route.is_some_and(|limit| limit.is_full());
        let is_in_route = record.permits.are_in_route();
        // Whoever waits was there before; but of no use is room at a member to who has no place in a full route.
        let yields = asker == Asker::Newcomer && !(is_in_route && is_route_full());
        if yields && of_route.is_some() && !is_in_route && limits.queue.has_unbound() {
            return Err(Nobody::Full);
        }
        for _ in 0..MAX_CONTESTS {
            if !is_in_route && is_route_full() {
                return Err(Nobody::Full);
            }
            let ask = self.ask(&tries.members);
            let index = self.route.pick(Ask { yields, ..ask })?;
            let of_member = self.route.members[index].limit.as_ref();
            if record.permits.take(of_route, of_member) {
                return Ok(index);
            }
        }
        Err(Nobody::Full)
    }

    /// Waits in the route's queue for a member with room, for as long as the request has `patience` left.
    pub(super) async fn wait(
        &self,
        patience: &mut Option<Duration>,
        tries: &Tries,
        record: &mut RequestRecord,
    ) -> Result<usize, Unclaimed> {
        let begun = Instant::now();
        let left = patience.unwrap_or(self.route.settings.timeouts.queue);
        let deadline = self.proxy.sweep.deadline();
        deadline.arm(left);
        let waited = self.wait_until(&deadline, tries, record).await;
        *patience = Some(left.saturating_sub(begun.elapsed()));
        waited
    }

    async fn wait_until(
        &self,
        deadline: &Deadline,
        tries: &Tries,
        record: &mut RequestRecord,
    ) -> Result<usize, Unclaimed> {
        let data_plane = &self.proxy.metrics.data_plane;
        let rejected = |reason: &str, failure| {
            data_plane.queue_rejected.with_label_values(&[reason]).inc();
            Err(Unclaimed::Failed(failure))
        };
        let Some(limits) = &self.route.limits else {
            return Err(Unclaimed::Failed(self.nobody(Nobody::Full)));
        };
        // A place at a member that failed is of use to others meanwhile.
        record.permits.leave_member();
        let seeks = self.seeks(limits, tries, record);
        let most = self.route.settings.max_queue as usize;
        let Some(turn) = limits.queue.join(most, seeks) else {
            return match self.claim_elsewhere(limits, tries, record) {
                Some(index) => Ok(index),
                None => rejected("full", Failure::queue_full(&self.route.name)),
            };
        };
        if self.has_room() {
            limits.queue.wake();
        }
        let _waiting = Waiting::counted(data_plane);
        let mut applied = self.proxy.live.applied.subscribe();
        let mut is_called = false;
        loop {
            // Who takes a member out may count on it that nobody goes there any more, whoever waits included.
            if let Some((revision, route)) = self.current_route() {
                return Err(Unclaimed::Rerouted(revision, route));
            }
            if is_called {
                match self.claim_place(limits, Asker::Called, tries, record) {
                    Ok(index) => return Ok(index),
                    Err(Nobody::Full) if self.has_room() => turn.pass_on(),
                    Err(Nobody::Full) => {}
                    Err(nobody) => return Err(Unclaimed::Failed(self.nobody(nobody))),
                }
            }
            is_called = tokio::select! {
                biased;
                () = turn.called() => true,
                () = poll_fn(|cx| deadline.poll(cx)) => {
                    return match self.claim_elsewhere(limits, tries, record) {
                        Some(index) => Ok(index),
                        None => rejected("timeout", Failure::queue_timeout(&self.route.name)),
                    };
                }
                () = tokio::time::sleep(LOOK), if turn.is_first() => {
                    if self.has_room() {
                        limits.queue.wake();
                    }
                    false
                }
                _ = applied.changed() => false,
            };
        }
    }

    /// A place at another member than the client's own, whose room is not to be waited for any more.
    fn claim_elsewhere(
        &self,
        limits: &RouteLimits,
        tries: &Tries,
        record: &mut RequestRecord,
    ) -> Option<usize> {
        self.route.own(self.ask(&tries.members))?;
        self.affinity.lend();
        let claimed = self.claim_place(limits, Asker::Newcomer, tries, record);
        claimed.ok()
    }

    /// What the request waits for.
    fn seeks(&self, limits: &RouteLimits, tries: &Tries, record: &RequestRecord) -> Seeks {
        let route = limits.requests.as_ref();
        let route = route.filter(|_| !record.permits.are_in_route());
        Seeks {
            route: route.cloned(),
            members: self.sought(tries),
        }
    }

    /// The limits of the members that it can use; `None`: it goes to any.
    fn sought(&self, tries: &Tries) -> Option<Box<[Arc<Limit>]>> {
        let limit = |(_, member): (usize, &Member)| member.limit.clone();
        let members = || self.route.members.iter().enumerate();
        // One without a limit is out, or it would have the request: it may come back.
        let limits: Option<Box<[_]>> = match self.route.own(self.ask(&tries.members)) {
            Some(own) => members().skip(own).take(1).map(limit).collect(),
            None if tries.members.is_empty() => None,
            None => {
                let is_left = |(index, member): &(usize, &Member)| {
                    member.takes_new_requests() && !tries.members.contains(index)
                };
                members().filter(is_left).map(limit).collect()
            }
        };
        limits.filter(|limits| !limits.is_empty())
    }

    /// Whether there is room at a member for somebody.
    fn has_room(&self) -> bool {
        self.route.has_room(Ask {
            sticks_to: None,
            yields: false,
            ..self.ask(&[])
        })
    }
}

/// Counts a request among those that wait.
struct Waiting<'m>(&'m DataPlaneMetrics);

impl<'m> Waiting<'m> {
    fn counted(metrics: &'m DataPlaneMetrics) -> Self {
        metrics.queued_requests.inc();
        Self(metrics)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.queued_requests.dec();
    }
}
