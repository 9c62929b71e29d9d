//! gRPC by tonic, without generated code: messages are bytes. The service is that of tests/foreign/grpc_server.py.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes};
use futures_util::{
    Stream,
    future::{Ready, ready},
    stream,
};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tonic::{
    Request, Response, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server,
};

use super::waypost::eventually;

/// Messages as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bytewise;

impl Codec for Bytewise {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytewise {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Bytewise {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A server of `/test.Echo/Unary` and `/test.Echo/Stream`, which echo each message. Of some they do something else:
/// `fail` is an error, `wait` is never answered (a stream says so), and of `many` there are a hundred. Printed, it is its address.
pub struct EchoServer {
    address: SocketAddr,
    calls: Arc<Calls>,
    task: JoinHandle<()>,
}

impl EchoServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let calls = Arc::<Calls>::default();
        let echo = Echo(calls.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let echo = echo.clone();
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let echo = echo.clone();
                    async move {
                        let grpc = server::Grpc::new(Bytewise);
                        let mut grpc = grpc.max_decoding_message_size(usize::MAX);
                        let answer = match request.uri().path() {
                            "/test.Echo/Unary" => grpc.unary(echo, request).await,
                            "/test.Echo/Stream" => grpc.streaming(echo, request).await,
                            _ => Status::unimplemented("no such method").into_http(),
                        };
                        Ok::<_, std::convert::Infallible>(answer)
                    }
                });
                let builder = http2::Builder::new(TokioExecutor::new());
                connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            calls,
            task,
        }
    }

    /// Waits until so many calls have come that are not going to be answered.
    pub async fn until_waiting(&self, count: usize) {
        eventually("the server has the call", async || {
            self.calls.waiting.load(Ordering::SeqCst) >= count
        })
        .await;
    }

    /// Waits until so many of them have been given up.
    pub async fn until_cancelled(&self, count: usize) {
        eventually("the server hears of a cancelled call", async || {
            self.calls.cancelled.load(Ordering::SeqCst) >= count
        })
        .await;
    }
}

impl fmt::Display for EchoServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(formatter)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Calls that are not answered, and those of them that were given up.
#[derive(Default)]
struct Calls {
    waiting: AtomicUsize,
    cancelled: AtomicUsize,
}

/// The service.
#[derive(Clone)]
struct Echo(Arc<Calls>);

struct Waiting(Arc<Calls>);

impl Echo {
    async fn wait(&self) {
        let _waiting = Waiting(self.0.clone());
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<()>().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

impl server::UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Answer<Bytes>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let (metadata, _, message) = request.into_parts();
            match &message[..] {
                b"fail" => return Err(Status::failed_precondition("nein, 100 % grün")),
                b"wait" => echo.wait().await,
                _ => {}
            }
            let mut response = Response::new(message);
            // What was asked with comes back.
            *response.metadata_mut() = metadata;
            Ok(response)
        })
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

struct Talk {
    echo: Echo,
    incoming: Streaming<Bytes>,
    /// Of the hundred.
    left: u32,
    is_over: bool,
    is_waiting: bool,
}

impl Talk {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        if self.left > 0 {
            self.left -= 1;
            return Some(Ok(format!("number {}", 99 - self.left).into()));
        }
        if self.is_over {
            return None;
        }
        if self.is_waiting {
            self.echo.wait().await;
        }
        let message = self.incoming.message().await.transpose()?;
        match message.as_ref().map(|message| &message[..]) {
            Ok(b"many") => {
                self.left = 99;
                return Some(Ok("number 0".into()));
            }
            Ok(b"wait") => {
                self.is_waiting = true;
                return Some(Ok("waiting".into()));
            }
            Ok(b"fail") => {
                self.is_over = true;
                return Some(Err(Status::data_loss("broken")));
            }
            Ok(_) => {}
            Err(_) => self.is_over = true,
        }
        Some(message)
    }
}

impl server::StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let talk = Talk {
            echo: self.clone(),
            incoming: request.into_inner(),
            left: 0,
            is_over: false,
            is_waiting: false,
        };
        let messages = stream::unfold(talk, async |mut talk| Some((talk.next().await?, talk)));
        ready(Ok(Response::new(Box::pin(messages))))
    }
}
