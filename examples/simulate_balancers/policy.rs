//! The policies that are compared.

use waypost::upstream::balancer::Balance;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    RoundRobin,
    Random,
    LeastRequest,
    Hash,
    /// As if nothing was in flight anywhere.
    HashUnbounded,
}

impl Policy {
    pub const ALL: [Self; 5] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastRequest,
        Self::Hash,
        Self::HashUnbounded,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastRequest => "least-request",
            Self::Hash => "hash",
            Self::HashUnbounded => "hash without its bound",
        }
    }

    pub fn balance(self) -> Balance {
        match self {
            Self::RoundRobin => Balance::RoundRobin,
            Self::Random => Balance::Random,
            Self::LeastRequest => Balance::LeastRequest,
            Self::Hash | Self::HashUnbounded => Balance::Hash,
        }
    }
}
