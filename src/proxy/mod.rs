//! (skeleton)

pub mod forwarded;
