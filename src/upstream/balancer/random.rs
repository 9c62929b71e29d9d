//! Where balancers take their chance from: one generator per thread, seeded by the system unless a simulation or a test
//! seeds it.

use std::cell::RefCell;

use rand::{Rng, SeedableRng, rngs::SmallRng};

thread_local! {
    // No system call and no cryptography per request.
    static RANDOM: RefCell<SmallRng> = RefCell::new(rand::make_rng());
}

/// 64 bits of this thread's generator.
pub fn bits() -> u64 {
    RANDOM.with_borrow_mut(SmallRng::next_u64)
}

/// A number below `bound`, each as likely as the others to within `bound` / 2^64; 0 if `bound` is 0.
pub fn below(bound: u64) -> u64 {
    let product = u128::from(bits()) * u128::from(bound);
    (product >> 64) as u64
}

/// From here on this thread draws what this seed says: for simulations and tests that are to come out alike.
pub fn reseed(seed: u64) {
    RANDOM.with_borrow_mut(|random| *random = SmallRng::seed_from_u64(seed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_below_their_bound_and_a_seed_repeats_them() {
        let draw = || {
            reseed(7);
            [1, 2, 10, u64::MAX].map(below)
        };
        let drawn = draw();
        assert_eq!(drawn, draw());
        assert_eq!(drawn[0], 0);
        assert!(drawn[1] < 2 && drawn[2] < 10, "{drawn:?}");
        assert_eq!(below(0), 0);
    }
}
