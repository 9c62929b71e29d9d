//! Which member of a route takes a request: a turn, a random number or a hash in, an index out.
//!
//! What depends on the weights is worked out when the balancer is built; a pick costs the same whatever the number of
//! members, takes no lock and allocates nothing. Who may be picked and what is in flight, the caller knows.

mod least_request;
mod policy;
pub mod random;
mod ring;
mod shares;
pub mod tokens;
mod turns;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use twox_hash::XxHash3_64;

pub use self::policy::{Balance, HashOn, Sticky};
use self::{ring::Ring, shares::Shares, turns::Turns};

/// How many turns a request takes to find a usable member before it draws one at random.
const TURNS: usize = 8;

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
    Random(Box<Shares>),
    /// The less busy of two.
    LeastRequest(Box<Shares>),
    /// By a key of the request.
    Hash(Box<Ring>),
}

/// Whose turn is when, and how far all workers together have come.
#[derive(Debug)]
pub struct RoundRobin {
    turns: Turns,
    cursor: Arc<AtomicUsize>,
}

impl Balancer {
    /// A balancer over members of these weights, whose upstreams have these addresses. It goes on where `previous`,
    /// the one it replaces, is.
    pub fn new<'u>(
        balance: Balance,
        weights: &[u32],
        address: impl Fn(usize) -> &'u str,
        previous: Option<&Self>,
    ) -> Self {
        let mut weighted = (0_u32..).zip(weights).filter(|&(_, &weight)| weight > 0);
        match (weighted.next(), weighted.next()) {
            (None, _) => return Self::Nobody,
            (Some((only, _)), None) => return Self::Only(only),
            _ => {}
        }
        match balance {
            Balance::Random => Self::Random(Box::new(Shares::new(weights))),
            Balance::LeastRequest => Self::LeastRequest(Box::new(Shares::new(weights))),
            Balance::RoundRobin => Self::RoundRobin(Box::new(RoundRobin {
                turns: Turns::new(weights),
                cursor: match previous {
                    Some(Self::RoundRobin(previous)) => previous.cursor.clone(),
                    _ => Arc::default(),
                },
            })),
            Balance::Hash => {
                let seed = |member| XxHash3_64::oneshot(address(member).as_bytes());
                let seeds: Vec<u64> = (0..weights.len()).map(seed).collect();
                Self::Hash(Box::new(Ring::new(weights, &seeds)))
            }
        }
    }

    /// Whether picks depend on a key.
    pub fn is_keyed(&self) -> bool {
        matches!(self, Self::Hash(_))
    }

    /// The index of a usable member with weight; `None` if there is none. `key` is the hash of what the route hashes;
    /// without it a request goes to any. `in_flight` counts over all workers.
    pub fn pick(
        &self,
        key: Option<u64>,
        is_usable: impl Fn(usize) -> bool,
        in_flight: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        match self {
            Self::RoundRobin(round_robin) => {
                let picked = round_robin.pick(|member| is_usable(member as usize));
                picked.map(|member| member as usize)
            }
            _ => self.pick_again(key, is_usable, in_flight),
        }
    }

    /// As [`Self::pick`], for a request that has had its turn: instead of another turn, at random by weight. Taking the
    /// next turn would let the request after it begin with the member that just failed, and the one after that too.
    pub fn pick_again(
        &self,
        key: Option<u64>,
        is_usable: impl Fn(usize) -> bool,
        in_flight: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let is_usable = |member: u32| is_usable(member as usize);
        let in_flight = |member: u32| in_flight(member as usize);
        let draw = |shares: &Shares| shares.draw_usable(is_usable).map(|share| share.member);
        let picked = match self {
            Self::Nobody => None,
            Self::Only(only) => Some(*only).filter(|&only| is_usable(only)),
            Self::RoundRobin(round_robin) => round_robin.turns.draw_usable(is_usable),
            Self::Random(shares) => draw(shares),
            Self::LeastRequest(shares) => least_request::pick(shares, is_usable, in_flight),
            Self::Hash(ring) => match key {
                Some(key) => ring.pick(key, is_usable, in_flight),
                None => draw(ring.shares()),
            },
        };
        picked.map(|member| member as usize)
    }
}

impl RoundRobin {
    /// The turn of an unusable member is left out. Giving it to the next in line instead would double that one's share.
    fn pick(&self, is_usable: impl Fn(u32) -> bool) -> Option<u32> {
        let turn = || self.turns.at(self.cursor.fetch_add(1, Ordering::Relaxed));
        let mut turns = (0..TURNS).map(|_| turn());
        let picked = turns.find(|&member| is_usable(member));
        picked.or_else(|| self.turns.draw_usable(is_usable))
    }
}

#[cfg(test)]
mod tests;
