//! HTTP/1.1 on the wire, for both ends of the tests: bytes as written, messages taken apart without mercy or repair.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, Socket};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf, split},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::waypost::DEADLINE;

/// A byte stream of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One end of a connection, and what was read from it but not yet taken.
pub struct Wire {
    stream: Box<dyn Stream>,
    socket: Option<Socket>,
    read: Vec<u8>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order.
    Fin,
    /// By a reset, or a broken TLS stream.
    Reset,
}

/// A message's head.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The request or status line.
    pub line: String,
    /// The fields as they stand.
    pub fields: Vec<(String, String)>,
}

/// A message, taken out of its framing.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub head: Head,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The interim responses before it.
    pub interim: Vec<Head>,
    /// How the connection ended, if that cut the message short, or ended it by way of framing.
    pub end: Option<End>,
    /// Whether all of the body came.
    pub whole: bool,
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields = lines.take_while(|line| !line.is_empty()).map(field);
        Self {
            line,
            fields: fields.collect(),
        }
    }

    /// The values of every field of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self
            .fields
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of the one field of this name.
    pub fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} more than once: {self:?}");
        all.first().copied()
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        let code = self
            .line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("no status line: {:?}", self.line))
    }

    fn length(&self) -> Option<usize> {
        self.one("content-length")
            .map(|text| text.parse().expect("a length"))
    }

    fn is_chunked(&self) -> bool {
        self.one("transfer-encoding") == Some("chunked")
    }
}

impl Message {
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The `error` of `Proxy-Status`; it comes with a text for people.
    pub fn error(&self) -> &str {
        let proxy_status = self.head.one("proxy-status").unwrap_or_default();
        let error = proxy_status.strip_prefix("waypost; error=");
        let error = error.and_then(|rest| rest.split(';').next());
        error.unwrap_or_else(|| panic!("no Proxy-Status of ours: {self:?}"))
    }
}

