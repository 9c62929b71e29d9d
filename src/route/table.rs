//! The routing table.

/// (skeleton)
#[derive(Default)]
pub struct Table;
