//! Requests as bytes, to a whole worker in this thread and to the strict reader: both must see the same ones, and refuse
//! at the same place.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::mpsc,
    task::{spawn_local, yield_now},
    time::timeout,
};
use waypost::{
    config::{ServeArgs, listener},
    descriptors::Descriptors,
    live::{Live, Status},
    source::{Entry, History, Update, publish::Publisher, resolve::Names},
    telemetry::metrics::Metrics,
    worker::DataPlane,
};

use super::{
    answers::{self, Answer},
    reference::{self, Ends, Request},
};

/// Who answers within no such time never does.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection whose client is gone is not kept for so long.
const GONE: Duration = Duration::from_millis(1500);

/// What is refused by one reader is refused by the other, and upstreams get the requests before it and no others, with the
/// same bodies; each is answered with its own answer.
pub fn requests(bytes: &[u8]) {
    thread_local! {
        // Never dropped: a runtime may not end while its thread does.
        static BENCH: &'static Bench = Box::leak(Box::new(Bench::start()));
    }
    BENCH.with(|bench| bench.compare(bytes));
}

/// A worker with one upstream for every host, both of them tasks of one thread.
struct Bench {
    runtime: LocalRuntime,
    address: SocketAddr,
    arrived: Rc<Arrived>,
    metrics: Arc<Metrics>,
    /// What must not end while the worker serves.
    _kept: (DataPlane, mpsc::Sender<Update>),
}

/// What arrived at the upstream.
#[derive(Default)]
struct Arrived {
    requests: RefCell<Vec<Request>>,
    /// What was no request by the strict reader.
    faults: RefCell<Vec<String>>,
}

impl Bench {
    fn start() -> Self {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().build_local(LocalOptions::default());
        let runtime = runtime.expect("a runtime");
        let arrived = Rc::<Arrived>::default();
        let metrics = Metrics::new();
        let (address, kept) = runtime.block_on(async {
            let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let route = format!("/hosts/*/{}", upstream.local_addr().expect("bound"));
            spawn_local(serve(upstream, arrived.clone()));
            worker(&route, metrics.clone()).await
        });
        Self {
            runtime,
            address,
            arrived,
            metrics,
            _kept: kept,
        }
    }

    fn compare(&self, bytes: &[u8]) {
        let (expected, ends) = reference::read(bytes);
        self.arrived.requests.take();
        let talk = self.runtime.block_on(async {
            let talk = timeout(PATIENCE, self.talk(bytes, &expected, ends)).await;
            let settled = timeout(GONE, self.settle()).await;
            settled.expect("a connection ends once its client is gone");
            talk.unwrap_or_else(|_| Err("it waits".to_owned()))
        });
        let fault = talk
            .and_then(|answers| own(&answers, &expected, ends))
            .and_then(|()| match self.arrived.faults.take() {
                faults if faults.is_empty() => Ok(()),
                faults => Err(format!("upstream: {faults:?}")),
            });
        let arrived = self.arrived.requests.take();
        let is_same = match ends {
            Ends::Elsewhere => arrived.starts_with(&expected),
            _ => arrived == expected,
        };
        assert!(
            is_same && fault.is_ok(),
            "{:?}: {fault:?}\nexpected {expected:?} and then {ends:?}\n arrived {arrived:?}",
            String::from_utf8_lossy(bytes)
        );
    }

