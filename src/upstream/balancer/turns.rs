//! Weighted round robin without a lock: whose turn the n-th request is, as a function of n alone.
//!
//! Where the weights, over their greatest common divisor, sum up to little, all turns are listed: the order is nginx's
//! smooth weighted round robin (5, 1, 1 is a a b a c a a), and each run of that many turns holds each member as often
//! as its weight says. Where they sum up to more, such a list would be long (65,535 to 1), and shortening it would bend
//! the proportions. There the turns go around the columns of [`Shares`] and up in them by steps of the golden ratio,
//! which leaves no gap and no heap for long: exact over a whole round (the total times the number of members), and at any
//! time off by no more than two turns for each member.

use super::{random, shares::Shares};

/// The longest list, but for members of equal weights, which need one entry each.
const MOST_LISTED: u64 = 1024;

/// Whose turn is when.
#[derive(Debug)]
pub enum Turns {
    /// All of them.
    Listed(Box<[u32]>),
    /// By the columns of these shares.
    Spread(Spread),
}

/// Turns that are computed.
#[derive(Debug)]
pub struct Spread {
    shares: Shares,
    /// Between one height and the next in a column; no divisor of their total.
    step: u64,
}

impl Turns {
    /// Of the members that have a weight.
    ///
    /// # Panics
    /// Without any.
    pub fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().fold(0, |a, &b| gcd(a, b));
        let total = weights.iter().map(|&weight| u64::from(weight)).sum::<u64>();
        let members = (0_u32..).zip(weights).filter(|&(_, &weight)| weight > 0);
        if members.clone().all(|(_, &weight)| weight == divisor) {
            return Self::Listed(members.map(|(member, _)| member).collect());
        }
        if total / u64::from(divisor) <= MOST_LISTED {
            let reduced = members.map(|(member, &weight)| (member, weight / divisor));
            return Self::Listed(smooth(reduced.collect()));
        }
        let shares = Shares::new(weights);
        let step = golden_step(shares.total());
        Self::Spread(Spread { shares, step })
    }

    /// Whose turn this is.
    pub fn at(&self, turn: usize) -> u32 {
        match self {
            Self::Listed(list) => list[turn % list.len()],
            Self::Spread(spread) => spread.at(turn as u64),
        }
    }

    /// A usable member at random, by weight among those; `None` if there is none.
    pub fn draw_usable(&self, is_usable: impl Fn(u32) -> bool) -> Option<u32> {
        let list = match self {
            Self::Listed(list) => list,
            Self::Spread(spread) => {
                return spread
                    .shares
                    .draw_usable(is_usable)
                    .map(|share| share.member);
            }
        };
        let drawn = list[random::below(list.len() as u64) as usize];
        if is_usable(drawn) {
            return Some(drawn);
        }
        let usable = || list.iter().filter(|&&member| is_usable(member));
        match usable().count() as u64 {
            0 => None,
            count => usable().nth(random::below(count) as usize).copied(),
        }
    }
}

impl Spread {
    fn at(&self, turn: u64) -> u32 {
        let (count, total) = (self.shares.len() as u64, u64::from(self.shares.total()));
        let (round, column) = (turn / count, turn % count);
        // Columns begin at heights of their own, or the members that share theirs would come in bunches.
        let height = (round + column) % total * self.step % total;
        self.shares.at(column as usize, height as u32).member
    }
}

/// nginx's smooth weighted round robin: all gain their weight, and whoever has most pays the total.
fn smooth(members: Vec<(u32, u32)>) -> Box<[u32]> {
    let total: i64 = members.iter().map(|&(_, weight)| i64::from(weight)).sum();
    let mut credits = vec![0; members.len()];
    let turn = |_| {
        let mut most = 0;
        for (index, &(_, weight)) in members.iter().enumerate() {
            credits[index] += i64::from(weight);
            if credits[index] > credits[most] {
                most = index;
            }
        }
        credits[most] -= total;
        members[most].0
    };
    (0..total).map(turn).collect()
}

