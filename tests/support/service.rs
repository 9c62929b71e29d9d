//! An upstream as people run them: it counts what it is sent, and ends as on SIGTERM.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::waypost::DEADLINE;

/// How long a close waits for the other side's.
const LINGER: Duration = Duration::from_secs(2);

/// Answers a POST with its body, everything else with nothing. Printed, it is its address.
pub struct Service {
    address: SocketAddr,
    ending: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// How often each body was posted, over several services.
#[derive(Clone, Debug, Default)]
pub struct Posts(Arc<Mutex<BTreeMap<String, usize>>>);

impl Posts {
    /// What came, and how often.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        self.0.lock().expect("nobody panics").clone()
    }
}

impl Service {
    pub async fn start(posts: &Posts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let ending = watch::Sender::new(false);
        let task = tokio::spawn(serve(listener, posts.clone(), ending.subscribe()));
        Self {
            address,
            ending,
            task,
        }
    }

    /// Takes no more connections, finishes the requests that run, closes idle connections, and ends.
    pub async fn end(self) {
        self.ending.send_replace(true);
        let ended = timeout(DEADLINE, self.task).await;
        ended.expect("it ends in time").expect("no panic");
    }
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(formatter)
    }
}

async fn serve(listener: TcpListener, posts: Posts, mut ending: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            _ = ending.wait_for(|ending| *ending) => None,
        };
        let Some(accepted) = accepted else {
            break;
        };
        let (stream, _) = accepted.expect("a connection");
        connections.spawn(connection(stream, posts.clone(), ending.clone()));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, posts: Posts, mut ending: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, posts.clone()));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let is_over = tokio::select! {
        _ = &mut connection => true,
        _ = ending.wait_for(|ending| *ending) => false,
    };
    if !is_over {
        Pin::new(&mut connection).graceful_shutdown();
        let _ = (&mut connection).await;
    }
    // Until the other side has taken all of it: short of memory, the kernel drops what a closed socket still has to send.
    let mut stream = connection.into_parts().io.into_inner();
    let _ = timeout(LINGER, stream.read(&mut [0])).await;
}

async fn answer(
    request: Request<Incoming>,
    posts: Posts,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_post = request.method() == "POST";
    let Ok(body) = request.into_body().collect().await else {
        return Ok(Response::new(Full::default()));
    };
    let body = body.to_bytes();
    if is_post {
        let text = String::from_utf8_lossy(&body).into_owned();
        *posts
            .0
            .lock()
            .expect("nobody panics")
            .entry(text)
            .or_default() += 1;
    }
    Ok(Response::new(Full::new(body)))
}
