//! Origins: what stands behind Waypost, well-behaved or not, and remembers what it was asked.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::{
    http::{Message, Wire},
    waypost::eventually,
};

/// A listening origin; it ends with its owner.
pub struct Origin {
    place: Place,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What an origin was sent.
#[derive(Default)]
pub struct Seen {
    connections: AtomicUsize,
    closed: AtomicUsize,
    requests: Mutex<Vec<Message>>,
}

/// One connection to an origin.
pub struct Served {
    pub wire: Wire,
    /// Counted from 1.
    pub connection: usize,
    seen: Arc<Seen>,
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
        self.seen.requests.lock().unwrap().push(request);
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.send(bytes).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.seen.closed.fetch_add(1, Ordering::SeqCst);
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
        let seen = Arc::<Seen>::default();
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
        let seen = Arc::<Seen>::default();
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
        let seen = Arc::<Seen>::default();
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
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Message> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// The latest request.
    pub fn latest(&self) -> Message {
        self.requests().pop().expect("it was asked")
    }

    /// Waits until it has this many requests.
    pub async fn asked(&self, count: usize) {
        eventually("the origin is asked", async || {
            self.requests().len() >= count
        })
        .await;
    }

    /// Waits until so many connections were closed, by it or by Waypost.
    pub async fn closed(&self, count: usize) {
        let closed = || self.seen.closed.load(Ordering::SeqCst);
        eventually("the origin's connection is closed", async || {
            closed() >= count
        })
        .await;
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

fn served(wire: Wire, seen: &Arc<Seen>) -> Served {
    Served {
        wire,
        connection: seen.connections.fetch_add(1, Ordering::SeqCst) + 1,
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