/// A number whose multiples, modulo `total`, are all numbers below that, each well apart from the last few. At best
/// `total` / step is the golden ratio, whose continued fraction has no term over 1; of whole numbers near it, the one
/// whose highest term is lowest.
fn golden_step(total: u32) -> u64 {
    const GOLDEN: u64 = 2_654_435_769; // (sqrt(5) - 1) / 2 of 2^32
    const TRIED: u32 = 256;
    let section = ((u64::from(total) * GOLDEN) >> 32) as u32;
    let near = (section.saturating_sub(TRIED).max(1)..=section).rev();
    let coprime = near.filter(|&step| gcd(step, total) == 1);
    let step = coprime.min_by_key(|&step| highest_term(total, step));
    u64::from(step.unwrap_or(1))
}

/// Of the continued fraction of a / b.
fn highest_term(a: u32, b: u32) -> u32 {
    match b {
        0 => 0,
        b => (a / b).max(highest_term(b, a % b)),
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(weights: &[u32]) -> Vec<u32> {
        match Turns::new(weights) {
            Turns::Listed(list) => list.into(),
            Turns::Spread(_) => panic!("{weights:?} are few"),
        }
    }

    #[test]
    fn small_weights_are_as_smooth_as_nginx_has_them() {
        for (weights, expected) in [
            (&[1, 1, 1][..], &[0, 1, 2][..]),
            (&[5, 5], &[0, 1]),
            (&[2, 1], &[0, 1, 0]),
            (&[0, 1, 1], &[1, 2]),
            (&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]),
            (&[4, 2], &[0, 1, 0]),
            (&[3, 2, 1], &[0, 1, 0, 2, 1, 0]),
        ] {
            assert_eq!(listed(weights), expected, "{weights:?}");
        }
    }

    #[test]
    fn equal_weights_take_one_entry_each_however_many_they_are() {
        assert_eq!(listed(&[7; 10_000]).len(), 10_000);
    }

    /// At any time each member has had its share to within a few turns; over a whole round exactly.
    #[test]
    fn pinned_weights_keep_their_proportion_at_any_length() {
        for weights in [
            &[65_535, 1, 65_535][..],
            &[65_535, 65_534],
            &[1000, 1, 1, 1, 77],
            &[65_535, 30_000, 7, 1, 12_345, 999, 5, 5],
        ] {
            let turns = Turns::new(weights);
            assert!(matches!(turns, Turns::Spread(_)), "{weights:?}");
            let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
            let round = total as usize * weights.len();
            let mut counts = vec![0_u64; weights.len()];
            let mut worst = 0.0_f64;
            for turn in 0..round {
                counts[turns.at(turn) as usize] += 1;
                let behind = |(&count, &weight): (&u64, &u32)| {
                    let due = (turn + 1) as f64 * f64::from(weight) / total as f64;
                    (count as f64 - due).abs()
                };
                worst = counts.iter().zip(weights).map(behind).fold(worst, f64::max);
            }
            let due = |&weight: &u32| u64::from(weight) * weights.len() as u64;
            assert_eq!(counts, weights.iter().map(due).collect::<Vec<_>>());
            assert!(
                worst < 2.0 * weights.len() as f64,
                "{weights:?}: {worst} turns off"
            );
        }
    }

    #[test]
    fn a_draw_follows_the_weights_whichever_way_turns_are_kept() {
        random::reseed(3);
        for weights in [[6, 0, 3], [40_000, 0, 20_001]] {
            let turns = Turns::new(&weights);
            let mut counts = [0_i32; 3];
            for _ in 0..30_000 {
                counts[turns.draw_usable(|_| true).expect("all are") as usize] += 1;
            }
            assert!((counts[0] - 20_000).abs() < 500, "{counts:?}");
            assert_eq!(counts[1], 0);
            assert_eq!(turns.draw_usable(|member| member == 2), Some(2));
            assert_eq!(turns.draw_usable(|member| member == 1), None);
        }
    }
}
