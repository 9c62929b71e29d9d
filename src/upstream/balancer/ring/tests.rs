use std::collections::{BTreeMap, HashSet};

use super::*;

const KEYS: u64 = 100_000;

/// A ring of members known by their seeds, with weights.
struct Sample {
    seeds: Vec<u64>,
    ring: Ring,
}

impl Sample {
    fn of(members: &[(u64, u32)]) -> Self {
        let seeds: Vec<u64> = members.iter().map(|&(name, _)| seed(name)).collect();
        let weights: Vec<u32> = members.iter().map(|&(_, weight)| weight).collect();
        let ring = Ring::new(&weights, &seeds);
        Self { seeds, ring }
    }

    fn equal(names: impl IntoIterator<Item = u64>) -> Self {
        let members: Vec<_> = names.into_iter().map(|name| (name, 1)).collect();
        Self::of(&members)
    }

    /// The seed of the member of each key.
    fn owners(&self) -> Vec<u64> {
        self.owners_where(|_| true)
    }

    fn owners_where(&self, is_usable: impl Fn(u64) -> bool) -> Vec<u64> {
        let seed_of = |member: u32| self.seeds[member as usize];
        let pick = |key| {
            let is_usable = |member| is_usable(seed_of(member));
            let picked = self.ring.pick(key, is_usable, |_| 0);
            seed_of(picked.expect("some are usable"))
        };
        keys().map(pick).collect()
    }
}

fn seed(name: u64) -> u64 {
    twox_hash::XxHash3_64::oneshot(&name.to_be_bytes())
}

fn keys() -> impl Iterator<Item = u64> {
    (0..KEYS).map(|key| twox_hash::XxHash3_64::oneshot(format!("key {key}").as_bytes()))
}

fn shares(owners: &[u64]) -> BTreeMap<u64, f64> {
    let mut shares = BTreeMap::new();
    for owner in owners {
        *shares.entry(*owner).or_default() += 1.0 / owners.len() as f64;
    }
    shares
}

fn moved(before: &[u64], after: &[u64]) -> f64 {
    let moved = before
        .iter()
        .zip(after)
        .filter(|(before, after)| before != after);
    moved.count() as f64 / before.len() as f64
}

#[test]
fn a_new_member_takes_its_share_and_nothing_else_moves() {
    for count in [3, 10, 50] {
        let before = Sample::equal(0..count).owners();
        let after = Sample::equal(0..=count).owners();
        let moved = moved(&before, &after);
        let due = 1.0 / (count + 1) as f64;
        assert!(
            (moved / due - 1.0).abs() < 0.25,
            "{count}: {moved} for {due}"
        );
        let new = seed(count);
        let changes = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after);
        assert!(
            changes.into_iter().all(|(_, &after)| after == new),
            "{count}"
        );
    }
}

#[test]
fn only_the_keys_of_a_member_that_goes_move_and_they_spread() {
    let all = Sample::equal(0..10);
    let before = all.owners();
    // Taken out of the route, or out for a time.
    let without = Sample::equal((0..10).filter(|&name| name != 4)).owners();
    let ejected = all.owners_where(|member| member != seed(4));
    assert_eq!(without, ejected);
    let mut heirs = Vec::new();
    for (&before, &after) in before.iter().zip(&ejected) {
        match before == seed(4) {
            true => heirs.push(after),
            false => assert_eq!(after, before),
        }
    }
    let heirs = shares(&heirs);
    assert_eq!(heirs.len(), 9);
    assert!(heirs.values().all(|&share| share < 0.25), "{heirs:?}");
}

#[test]
fn keys_are_spread_by_weight() {
    for (members, tolerance) in [
        (vec![1; 3], 0.25),
        (vec![1; 10], 0.25),
        (vec![7; 100], 0.35),
        (vec![5, 5, 5, 10, 20], 0.25),
        (vec![100, 100, 200, 65_535], 0.45),
    ] {
        let members: Vec<_> = (0..).zip(members).collect();
        let total: u32 = members.iter().map(|(_, weight)| weight).sum();
        let shares = shares(&Sample::of(&members).owners());
        for (name, weight) in &members {
            let (share, due) = (shares[&seed(*name)], f64::from(*weight) / f64::from(total));
            assert!(
                (share / due - 1.0).abs() < tolerance,
                "{name} of {members:?}: {share} for {due}"
            );
        }
    }
}

