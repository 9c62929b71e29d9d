//! Where an upstream is: the address as its key writes it, and the endpoint it resolves to.

use std::{fmt, net::SocketAddr, path::PathBuf};

/// An upstream as the last segment of a key writes it: `ip:port`, `[ipv6]:port`, `name:port`, or `unix:` and a
/// percent-encoded path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address that needs no resolving.
    Ip(SocketAddr),
    /// A name to resolve, lower-case, and its port.
    Name(Box<str>, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// What is dialled: an [`Address`] after resolving. Each address behind a name is an endpoint of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP. `name` is kept for SNI and for `host_header: upstream`.
    Tcp {
        /// Where to connect.
        address: SocketAddr,
        /// The `name` of `name:port` this address came from.
        name: Option<Box<str>>,
    },
    /// A name without any known address yet: every dial fails.
    Unresolved(Box<str>, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => address.fmt(f),
            Self::Unresolved(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
