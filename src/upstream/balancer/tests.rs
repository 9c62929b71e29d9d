use std::{sync::atomic::AtomicU64, thread};

use super::*;

const ALL: [Balance; 4] = [
    Balance::RoundRobin,
    Balance::Random,
    Balance::LeastRequest,
    Balance::Hash,
];

fn new(balance: Balance, weights: &[u32], previous: Option<&Balancer>) -> Balancer {
    let addresses: Vec<String> = (0..weights.len())
        .map(|member| format!("10.0.0.{member}:80"))
        .collect();
    Balancer::new(balance, weights, |member| &*addresses[member], previous)
}

fn pick(balancer: &Balancer, is_usable: impl Fn(usize) -> bool) -> Option<usize> {
    balancer.pick(None, is_usable, |_| 0)
}

fn counts(members: usize, picks: usize, pick: impl Fn(usize) -> Option<usize>) -> Vec<usize> {
    let mut counts = vec![0; members];
    for number in 0..picks {
        counts[pick(number).expect("some are usable")] += 1;
    }
    counts
}

fn assert_near(counts: &[usize], expected: &[usize], tolerance: usize) {
    let is_near = |(count, expected): (&usize, &usize)| count.abs_diff(*expected) <= tolerance;
    assert!(
        counts.iter().zip(expected).all(is_near),
        "{counts:?} for {expected:?}"
    );
}

#[test]
fn round_robin_is_exact_over_four_threads() {
    let balancer = new(Balance::RoundRobin, &[1; 7], None);
    let counts: [AtomicU64; 7] = Default::default();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_001 {
                    let member = pick(&balancer, |_| true).expect("all are usable");
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
fn round_robin_follows_the_weights_whatever_they_are() {
    let of = |weights: &[u32], picks| {
        let balancer = new(Balance::RoundRobin, weights, None);
        counts(weights.len(), picks, |_| pick(&balancer, |_| true))
    };
    assert_eq!(of(&[5, 0, 3], 8000), [5000, 0, 3000]);
    assert_eq!(of(&[65_535, 1], 2 * 65_536), [2 * 65_535, 2]);
}

/// The next in line does not get the turns of the one that is out on top of its own.
#[test]
fn round_robin_shares_the_turns_of_who_is_out_among_all() {
    let balancer = new(Balance::RoundRobin, &[1, 1, 1, 1], None);
    let without_first = counts(4, 3000, |_| pick(&balancer, |member| member != 0));
    assert_eq!(without_first, [0, 1000, 1000, 1000]);
    let balancer = new(Balance::RoundRobin, &[3, 2, 1], None);
    let without_first = counts(3, 3000, |_| pick(&balancer, |member| member != 0));
    assert_eq!(without_first, [0, 2000, 1000]);
    // Past so many that are out, at random.
    random::reseed(5);
    let balancer = new(Balance::RoundRobin, &[1; 100], None);
    let last_two = counts(100, 10_000, |_| pick(&balancer, |member| member >= 98));
    assert_near(&last_two[98..], &[5000, 5000], 300);
}

#[test]
fn a_change_goes_on_where_the_former_balancer_was() {
    let before = new(Balance::RoundRobin, &[1, 1, 1], None);
    assert_eq!(pick(&before, |_| true), Some(0));
    let after = new(Balance::RoundRobin, &[1, 1, 1], Some(&before));
    assert_eq!(pick(&after, |_| true), Some(1));
    assert_eq!(pick(&before, |_| true), Some(2));
    assert_eq!(pick(&after, |_| true), Some(0));
}

/// Chi-square with 9 degrees of freedom: above 35 is one run in 17,000 (and a bias of 2 % is far above).
#[test]
fn random_is_uniform() {
    let balancer = new(Balance::Random, &[3; 10], None);
    let expected = 100_000.0 / 10.0;
    let chi_square: f64 = counts(10, 100_000, |_| pick(&balancer, |_| true))
        .into_iter()
        .map(|count| (count as f64 - expected).powi(2) / expected)
        .sum();
    assert!(chi_square < 40.0, "{chi_square}");
}

#[test]
fn whoever_is_out_the_others_keep_their_proportion() {
    random::reseed(6);
    for balance in [Balance::Random, Balance::LeastRequest, Balance::Hash] {
        // Without a key, the hash balancer takes any.
        let balancer = new(balance, &[5, 3, 1, 1], None);
        let counts = counts(4, 50_000, |_| pick(&balancer, |member| member != 0));
        assert_near(&counts, &[0, 30_000, 10_000, 10_000], 900);
    }
}

#[test]
fn hash_keeps_a_key_at_its_member_while_that_is_usable() {
    let balancer = new(Balance::Hash, &[1; 5], None);
    assert!(balancer.is_keyed());
    for key in (1..100).map(|key| key << 57) {
        let key = Some(key);
        let own = balancer.pick(key, |_| true, |_| 0).expect("all are usable");
        let next = balancer.pick_again(key, |member| member != own, |_| 0);
        assert_ne!(next, Some(own));
        for _ in 0..3 {
            assert_eq!(balancer.pick(key, |_| true, |_| 0), Some(own));
            assert_eq!(
                balancer.pick_again(key, |member| member != own, |_| 0),
                next
            );
        }
    }
}

#[test]
fn least_request_leaves_the_busy_alone() {
    random::reseed(7);
    let balancer = new(Balance::LeastRequest, &[1; 3], None);
    let busy = |member| if member == 1 { 5 } else { 0 };
    let counts = counts(3, 3000, |_| balancer.pick(None, |_| true, busy));
    assert_near(&counts, &[1500, 0, 1500], 200);
}

#[test]
fn unusable_members_are_stepped_over_and_weightless_ones_never_picked() {
    for balance in ALL {
        for (weights, usable, expected) in [
            (&[][..], &[][..], None),
            (&[0, 0], &[0, 1], None),
            (&[0, 4], &[0, 1], Some(1)),
            (&[0, 4], &[0], None),
            (&[1, 1, 1], &[2], Some(2)),
            (&[1, 1, 1], &[], None),
            (&[1, 0, 1], &[1], None),
            (&[65_535, 1, 0], &[1, 2], Some(1)),
        ] {
            let balancer = new(balance, weights, None);
            for key in [None, Some(0), Some(u64::MAX), Some(1 << 63)] {
                let is_usable = |member| usable.contains(&member);
                let picked = balancer.pick(key, is_usable, |_| 100);
                let again = balancer.pick_again(key, is_usable, |_| 0);
                let case = format!("{balance:?} {weights:?} {usable:?}");
                assert_eq!([picked, again], [expected; 2], "{case}");
            }
        }
    }
}
