//! Origins: what stands behind Waypost, well-behaved or not, and remembers what it was asked.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::{
    http::{Message, Wire},
    seen::Seen,
};

/// A listening origin; it ends with its owner.
pub struct Origin {
    place: Place,
    seen: Arc<Seen<Message>>,
    task: JoinHandle<()>,
}

enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One connection to an origin.
pub struct Served {
    pub wire: Wire,
    /// Counted from 1.
    pub connection: usize,
    seen: Arc<Seen<Message>>,
}

impl Served {
    /// The next request, remembered; `None` when the connection ends.
    pub async fn request(&mut self) -> Option<Message> {
        let request = self.wire.request().await?;
        self.note(request.clone());
        Some(request)
    }

    /// Remembers what was read by other means.
    pub fn note(&self, request: Message) {
        self.seen.note(request);
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.send(bytes).await
    }

    /// Goes on in TLS; whether the handshake succeeds.
    pub async fn secure(&mut self, acceptor: &TlsAcceptor) -> bool {
        let plain = std::mem::replace(&mut self.wire, Wire::over(tokio::io::empty()));
        match plain.into_tls(acceptor).await {
            Some(wire) => {
                self.wire = wire;
                true
            }
            None => false,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // First closed, then counted: who waits for the count relies on it.
        drop(std::mem::replace(
            &mut self.wire,
            Wire::over(tokio::io::empty()),
        ));
        self.seen.connection_ended();
    }
}

impl Origin {
    /// Each connection is served by `script`.
    pub async fn run<F, S>(script: S) -> Self
    where
        S: Fn(Served) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::run_at("127.0.0.1:0", script).await
    }

    /// As [`Self::run`], at this address.
    pub async fn run_at<F, S>(address: &str, script: S) -> Self
    where
        S: Fn(Served) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let place = Place::Tcp(listener.local_addr().expect("bound"));
        let seen = Arc::<Seen<Message>>::default();
        let task = tokio::spawn({
            let seen = seen.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(script(served(Wire::tcp(stream), &seen)));
                }
            }
        });
        Self { place, seen, task }
    }

    /// As [`Self::run`], over TLS.
    pub async fn run_tls<F, S>(config: Arc<ServerConfig>, script: S) -> Self
    where
        S: Fn(Served) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let place = Place::Tcp(listener.local_addr().expect("bound"));
        let seen = Arc::<Seen<Message>>::default();
        let task = tokio::spawn({
            let (seen, acceptor) = (seen.clone(), TlsAcceptor::from(config));
            let script = Arc::new(script);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, seen, script) = (acceptor.clone(), seen.clone(), script.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            script(served(Wire::over(stream), &seen)).await;
                        }
                    });
                }
            }
        });
        Self { place, seen, task }
    }

    /// As [`Self::run`], on a socket in the file system.
    pub async fn run_unix<F, S>(path: PathBuf, script: S) -> Self
    where
        S: Fn(Served) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = UnixListener::bind(&path).expect("a free path");
        let seen = Arc::<Seen<Message>>::default();
        let task = tokio::spawn({
            let seen = seen.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(script(served(Wire::over(stream), &seen)));
                }
            }
        });
        let place = Place::Unix(path);
        Self { place, seen, task }
    }

    /// Answers every request with these bytes.
    pub async fn answering(response: impl AsRef<[u8]>) -> Self {
        Self::run(answer_all(response)).await
    }

    /// Answers the requests of a connection with one after the other of these, over and over.
    pub async fn answering_in_turn(responses: &'static [&'static str]) -> Self {
        Self::run(async move |mut served| {
            for response in responses.iter().cycle() {
                if served.request().await.is_none() || !served.send(response).await {
                    return;
                }
            }
        })
        .await
    }

    /// Answers a connection's first request with these bytes once it has the head, and then reads on to the end.
    pub async fn refusing_early(response: &'static str) -> Self {
        Self::run(move |mut served| async move {
            let Ok(head) = served.wire.head().await else {
                return;
            };
            served.note(Message {
                head,
                ..Message::default()
            });
            served.send(response).await;
            served.wire.take_rest().await;
        })
        .await
    }

    /// Says its name, whatever it is asked.
    pub async fn named(name: &str) -> Self {
        let length = name.len();
        Self::answering(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}"
        ))
        .await
    }

    /// Answers every request once with these bytes and closes.
    pub async fn closing(response: impl AsRef<[u8]>) -> Self {
        let response: Arc<[u8]> = response.as_ref().into();
        Self::run(move |mut served| {
            let response = response.clone();
            async move {
                if served.request().await.is_some() {
                    served.send(&response).await;
                }
            }
        })
        .await
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.connections()
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Message> {
        self.seen.requests()
    }

    /// The latest request.
    pub fn latest(&self) -> Message {
        self.seen.latest()
    }

    /// Waits until it has this many requests.
    pub async fn asked(&self, count: usize) {
        self.seen.asked(count).await;
    }

    /// Waits until so many connections were closed, by it or by Waypost, and Waypost's kernel was told so.
    pub async fn closed(&self, count: usize) {
        let port = match self.place {
            Place::Tcp(address) => Some(address.port()),
            Place::Unix(_) => None,
        };
        self.seen.closed(count, port).await;
    }
}

impl fmt::Display for Origin {
    /// As an upstream in a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(address) => write!(f, "{address}"),
            Place::Unix(path) => {
                let path = path.to_str().expect("a path of ours").replace('/', "%2F");
                write!(f, "unix:{path}")
            }
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn served(wire: Wire, seen: &Arc<Seen<Message>>) -> Served {
    Served {
        wire,
        connection: seen.connection_began(),
        seen: seen.clone(),
    }
}

/// A script that answers every request of a connection with these bytes.
pub fn answer_all(
    response: impl AsRef<[u8]>,
) -> impl Fn(Served) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static {
    let response: Arc<[u8]> = response.as_ref().into();
    move |mut served| {
        let response = response.clone();
        Box::pin(async move {
            while served.request().await.is_some() {
                if !served.send(&response).await {
                    return;
                }
            }
        })
    }
}

/// An address that refuses connections, and that nobody else can get.
pub struct Refusing(socket2::Socket);

impl Refusing {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        // Bound and never listening.
        socket.bind(&any.into()).expect("a free port");
        Self(socket)
    }
}

impl fmt::Display for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.local_addr().expect("bound");
        write!(f, "{}", address.as_socket().expect("an IP address"))
    }
}
