//! Chance that is the same on every machine.

use rand::{Rng, SeedableRng, rngs::SmallRng};

pub struct Chance(SmallRng);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// A number below this one.
    pub fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.0.next_u64()) * u128::from(bound);
        (product >> 64) as u64
    }

    /// With this mean, by comparisons alone (von Neumann 1951): a logarithm may differ between machines.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        for whole in 0.. {
            let first = self.0.next_u64();
            let (mut last, mut falling) = (first, 1);
            loop {
                let next = self.0.next_u64();
                if next >= last {
                    break;
                }
                (last, falling) = (next, falling + 1);
            }
            if falling % 2 == 1 {
                let part = (u128::from(first) * u128::from(mean)) >> 64;
                return whole * mean + part as u64;
            }
        }
        unreachable!("somebody is lucky before 2^64 tries")
    }
}
