//! The listening sockets: one per listener and worker, all on one address by `SO_REUSEPORT`.
//!
//! `SO_REUSEPORT` would let a second process of the same user share a busy port without a word, so each address is
//! first probed by a bind that doesn't set it.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::ListenerConfig;

/// How many connections may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Opens the sockets of every listener, one for each of the `workers`, in the order given. If one listener fails,
/// those already opened are closed.
pub fn bind_all(
    listeners: &[ListenerConfig],
    workers: usize,
) -> Result<Vec<Vec<TcpListener>>, BindError> {
    let mut seen = HashSet::new();
    let twice = listeners
        .iter()
        .map(|listener| listener.address)
        // Port 0 is another port each time.
        .find(|address| address.port() != 0 && !seen.insert(*address));
    if let Some(address) = twice {
        return Err(BindError::Twice(address));
    }
    listeners
        .iter()
        .map(|listener| {
            let address = listener.address;
            bind_as(address, family(address, listeners), workers)
        })
        .collect()
}

/// Opens one non-blocking listening socket for each of the `workers`, all on `address`. For port 0 the system
/// picks a port, and all get that one. `[::]` takes IPv4 too.
pub fn bind(address: SocketAddr, workers: usize) -> Result<Vec<TcpListener>, BindError> {
    bind_as(address, Family::Both, workers)
}

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket listens there.
    #[error(
        "cannot listen on {0}: the address is in use; stop what listens there (ss -ltnp shows it) \
         or choose another port with --listen"
    )]
    InUse(SocketAddr),
    /// A port below `net.ipv4.ip_unprivileged_port_start`.
    #[error(
        "cannot listen on {0}: permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE \
         (setcap cap_net_bind_service=+ep), or choose a higher port"
    )]
    Denied(SocketAddr),
    /// No interface has it.
    #[error(
        "cannot listen on {0}: this machine has no such address; use one of its own, \
         or 0.0.0.0 or [::] for all of them"
    )]
    NotOurs(SocketAddr),
    /// The same listener was asked for twice.
    #[error("cannot listen on {0} twice: remove one --listen")]
    Twice(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl BindError {
    fn new(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(address),
            io::ErrorKind::PermissionDenied => Self::Denied(address),
            io::ErrorKind::AddrNotAvailable => Self::NotOurs(address),
            _ => Self::Other { address, source },
        }
    }
}

/// Which clients a socket on `[::]` takes. Nothing to any other address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// IPv4 by mapped addresses too.
    Both,
    /// IPv6 alone: another listener has `0.0.0.0` with this port.
    Ipv6,
}

fn family(address: SocketAddr, listeners: &[ListenerConfig]) -> Family {
    let any_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let has_ipv4_sibling =
        address.port() != 0 && listeners.iter().any(|other| other.address == any_ipv4);
    match has_ipv4_sibling {
        true => Family::Ipv6,
        false => Family::Both,
    }
}

