//! Consistent hashing with bounded loads: the same key goes to the same member, at every instance and after every
//! restart, and a change of members moves no more keys than it must.
//!
//! Members stand on a ring at many points each; a key belongs to the member whose point is next (Karger et al.,
//! Consistent Hashing and Random Trees, 1997). A member whose load is over its bound is passed over for the next one
//! (Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads, 2016), so no hot key and no uneven arc can
//! bury one while others idle.
//!
//! Why not Maglev's table (Eisenbud et al., Maglev, 2016): it is more even (1 % against some 8 %), but its size has to
//! be a hundred times the number of members and must not change, or nearly all keys move. Large enough for a thousand
//! members it takes 256 KiB in every route, with three members too; a ring takes 2 KiB for each member, whatever their
//! number. Removing one of 1,000 members moves some further keys in a Maglev table, and none on a ring. The
//! unevenness is what the bound is for. A look-up is constant in time here as well: an index over the ring's positions
//! leads to within a point or two. Rendezvous hashing needs no memory, but looks at every member for every request.

use super::shares::{Share, Shares};

/// Points of a member of median weight: its share is off by 1 / sqrt(160), 8 %, as one standard deviation.
const POINTS: u64 = 160;

/// Most points of a ring. With more than some 1,600 members each has fewer.
const MOST_POINTS: u64 = 1 << 18;

/// Points that any ring may have: enough for a member with a thousandth of the weight of another.
const FEWEST_POINTS: u64 = 1 << 14;

/// A member takes no more than 5 / 4 of its share of the requests in flight: Mirrokni's c = 1.25.
const BOUND: (u64, u64) = (5, 4);

/// A member with fewer requests in flight than this is within its bound in any case. Else a second request of a client
/// would go elsewhere wherever there is little to do, as its share is below one then.
const FEW: u32 = 8;

/// How many points are walked from a key's place before its member is looked for otherwise.
const WALK: usize = 64;

/// How many members' loads make up the mean: all of most routes; of more members, as many.
const SAMPLE: usize = 64;

/// Members on a ring.
#[derive(Debug)]
pub struct Ring {
    /// Ordered by position.
    points: Box<[Point]>,
    /// For each of 2^n equal arcs, the first point in it or behind it.
    arcs: Box<[u32]>,
    /// What of a position, from the left, is its arc: 32 - n.
    arc_shift: u32,
    shares: Shares,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    position: u32,
    /// Its member's place in the shares.
    index: u32,
}

impl Ring {
    /// Of the members that have a weight. Where they stand depends on their `seeds` alone, not on their order.
    ///
    /// # Panics
    /// Without any member with a weight.
    pub fn new(weights: &[u32], seeds: &[u64]) -> Self {
        let shares = Shares::new(weights);
        let scale = Scale::of(&shares);
        let mut points = Vec::new();
        for (index, share) in (0..).zip(shares.iter()) {
            let positions =
                positions(seeds[share.member as usize]).take(scale.points(share.weight));
            points.extend(positions.map(|position| Point { position, index }));
        }
        points.sort_unstable_by_key(|point| (point.position, point.index));
        let arc_bits = points.len().ilog2().max(1);
        let arc_shift = 32 - arc_bits;
        let mut first = 0;
        let arcs = (0..1_u32 << arc_bits).map(|arc| {
            while (points.get(first)).is_some_and(|point: &Point| point.position < arc << arc_shift)
            {
                first += 1;
            }
            first as u32
        });
        Self {
            arcs: arcs.collect(),
            arc_shift,
            points: points.into(),
            shares,
        }
    }

    /// The usable member of this key, or one near it if that has too much to do; `None` if there is no usable one.
    /// `in_flight` counts over all workers.
    pub fn pick(
        &self,
        key: u64,
        is_usable: impl Fn(u32) -> bool,
        in_flight: impl Fn(u32) -> u32,
    ) -> Option<u32> {
        let (mut mean, mut nearest, mut last) = (None, None, None);
        for point in self.from(key).take(WALK) {
            let share = self.shares.nth(point.index as usize);
            let member = share.member;
            if last.replace(member) == Some(member) || !is_usable(member) {
                continue;
            }
            let running = in_flight(member);
            if running < FEW {
                return Some(member);
            }
            let mean = mean.get_or_insert_with(|| self.mean(key, &is_usable, &in_flight));
            if mean.has_room(running, share.weight) {
                return Some(member);
            }
            nearest.get_or_insert(member);
        }
        nearest.or_else(|| self.any(key, is_usable))
    }

