//! Origins that speak HTTP/2: well-behaved ones by the `h2` crate, and others frame by frame.

use std::{fmt, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    server::{Builder, Connection, SendResponse},
};
use http::{HeaderMap, Request, Response};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::{
    http::{End, Stream, Wire},
    origin::{self, Origin},
    seen::Seen,
};

/// A listening origin; it ends with its owner.
pub struct H2Origin {
    address: SocketAddr,
    seen: Arc<Seen<Asked>>,
    task: JoinHandle<()>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub head: Arc<http::request::Parts>,
    /// Of the connection it came on, counted from 1.
    pub connection: usize,
}

impl Asked {
    /// The values of this field, joined.
    pub fn field(&self, name: &str) -> Option<String> {
        let values = self.head.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        (!values.is_empty()).then(|| values.join("|"))
    }
}

/// One connection to an origin.
pub struct Served {
    pub connection: Connection<Box<dyn Stream>, Bytes>,
    /// Counted from 1.
    pub number: usize,
    seen: Arc<Seen<Asked>>,
}

/// One request, to be answered.
pub struct Exchange {
    pub asked: Asked,
    pub body: RecvStream,
    pub respond: SendResponse<Bytes>,
}

impl Served {
    /// The next request; `None` when the connection ends. Nothing moves on the connection but while this is awaited.
    pub async fn accept(&mut self) -> Option<Exchange> {
        let (request, respond) = self.connection.accept().await?.ok()?;
        let (head, body) = request.into_parts();
        let asked = Asked {
            head: Arc::new(head),
            connection: self.number,
        };
        self.seen.note(asked.clone());
        Some(Exchange {
            asked,
            body,
            respond,
        })
    }

    /// Each request is answered by `script`, all at the same time.
    pub async fn each<F>(mut self, script: impl Fn(Exchange) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        while let Some(exchange) = self.accept().await {
            tasks.spawn(script(exchange));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.seen.connection_ended();
    }
}

impl Exchange {
    /// Answers 200 with this body.
    pub fn say(mut self, body: impl Into<Bytes>) {
        let mut stream = self.head(200, &[], false);
        let _ = stream.send_data(body.into(), true);
    }

    /// The head of an answer, which may be all of it.
    pub fn head(&mut self, status: u16, fields: &[(&str, &str)], ends: bool) -> SendStream<Bytes> {
        let head = head(status, fields);
        self.respond.send_response(head, ends).expect("it is open")
    }

    /// All of the request's body, and its trailers.
    pub async fn read(&mut self) -> (Bytes, HeaderMap) {
        let mut all = BytesMut::new();
        while let Some(Ok(data)) = self.body.data().await {
            let _ = self.body.flow_control().release_capacity(data.len());
            all.extend_from_slice(&data);
        }
        let trailers = self.body.trailers().await.ok().flatten();
        (all.freeze(), trailers.unwrap_or_default())
    }
}

/// A response head.
pub fn head(status: u16, fields: &[(&str, &str)]) -> Response<()> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(()).expect("a head")
}

/// Trailers.
pub fn trailers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    fields.collect()
}

impl H2Origin {
    /// Each connection is served by `script`.
    pub async fn run<F>(
        builder: Builder,
        script: impl Fn(Served) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::over(None, builder, script).await
    }

    /// The same over TLS.
    pub async fn run_tls<F>(
        config: Arc<ServerConfig>,
        script: impl Fn(Served) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::over(Some(config.into()), Builder::new(), script).await
    }

    /// Each request is answered by `script`.
    pub async fn each<F>(script: impl Fn(Exchange) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let serve = move |served: Served| served.each(script.clone());
        Self::run(Builder::new(), serve).await
    }

    /// Says its name, whatever it is asked, and reads what it is sent.
    pub async fn named(name: &'static str) -> Self {
        Self::each(move |mut exchange| async move {
            exchange.read().await;
            exchange.say(name);
        })
        .await
    }