fn bind_as(
    address: SocketAddr,
    family: Family,
    workers: usize,
) -> Result<Vec<TcpListener>, BindError> {
    let failed = |source| BindError::new(address, source);
    // `SO_REUSEADDR` here, or connections in TIME_WAIT would fail a restart. The probe listens, too: Linux lets
    // two sockets with `SO_REUSEADDR` be bound to one port as long as neither listens. Closed before the real ones.
    if address.port() != 0 {
        let probe = socket(address, family, Port::Exclusive).map_err(failed)?;
        probe.listen(1).map_err(failed)?;
        drop(probe);
    }
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(workers);
    let mut at = address;
    for _ in 0..workers {
        let socket = socket(at, family, Port::Shared).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        let listener = TcpListener::from(socket);
        if at.port() == 0 {
            at = listener.local_addr().map_err(failed)?;
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Whether sockets of our own may be bound beside this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Exclusive,
    Shared,
}

/// A bound socket that doesn't listen yet.
fn socket(address: SocketAddr, family: Family, port: Port) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if port == Port::Shared {
        socket.set_reuse_port(true)?;
    }
    if let SocketAddr::V6(v6) = address {
        // Said in either case: the system's own default is a sysctl.
        socket.set_only_v6(!is_wildcard(&v6) || family == Family::Ipv6)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn is_wildcard(address: &SocketAddrV6) -> bool {
    *address.ip() == Ipv6Addr::UNSPECIFIED
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn local() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn at(address: SocketAddr) -> ListenerConfig {
        ListenerConfig {
            address,
            tls: None,
            proxy_protocol: false,
        }
    }

    fn address(listeners: &[TcpListener]) -> SocketAddr {
        listeners[0].local_addr().unwrap()
    }

    #[test]
    fn every_worker_gets_a_socket_on_the_port_that_was_picked() {
        let listeners = bind(local(), 3).unwrap();
        let picked = address(&listeners);
        assert_ne!(picked.port(), 0);
        assert_eq!(listeners.len(), 3);
        for listener in &listeners {
            assert_eq!(listener.local_addr().unwrap(), picked);
            let error = listener.accept().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_busy_port_fails_by_name_however_its_holder_bound_it() {
        let plain = TcpListener::bind(local()).unwrap();
        // What a second process of the same user would hold: `SO_REUSEPORT` alone would let us in.
        let shared = bind(local(), 2).unwrap();
        for busy in [plain.local_addr().unwrap(), address(&shared)] {
            let error = bind(busy, 2).unwrap_err();
            assert!(matches!(error, BindError::InUse(at) if at == busy));
            assert!(error.to_string().contains(&busy.to_string()), "{error}");
            // The wildcard covers the busy address.
            let any = SocketAddr::from(([0, 0, 0, 0], busy.port()));
            assert!(matches!(bind(any, 2), Err(BindError::InUse(at)) if at == any));
        }
    }

    #[test]
    fn a_failing_listener_closes_those_opened_before_it() {
        let free = address(&bind(local(), 1).unwrap());
        let busy = TcpListener::bind(local()).unwrap();
        let listeners = [at(free), at(busy.local_addr().unwrap())];
        let error = bind_all(&listeners, 2).unwrap_err();
        assert!(matches!(error, BindError::InUse(at) if at == listeners[1].address));
        // Exclusively, which any socket left open would prevent.
        TcpListener::bind(free).unwrap();
    }

    #[test]
    fn the_same_listener_twice_is_refused_but_port_0_twice_is_two_ports() {
        let free = address(&bind(local(), 1).unwrap());
        let error = bind_all(&[at(free), at(free)], 1).unwrap_err();
        assert!(matches!(error, BindError::Twice(at) if at == free));
        let bound = bind_all(&[at(local()), at(local())], 1).unwrap();
        assert_ne!(address(&bound[0]), address(&bound[1]));
    }

    #[test]
    fn a_port_whose_last_connection_is_in_time_wait_can_be_bound_again() {
        let listeners = bind(local(), 1).unwrap();
        let here = address(&listeners);
        listeners[0].set_nonblocking(false).unwrap();
        let client = TcpStream::connect(here).unwrap();
        // Whoever closes first keeps TIME_WAIT: us.
        drop(listeners[0].accept().unwrap());
        drop(client);
        drop(listeners);
        bind(here, 2).unwrap();
    }

    #[test]
    fn the_ipv6_wildcard_takes_ipv4_unless_a_listener_of_its_own_does() {
        let Ok(alone) = bind("[::]:0".parse().unwrap(), 1) else {
            eprintln!("SKIPPED: this machine has no IPv6");
            return;
        };
        let port = address(&alone).port();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        drop(alone);

        let both = [
            at(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
            at(SocketAddr::from(([0, 0, 0, 0], port))),
        ];
        for listeners in [both.clone(), [both[1].clone(), both[0].clone()]] {
            let bound = bind_all(&listeners, 2).unwrap();
            assert_eq!(bound.len(), 2);
        }
    }

    #[test]
    fn an_address_of_another_machine_says_so() {
        // TEST-NET-1: nobody's.
        let elsewhere = "192.0.2.1:4000".parse().unwrap();
        let error = bind(elsewhere, 1).unwrap_err();
        assert!(matches!(error, BindError::NotOurs(_)), "{error}");
    }
}
