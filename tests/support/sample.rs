//! A sample upstream that says who it is and counts what it is asked.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
};

/// How long `/slow` takes: longer than a command takes to end once it knows that it may.
const SLOW: Duration = Duration::from_millis(300);

/// Answers 200 with its address, `/slow` after 300 ms; `/hold` before the head and `/stream` in mid-body wait for [`Sample::release`].
/// Printed, it is its address.
pub struct Sample {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    name: String,
    hits: AtomicUsize,
    holding: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

impl Sample {
    pub async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    /// At this address, where one may have been that is gone.
    pub async fn start_at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option of sockets");
        socket.bind(address).expect("a free port");
        // Of more connects at once than the queue holds, some would take the second until their packet is sent again.
        let listener = socket.listen(1024).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(State {
            name: address.to_string(),
            hits: AtomicUsize::new(0),
            holding: watch::Sender::new(0),
            released: watch::Sender::new(false),
        });
        let task = tokio::spawn(serve(listener, state.clone()));
        Self {
            address,
            state,
            task,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many requests it got.
    pub fn hits(&self) -> usize {
        self.state.hits.load(Ordering::Relaxed)
    }

    /// Waits until so many requests wait for [`Self::release`].
    pub async fn until_holding(&self, count: usize) {
        let mut holding = self.state.holding.subscribe();
        let held = holding.wait_for(|holding| *holding == count);
        let held = tokio::time::timeout(super::waypost::DEADLINE, held).await;
        assert!(held.is_ok(), "no {count} requests came");
    }

    /// Lets every request go on that waits, or will.
    pub fn release(&self) {
        self.state.released.send_replace(true);
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(formatter)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    // Connections end with the listener.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        let service = service_fn(move |request| answer(request, state.clone()));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    state.hits.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let _ = request.into_body().collect().await;
    match path.as_str() {
        "/hold" => state.hold().await,
        "/slow" => tokio::time::sleep(SLOW).await,
        _ => {}
    }
    let whole = Bytes::from(state.name.clone());
    let body = match path.as_str() {
        "/stream" => {
            let parts = stream::unfold(0, move |part| {
                let state = state.clone();
                async move {
                    match part {
                        0 => {}
                        1 => state.hold().await,
                        _ => return None,
                    }
                    let frame = Frame::data(Bytes::from_static(b"part\n"));
                    Some((Ok::<_, Infallible>(frame), part + 1))
                }
            });
            BodyExt::boxed(StreamBody::new(Box::pin(parts)))
        }
        _ => http_body_util::Full::new(whole).boxed(),
    };
    Ok(Response::new(body))
}

impl State {
    async fn hold(&self) {
        let _held = Held::new(self);
        let _ = self
            .released
            .subscribe()
            .wait_for(|released| *released)
            .await;
    }
}

/// A request that waits, until it goes on or is given up.
struct Held<'s>(&'s State);

impl<'s> Held<'s> {
    fn new(state: &'s State) -> Self {
        state.holding.send_modify(|holding| *holding += 1);
        Self(state)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.holding.send_modify(|holding| *holding -= 1);
    }
}
