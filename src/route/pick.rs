//! Which member of a route gets a request.

use std::cell::LazyCell;

use super::{Member, Role, Route};
use crate::upstream::{Endpoint, balancer::Balancer, limit::Limit, load::Loads};

/// What a pick depends on, beyond the route.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// Members that have had the request already, by index.
    pub tried: &'a [usize],
    /// What is in flight.
    pub loads: &'a Loads,
    /// The hash of what the route hashes; `None` if the request lacks it.
    pub key: Option<u64>,
    /// The member the client sticks to, by index.
    pub sticks_to: Option<usize>,
    /// Whether it leaves to others the room that they wait for.
    pub yields: bool,
}

impl Ask<'_> {
    fn has_tried(&self, member: usize) -> bool {
        self.tried.contains(&member)
    }

    /// Whether there is room for it.
    fn finds_room_at(&self, member: &Member) -> bool {
        let is_free = |limit: &Limit| !(limit.is_full() || self.yields && limit.is_sought());
        member.limit.as_deref().is_none_or(is_free)
    }
}

/// Why no member gets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// The route has none that takes new requests.
    Without,
    /// Those it has are out: ejected, or unhealthy.
    Out,
    /// Each has had it.
    Tried,
    /// So many requests run at those that could get it as may.
    Full,
}

impl Route {
    /// The member to send a request to, by index: none that was tried, the one the client sticks to if it can take it
    /// (while that is full, nobody else), a backup only if no other can, and one that is out, or whose name has no address
    /// yet, only if there is nobody else. While the route [panics](Self::panics) a first attempt goes to any that serves,
    /// in or out; a further one to somebody who is in, if anybody is.
    ///
    /// # Errors
    /// Why nobody gets it.
    pub fn pick(&self, ask: Ask<'_>) -> Result<usize, Nobody> {
        let panics = LazyCell::new(|| ask.tried.is_empty() && self.panics());
        let is_good =
            |member: usize| self.may_try(ask, member) && (self.members[member].is_in() || *panics);
        if let Some(own) = self.own(ask) {
            let has_room = ask.finds_room_at(&self.members[own]);
            return has_room.then_some(own).ok_or(Nobody::Full);
        }
        let in_flight = |member: usize| self.in_flight(ask, member);
        let picked = match ask.tried {
            [] => self.pick_slowly(ask, || self.balancer.pick(ask.key, is_good, in_flight)),
            _ => self.balancer.pick_again(ask.key, is_good, in_flight),
        };
        match picked {
            Some(member) => Ok(member),
            None => self.pick_in_need(ask),
        }
    }

    /// Whether [`Self::pick`] finds a member, with room, that is no last resort.
    pub fn has_room(&self, ask: Ask<'_>) -> bool {
        if let Some(own) = self.own(ask) {
            return ask.finds_room_at(&self.members[own]);
        }
        let panics = ask.tried.is_empty() && self.panics();
        for role in [Role::Serving, Role::Backup] {
            let of_role = self.members.iter().enumerate().filter(|(index, member)| {
                member.role == role && !ask.has_tried(*index) && member.takes_new_requests()
            });
            let mut usable = of_role.filter(|(_, member)| {
                let is_used = member.is_in() || (panics && role == Role::Serving);
                member.is_resolved() && is_used
            });
            if let Some((_, first)) = usable.next() {
                // Backups don't take what waits for one that is full.
                return ask.finds_room_at(first)
                    || usable.any(|(_, member)| ask.finds_room_at(member));
            }
        }
        false
    }

    /// The member that the client sticks to, if that can take the request, or could if it were not full.
    pub fn own(&self, ask: Ask<'_>) -> Option<usize> {
        ask.sticks_to.filter(|&own| {
            let member = &self.members[own];
            let panics = || ask.tried.is_empty() && self.panics();
            !ask.has_tried(own) && member.is_resolved() && (member.is_in() || panics())
        })
    }

    /// Whether a key of the request decides who gets it.
    pub fn is_keyed(&self) -> bool {
        let backups = self.backups.as_deref();
        self.balancer.is_keyed() || backups.is_some_and(Balancer::is_keyed)
    }