    /// Sends all of it, and takes what is answered until the connection ends. Where more would be awaited the client ends
    /// it, once it has its answers.
    async fn talk(
        &self,
        bytes: &[u8],
        expected: &[Request],
        ends: Ends,
    ) -> Result<Vec<Answer>, String> {
        let client = TcpStream::connect(self.address).await;
        let mut client = client.map_err(|error| error.to_string())?;
        // No port is to lie in TIME_WAIT for each input.
        let _ = client.set_zero_linger();
        // In one piece or in some; what is refused may be closed before all of it is sent.
        let pieces = [1, 2, 7][bytes.len() % 3];
        for piece in bytes.chunks(bytes.len().div_ceil(pieces).max(1)) {
            let _ = client.write_all(piece).await;
            yield_now().await;
        }
        let mut said = Vec::new();
        let mut has_ended = false;
        loop {
            let answers = answers::read(&said, expected)?;
            let has_all = answers.len() >= expected.len();
            if has_all && ends == Ends::Elsewhere {
                return Ok(answers);
            }
            if has_all && ends == Ends::Early && !has_ended {
                has_ended = true;
                let _ = client.shutdown().await;
            }
            match client.read_buf(&mut said).await {
                Ok(0) => return answers::read(&said, expected),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

impl Bench {
    /// Waits until nothing of this input is under way: the client has left.
    async fn settle(&self) {
        while self.metrics.data_plane.connections.get() > 0 {
            yield_now().await;
        }
        // What was sent upstream just before is there; now the upstream reads it.
        for _ in 0..4 {
            yield_now().await;
        }
    }
}

/// A worker on this thread that serves this key.
async fn worker(
    key: &str,
    metrics: Arc<Metrics>,
) -> (SocketAddr, (DataPlane, mpsc::Sender<Update>)) {
    let mut args = ServeArgs::default();
    args.listen = vec![listener::parse("http://127.0.0.1:0").expect("a listener")];
    args.workers = Some(1);
    let config = args.resolve().expect("flags that agree");
    let live = Live::new(Status::before("test", "here"));
    let (prefix, balance) = (config.prefix.clone(), config.balance);
    let publisher = Publisher::new(
        live.clone(),
        metrics.clone(),
        prefix,
        balance,
        Names::start(),
    );
    let (updates, received) = mpsc::channel(1);
    spawn_local(publisher.run(received));
    let descriptors = Descriptors::raise(metrics.clone());
    let (data_plane, works) =
        DataPlane::prepare(&config, live.clone(), metrics, None, descriptors).expect("a free port");
    for work in works {
        spawn_local(work.here());
    }
    // What the client aborts is nobody's failure, and is not tried again.
    let settings = r#"{"retries": {"attempts": 0}}"#;
    let entry = |key: &str, value: &'static str| Entry {
        key: key.to_owned().into(),
        value: value.into(),
        mod_revision: 1,
        lease: 0,
    };
    let snapshot = Update::Snapshot {
        entries: vec![entry(key, ""), entry("/hosts/*/@settings", settings)],
        revision: 1,
        history: History::Continued,
        cluster_id: None,
        last_good: Vec::new(),
    };
    let _ = updates.send(snapshot).await;
    let mut applied = live.applied.subscribe();
    let _ = applied.wait_for(Option::is_some).await;
    assert_eq!(live.rejected.load().total, 0);
    (data_plane.addresses()[0], (data_plane, updates))
}

async fn serve(listener: TcpListener, arrived: Rc<Arrived>) {
    while let Ok((stream, _)) = listener.accept().await {
        spawn_local(answer(stream, arrived.clone()));
    }
}

/// Answers each request with its own first line.
async fn answer(mut stream: TcpStream, arrived: Rc<Arrived>) {
    let (mut read, mut is_asked) = (Vec::new(), false);
    while let Ok(1..) = stream.read_buf(&mut read).await {
        let answer = match reference::one(&read) {
            Ok((request, rest)) => {
                read = rest.to_vec();
                is_asked = false;
                let answer = answers::to(&request);
                arrived.requests.borrow_mut().push(request);
                answer
            }
            Err(Ends::Early) if !is_asked && asks_first(&read) => {
                is_asked = true;
                b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()
            }
            Err(Ends::Early) => continue,
            Err(Ends::Elsewhere) => return answer_unseen(stream).await,
            Err(_) => {
                let text = String::from_utf8_lossy(&read).into_owned();
                return arrived.faults.borrow_mut().push(text);
            }
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// For what nobody compares.
async fn answer_unseen(mut stream: TcpStream) {
    let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let _ = stream.write_all(answer).await;
    let mut unseen = vec![0; 4096];
    while let Ok(1..) = stream.read(&mut unseen).await {}
}

/// Whether the body behind this head waits.
fn asks_first(read: &[u8]) -> bool {
    let has = |what: &[u8]| read.windows(what.len()).any(|part| part == what);
    has(b"\r\n\r\n") && has(b"\r\nexpect: 100-continue\r\n")
}

/// The answers are those of the requests, and behind them stands a refusal, if anything.
fn own(answers: &[Answer], expected: &[Request], ends: Ends) -> Result<(), String> {
    for (index, request) in expected.iter().enumerate() {
        let answer = answers.get(index).ok_or("an answer lacks")?;
        if answer.status != 200 || answer.body != answers::body_for(request) {
            return Err(format!("{answer:?} for {request:?}"));
        }
    }
    match (&answers[expected.len()..], ends) {
        (_, Ends::Elsewhere) | ([], _) => Ok(()),
        ([Answer { status: 400.., .. }], Ends::Refused | Ends::Early) => Ok(()),
        (more, _) => Err(format!("{more:?} more")),
    }
}
