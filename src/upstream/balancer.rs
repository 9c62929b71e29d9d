//! Which member of a route takes a request: a counter or a random number in, an index out.
//!
//! Weights become a schedule when the balancer is built: a list of indices in which each member stands as often as
//! its weight says, evenly spread. A pick is one step through it, whatever the number of members.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rand::{RngExt, rngs::SmallRng};

use crate::route::settings::Balance;

/// Longest schedule, but for routes with more members than this; larger weights are scaled down to it.
const MAX_SCHEDULE: u64 = 4096;

/// Picks members, by index, in proportion to their weights.
#[derive(Debug)]
pub enum Balancer {
    /// No member has any weight.
    Nobody,
    /// One member has all the weight. Most routes at a million hosts are so; they carry no schedule.
    Only(u32),
    /// Each in turn, exact over all workers together.
    RoundRobin(Box<RoundRobin>),
    /// Uniform at random.
    Random(Box<Schedule>),
}

/// The indices of members, each as often as its weight says.
type Schedule = Box<[u32]>;

/// A schedule and how far all workers together have come in it.
#[derive(Debug)]
pub struct RoundRobin {
    schedule: Schedule,
    cursor: Arc<AtomicUsize>,
}

impl Balancer {
    /// A balancer over members of these weights. It goes on where `previous`, the one it replaces, is.
    pub fn new(balance: Balance, weights: &[u32], previous: Option<&Self>) -> Self {
        let mut weighted = (0_u32..).zip(weights).filter(|&(_, &weight)| weight > 0);
        match (weighted.next(), weighted.next()) {
            (None, _) => return Self::Nobody,
            (Some((only, _)), None) => return Self::Only(only),
            _ => {}
        }
        let schedule = schedule(weights);
        match balance {
            Balance::Random => Self::Random(Box::new(schedule)),
            Balance::RoundRobin => Self::RoundRobin(Box::new(RoundRobin {
                schedule,
                cursor: match previous {
                    Some(Self::RoundRobin(previous)) => previous.cursor.clone(),
                    _ => Arc::default(),
                },
            })),
        }
    }

    /// The index of a usable member with weight; `None` if there is none.
    pub fn pick(&self, is_usable: impl Fn(usize) -> bool) -> Option<usize> {
        let is_usable = |&member: &u32| is_usable(member as usize);
        let picked = match self {
            Self::Nobody => None,
            Self::Only(only) => Some(only).filter(|only| is_usable(only)),
            Self::RoundRobin(round_robin) => round_robin.pick(is_usable),
            Self::Random(schedule) => pick_at_random(schedule, is_usable),
        };
        picked.map(|&member| member as usize)
    }

    /// As [`Self::pick`], for a request that has had its turn: at random by weight. Taking the next turn would let
    /// the request after it begin with the member that just failed, and the one after that too.
    pub fn pick_again(&self, is_usable: impl Fn(usize) -> bool) -> Option<usize> {
        let schedule = match self {
            Self::Nobody | Self::Only(_) => return self.pick(is_usable),
            Self::RoundRobin(round_robin) => &round_robin.schedule,
            Self::Random(schedule) => schedule,
        };
        let picked = pick_at_random(schedule, |&member: &u32| is_usable(member as usize));
        picked.map(|&member| member as usize)
    }
}

impl RoundRobin {
    /// An unusable member's turn goes to the next usable one in the schedule.
    fn pick(&self, is_usable: impl Fn(&u32) -> bool) -> Option<&u32> {
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed) % self.schedule.len();
        let (before, from) = self.schedule.split_at(turn);
        from.iter().chain(before).find(|member| is_usable(member))
    }
}

/// Draws again among the usable ones if the first draw hit another, so that these stay uniform among themselves.
fn pick_at_random(schedule: &[u32], is_usable: impl Fn(&u32) -> bool) -> Option<&u32> {
    let drawn = &schedule[random_below(schedule.len())];
    if is_usable(drawn) {
        return Some(drawn);
    }
    let usable = || schedule.iter().filter(|member| is_usable(member));
    match usable().count() {
        0 => None,
        count => usable().nth(random_below(count)),
    }
}

fn random_below(bound: usize) -> usize {
    // Seeded once per thread: no system call and no cryptography per request.
    thread_local! {
        static RANDOM: RefCell<SmallRng> = RefCell::new(rand::make_rng());
    }
    RANDOM.with_borrow_mut(|random| random.random_range(0..bound))
}