    /// Every member with a weight.
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The points from a key's place on, once around.
    fn from(&self, key: u64) -> impl Iterator<Item = &Point> {
        let position = (key >> 32) as u32;
        let start = self.arcs[(position >> self.arc_shift) as usize] as usize;
        let behind = |point: &&Point| point.position < position;
        let start = start + self.points[start..].iter().take_while(behind).count();
        let (before, from) = self.points.split_at(start);
        from.iter().chain(before)
    }

    /// Whoever is usable, the same one for the same key: nearly all are out.
    fn any(&self, key: u64, is_usable: impl Fn(u32) -> bool) -> Option<u32> {
        self.shares_from(key)
            .map(|share| share.member)
            .find(|&member| is_usable(member))
    }

    fn mean(
        &self,
        key: u64,
        is_usable: impl Fn(u32) -> bool,
        in_flight: impl Fn(u32) -> u32,
    ) -> Mean {
        let sample = self.shares_from(key).take(SAMPLE);
        let usable = sample.filter(|share| is_usable(share.member));
        // This request too.
        let none = Mean {
            running: 1,
            weight: 0,
        };
        usable.fold(none, |mean, share| Mean {
            running: mean.running + u64::from(in_flight(share.member)),
            weight: mean.weight + u64::from(share.weight),
        })
    }

    /// Each member, beginning anywhere, at the same place for the same key.
    fn shares_from(&self, key: u64) -> impl Iterator<Item = Share> {
        let count = self.shares.len();
        let start = key as u32 as usize % count;
        (start..count)
            .chain(0..start)
            .map(|index| self.shares.nth(index))
    }
}

/// How many requests run at members of how much weight.
#[derive(Clone, Copy)]
struct Mean {
    running: u64,
    weight: u64,
}

impl Mean {
    /// Whether a member of this weight, with so many running, may have one more.
    fn has_room(self, running: u32, weight: u32) -> bool {
        let (times, over) = BOUND;
        let bound = (times * self.running * u64::from(weight)).div_ceil(over * self.weight.max(1));
        u64::from(running) < bound
    }
}

/// How many points a weight gets: `points` for this one. By the median: that stays as it is when one member comes or
/// goes, and with it everybody's points.
struct Scale {
    points: u64,
    weight: u64,
}

impl Scale {
    fn of(shares: &Shares) -> Self {
        let mut weights: Vec<u32> = shares.iter().map(|share| share.weight).collect();
        let middle = (weights.len() - 1) / 2;
        let median = u64::from(*weights.select_nth_unstable(middle).1);
        let count = weights.len() as u64;
        let most = (4 * POINTS * count).clamp(FEWEST_POINTS, MOST_POINTS);
        let total = u64::from(shares.total());
        // Few members may outweigh all others by far, and even so that the others get less than a point.
        match (most * median / total).min(POINTS) {
            0 => Self {
                points: most,
                weight: total,
            },
            points => Self {
                points,
                weight: median,
            },
        }
    }

    fn points(&self, weight: u32) -> usize {
        let points = (self.points * u64::from(weight)).div_ceil(self.weight);
        points.max(1) as usize
    }
}

/// Where a member stands: as many positions as wanted, always the same ones. `SplitMix64` (Steele et al. 2014), as no
/// library's hash or generator promises to stay as it is.
fn positions(seed: u64) -> impl Iterator<Item = u32> {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    (1_u64..).flat_map(move |index| {
        let mixed = seed.wrapping_add(index.wrapping_mul(GAMMA));
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed ^ (mixed >> 31);
        [(mixed >> 32) as u32, mixed as u32]
    })
}

#[cfg(test)]
mod tests;
