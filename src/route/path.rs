//! Path prefixes.

/// (skeleton)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPrefix;
