//! An upstream that is there and takes no connection.

use std::{
    fmt,
    net::{SocketAddr, TcpStream},
};

/// An address whose accept queue is full, so that the kernel drops further handshakes.
pub struct Deaf {
    address: SocketAddr,
    _held: (socket2::Socket, TcpStream),
}

impl Deaf {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a free port");
        socket.listen(0).expect("a listener");
        let address = socket.local_addr().expect("bound").as_socket();
        let address = address.expect("an IP address");
        let queued = TcpStream::connect(address).expect("room for one");
        Self {
            address,
            _held: (socket, queued),
        }
    }
}

impl fmt::Display for Deaf {
    /// As an upstream in a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)
    }
}
