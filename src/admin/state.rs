//! Whether a member gets requests now, and if not, why.

use serde::Serialize;

use super::view::{Context, is_denied};
use crate::{
    moment::Moment,
    route::{Member, Role},
    upstream::{
        ejection::{Fault, Term},
        health::Checks,
    },
};

/// A member's state, the worst thing first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Another key of the route names the same upstream, and gets its requests.
    Alias,
    /// Its name has no address.
    Unresolved,
    /// `"weight": 0`.
    Weightless,
    /// `"drain": true`.
    Draining,
    /// It is picked, but never dialled: `--upstream-deny`, or it is this Waypost itself.
    Denied,
    /// Its health checks fail.
    Unhealthy,
    /// It failed too often.
    Ejected,
    /// So many requests run at it as its key's `"max_requests"` says; further ones wait.
    Full,
    /// It gets requests.
    Healthy,
}

impl State {
    /// Whether requests that are nobody's in particular may go to it, while there is no need.
    pub(super) fn is_picked(self) -> bool {
        matches!(self, Self::Healthy | Self::Full | Self::Denied)
    }
}

/// The state of a member, and why it is so; `None`: nothing is wrong with it.
pub(super) fn of(member: &Member, context: &Context) -> (State, Option<String>) {
    if member.is_alias {
        return because(State::Alias, "another key names the same upstream");
    }
    if !member.is_resolved() {
        return because(State::Unresolved, "the name has no address");
    }
    if member.role == Role::Draining {
        return because(
            State::Draining,
            "its key says \"drain\": only clients that stick to it",
        );
    }
    if member.weight == 0 {
        return because(State::Weightless, "its key says \"weight\": 0");
    }
    if is_denied(member, &context.deny) {
        return because(
            State::Denied,
            "never dialled: in --upstream-deny, or our own address",
        );
    }
    let standing = member.standing.as_deref();
    if let Some(checks) = standing.and_then(|standing| standing.checks.as_deref())
        && !checks.is_healthy()
    {
        return (State::Unhealthy, Some(unhealthy(checks)));
    }
    if !member.is_in() {
        return (State::Ejected, member.ejection().latest().map(in_words));
    }
    if let Some(limit) = member.limit.as_ref().filter(|limit| limit.is_full()) {
        let why = format!("{} of {} requests run", limit.running(), limit.most());
        return (State::Full, Some(why));
    }
    (State::Healthy, None)
}

fn in_words(term: Term) -> String {
    let seconds = term.until.since(Moment::now()).as_secs_f32().ceil();
    let time = match term.times {
        1 => String::new(),
        times => format!(", {times} times in a row"),
    };
    let why = match term.fault {
        share @ Fault::Share(_) => share.to_string(),
        last => format!("it failed too often, at last by: {last}"),
    };
    format!("{why}; for {seconds} s more{time}")
}

fn unhealthy(checks: &Checks) -> String {
    let report = checks.report();
    let seconds = report.since.elapsed().as_secs();
    match (report.last, report.good_in_a_row) {
        (None, _) => "not yet proven: its first health check is still to come".to_owned(),
        (Some(last), None) => format!("not yet proven: {}", last.finding),
        (Some(last), Some(0)) => {
            format!("for {seconds} s; its last health check: {}", last.finding)
        }
        (Some(last), Some(good)) => format!(
            "for {seconds} s; its last health check: {}, {good} of {} good ones in a row",
            last.finding, checks.settings.healthy
        ),
    }
}

fn because(state: State, why: &str) -> (State, Option<String>) {
    (state, Some(why.to_owned()))
}