    async fn over<F>(
        tls: Option<TlsAcceptor>,
        builder: Builder,
        script: impl Fn(Served) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::<Seen<Asked>>::default();
        let accepted = (seen.clone(), Arc::new((tls, builder, script)));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (seen, serving) = accepted.clone();
                connections.spawn(async move {
                    let (tls, builder, script) = &*serving;
                    let stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    let number = seen.connection_began();
                    if let Ok(connection) = builder.handshake(stream).await {
                        let served = Served {
                            connection,
                            number,
                            seen,
                        };
                        script(served).await;
                    }
                });
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.connections()
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Asked> {
        self.seen.requests()
    }

    /// The latest request.
    pub fn latest(&self) -> Asked {
        self.seen.latest()
    }

    /// Waits until it has this many requests.
    pub async fn asked(&self, count: usize) {
        self.seen.asked(count).await;
    }

    /// Waits until so many connections were closed, by it or by Waypost, and Waypost's kernel was told so.
    pub async fn closed(&self, count: usize) {
        self.seen.closed(count, Some(self.address.port())).await;
    }
}

impl fmt::Display for H2Origin {
    /// As an upstream in a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)
    }
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One end of an HTTP/2 connection, frame by frame.
pub struct Frames(pub Wire);

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// `:status: 200` by the static table (RFC 7541 appendix A).
pub const OK: &[u8] = &[0x88];

impl Frames {
    /// The server's end of a connection just made: settings are exchanged.
    pub async fn accept(mut wire: Wire) -> Result<Self, End> {
        wire.take(24).await?;
        let mut frames = Self(wire);
        frames.send(SETTINGS, 0, 0, &[]).await;
        Ok(frames)
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.0.send(Self::bytes(kind, flags, stream, payload)).await
    }

    /// A frame as it is sent.
    pub fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short payload");
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    pub async fn go_away(&mut self, last: u32, code: u32) -> bool {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        self.send(GOAWAY, 0, 0, &payload).await
    }

    /// The next frame.
    pub async fn take(&mut self) -> Result<Frame, End> {
        let header = self.0.take(9).await?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let stream = header[5..].try_into().expect("four bytes");
        Ok(Frame {
            kind: header[3],
            flags: header[4],
            stream: u32::from_be_bytes(stream),
            payload: self.0.take(length as usize).await?,
        })
    }

    /// The next frame of this kind.
    pub async fn take_kind(&mut self, kind: u8) -> Result<Frame, End> {
        loop {
            let frame = self.take().await?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// How long the body of this request is, read to its end.
    pub async fn body(&mut self, stream: u32) -> Result<usize, End> {
        let mut length = 0;
        loop {
            let data = self.take_kind(DATA).await?;
            if data.stream == stream {
                length += data.payload.len();
                if data.flags & END_STREAM != 0 {
                    return Ok(length);
                }
            }
        }
    }

    /// Answers 200 with this body.
    pub async fn answer(&mut self, stream: u32, body: &str) {
        self.send(HEADERS, END_HEADERS, stream, OK).await;
        self.send(DATA, END_STREAM, stream, body.as_bytes()).await;
    }
}

/// An origin frame by frame.
pub async fn raw<F>(script: impl Fn(Frames, usize) -> F + Clone + Send + 'static) -> Origin
where
    F: Future<Output = Result<(), End>> + Send + 'static,
{
    Origin::run(move |mut served: origin::Served| {
        let script = script.clone();
        async move {
            let wire = std::mem::replace(&mut served.wire, Wire::over(tokio::io::empty()));
            if let Ok(frames) = Frames::accept(wire).await {
                let _ = script(frames, served.connection).await;
            }
        }
    })
    .await
}

/// A request of the `h2` crate's client.
pub fn request(method: &str, path: &str) -> Request<()> {
    let uri = format!("http://a.test{path}");
    let request = Request::builder().method(method).uri(uri);
    request.body(()).expect("a request")
}
