//! When too few members are in, all are used: a few that serve everything would soon be out too.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Role, Route};
use crate::moment::Moment;

/// Whether a route panics, as it was worked out lately.
#[derive(Debug, Default)]
pub struct Panic {
    /// The moment, twice, and one more if it does; 0 before the first.
    known: AtomicU64,
}

/// For so long, in milliseconds, it is not worked out again: that looks at every member.
const FRESH: u64 = 50;

impl Panic {
    /// What is known of `now`, else what `work_out` says.
    fn is_on(&self, now: Moment, work_out: impl FnOnce() -> bool) -> bool {
        let known = self.known.load(Ordering::Relaxed);
        let age = now.as_millis().saturating_sub(known >> 1);
        if known > 0 && age < FRESH {
            return known & 1 == 1;
        }
        let panics = work_out();
        // Whoever else works it out at this moment comes to much the same.
        let known = (now.as_millis() << 1) | u64::from(panics);
        self.known.store(known, Ordering::Relaxed);
        panics
    }
}

impl Route {
    /// Whether fewer than `panic_percent` of the serving members are in, and no backup that is in stands ready to
    /// take over.
    pub fn panics(&self) -> bool {
        self.settings.panic_percent > 0 && self.panic.is_on(Moment::now(), || self.work_out_panic())
    }

    fn work_out_panic(&self) -> bool {
        // Of a name without an address nobody knows how it is.
        let members = self.members.iter();
        let known = members.filter(|member| member.takes_new_requests() && member.is_resolved());
        let (mut serving, mut serving_in) = (0, 0);
        for member in known {
            match (member.role, member.is_in()) {
                (Role::Backup, true) => return false,
                (Role::Backup, false) => {}
                (_, is_in) => {
                    serving += 1;
                    serving_in += usize::from(is_in);
                }
            }
        }
        serving_in * 100 < serving * usize::from(self.settings.panic_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::{Settings, pick::Ask, testing},
        upstream::{
            ejection::{Fault, Outlier},
            load::Loads,
        },
    };

    /// Four members that serve, and a backup if there is to be one.
    fn route(panic_percent: u8, has_backup: bool) -> Route {
        let settings = Settings {
            panic_percent,
            ..Settings::default()
        };
        let mut members = vec![(1, Role::Serving); 4];
        members.extend(has_backup.then_some((1, Role::Backup)));
        testing::route(settings, &members)
    }

    fn eject(route: &Route, members: &[usize]) {
        for &member in members {
            let ejection = route.members[member].ejection();
            ejection.eject(Fault::Connect, &Outlier::default(), Moment::now());
        }
    }

    /// Who gets requests that had been at `tried`.
    fn picked(route: &Route, tried: &[usize]) -> Vec<usize> {
        let (loads, _) = Loads::over(1);
        let ask = Ask {
            tried,
            loads: &loads,
            key: None,
            sticks_to: None,
            yields: false,
        };
        let mut picked: Vec<_> = (0..200).flat_map(|_| route.pick(ask)).collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }

    #[test]
    fn with_too_few_in_first_attempts_go_to_all_and_further_ones_to_those_in() {
        // How many percent, who is out, whether there is a backup: who gets a first, and who a second attempt.
        for (percent, out, has_backup, first, second) in [
            (50, &[0][..], false, &[1, 2, 3][..], &[1, 2][..]),
            (50, &[0, 1], false, &[2, 3], &[2]),
            (50, &[0, 1, 2], false, &[0, 1, 2, 3], &[0, 1, 2]),
            (76, &[0], false, &[0, 1, 2, 3], &[1, 2]),
            (25, &[0, 1, 2], false, &[3], &[0, 1, 2]),
            (100, &[], false, &[0, 1, 2, 3], &[0, 1, 2]),
            (50, &[0, 1, 2, 3], false, &[0, 1, 2, 3], &[0, 1, 2]),
            (50, &[0, 1, 2], true, &[3], &[4]),
            (50, &[0, 1, 2, 3], true, &[4], &[4]),
            (50, &[0, 1, 2, 4], true, &[0, 1, 2, 3], &[0, 1, 2]),
            (0, &[0, 1, 2], false, &[3], &[]),
            (0, &[0, 1, 2, 3], false, &[], &[]),
        ] {
            let route = route(percent, has_backup);
            eject(&route, out);
            let case = format!("{percent} %, {out:?} out, backup: {has_backup}");
            assert_eq!(picked(&route, &[]), first, "{case}");
            assert_eq!(picked(&route, &[3]), second, "{case}, again");
        }
    }

    #[test]
    fn it_is_worked_out_anew_when_what_is_known_is_old() {
        let panic = Panic::default();
        let at = Moment::from_millis;
        for (now, is_so, expected) in [
            (1, true, true),
            (FRESH, false, true),
            (FRESH + 1, false, false),
            (FRESH + 2, true, false),
            (2 * FRESH + 1, true, true),
            // A worker whose clock was read before another's.
            (FRESH, false, true),
        ] {
            assert_eq!(panic.is_on(at(now), || is_so), expected, "at {now}");
        }
    }
}
