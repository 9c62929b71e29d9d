//! Origins: what stands behind Waypost, well-behaved or not, and remembers what it was asked.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    http::{Message, Wire},
    waypost::{DEADLINE, eventually},
};

const PAUSE: Duration = Duration::from_millis(2);

// The states in which a FIN of ours is not acknowledged, as /proc/net/tcp tells them.
const FIN_WAIT_1: &str = "04";
const LAST_ACK: &str = "09";
const CLOSING: &str = "0B";

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

    /// Waits until so many connections were closed, by it or by Waypost, and Waypost's kernel was told so.
    pub async fn closed(&self, count: usize) {
        let closed = || self.seen.closed.load(Ordering::SeqCst);
        let all = async {
            while closed() < count || self.has_fins_under_way() {
                sleep(PAUSE).await;
            }
        };
        let waited = timeout(DEADLINE, all).await;
        assert!(
            waited.is_ok(),
            "{count} connections to be closed, {} are",
            closed()
        );
    }
}

impl Origin {
    /// Whether the end of a connection that is closed here is yet to arrive. A kernel that is short of TCP memory leaves
    /// a FIN for the next retransmission (`tcp_send_fin`), 200 ms later.
    fn has_fins_under_way(&self) -> bool {
        let Place::Tcp(address) = &self.place else {
            return false;
        };
        let sockets = fs::read_to_string("/proc/net/tcp").expect("Linux");
        let port = format!(":{:04X}", address.port());
        sockets.lines().skip(1).any(|socket| {
            let mut columns = socket.split_ascii_whitespace().skip(1);
            let is_ours = columns.next().is_some_and(|local| local.ends_with(&port));
            is_ours && matches!(columns.nth(1), Some(FIN_WAIT_1 | LAST_ACK | CLOSING))
        })
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
