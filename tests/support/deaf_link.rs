//! A link to etcd on which watches fall silent, and nothing else does: no end, no error, every call answered. It reads
//! the frames of HTTP/2, and keeps all but the first data of each stream back: that is the answer of a call, and of a
//! watch that it stands.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;

/// Forwards connections.
pub struct DeafLink {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    /// Watches on the first so many of them are silent.
    deaf: AtomicUsize,
    /// So much data of watches is lost.
    lost: AtomicUsize,
    answers: AtomicUsize,
}

impl DeafLink {
    /// To this URL's host and port.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let server = url.trim_start_matches("http://").to_owned();
        let state = Arc::new(State::default());
        Self {
            address: listener.local_addr().expect("its address"),
            task: tokio::spawn(accept(listener, server, state.clone())),
            state,
        }
    }

    /// Where to reach the server through it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The watches of the connections that there are bring nothing any more.
    pub fn silence(&self) {
        self.state.deaf.store(self.connections(), SeqCst);
    }

    /// No watch brings anything any more.
    pub fn silence_for_good(&self) {
        self.state.deaf.store(usize::MAX, SeqCst);
    }

    /// The next that a watch brings is lost.
    pub fn lose_one(&self) {
        self.state.lost.store(1, SeqCst);
    }

    /// Whether that has happened.
    pub fn has_lost(&self) -> bool {
        self.state.lost.load(SeqCst) == 0
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// How many calls were answered, and watches stood.
    pub fn answers(&self) -> usize {
        self.state.answers.load(SeqCst)
    }
}

impl Drop for DeafLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: String, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let connection = state.connections.fetch_add(1, SeqCst);
        let (server, state) = (server.clone(), state.clone());
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else {
                return;
            };
            let (mut from_client, to_client) = client.into_split();
            let (from_server, mut to_server) = server.into_split();
            tokio::select! {
                _ = copy(&mut from_client, &mut to_server) => {}
                _ = state.relay(connection, from_server, to_client) => {}
            }
        });
    }
}

impl State {
    async fn relay(
        &self,
        connection: usize,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let mut answered = HashSet::new();
        loop {
            let mut frame = vec![0; FRAME_HEAD];
            from.read_exact(&mut frame).await?;
            let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
            let kind = frame[3];
            let stream = [frame[5], frame[6], frame[7], frame[8]];
            frame.resize(FRAME_HEAD + length as usize, 0);
            from.read_exact(&mut frame[FRAME_HEAD..]).await?;
            if kind == DATA {
                if answered.insert(stream) {
                    self.answers.fetch_add(1, SeqCst);
                } else if self.keeps_back(connection) {
                    continue;
                }
            }
            to.write_all(&frame).await?;
        }
    }

    fn keeps_back(&self, connection: usize) -> bool {
        let one_less = |lost: usize| lost.checked_sub(1);
        connection < self.deaf.load(SeqCst)
            || self.lost.fetch_update(SeqCst, SeqCst, one_less).is_ok()
    }
}
