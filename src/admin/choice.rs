//! Whom a route's next request can go to, and who is out, as [`Route::pick`] would have it.

use std::sync::Arc;

use serde::Serialize;

use super::{
    state::{self, State},
    view::{Context, is_denied},
};
use crate::route::{Member, Role, Route};

/// Whom a request can go to.
pub(super) struct Choice<'r> {
    /// One of these gets it.
    pub(super) candidates: Vec<&'r Member>,
    /// The other ones.
    pub(super) out: Vec<Out>,
    among: Among,
    /// How many of the candidates are never dialled.
    denied: usize,
    /// How many could get it if their names had an address.
    without_address: usize,
    room: Room,
}

/// Whether there is room for one more request.
enum Room {
    Free,
    /// It waits, for this reason.
    Waits(String),
    /// For this reason it may not even wait.
    None(String),
}

/// An upstream that does not get the request.
#[derive(Serialize)]
pub(super) struct Out {
    upstream: Arc<str>,
    role: Role,
    state: State,
    why: Option<String>,
}

/// Which members the candidates are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Among {
    /// Those that serve.
    Serving,
    /// The backups, as nobody else can.
    Backups,
    /// Whoever has an address, as nobody is in, or too few are.
    All,
}

impl<'r> Choice<'r> {
    pub(super) fn of(route: &'r Route, context: &Context) -> Self {
        let states: Vec<_> = (route.members.iter())
            .map(|member| (member, state::of(member, context)))
            .collect();
        let of_role = |role| -> Vec<&Member> {
            let is_in = |(member, (state, _)): &&(&Member, (State, _))| {
                member.role == role && state.is_picked()
            };
            states
                .iter()
                .filter(is_in)
                .map(|(member, _)| *member)
                .collect()
        };
        let in_need = |role| -> Vec<&Member> {
            let is_left = |(member, (state, _)): &&(&Member, (State, _))| {
                let is_out = matches!(state, State::Unhealthy | State::Ejected);
                member.role == role && (state.is_picked() || is_out)
            };
            match route.settings.panic_percent {
                0 => Vec::new(),
                _ => states
                    .iter()
                    .filter(is_left)
                    .map(|(member, _)| *member)
                    .collect(),
            }
        };
        let in_panic = match route.panics() {
            true => in_need(Role::Serving),
            false => Vec::new(),
        };
        let tiers = [
            (Among::All, in_panic),
            (Among::Serving, of_role(Role::Serving)),
            (Among::Backups, of_role(Role::Backup)),
            (Among::All, in_need(Role::Serving)),
            (Among::All, in_need(Role::Backup)),
        ];
        let chosen = tiers.into_iter().find(|(_, members)| !members.is_empty());
        let (among, mut candidates) = chosen.unwrap_or((Among::All, Vec::new()));
        let room = Room::of(route, &candidates);
        if matches!(room, Room::Free) {
            candidates.retain(|member| !member.is_full());
        }
        let is_out = |member: &Member| !candidates.iter().any(|other| std::ptr::eq(*other, member));
        let is_denied = |member: &&&Member| is_denied(member, &context.deny);
        let denied = candidates.iter().filter(is_denied).count();
        let out = states.into_iter().filter(|(member, _)| is_out(member));
        let out = out.map(|(member, (state, why))| Out {
            upstream: member.upstream.name.clone(),
            role: member.role,
            state,
            why: why.or_else(|| Some("a backup: only while no other upstream is in".to_owned())),
        });
        let is_without_address =
            |member: &&Member| member.takes_new_requests() && !member.is_resolved();
        Self {
            out: out.collect(),
            candidates,
            among,
            denied,
            without_address: route.members.iter().filter(is_without_address).count(),
            room,
        }
    }

    /// Why the request is answered at once with 503, though somebody could get it: nobody may wait any more.
    pub(super) fn refusal(&self) -> Option<String> {
        match &self.room {
            Room::None(why) => Some(why.clone()),
            Room::Free | Room::Waits(_) => None,
        }
    }

