//! Which member of a route takes a request. Pure: counters in, index out.

/// (skeleton)
#[derive(Debug)]
pub struct Balancer;
