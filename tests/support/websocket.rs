//! WebSockets by a second implementation: an origin that echoes, and a client.

use std::{fmt, net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async, tungstenite::Message};

use super::waypost::DEADLINE;

/// Echoes every message, and remembers how each connection ended. Printed, it is its address.
pub struct Echo {
    address: SocketAddr,
    ends: watch::Sender<Vec<String>>,
    task: JoinHandle<()>,
}

/// A client's end of a WebSocket.
pub struct Socket(WebSocketStream<TcpStream>);

impl Echo {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let ends = watch::Sender::new(Vec::new());
        let told = ends.clone();
        let task = tokio::spawn(async move {
            // Connections end with the listener.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                connections.spawn(async move {
                    let mut socket = accept_async(stream).await.expect("a handshake");
                    let end = echo(&mut socket).await;
                    told.send_modify(|ends| ends.push(end));
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            ends,
            task,
        }
    }

    /// Waits until so many connections have ended: how each did, as [`Socket::closed`] says it.
    pub async fn ended(&self, count: usize) -> Vec<String> {
        let mut ends = self.ends.subscribe();
        let ended = timeout(DEADLINE, ends.wait_for(|ends| ends.len() >= count)).await;
        ended.expect("they end").expect("it lives").clone()
    }
}

impl fmt::Display for Echo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(formatter)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socket {
    /// Upgraded at the upstream of this host.
    pub async fn open(address: SocketAddr, host: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("it accepts");
        stream.set_nodelay(true).expect("a socket");
        let opened = client_async(format!("ws://{host}/"), stream);
        let opened = timeout(DEADLINE, opened).await.expect("in time");
        Self(opened.expect("an upgrade").0)
    }

    pub async fn send(&mut self, message: Vec<u8>) {
        let sent = self.0.send(Message::binary(message));
        let sent = timeout(DEADLINE, sent).await.expect("in time");
        sent.expect("it is open");
    }

    /// The next message of the origin.
    pub async fn message(&mut self) -> Vec<u8> {
        match timeout(DEADLINE, self.0.next()).await.expect("in time") {
            Some(Ok(Message::Binary(bytes))) => bytes.into(),
            other => panic!("no message: {other:?}"),
        }
    }

    /// Says something and hears it again.
    pub async fn echo(&mut self, text: &str) {
        self.send(text.into()).await;
        assert_eq!(self.message().await, text.as_bytes());
    }

    /// Whether nothing comes for a while, and the connection stays open.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.0.next()).await.is_err()
    }

    /// Echoes what comes until the end: the code and the reason of the Close, or what else ended it. The Close was
    /// answered then, and the connection is closed.
    pub async fn closed(&mut self) -> String {
        let closed = timeout(DEADLINE, echo(&mut self.0)).await;
        closed.expect("an end in time")
    }
}

async fn echo(socket: &mut WebSocketStream<TcpStream>) -> String {
    let mut end = "no Close".to_owned();
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Close(Some(close))) => {
                end = format!("{} {}", u16::from(close.code), close.reason);
            }
            Ok(message @ (Message::Binary(_) | Message::Text(_))) => {
                // How it ended shows in what is read.
                let _ = socket.send(message).await;
            }
            Ok(_) => {}
            Err(error) => return format!("{end}, {error}"),
        }
    }
    end
}