    /// All that serve are out, or full.
    #[cold]
    fn pick_in_need(&self, ask: Ask<'_>) -> Result<usize, Nobody> {
        // A member that is full is not out: requests wait for it, and don't go to who is there for when it is.
        let is_full = |role| {
            let mut members = self.members.iter().enumerate();
            members.any(|(index, member)| {
                let is_of_role = member.role == role && !ask.has_tried(index);
                is_of_role && !ask.finds_room_at(member) && member.is_usable()
            })
        };
        if is_full(Role::Serving) {
            return Err(Nobody::Full);
        }
        let is_good = |member: usize| self.is_good(ask, member);
        let is_untried = |member: usize| !ask.has_tried(member);
        let is_resolved = |member: usize| self.may_try(ask, member);
        let backups = self.backups.as_deref();
        let pick_of = |balancer: &Balancer, is_usable: &dyn Fn(usize) -> bool| {
            balancer.pick_again(ask.key, is_usable, |member| self.in_flight(ask, member))
        };
        let backup = || backups.and_then(|backups| pick_of(backups, &is_good));
        let anybody = |is_usable: &dyn Fn(usize) -> bool| {
            let of_backups = || backups.and_then(|backups| pick_of(backups, is_usable));
            pick_of(&self.balancer, is_usable).or_else(of_backups)
        };
        if let Some(backup) = backup() {
            return Ok(backup);
        }
        if is_full(Role::Backup) {
            return Err(Nobody::Full);
        }
        let panics = self.settings.panic_percent > 0;
        let out = || panics.then(|| anybody(&is_resolved)).flatten();
        // Dialling it fails at once, and says why.
        let unresolved =
            || anybody(&|member| is_untried(member) && !self.members[member].is_resolved());
        out().or_else(unresolved).ok_or_else(|| {
            let takes = |member: &Member| member.takes_new_requests();
            let is_full_in_need = |(index, member): (usize, &Member)| {
                panics && is_untried(index) && takes(member) && !ask.finds_room_at(member)
            };
            if self.members.iter().enumerate().any(is_full_in_need) {
                return Nobody::Full;
            }
            match self.members.iter().position(takes) {
                None => Nobody::Without,
                Some(_) if anybody(&is_untried).is_some() => Nobody::Out,
                Some(_) => Nobody::Tried,
            }
        })
    }

    fn is_good(&self, ask: Ask<'_>, member: usize) -> bool {
        self.may_try(ask, member) && self.members[member].is_in()
    }

    fn may_try(&self, ask: Ask<'_>, member: usize) -> bool {
        let is_untried = !ask.has_tried(member);
        let member = &self.members[member];
        is_untried && member.is_resolved() && ask.finds_room_at(member)
    }

    fn in_flight(&self, ask: Ask<'_>, member: usize) -> u32 {
        ask.loads.of(self.members[member].upstream.slot)
    }
}

impl Member {
    /// Whether it may get requests that are nobody's in particular, as far as its key says.
    pub fn takes_new_requests(&self) -> bool {
        self.weight > 0 && self.role != Role::Draining && !self.is_alias
    }

    /// Whether it may get them as things are, if it is not full.
    pub fn is_usable(&self) -> bool {
        self.takes_new_requests() && self.is_resolved() && self.is_in()
    }

    /// Whether clients that it had may stick to it, as far as its key says.
    pub fn keeps_clients(&self) -> bool {
        self.weight > 0 && !self.is_alias
    }

    /// Whether so many requests run at it as may.
    pub fn is_full(&self) -> bool {
        self.limit.as_ref().is_some_and(|limit| limit.is_full())
    }

    /// Whether there is an address to dial.
    pub fn is_resolved(&self) -> bool {
        !matches!(self.upstream.identity.endpoint, Endpoint::Unresolved(..))
    }

    /// Whether it is neither ejected nor unhealthy.
    pub fn is_in(&self) -> bool {
        match &self.standing {
            None => !self.upstream.ejection.is_in_force(),
            Some(standing) => standing.is_good(&self.upstream),
        }
    }
}
