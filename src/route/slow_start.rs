//! Members that are new, or back, begin with a small share of their requests, which grows.

use std::time::Duration;

use super::{Member, Route, pick::Ask};
use crate::{moment::Moment, upstream::balancer::random};

/// The whole.
const WHOLE: u64 = 1000;
/// What a member begins with.
const FIRST_SHARE: u64 = WHOLE / 10;
/// How often a pick that fell on one that is to get less is made again. So many in a row are a matter of chance only
/// where hardly anybody else is there.
const DRAWS: usize = 16;

impl Route {
    /// What `pick` picks, where everybody has its full share; else it is asked again for each request that a growing
    /// member is not to get yet. Where all grow alike they share as ever.
    pub(super) fn pick_slowly(
        &self,
        ask: Ask<'_>,
        pick: impl Fn() -> Option<usize>,
    ) -> Option<usize> {
        let mut picked = pick()?;
        let Some(over) = self.settings.slow_start else {
            return Some(picked);
        };
        // A key's place stays the same however often it is asked for.
        if ask.key.is_some() {
            return Some(picked);
        }
        for _ in 0..DRAWS {
            match self.members[picked].share(over, Moment::now) {
                Some(share) if random::below(WHOLE) >= share => picked = pick()?,
                _ => break,
            }
        }
        Some(picked)
    }
}

impl Member {
    /// Of its full share, what it gets now, in thousandths; `None`: all of it.
    pub fn share(&self, over: Duration, now: impl FnOnce() -> Moment) -> Option<u64> {
        let standing = self.standing.as_deref();
        let entered = standing.and_then(|standing| standing.entered);
        let let_in = self.ejection().latest().map(|term| term.until);
        let recovered = standing.and_then(|standing| standing.checks.as_ref()?.recovered());
        let since = entered.max(let_in).max(recovered)?;
        share(since, over, now())
    }
}

/// From [`FIRST_SHARE`] linearly to the whole (Envoy's aggression of 1, and minimum of 10 %).
fn share(since: Moment, over: Duration, now: Moment) -> Option<u64> {
    // It is out, and used in need.
    if since > now {
        return None;
    }
    let (passed, over) = (now.since(since).as_millis(), over.as_millis());
    let passed = passed.saturating_mul(WHOLE.into()) / over.max(1);
    let share = u64::try_from(passed).ok()?;
    (share < WHOLE).then(|| share.max(FIRST_SHARE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::{Role, Settings, settings::Balance, testing},
        upstream::load::Loads,
    };

    #[test]
    fn the_share_grows_from_a_tenth_to_all() {
        let (since, over) = (Moment::from_millis(5000), Duration::from_secs(10));
        for (millis, expected) in [
            (4000, None),
            (5000, Some(100)),
            (5500, Some(100)),
            (7500, Some(250)),
            (10_000, Some(500)),
            (14_000, Some(900)),
            (15_000, None),
            (100_000, None),
        ] {
            let share = share(since, over, Moment::from_millis(millis));
            assert_eq!(share, expected, "at {millis}");
        }
    }

    /// How often each of three members is picked in 30,000 times, when these have just come in.
    fn picks(balance: Balance, new: &[usize], key: Option<u64>) -> [u32; 3] {
        let settings = Settings {
            balance: Some(balance),
            slow_start: Some(Duration::from_secs(10_000)),
            ..Settings::default()
        };
        let mut route = testing::route(settings, &[(1, Role::Serving); 3]);
        for &member in new {
            let standing = route.members[member].standing.get_or_insert_default();
            standing.entered = Some(Moment::now());
        }
        let (loads, _) = Loads::over(1);
        let ask = Ask {
            tried: &[],
            loads: &loads,
            key,
            sticks_to: None,
            yields: false,
        };
        let mut picks = [0; 3];
        for _ in 0..30_000 {
            picks[route.pick(ask).expect("all are in")] += 1;
        }
        picks
    }

    #[test]
    fn who_is_new_gets_a_tenth_of_its_share_and_the_others_share_the_rest() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastRequest] {
            // A tenth against two wholes: 1429 with a standard deviation of 37, and 14,286 with one of 86.
            let picks = picks(balance, &[2], None);
            assert!((1200..1660).contains(&picks[2]), "{balance:?}: {picks:?}");
            let others = 13_700..14_900;
            assert!(
                picks[..2].iter().all(|count| others.contains(count)),
                "{balance:?}: {picks:?}"
            );
        }
    }

    #[test]
    fn where_all_are_new_and_where_a_key_decides_shares_are_whole() {
        // 10,000 with a standard deviation of 82.
        let all = picks(Balance::Random, &[0, 1, 2], None);
        assert!(
            all.iter().all(|count| (9500..10_500).contains(count)),
            "{all:?}"
        );
        let of_a_key = picks(Balance::Hash, &[0, 1, 2], Some(7));
        assert!(of_a_key.contains(&30_000), "{of_a_key:?}");
        let owner = of_a_key.iter().position(|&count| count > 0).expect("one");
        assert_eq!(picks(Balance::Hash, &[owner], Some(7)), of_a_key);
    }
}
