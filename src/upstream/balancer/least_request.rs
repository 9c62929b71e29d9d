//! Least request: of two members drawn by weight, the one with fewer requests in flight for its weight.
//!
//! Two choices do nearly as well as looking at all (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing,
//! 2001), cost the same for any number of members, and do not send every worker's next requests to the one member that
//! just got idle.
//!
//! How weights come in was chosen by simulation (ten servers with as many slots as weight, utilisation 2 % to 90 %).
//! Drawn uniformly, a member of weight 10 among ones of 1 can get no more than two draws in N: it starves while the others
//! queue for ever. Drawn by weight and compared by (in flight + 1) / weight, what counts when idle is the weight alone,
//! and twice: 3 : 1 becomes 15 : 1. Drawn by weight and compared by in flight / weight, the first drawn winning ties, an
//! idle route is served in proportion to the weights, and a busy one by who has room: no share was off by more than
//! some 15 % where drawing uniformly was off by 150 %, with the same or shorter tails.

use super::shares::{Share, Shares};

/// How often the second draw is repeated to find another member than the first.
const REDRAWS: usize = 8;

/// A usable member of these; `None` if there is none. `in_flight` counts over all workers.
pub fn pick(
    shares: &Shares,
    is_usable: impl Fn(u32) -> bool,
    in_flight: impl Fn(u32) -> u32,
) -> Option<u32> {
    let first = shares.draw_usable(&is_usable)?;
    let mut draws = (0..REDRAWS).map(|_| shares.draw());
    let is_another = |share: &Share| share.member != first.member && is_usable(share.member);
    let Some(second) = draws.find(is_another) else {
        return Some(first.member);
    };
    // a / b > c / d, without dividing.
    let load = |a: Share, b: Share| u64::from(in_flight(a.member)) * u64::from(b.weight);
    Some(match load(first, second) > load(second, first) {
        true => second.member,
        false => first.member,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::balancer::random;

    fn picks(weights: &[u32], in_flight: &[u32], usable: &[u32], count: usize) -> Vec<i32> {
        random::reseed(4);
        let shares = Shares::new(weights);
        let mut counts = vec![0; weights.len()];
        for _ in 0..count {
            let picked = pick(
                &shares,
                |member| usable.contains(&member),
                |member| in_flight[member as usize],
            );
            counts[picked.expect("one is usable") as usize] += 1;
        }
        counts
    }

    #[test]
    fn the_busiest_is_picked_only_where_nobody_else_can_be() {
        let all = &[0, 1, 2, 3];
        assert_eq!(picks(&[1; 4], &[3, 9, 2, 2], all, 2000)[1], 0);
        assert_eq!(picks(&[1; 4], &[3, 9, 2, 2], &[1], 100)[1], 100);
    }

    #[test]
    fn the_idle_of_two_gets_all_and_the_idler_of_three_most() {
        // One in 256 draws finds the first member only.
        assert!(picks(&[1, 1], &[1, 0], &[0, 1], 10_000)[1] > 9_900);
        let counts = picks(&[1; 3], &[2, 1, 0], &[0, 1, 2], 9_000);
        assert!(counts[2] > 5_500 && counts[0] < 100, "{counts:?}");
    }

    #[test]
    fn equal_loads_are_shared_by_weight() {
        for (weights, in_flight) in [([3, 1], [0, 0]), ([3, 1], [6, 2]), ([30, 10], [3, 1])] {
            let counts = picks(&weights, &in_flight, &[0, 1], 20_000);
            assert!((counts[0] - 15_000).abs() < 400, "{weights:?}: {counts:?}");
        }
    }

    #[test]
    fn load_counts_for_the_weight() {
        // 4 of weight 5 is less than 1 of weight 1.
        assert!(picks(&[5, 1], &[4, 1], &[0, 1], 5_000)[0] > 4_900);
        // One in five draws finds the heavy member only.
        assert!(picks(&[5, 1], &[6, 1], &[0, 1], 5_000)[1] > 3_900);
    }

    #[test]
    fn nobody_is_picked_where_nobody_is_usable() {
        let shares = Shares::new(&[1, 1]);
        assert_eq!(pick(&shares, |_| false, |_| 0), None);
    }
}