#[test]
fn a_member_that_others_outweigh_by_far_gets_next_to_nothing() {
    for weights in [vec![1, 16_384], vec![1, 65_535], vec![3, 65_535, 65_535]] {
        let members: Vec<_> = (0..).zip(weights).collect();
        let shares = shares(&Sample::of(&members).owners());
        let share = shares.get(&seed(0)).copied().unwrap_or_default();
        assert!(share < 0.001, "{members:?}: {share}");
    }
}

#[test]
fn a_heavy_member_takes_no_more_than_its_share_of_the_others_keys() {
    let members: Vec<_> = (0..10).map(|name| (name, 2)).collect();
    let before = Sample::of(&members).owners();
    let after = Sample::of(&[&members[..], &[(10, 6)]].concat()).owners();
    let moved = moved(&before, &after);
    assert!((moved - 6.0 / 26.0).abs() < 0.04, "{moved}");
}

#[test]
fn the_order_of_members_does_not_matter() {
    let members: Vec<_> = (0..20).map(|name| (name, 1 + name as u32 % 3)).collect();
    let reversed: Vec<_> = members.iter().copied().rev().collect();
    assert_eq!(
        Sample::of(&members).owners(),
        Sample::of(&reversed).owners()
    );
}

/// What another build of Waypost would have to agree with.
#[test]
fn positions_stay_as_they_are() {
    let positions: Vec<_> = positions(seed(0)).take(4).collect();
    assert_eq!(
        positions,
        [1_702_563_548, 2_136_572_854, 3_564_998_653, 290_582_448]
    );
    let sample = Sample::equal(0..10);
    let owner = |key| {
        sample
            .ring
            .pick(key, |_| true, |_| 0)
            .expect("all are usable")
    };
    let owners: Vec<_> = (1..16).map(|key| owner(key << 60)).collect();
    assert_eq!(owners, [0, 0, 3, 5, 0, 8, 4, 8, 5, 6, 6, 6, 8, 6, 2]);
}

#[test]
fn a_member_over_its_bound_is_passed_over_for_the_next_one() {
    let sample = Sample::equal(0..10);
    let first = |in_flight: &dyn Fn(u32) -> u32, key| {
        sample
            .ring
            .pick(key, |_| true, in_flight)
            .expect("all are usable")
    };
    for key in keys().take(1000) {
        let own = first(&|_| 0, key);
        let next = sample.ring.pick(key, |member| member != own, |_| 0);
        // 1.25 of the mean, this request included: (10 * 9 + n + 1) / 8.
        for (others, running, expected) in [
            (0, FEW - 1, Some(own)),
            (0, FEW, next),
            (10, 12, Some(own)),
            (10, 13, next),
            (100, 127, Some(own)),
            (100, 130, next),
        ] {
            let in_flight = |member| if member == own { running } else { others };
            let picked = sample.ring.pick(key, |_| true, in_flight);
            assert_eq!(picked, expected, "{running} beside {others}");
        }
    }
}

#[test]
fn one_hot_key_buries_nobody() {
    let sample = Sample::equal(0..10);
    let mut running = [0_u32; 10];
    for _ in 0..1000 {
        let picked = sample
            .ring
            .pick(1 << 40, |_| true, |member| running[member as usize]);
        running[picked.expect("all are usable") as usize] += 1;
    }
    assert_eq!(running.iter().max(), Some(&125), "{running:?}");
}

#[test]
fn who_is_usable_is_found_among_however_many_are_not() {
    let sample = Sample::equal(0..1000);
    for member in [0, 500, 999] {
        for key in keys().take(100) {
            let picked = sample.ring.pick(key, |other| other == member, |_| 100);
            assert_eq!(picked, Some(member));
        }
    }
    assert_eq!(sample.ring.pick(1, |_| false, |_| 0), None);
}

#[test]
fn rings_are_bounded_and_nobody_is_left_out() {
    for members in [
        vec![1; 20_000],
        vec![65_535, 1],
        [vec![1; 500], vec![65_535; 499]].concat(),
    ] {
        let seeds: Vec<u64> = (0..members.len() as u64).map(seed).collect();
        let ring = Ring::new(&members, &seeds);
        let most = MOST_POINTS as usize + members.len();
        assert!(ring.points.len() <= most, "{}", ring.points.len());
        let there: HashSet<u32> = ring.points.iter().map(|point| point.index).collect();
        assert_eq!(there.len(), members.len());
    }
}
