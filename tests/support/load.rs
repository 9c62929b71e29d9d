//! Clients that ask without a pause and count every answer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, client::conn::http1, http::request};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::waypost::DEADLINE;

/// One connection of an HTTP/1.1 client.
pub struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
}

/// A whole answer.
pub type Answer = Response<String>;

impl Client {
    pub async fn connect(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await;
        Self::over(stream.map_err(|error| format!("connect: {error}"))?).await
    }

    /// From this address of our own.
    pub async fn connect_from(from: IpAddr, address: SocketAddr) -> Result<Self, String> {
        let socket = TcpSocket::new_v4().map_err(|error| format!("socket: {error}"))?;
        let bound = socket.bind(SocketAddr::new(from, 0));
        bound.map_err(|error| format!("bind: {error}"))?;
        let stream = socket.connect(address).await;
        Self::over(stream.map_err(|error| format!("connect: {error}"))?).await
    }

    async fn over(stream: TcpStream) -> Result<Self, String> {
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Whether the server has not closed it.
    pub async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer, String> {
        self.ask("GET", host, path).await
    }

    /// Any method, without a body.
    pub async fn ask(&mut self, method: &str, host: &str, path: &str) -> Result<Answer, String> {
        self.send(method, host, path, Bytes::new()).await
    }

    /// Any method, without a body, and with these header fields.
    pub async fn ask_with(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let mut request = request(method, host, path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.exchange(request.body(Full::default())).await
    }

    /// Any method, with a body unless that is empty.
    pub async fn send(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, String> {
        let request = request(method, host, path).body(Full::new(body));
        self.exchange(request).await
    }

    async fn exchange(
        &mut self,
        request: hyper::http::Result<Request<Full<Bytes>>>,
    ) -> Result<Answer, String> {
        let request = request.map_err(|error| format!("request: {error}"))?;
        let exchange = async {
            // The task behind it may not know yet that the last answer is over.
            let ready = self.sender.ready().await;
            ready.map_err(|error| format!("connection: {error:?}"))?;
            let response = self.sender.send_request(request).await;
            let response = response.map_err(|error| format!("head: {error:?}"))?;
            let (head, body) = response.into_parts();
            let body = body
                .collect()
                .await
                .map_err(|error| format!("body: {error:?}"))?;
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            Ok(Response::from_parts(head, body))
        };
        let answer = timeout(DEADLINE, exchange).await;
        answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }
}

fn request(method: &str, host: &str, path: &str) -> request::Builder {
    let request = Request::builder().method(method).uri(path);
    request.header("host", host)
}

/// GET on a connection of its own.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer, String> {
    Client::connect(address).await?.get(host, path).await
}

/// GET that must be answered.
pub async fn ask(address: SocketAddr, host: &str, path: &str) -> Answer {
    match get(address, host, path).await {
        Ok(answer) => answer,
        Err(error) => panic!("{host}{path}: {error}"),
    }
}

/// Clients that run until stopped: some keep their connection, some take a new one for each request.
pub struct Load {
    clients: JoinSet<()>,
    tally: Arc<Mutex<Tally>>,
}

/// What they got.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers with status 200.
    pub good: usize,
    /// Everything else, in words; the first of them.
    pub failures: Vec<String>,
    /// Good answers by host and body.
    pub bodies: BTreeMap<(String, String), usize>,
    /// The bodies of POSTs that were answered by [`Load::counted`].
    pub posted: Vec<String>,
}

impl Load {
    /// Asks these addresses for `/` of these hosts, in turn.
    pub fn start(addresses: &[SocketAddr], hosts: &[&str]) -> Self {
        Self::paced(addresses, hosts, Duration::ZERO)
    }

    /// The same with requests that take their time, and that nobody may repeat.
    pub fn of_posts(addresses: &[SocketAddr], hosts: &[&str]) -> Self {
        let asks = Asks::Always("POST", "/slow");
        Self::of(addresses, hosts, asks, Duration::ZERO)
    }

    /// Requests that nobody may repeat, answered at once.
    pub fn of_short_posts(addresses: &[SocketAddr], hosts: &[&str]) -> Self {
        Self::of(addresses, hosts, Asks::Always("POST", "/"), Duration::ZERO)
    }