impl Wire {
    /// A connection to Waypost.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it accepts");
        stream.set_nodelay(true).expect("a socket");
        Self::tcp(stream)
    }

    /// The same, from this address of this machine.
    pub async fn connect_from(client: impl Into<IpAddr>, address: SocketAddr) -> Self {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.expect("a socket");
        let client = SocketAddr::new(client.into(), 0);
        socket.bind(client).expect("an address of ours");
        let stream = socket.connect(address).await.expect("it accepts");
        stream.set_nodelay(true).expect("a socket");
        Self::tcp(stream)
    }

    /// Its own end.
    pub fn near(&self) -> SocketAddr {
        let socket = self.socket.as_ref().expect("a TCP connection");
        let address = socket.local_addr().expect("a socket").as_socket();
        address.expect("an IP address")
    }

    /// Over TCP.
    pub fn tcp(stream: TcpStream) -> Self {
        let socket = SockRef::from(&stream).try_clone().expect("a descriptor");
        Self {
            stream: Box::new(stream),
            socket: Some(socket),
            read: Vec::new(),
        }
    }

    /// Over anything.
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            socket: None,
            read: Vec::new(),
        }
    }

    /// The same connection in TLS, as its server; `None` if the handshake fails.
    pub async fn into_tls(self, acceptor: &TlsAcceptor) -> Option<Self> {
        let stream = acceptor.accept(self.stream).await.ok()?;
        Some(Self {
            stream: Box::new(stream),
            socket: self.socket,
            read: Vec::new(),
        })
    }

    /// The same connection in TLS, as its client.
    pub async fn over_tls(self, config: Arc<ClientConfig>, name: &str) -> Self {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connecting = TlsConnector::from(config).connect(name, self.stream);
        Self {
            stream: Box::new(connecting.await.expect("a handshake")),
            socket: self.socket,
            read: Vec::new(),
        }
    }

    /// Writes all of it; an error is the other side's business.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = self.stream.write_all(bytes.as_ref()).await.is_ok();
        sent && self.stream.flush().await.is_ok()
    }

    /// To read and to write at the same time.
    pub fn split(self) -> (Self, WriteHalf<Box<dyn Stream>>) {
        let (reading, writing) = split(self.stream);
        let read_only = tokio::io::join(reading, tokio::io::sink());
        let wire = Self {
            stream: Box::new(read_only),
            socket: self.socket,
            read: self.read,
        };
        (wire, writing)
    }

    /// Ends our direction.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Closes by a reset.
    pub fn reset(&mut self) {
        let socket = self.socket.as_ref().expect("a TCP connection");
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
        self.socket = None;
        self.stream = Box::new(tokio::io::empty());
    }

    /// A small receive window, so that the other side notices when nobody reads.
    pub fn shrink_window(&self) {
        let socket = self.socket.as_ref().expect("a TCP connection");
        socket.set_recv_buffer_size(4096).expect("a socket");
    }

    /// Lets the kernel hold about this much for us in each direction, however much it thinks would be good for us.
    pub fn hold_at_most(&self, bytes: usize) {
        let socket = self.socket.as_ref().expect("a TCP connection");
        socket.set_recv_buffer_size(bytes).expect("a socket");
        socket.set_send_buffer_size(bytes).expect("a socket");
    }

    /// Reads some more; `Err` at the end.
    pub async fn fill(&mut self) -> Result<usize, End> {
        let mut buffer = vec![0; 64 * 1024];
        match timeout(DEADLINE, self.stream.read(&mut buffer)).await {
            Err(_) => panic!("nothing came; so far {:?}", lossy(&self.read)),
            Ok(Ok(0)) => Err(End::Fin),
            Ok(Ok(n)) => {
                self.read.extend_from_slice(&buffer[..n]);
                Ok(n)
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Err(End::Reset),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(End::Reset),
            Ok(Err(error)) => panic!("reading: {error}"),
        }
    }

    /// Whether nothing comes for a while, and the connection stays open.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        self.read.is_empty() && timeout(time, self.stream.read(&mut byte)).await.is_err()
    }

    /// What was read and not taken.
    pub fn buffered(&self) -> &[u8] {
        &self.read
    }

    /// Exactly this many bytes.
    pub async fn take(&mut self, count: usize) -> Result<Vec<u8>, End> {
        while self.read.len() < count {
            self.fill().await?;
        }
        Ok(self.read.drain(..count).collect())
    }

    /// Reads past this many bytes.
    pub async fn skip(&mut self, mut count: usize) -> Result<(), End> {
        while count > 0 {
            if self.read.is_empty() {
                self.fill().await?;
            }
            let taken = count.min(self.read.len());
            self.read.drain(..taken);
            count -= taken;
        }
        Ok(())
    }

    /// Everything up to and with this text.
    pub async fn take_until(&mut self, text: &str) -> Result<Vec<u8>, End> {
        loop {
            let found = self
                .read
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(found) = found {
                return Ok(self.read.drain(..found + text.len()).collect());
            }
            self.fill().await?;
        }
    }

    /// Everything up to the end.
    pub async fn take_rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.fill().await {
                return (std::mem::take(&mut self.read), end);
            }
        }
    }

    /// How the connection ends; nothing may come before.
    pub async fn end(&mut self) -> End {
        let (rest, end) = self.take_rest().await;
        assert_eq!(lossy(&rest), "", "before the end");
        end
    }

    /// The next head; `Err` when the connection ends first.
    pub async fn head(&mut self) -> Result<Head, End> {
        let bytes = self.take_until("\r\n\r\n").await?;
        Ok(Head::parse(&lossy(&bytes)))
    }

    /// The next request; `None` when the connection ends first.
    pub async fn request(&mut self) -> Option<Message> {
        let mut message = Message {
            head: self.head().await.ok()?,
            ..Message::default()
        };
        let framing = match (message.head.is_chunked(), message.head.length()) {
            (true, None) => BodyEnd::Chunked,
            (false, length) => BodyEnd::Length(length.unwrap_or(0)),
            (true, Some(_)) => panic!("two framings: {:?}", message.head),
        };
        self.body(framing, &mut message).await;
        Some(message)
    }

    /// The response to a request with this method.
    pub async fn response(&mut self, method: &str) -> Message {
        match self.try_response(method).await {
            Ok(response) => response,
            Err(end) => panic!("{end:?} before the response: {:?}", lossy(&self.read)),
        }
    }

    /// As [`Self::response`]; `Err` when the connection ends before its head is there.
    pub async fn try_response(&mut self, method: &str) -> Result<Message, End> {
        let mut message = Message::default();
        loop {
            let head = self.head().await?;
            if head.status() / 100 != 1 || head.status() == 101 {
                message.head = head;
                break;
            }
            message.interim.push(head);
        }
        let status = message.status();
        let framing = if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            BodyEnd::Length(0)
        } else if message.head.is_chunked() {
            BodyEnd::Chunked
        } else {
            message
                .head
                .length()
                .map_or(BodyEnd::Close, BodyEnd::Length)
        };
        self.body(framing, &mut message).await;
        Ok(message)
    }

    /// Sends a request and reads its response.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        let method = lossy(request.as_ref());
        let method = method.split(' ').next().unwrap_or_default();
        self.send(request.as_ref()).await;
        self.response(method).await
    }

    async fn body(&mut self, framing: BodyEnd, message: &mut Message) {
        let outcome = match framing {
            BodyEnd::Length(length) => self.length_body(length, &mut message.body).await,
            BodyEnd::Chunked => self.chunked_body(message).await,
            BodyEnd::Close => {
                let (rest, end) = self.take_rest().await;
                message.body = rest;
                message.whole = end == End::Fin;
                message.end = Some(end);
                return;
            }
        };
        message.whole = outcome.is_ok();
        message.end = outcome.err();
    }

    async fn length_body(&mut self, length: usize, body: &mut Vec<u8>) -> Result<(), End> {
        let outcome = loop {
            if self.read.len() >= length {
                break Ok(());
            }
            if let Err(end) = self.fill().await {
                break Err(end);
            }
        };
        body.extend(self.read.drain(..length.min(self.read.len())));
        outcome
    }

    async fn chunked_body(&mut self, message: &mut Message) -> Result<(), End> {
        loop {
            let line = self.take_until("\r\n").await?;
            let line = lossy(&line);
            let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            self.length_body(size, &mut message.body).await?;
            assert_eq!(lossy(&self.take(2).await?), "\r\n");
        }
        loop {
            let line = self.take_until("\r\n").await?;
            match lossy(&line).trim_end() {
                "" => return Ok(()),
                line => message.trailers.push(field(line)),
            }
        }
    }
}

enum BodyEnd {
    Length(usize),
    Chunked,
    Close,
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_owned(), value.trim().to_owned())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One request on a connection of its own.
pub async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Message {
    Wire::connect(address).await.ask(request).await
}

/// GET of this path, from this host, on a connection of its own.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Message {
    ask(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    )
    .await
}

/// Runs it, and says how long it took.
pub async fn timed<F: Future>(future: F) -> (F::Output, Duration) {
    let begun = Instant::now();
    (future.await, begun.elapsed())
}
