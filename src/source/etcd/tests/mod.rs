//! The source and the publisher over a model of etcd: thousands of random histories, each the same every time.

mod convergence;
mod instance;
mod mirror;
mod model;
#[path = "../../../../tests/support/random_keys.rs"]
mod random_keys;
