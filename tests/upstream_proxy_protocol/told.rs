//! An upstream that is told of clients, or is not, and says so.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use crate::support::{
    http::Wire,
    origin::{Origin, Served},
};

/// Values that ask for a header.
pub const V1: &str = r#"{"proxy_protocol": "v1"}"#;
pub const V2: &str = r#"{"proxy_protocol": "v2"}"#;

/// Answers every request with the header of its connection, and with the connection's number.
pub struct Told {
    pub origin: Origin,
    headers: Arc<Mutex<Vec<String>>>,
    hang_up: Arc<Notify>,
}

impl Told {
    pub async fn start() -> Self {
        let (headers, hang_up) = (Arc::default(), Arc::default());
        let origin = Origin::run(script(&headers, &hang_up)).await;
        Self {
            origin,
            headers,
            hang_up,
        }
    }

    /// On a socket in the file system.
    pub async fn start_at(path: PathBuf) -> Self {
        let (headers, hang_up) = (Arc::default(), Arc::default());
        let origin = Origin::run_unix(path, script(&headers, &hang_up)).await;
        Self {
            origin,
            headers,
            hang_up,
        }
    }

    /// What the connections so far began with.
    pub fn headers(&self) -> Vec<String> {
        self.headers.lock().expect("nobody panics").clone()
    }

    /// Ends all connections, whatever they do.
    pub fn hang_up(&self) {
        self.hang_up.notify_waiters();
    }
}

/// The line of version 1 that names this client.
pub fn v1_of(client: &Wire, waypost: SocketAddr) -> String {
    let near = client.near();
    let (from, to) = (near.ip(), waypost.ip());
    format!("PROXY TCP4 {from} {to} {} {}", near.port(), waypost.port())
}

fn script(
    headers: &Arc<Mutex<Vec<String>>>,
    hang_up: &Arc<Notify>,
) -> impl Fn(Served) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + 'static {
    let (headers, hang_up) = (headers.clone(), hang_up.clone());
    move |served| {
        let (headers, hang_up) = (headers.clone(), hang_up.clone());
        Box::pin(async move {
            tokio::select! {
                () = serve(served, &headers) => {}
                () = hang_up.notified() => {}
            }
        })
    }
}

async fn serve(mut served: Served, headers: &Mutex<Vec<String>>) {
    let Some(header) = header(&mut served.wire).await else {
        return;
    };
    headers.lock().expect("nobody panics").push(header.clone());
    let answer = format!("{header}; {}", served.connection);
    while served.request().await.is_some() {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        served.send(head + &answer).await;
    }
}

/// The line of version 1; of version 2 what comes behind the signature, in hexadecimal; else `nothing`.
async fn header(wire: &mut Wire) -> Option<String> {
    while wire.buffered().len() < 15 {
        wire.fill().await.ok()?;
    }
    if wire.buffered().starts_with(b"PROXY ") {
        let line = wire.take_until("\r\n").await.ok()?;
        return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    if !wire.buffered().starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
        return Some("nothing".to_owned());
    }
    let fixed = wire.take(16).await.ok()?;
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let addresses = wire.take(length).await.ok()?;
    let said = [&fixed[12..], &addresses].concat();
    Some(said.iter().map(|byte| format!("{byte:02x}")).collect())
}
