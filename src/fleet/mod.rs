//! What instances and commands tell one another through etcd.

pub mod acknowledge;
pub mod barrier;
pub mod change;
pub mod instance;
pub mod lease;
pub mod reach;
pub mod records;
pub mod registration;
pub mod tally;
