//! Waypost: a load balancer whose routing table lives in etcd.
//!
//! A request flows `worker -> proxy -> route -> upstream`; a change flows `source -> route::table`, and one
//! [`arc_swap::ArcSwap`] joins the two. See the README for the way of each through the folders.

pub mod admin;
pub mod barrier;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod fleet;
pub mod gate;
pub mod live;
pub mod moment;
pub mod proxy;
pub mod route;
pub mod server;
pub mod source;
pub mod sweep;
pub mod telemetry;
pub mod upstream;
pub mod worker;
