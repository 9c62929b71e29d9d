use std::{num::NonZeroU8, time::Duration};

use super::*;
use crate::{
    route::{Role, Settings, testing},
    upstream::ejection::Outlier,
};

const START: Moment = Moment::from_millis(1000);

fn route(outlier: Outlier, members: &[(u32, Role)]) -> Route {
    let settings = Settings {
        outlier,
        ..Settings::default()
    };
    testing::route(settings, members)
}

fn serving(count: usize) -> Vec<(u32, Role)> {
    vec![(1, Role::Serving); count]
}

/// Whether one more failure of this member ejects it.
fn ejects(route: &Route, member: usize, now: Moment) -> bool {
    let ejections = route.members[member].ejection().count();
    let term = route.failed(member, Fault::Connect, ejections, now);
    term.is_some()
}

/// How many can be ejected, one after the other.
fn ejectable(percent: u8, members: &[(u32, Role)]) -> usize {
    let outlier = Outlier {
        consecutive_failures: 1,
        max_ejected_percent: percent,
        ..Outlier::default()
    };
    let route = route(outlier, members);
    let ejected = (0..members.len()).filter(|&member| ejects(&route, member, START));
    ejected.count()
}

#[test]
fn no_more_of_a_route_are_out_than_it_allows_but_one_always_may() {
    for (percent, members, expected) in [
        (50, 1, 1),
        (50, 2, 1),
        (50, 3, 1),
        (50, 4, 2),
        (50, 5, 2),
        (10, 3, 1),
        (10, 19, 1),
        (10, 20, 2),
        (34, 3, 1),
        (67, 3, 2),
        (100, 3, 3),
        (0, 3, 0),
    ] {
        let ejected = ejectable(percent, &serving(members));
        assert_eq!(ejected, expected, "{percent} % of {members}");
    }
}

#[test]
fn only_those_that_could_serve_instead_count() {
    let (serving, backup) = ((1, Role::Serving), (1, Role::Backup));
    let idle = (0, Role::Serving);
    assert_eq!(ejectable(50, &[serving, serving, idle, idle]), 1);
    assert_eq!(ejectable(50, &[serving, serving, backup, backup]), 2);
}

#[test]
fn who_is_spared_begins_anew() {
    let outlier = Outlier {
        consecutive_failures: 3,
        ..Outlier::default()
    };
    let route = route(outlier, &serving(2));
    let fails = |member, times: usize, now| {
        let verdicts = (0..times).map(|_| ejects(&route, member, now));
        verdicts.collect::<Vec<_>>()
    };
    assert_eq!(fails(0, 3, START), [false, false, true]);
    assert_eq!(fails(1, 4, START), [false; 4], "the other one is out");
    let later = START.after(Duration::from_secs(30));
    assert_eq!(fails(1, 3, later), [false, true, false], "and it is back");
}

#[test]
fn a_request_from_before_an_ejection_counts_for_nothing_after_it() {
    let route = route(Outlier::default(), &serving(2));
    for _ in 0..4 {
        assert!(!ejects(&route, 0, START));
    }
    let sent = route.members[0].ejection().count();
    assert!(ejects(&route, 0, START));
    let back = START.after(Duration::from_secs(31));
    for _ in 0..10 {
        assert_eq!(route.failed(0, Fault::Timeout, sent, back), None);
    }
    assert!(ejects(&route, 0, back), "one sent since then does");
}

#[test]
fn an_upstream_that_fails_more_than_the_others_is_ejected_though_not_in_a_row() {
    let outlier = Outlier {
        failure_percent: NonZeroU8::new(30),
        min_requests: 10,
        ..Outlier::default()
    };
    // Of ten requests so many fail at each member, never two in a row: who is ejected after three times ten.
    for (failures, expected) in [
        ([4, 0, 0], &[0][..]),
        ([0, 3, 1], &[1]),
        ([2, 0, 0], &[]),
        ([4, 4, 4], &[]),
        ([4, 3, 2], &[]),
        ([5, 5, 0], &[0]),
    ] {
        let route = route(outlier, &serving(3));
        for turn in 0..30 {
            for (member, &failures) in failures.iter().enumerate() {
                let now = START.after(Duration::from_millis(turn * 10));
                if turn % 10 % 2 == 1 && turn % 10 / 2 < failures {
                    ejects(&route, member, now);
                } else {
                    route.succeeded(member, || now);
                }
            }
        }
        let end = START.after(Duration::from_secs(1));
        let is_out = |&member: &usize| route.members[member].ejection().is_in_force_at(|| end);
        let out: Vec<_> = (0..3).filter(is_out).collect();
        assert_eq!(out, expected, "{failures:?}");
        for member in out {
            let term = route.members[member].ejection().latest();
            let fault = term.map(|term| term.fault);
            let is_share = matches!(fault, Some(Fault::Share(30..=60)));
            assert!(is_share, "{failures:?}: {fault:?}");
        }
    }
}
