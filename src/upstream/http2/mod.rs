//! HTTP/2 towards an upstream: few connections, each shared by many requests.
//!
//! On `h2` itself and not on hyper's client, which hides what a proxy needs: why a stream was reset, which stream it
//! was, interim responses, and a way to end a stream for a reason. What `h2` hides in turn, the connection's byte stream
//! shows (see `watch`).

mod body;
mod connection;
mod exchange;
mod incoming;
mod keepalive;
mod pool;
mod sips;
mod socket;
mod upload;
mod watch;

pub use body::StreamingBody;
pub use exchange::{Aborted, Exchange, Terms, exchange};
pub use pool::{Lease, NoStream, Pools};
pub(super) use sips::Sips;
pub use socket::Socket;
pub use upload::{poll_room, poll_write};

/// The most streams of one connection at once, whatever the upstream allows.
const MAX_STREAMS: usize = 100;
/// How much of a response body may be on its way to, or with, a client that does not read it, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
