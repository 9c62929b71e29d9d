//! What instances and commands tell one another through etcd.

pub mod change;
