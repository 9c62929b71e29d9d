//! Host patterns.

/// (skeleton)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern;
