//! After an attempt that did not do: whether the request goes out again, and to whom.

use std::{ops::Range, sync::Arc, time::Duration};

use rand::RngExt;
use smallvec::SmallVec;

use super::{
    attempt::{Answered, From},
    claim::Unclaimed,
    error::Failure,
    journey::{Journey, Stop, Trip},
    record::RequestRecord,
    retry::{self, Attempt, Cause},
    tries::{Again, Tries},
};
use crate::route::{
    Member, Revision, Route,
    pick::{Ask, Nobody},
};

/// How long a request waits before it goes once more to the only member there is, in milliseconds: one that restarts
/// gets a moment, and not everything at once after it.
const PAUSE: Range<u64> = 10..40;

/// An attempt after which the request goes out again.
pub(super) struct Setback {
    /// What the client gets if nobody takes it.
    pub(super) failure: Failure,
    pub(super) cause: Cause,
    pub(super) again: Again,
    /// The member it went to, where the route has it now; `None` if it is out.
    pub(super) member: Option<usize>,
}

/// Why there is no next attempt with this version of the route.
pub(super) enum NoPlace {
    /// Nobody takes the request.
    Failed(Failure),
    /// The table has changed: this route serves the request now.
    Moved(Arc<Route>),
}

impl Journey<'_> {
    /// Why, and to whom, the request goes out again although there is an answer. `None`: the client gets that, be it
    /// because nobody else could be asked.
    pub(super) fn unwanted(
        &self,
        answered: &Answered,
        index: usize,
        tries: &mut Tries,
    ) -> Option<(Cause, Again)> {
        let status = answered.head.status;
        if !status.is_server_error() {
            return None;
        }
        let attempt = Attempt::Response {
            status,
            body_repeatable: answered.is_body_repeatable(),
        };
        let on = &self.route.settings.retries.on;
        let cause = retry::cause(&self.request.method, attempt, on)?;
        Some((cause, self.again(cause, index, tries)?))
    }

    /// Where the request goes next: a member with a place for it, once the table is what it was, or has come to be.
    pub(super) async fn place(
        &self,
        trip: &mut Trip,
        record: &mut RequestRecord,
    ) -> Result<(usize, From), NoPlace> {
        let setback = trip.setback.as_ref();
        let mut may_pause = setback.is_some_and(|setback| setback.again == Again::OtherOrSame);
        let (again, member) = match setback {
            None => (Again::Other, None),
            Some(setback) => (setback.again, setback.member),
        };
        let next = loop {
            if let Some((revision, route)) = self.current_route() {
                break Err(Unclaimed::Rerouted(revision, route));
            }
            let next = self.next(again, member, trip, record).await;
            if let Ok((index, _)) = next
                && Some(index) == member
                && may_pause
            {
                may_pause = false;
                tokio::time::sleep(Duration::from_millis(rand::rng().random_range(PAUSE))).await;
                continue;
            }
            break next;
        };
        let failure = match next {
            Ok(next) => {
                if let Some(setback) = trip.setback.take() {
                    if setback.cause == Cause::Unsuited && setback.member == self.affinity.member()
                    {
                        self.affinity.lend();
                    }
                    self.count_retry(setback.cause, record);
                }
                return Ok(next);
            }
            Err(Unclaimed::Rerouted(revision, Some(route))) => {
                record.revision = revision;
                return Err(NoPlace::Moved(route));
            }
            Err(Unclaimed::Rerouted(_, None)) => Failure::route_gone(&self.route.name),
            Err(Unclaimed::Failed(failure)) => failure,
        };
        let setback = trip.setback.take();
        Err(NoPlace::Failed(
            setback.map_or(failure, |setback| setback.failure),
        ))
    }

    /// The next member, after an attempt at this one (`None`: it is out of the route, or there was none).
    async fn next(
        &self,
        again: Again,
        member: Option<usize>,
        trip: &mut Trip,
        record: &mut RequestRecord,
    ) -> Result<(usize, From), Unclaimed> {
        let same = |record: &mut RequestRecord| {
            let same = member.filter(|&index| self.claim_same(index, record));
            same.map(|index| (index, From::Dial))
        };
        if again == Again::Same
            && let Some(same) = same(record)
        {
            return Ok(same);
        }
        let nobody = match self.claim(&trip.tries, record) {
            Ok(index) => return Ok((index, trip.tries.from())),
            Err(nobody) => nobody,
        };
        if again == Again::OtherOrSame
            && let Some(same) = same(record)
        {
            return Ok(same);
        }
        match nobody {
            Nobody::Full => {
                let index = self.wait(&mut trip.patience, &trip.tries, record).await?;
                Ok((index, trip.tries.from()))
            }
            nobody => Err(Unclaimed::Failed(self.nobody(nobody))),
        }
    }

    /// Goes on with another version of the route, or another route.
    pub(super) fn reroute(&self, route: Arc<Route>, mut trip: Trip) -> Stop {
        let tried = same_upstreams(&route, self.route, &trip.tries.members);
        trip.tries = trip.tries.moved(tried);
        if let Some(setback) = &mut trip.setback {
            let member = setback.member.map(|index| &self.route.members[index]);
            setback.member = member.and_then(|member| same_member(&route, member));
        }
        Stop::Rerouted(Box::new((route, trip)))
    }

    fn count_retry(&self, cause: Cause, record: &mut RequestRecord) {
        if cause == Cause::Unsuited {
            return;
        }
        record.retries += 1;
        let retries = &self.proxy.metrics.data_plane.retries;
        retries.with_label_values(&[cause.name()]).inc();
    }

    /// To whom the request goes after an attempt at this member that ended so; `None`: it has had its chances, or the
    /// route its retries.
    pub(super) fn again(&self, cause: Cause, index: usize, tries: &mut Tries) -> Option<Again> {
        let again = tries.again(cause, index)?;
        if !cause.is_charged() {
            return Some(again);
        }
        if again == Again::Other && !self.has_other(tries) {
            return None;
        }
        if !self.proxy.retry_budgets.withdraw(self.route) {
            self.proxy.metrics.data_plane.retry_budget_exhausted.inc();
            return None;
        }
        Some(again)
    }

    fn has_other(&self, tries: &Tries) -> bool {
        match self.current_route() {
            None => self.route.has_room(self.ask(&tries.members)),
            Some((_, route)) => route.is_some_and(|route| {
                let tried = same_upstreams(&route, self.route, &tries.members);
                route.has_room(Ask {
                    key: None,
                    sticks_to: None,
                    ..self.ask(&tried)
                })
            }),
        }
    }

    /// `None` while the table still has the route that we follow; else the revision of the table and what it has now.
    pub(super) fn current_route(&self) -> Option<(Revision, Option<Arc<Route>>)> {
        let table = self.proxy.live.table.load();
        match table.find(&self.target.host, self.target.path) {
            Ok(route) if std::ptr::eq(&**route, self.route) => None,
            found => Some((table.revision, found.ok().cloned())),
        }
    }
}

/// Where a route has this member, as it was in an earlier version of the route.
fn same_member(route: &Route, member: &Member) -> Option<usize> {
    let is_same = |other: &Member| {
        other.key.key == member.key.key && Arc::ptr_eq(&other.upstream, &member.upstream)
    };
    route.members.iter().position(is_same)
}

/// The members of a route whose upstreams are those of `tried` members of an earlier version.
fn same_upstreams(route: &Route, earlier: &Route, tried: &[usize]) -> SmallVec<[usize; 4]> {
    let is_tried = |member: &Member| {
        let upstreams = tried.iter().map(|&index| &earlier.members[index].upstream);
        upstreams
            .into_iter()
            .any(|upstream| Arc::ptr_eq(upstream, &member.upstream))
    };
    let members = route.members.iter().enumerate();
    let tried = members.filter(|(_, member)| is_tried(member));
    tried.map(|(index, _)| index).collect()
}