    /// As [`Self::start`], and every client pauses this long after each answer.
    pub fn paced(addresses: &[SocketAddr], hosts: &[&str], pause: Duration) -> Self {
        Self::of(addresses, hosts, Asks::Always("GET", "/"), pause)
    }

    /// GETs, and as many POSTs with a body that there is but once, and that the answer is to repeat.
    pub fn counted(addresses: &[SocketAddr], hosts: &[&str]) -> Self {
        Self::of(addresses, hosts, Asks::Counted, Duration::ZERO)
    }

    fn of(addresses: &[SocketAddr], hosts: &[&str], asks: Asks, pause: Duration) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut clients = JoinSet::new();
        for number in 0..6 {
            let asker = Asker {
                address: addresses[number % addresses.len()],
                hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
                keeps: number % 3 != 0,
                asks,
                number,
                pause,
                tally: tally.clone(),
            };
            clients.spawn(asker.run());
        }
        Self { clients, tally }
    }

    pub fn tally(&self) -> Tally {
        self.tally.lock().expect("no client panics").clone()
    }

    /// Waits until so many more good answers came.
    pub async fn more(&self, count: usize) {
        let (goal, begun) = (self.tally().good + count, Instant::now());
        while self.tally().good < goal {
            assert!(begun.elapsed() < DEADLINE, "no answers: {:?}", self.tally());
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends it; not one request may have failed.
    pub async fn finish(mut self) -> Tally {
        self.clients.shutdown().await;
        let tally = self.tally();
        assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
        tally
    }
}

/// What a client asks for.
#[derive(Clone, Copy)]
enum Asks {
    /// This method and path.
    Always(&'static str, &'static str),
    Counted,
}

struct Asker {
    address: SocketAddr,
    hosts: Vec<String>,
    keeps: bool,
    asks: Asks,
    number: usize,
    pause: Duration,
    tally: Arc<Mutex<Tally>>,
}

impl Asker {
    async fn run(self) {
        let mut kept: Option<Client> = None;
        for (round, host) in self.hosts.iter().cycle().enumerate() {
            let outcome = self.once(&mut kept, host, round).await;
            let failed = {
                let mut tally = self.tally.lock().expect("no client panics");
                match outcome {
                    Ok(body) => {
                        tally.good += 1;
                        match self.asks {
                            Asks::Counted if !round.is_multiple_of(2) => tally.posted.push(body),
                            _ => *tally.bodies.entry((host.clone(), body)).or_default() += 1,
                        }
                        false
                    }
                    Err(error) => {
                        if tally.failures.len() < 20 {
                            tally.failures.push(format!("{host}: {error}"));
                        }
                        true
                    }
                }
            };
            if failed {
                kept = None;
                sleep(Duration::from_millis(10)).await;
            } else if !self.pause.is_zero() {
                sleep(self.pause).await;
            }
        }
    }

    async fn once(
        &self,
        kept: &mut Option<Client>,
        host: &str,
        round: usize,
    ) -> Result<String, String> {
        let is_open = match kept {
            Some(client) => client.is_open().await,
            None => false,
        };
        let mut client = match kept.take() {
            Some(client) if is_open => client,
            _ => Client::connect(self.address).await?,
        };
        let (method, path, body) = match self.asks {
            Asks::Always(method, path) => (method, path, String::new()),
            Asks::Counted if round.is_multiple_of(2) => ("GET", "/", String::new()),
            // From a few bytes to more than fit into one read.
            Asks::Counted => {
                let padding = 40_000 * usize::from(round % 16 == 1);
                ("POST", "/", format!("{}-{round:0padding$}", self.number))
            }
        };
        let sent = body.clone().into();
        let answer = client.send(method, host, path, sent).await?;
        if answer.status() != 200 {
            let why = answer.headers().get("proxy-status").cloned();
            return Err(format!("{} {why:?}", answer.status()));
        }
        if !body.is_empty() && *answer.body() != body {
            return Err(format!("another answer to {method} than its body"));
        }
        if self.keeps {
            *kept = Some(client);
        }
        Ok(answer.into_body())
    }
}