    /// Who gets the request.
    pub(super) fn in_words(&self) -> String {
        let mut words = match (self.candidates.len(), self.among) {
            (1, Among::Backups) => "its one backup gets it".to_owned(),
            (1, _) => "its one upstream gets it".to_owned(),
            (count, Among::Backups) => format!("one of {count} backups gets it"),
            (count, _) => format!("one of {count} upstreams gets it"),
        };
        if self.among == Among::All {
            words += ", as too few are in";
        }
        match self.denied {
            0 => {}
            denied => words += &format!(", but --upstream-deny forbids {denied} of them"),
        }
        if let Room::Waits(why) = &self.room {
            words = format!("it waits, as {why}; then {words}");
        }
        let (picked, out): (Vec<_>, Vec<_>) =
            self.out.iter().partition(|out| out.state.is_picked());
        let stand_by = picked.iter().filter(|out| out.role == Role::Backup).count();
        for (count, what) in [
            (out.len(), "out"),
            (picked.len() - stand_by, "full"),
            (stand_by, "standing by"),
        ] {
            if count > 0 {
                words += &format!("; {count} {what}");
            }
        }
        words
    }

    /// What is answered as nobody gets it, and why.
    pub(super) fn nobody(&self) -> (u16, String) {
        match self.without_address {
            0 => {}
            1 => {
                return (
                    502,
                    "the name of the one upstream left has no address".to_owned(),
                );
            }
            names => {
                return (
                    502,
                    format!("the names of the {names} upstreams left have no address"),
                );
            }
        }
        let why = match self.out.len() {
            0 => "the route has no upstream".to_owned(),
            1 => "its one upstream takes no requests".to_owned(),
            out => format!("none of its {out} upstreams takes requests"),
        };
        (503, why)
    }
}

impl Room {
    /// For a request that one of `candidates` gets.
    fn of(route: &Route, candidates: &[&Member]) -> Self {
        let Some(limits) = &route.limits else {
            return Self::Free;
        };
        let full = limits.requests.as_ref().filter(|limit| limit.is_full());
        let why = match full {
            Some(limit) => {
                let (running, most) = (limit.running(), limit.most());
                format!("{running} of {most} requests run in the route")
            }
            None if candidates.is_empty() || !candidates.iter().all(|member| member.is_full()) => {
                return Self::Free;
            }
            None => match candidates.len() {
                1 => "its one upstream is full".to_owned(),
                _ => "all its upstreams are full".to_owned(),
            },
        };
        match (limits.queue.length(), route.settings.max_queue) {
            (_, 0) => Self::None(format!("{why}, and none may wait")),
            (queued, most) if queued >= most as usize => {
                Self::None(format!("{why}, and {queued} of {most} wait already"))
            }
            (queued, most) => Self::Waits(format!("{why} ({queued} of {most} wait already)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        moment::Moment,
        route::{Settings, settings::Balance, testing},
        upstream::{
            dial::Deny,
            ejection::{Fault, Outlier},
            load::Loads,
        },
    };

    #[test]
    fn those_that_are_out_are_used_before_backups_that_are_out() {
        let context = Context {
            balance: Balance::RoundRobin,
            deny: Deny::new(Vec::new(), Vec::new()),
            loads: Loads::over(0).0,
        };
        let (serving, backup) = ((1, Role::Serving), (1, Role::Backup));
        for (members, out, candidates) in [
            (&[serving, serving, backup][..], &[][..], &[0, 1][..]),
            (&[serving, serving, backup], &[0], &[1]),
            (&[serving, serving, backup], &[0, 1], &[2]),
            (&[serving, serving, backup], &[0, 1, 2], &[0, 1]),
            (&[serving, serving, serving, backup], &[0, 1, 3], &[0, 1, 2]),
            (&[backup, backup], &[0, 1], &[0, 1]),
        ] {
            let route = testing::route(Settings::default(), members);
            for &member in out {
                let ejection = route.members[member].ejection();
                ejection.eject(Fault::Connect, &Outlier::default(), Moment::now());
            }
            let choice = Choice::of(&route, &context);
            let names: Vec<_> = choice.candidates.iter().map(|one| &one.key.key).collect();
            let expected = candidates
                .iter()
                .map(|&index| &route.members[index].key.key);
            assert_eq!(
                names,
                expected.collect::<Vec<_>>(),
                "{members:?}, {out:?} out"
            );
        }
    }
}
