//! What the tests start and drive: real processes and sockets, on ports of their own.

pub mod command;
pub mod deaf_link;
pub mod etcd;
pub mod fleet;
pub mod follower;
pub mod http;
pub mod link;
pub mod load;
pub mod network;
pub mod origin;
pub mod process;
pub mod register;
pub mod rig;
pub mod sample;
pub mod snapshot;
pub mod soak;
pub mod tls;
pub mod waypost;