/// Member `i` stands `weights[i]` times, over the greatest common divisor, its occurrences evenly spread.
fn schedule(weights: &[u32]) -> Schedule {
    let weights = scaled_down(weights);
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for (member, weight) in (0_u32..).zip(weights) {
        // The middles of `weight` equal parts of the whole, in units of its 2^32nd part.
        turns.extend((0..weight).map(|turn| (((2 * turn + 1) << 32) / (2 * weight), member)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, member)| member).collect()
}

fn scaled_down(weights: &[u32]) -> Vec<u64> {
    let divisor = u64::from(weights.iter().fold(0, |a, &b| gcd(a, b)).max(1));
    let total = weights.iter().map(|&weight| u64::from(weight)).sum::<u64>() / divisor;
    let scale = |weight: u32| match u64::from(weight) / divisor {
        0 => 0,
        weight if total <= MAX_SCHEDULE => weight,
        weight => (weight * MAX_SCHEDULE / total).max(1),
    };
    weights.iter().map(|&weight| scale(weight)).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicU64, thread};

    use super::*;

    fn counts(balancer: &Balancer, members: usize, picks: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        for _ in 0..picks {
            counts[balancer.pick(|_| true).expect("all are usable")] += 1;
        }
        counts
    }

    #[test]
    fn schedules_hold_each_member_as_often_as_it_weighs_and_spread_it() {
        for (weights, expected) in [
            (&[1, 1, 1][..], &[0, 1, 2][..]),
            (&[5, 5], &[0, 1]),
            (&[2, 1], &[0, 1, 0]),
            (&[0, 1, 1], &[1, 2]),
            (&[5, 1, 1], &[0, 0, 0, 1, 2, 0, 0]),
            (&[4, 2], &[0, 1, 0]),
        ] {
            assert_eq!(&*schedule(weights), expected, "{weights:?}");
        }
    }

    #[test]
    fn schedules_are_bounded_and_nobody_is_scaled_away() {
        let order = schedule(&[65535, 1, 65535]);
        assert!(order.len() <= 4097, "{}", order.len());
        assert_eq!(order.iter().filter(|&&member| member == 1).count(), 1);
        let equal = vec![7; 10_000];
        assert_eq!(schedule(&equal).len(), 10_000);
    }

    #[test]
    fn round_robin_is_exact_over_four_threads() {
        let balancer = Balancer::new(Balance::RoundRobin, &[1; 7], None);
        let counts: [AtomicU64; 7] = Default::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_001 {
                        let member = balancer.pick(|_| true).expect("all are usable");
                        counts[member].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let counts = counts.map(AtomicU64::into_inner);
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
    }

    #[test]
    fn round_robin_follows_the_weights() {
        let balancer = Balancer::new(Balance::RoundRobin, &[5, 0, 3], None);
        assert_eq!(counts(&balancer, 3, 8000), [5000, 0, 3000]);
    }

    #[test]
    fn a_change_goes_on_where_the_former_balancer_was() {
        let before = Balancer::new(Balance::RoundRobin, &[1, 1, 1], None);
        assert_eq!(before.pick(|_| true), Some(0));
        let after = Balancer::new(Balance::RoundRobin, &[1, 1, 1], Some(&before));
        assert_eq!(after.pick(|_| true), Some(1));
        assert_eq!(before.pick(|_| true), Some(2));
        assert_eq!(after.pick(|_| true), Some(0));
    }

    /// Chi-square with 9 degrees of freedom: above 35 is one run in 17,000 (and a bias of 2 % is far above).
    #[test]
    fn random_is_uniform() {
        let balancer = Balancer::new(Balance::Random, &[3; 10], None);
        let expected = 100_000.0 / 10.0;
        let chi_square: f64 = counts(&balancer, 10, 100_000)
            .into_iter()
            .map(|count| (count as f64 - expected).powi(2) / expected)
            .sum();
        assert!(chi_square < 40.0, "{chi_square}");
    }

    #[test]
    fn random_stays_uniform_among_the_usable() {
        let balancer = Balancer::new(Balance::Random, &[1; 4], None);
        let mut counts = [0_i32; 4];
        for _ in 0..30_000 {
            counts[balancer.pick(|member| member != 0).expect("three are")] += 1;
        }
        assert_eq!(counts[0], 0);
        assert!(
            counts[1..].iter().all(|count| (count - 10_000).abs() < 600),
            "{counts:?}"
        );
    }

    #[test]
    fn unusable_members_are_stepped_over_and_weightless_ones_never_picked() {
        for balance in [Balance::RoundRobin, Balance::Random] {
            for (weights, usable, expected) in [
                (&[][..], &[][..], None),
                (&[0, 0], &[0, 1], None),
                (&[0, 4], &[0, 1], Some(1)),
                (&[0, 4], &[0], None),
                (&[1, 1, 1], &[2], Some(2)),
                (&[1, 1, 1], &[], None),
                (&[1, 0, 1], &[1], None),
            ] {
                let balancer = Balancer::new(balance, weights, None);
                for _ in 0..10 {
                    assert_eq!(
                        balancer.pick(|member| usable.contains(&member)),
                        expected,
                        "{balance:?} {weights:?} {usable:?}"
                    );
                }
            }
        }
    }
}
