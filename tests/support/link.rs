//! A TCP link to a server that a test can cut, hold and mend, while others go on using the server.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// Forwards connections while it is whole. Cut, it breaks those there are and refuses to carry new ones; held, it keeps
/// them, accepts new ones and lets nothing through: what a network does that drops every packet.
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    tries: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct State {
    /// Where to; `None` while cut.
    target: Option<String>,
    /// Connections end with the epoch that they began in.
    epoch: usize,
    held: bool,
    /// What holds answers back from then on, once a client has sent it.
    last_words: Option<Vec<u8>>,
    is_answer_held: bool,
    delay: Duration,
}

impl Link {
    /// A whole link to this URL's host and port.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let state = watch::Sender::new(State {
            target: Some(authority(url)),
            ..State::default()
        });
        let tries = Arc::new(AtomicUsize::new(0));
        Self {
            address: listener.local_addr().expect("its address"),
            task: tokio::spawn(accept(listener, state.clone(), tries.clone())),
            state,
            tries,
        }
    }

    /// Where to reach the server through it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections were tried so far, carried or not.
    pub fn tries(&self) -> usize {
        self.tries.load(Ordering::Relaxed)
    }

    pub fn cut(&self) {
        self.turn(None);
    }

    /// Whole again; the server may be another one than before.
    pub fn mend(&self, url: &str) {
        self.turn(Some(authority(url)));
    }

    /// Nobody is told: no end, no reset, no answer.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.held = true);
    }

    /// What was held goes on, as repeated packets do.
    pub fn release(&self) {
        self.state.send_modify(|state| state.held = false);
    }

    /// Once a client has sent this, no answer comes back any more, nor the end of the connection before it is cut.
    pub fn hold_answers_to(&self, words: &str) {
        let words = words.as_bytes().to_vec();
        self.state
            .send_modify(|state| state.last_words = Some(words));
    }

    /// From now on everything takes this much longer, each way.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    fn turn(&self, target: Option<String>) {
        self.state.send_modify(|state| {
            *state = State {
                target,
                epoch: state.epoch + 1,
                ..State::default()
            };
        });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn authority(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

async fn accept(listener: TcpListener, state: watch::Sender<State>, tries: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        tries.fetch_add(1, Ordering::Relaxed);
        let now = state.borrow().clone();
        let Some(server) = now.target else {
            continue;
        };
        let mut epoch = state.subscribe();
        let carried = carry(client, server, state.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = carried => {}
                _ = epoch.wait_for(|state| state.epoch != now.epoch) => {}
            }
        });
    }
}

async fn carry(client: TcpStream, server: String, state: watch::Sender<State>) -> io::Result<()> {
    passage(&mut state.subscribe(), Way::There).await;
    let server = TcpStream::connect(server).await?;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let (there, back) = tokio::join!(
        forward(from_client, to_server, &state, Way::There),
        forward(from_server, to_client, &state, Way::Back)
    );
    there.and(back)
}

async fn forward(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    state: &watch::Sender<State>,
    way: Way,
) -> io::Result<()> {
    let mut passing = state.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if way == Way::There {
            state.send_if_modified(|state| state.hears(&buffer[..read]));
        }
        sleep(passage(&mut passing, way).await).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    There,
    Back,
}

impl State {
    /// Whether answers are held back from here on.
    fn hears(&mut self, sent: &[u8]) -> bool {
        let Some(words) = &self.last_words else {
            return false;
        };
        let is_heard = sent.windows(words.len()).any(|part| part == words);
        self.is_answer_held |= is_heard;
        is_heard
    }
}

/// Waits while the link is held; how long what passes now is delayed.
async fn passage(state: &mut watch::Receiver<State>, way: Way) -> Duration {
    let is_free = |state: &State| !(state.held || way == Way::Back && state.is_answer_held);
    match state.wait_for(is_free).await {
        Ok(state) => state.delay,
        Err(_) => Duration::ZERO,
    }
}
