//! What instances and commands tell one another through etcd.

pub mod change;
pub mod lease;
pub mod reach;
pub mod registration;
