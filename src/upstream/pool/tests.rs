//! What is kept, for how long, and what is told of it.

use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::*;
use crate::{
    telemetry::metrics::Metrics,
    upstream::{
        Endpoint, Identity, Registry, TlsOptions, testing, tls::UpstreamTls, transport::Transport,
    },
};

/// An upstream with these options, and its listening socket.
pub(super) async fn listening(
    registry: &mut Registry,
    pool: PoolOptions,
) -> (Arc<Upstream>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let upstream = registry.upstream(&Identity {
        pool: (pool != PoolOptions::DEFAULT).then(|| Arc::new(pool)),
        ..testing::plain(testing::local(port))
    });
    upstream.enlist();
    (upstream, listener)
}

/// A connection, and the upstream's end of it.
pub(super) async fn connect(listener: &TcpListener) -> (Connection, TcpStream) {
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (Connection::new(Transport::Tcp(near)), far)
}

pub(super) fn pools() -> (Rc<Sweep>, Pools) {
    let sweep = Rc::new(Sweep::default());
    (sweep.clone(), Pools::new(sweep))
}

#[tokio::test]
async fn connections_live_until_their_time_is_over_or_their_upstream_is_gone() {
    let (sweep, pools) = pools();
    let mut registry = Registry::new(Metrics::new());
    let (upstream, listener) = listening(&mut registry, PoolOptions::DEFAULT).await;
    let (connection, mut far) = connect(&listener).await;

    pools.put(&upstream, connection, Some(Duration::from_secs(5)));
    pools.sweep();
    let connection = pools.take(&upstream).expect("an idle connection");
    assert!(pools.take(&upstream).is_none(), "there was but one");

    // The upstream closes after 5 s, so in the last of them it gets no request.
    pools.put(&upstream, connection.clone(), Some(Duration::from_secs(5)));
    sweep.advance(Sweep::ticks(Duration::from_secs(4)) + 1);
    assert!(pools.take(&upstream).is_none(), "its time is over");

    pools.put(&upstream, connection, None);
    // A request that still runs holds it, as do routes of the past.
    upstream.delist();
    pools.sweep();
    assert_eq!(
        far.read(&mut [0]).await.unwrap(),
        0,
        "closed with its upstream"
    );
    let slot = upstream.slot;
    drop(upstream);

    // Whoever gets the slot next finds none of its former owner's connections.
    let (successor, listener) = listening(&mut registry, PoolOptions::DEFAULT).await;
    let (connection, _far) = connect(&listener).await;
    assert_eq!(successor.slot.index, slot.index);
    assert!(pools.take(&successor).is_none());
    pools.put(&successor, connection, None);
    pools.sweep();
    assert!(pools.take(&successor).is_some(), "swept, not dropped");
}

#[test]
fn patience_is_the_shorter_of_ours_and_the_upstreams() {
    let ours = |seconds| PoolOptions {
        idle_timeout: Duration::from_secs(seconds),
        ..PoolOptions::DEFAULT
    };
    for (options, said, expected) in [
        (PoolOptions::DEFAULT, None, 60),
        (PoolOptions::DEFAULT, Some(5), 4),
        (PoolOptions::DEFAULT, Some(61), 60),
        (PoolOptions::DEFAULT, Some(3600), 60),
        (PoolOptions::DEFAULT, Some(1), 0),
        (PoolOptions::DEFAULT, Some(0), 0),
        (ours(300), None, 300),
        (ours(300), Some(100), 99),
        (ours(3), Some(100), 3),
    ] {
        let patience = options.patience(said.map(Duration::from_secs));
        assert_eq!(patience.as_secs(), expected, "{options:?}, {said:?}");
    }
}

#[tokio::test]
async fn a_connection_ends_when_its_lifetime_does_however_often_it_is_used() {
    let (sweep, pools) = pools();
    let mut registry = Registry::new(Metrics::new());
    let options = PoolOptions {
        lifetime: Some(Duration::from_secs(100)),
        ..PoolOptions::DEFAULT
    };
    let (upstream, listener) = listening(&mut registry, options).await;
    let mut far = Vec::new();
    for _ in 0..20 {
        let (connection, end) = connect(&listener).await;
        pools.begin_life(&upstream, &connection);
        pools.put(&upstream, connection, None);
        far.push(end);
    }
    let reuse = |seconds: u64| {
        sweep.advance(Sweep::ticks(Duration::from_secs(seconds)));
        let taken: Vec<_> = std::iter::from_fn(|| pools.take(&upstream)).collect();
        let count = taken.len();
        for connection in taken {
            pools.put(&upstream, connection, None);
        }
        pools.sweep();
        count
    };
    assert_eq!((reuse(45), reuse(89)), (20, 20), "all in time");
    let some = reuse(95);
    assert!(0 < some && some < 20, "{some} of 20: all end at once");
    assert_eq!(reuse(101), 0);
    // One that a request had meanwhile is not kept.
    let (connection, mut end) = connect(&listener).await;
    connection.end_at(sweep.now());
    pools.put(&upstream, connection, None);
    assert_eq!(end.read(&mut [0]).await.unwrap(), 0, "closed");
    for mut end in far {
        assert_eq!(end.read(&mut [0]).await.unwrap(), 0, "closed");
    }
}

#[tokio::test]
async fn no_more_connections_are_kept_than_asked_for_and_their_number_is_told() {
    let (_, pools) = pools();
    let metrics = Metrics::new();
    let mut registry = Registry::new(metrics.clone());
    for (most, kept) in [(0, 0), (2, 2), (9, 5)] {
        let options = PoolOptions {
            max_idle: most,
            ..PoolOptions::DEFAULT
        };
        let (upstream, listener) = listening(&mut registry, options).await;
        let told = upstream.metrics.clone();
        let mut far = Vec::new();
        for _ in 0..5 {
            let (connection, end) = connect(&listener).await;
            pools.put(&upstream, connection, None);
            far.push(end);
        }
        pools.sweep();
        assert_eq!(told.idle.get(), kept, "of at most {most}");
        let taken = pools.take(&upstream);
        pools.sweep();
        assert_eq!(told.idle.get(), (kept - 1).max(0), "one is in use");
        drop((taken, upstream));
        pools.sweep();
        assert_eq!(told.idle.get(), 0, "gone with their upstream");
    }
}

#[tokio::test]
async fn what_a_worker_told_is_taken_back_at_its_end() {
    let (_, pools) = pools();
    let mut registry = Registry::new(Metrics::new());
    let (upstream, listener) = listening(&mut registry, PoolOptions::DEFAULT).await;
    let (connection, _far) = connect(&listener).await;
    pools.put(&upstream, connection, None);
    pools.sweep();
    assert_eq!(upstream.metrics.idle.get(), 1);
    drop(pools);
    assert_eq!(upstream.metrics.idle.get(), 0);
}

/// A connection over TLS, and the upstream's end of it. Session tickets have arrived, and nothing has read them.
async fn connect_tls(listener: &TcpListener) -> (Connection, TlsStream<TcpStream>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let address = listener.local_addr().unwrap();
    let options = TlsOptions {
        sni: Some("a.test".into()),
        insecure: true,
        ..TlsOptions::default()
    };
    let endpoint = Endpoint::Tcp {
        address,
        name: None,
    };
    let (connector, name) = UpstreamTls::new().connector(&options, &endpoint).unwrap();
    let dial = async {
        let stream = TcpStream::connect(address).await.unwrap();
        connector.connect(name, stream).await.unwrap()
    };
    let accept = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config))
            .accept(stream)
            .await
            .unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let (near, far) = tokio::join!(dial, accept);
    near.get_ref().0.readable().await.unwrap();
    (Connection::new(Transport::Tls(Box::new(near))), far)
}

/// Waits until the sweep has noticed that the only connection is none any more.
async fn until_swept(pools: &Pools, upstream: &Upstream) {
    let swept = async {
        loop {
            pools.sweep();
            if upstream.metrics.idle.get() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let swept = tokio::time::timeout(Duration::from_secs(10), swept).await;
    swept.expect("the sweep notices");
}

#[tokio::test]
async fn session_tickets_end_no_idle_connection_and_a_close_notify_does() {
    let (_, pools) = pools();
    let mut registry = Registry::new(Metrics::new());
    let (upstream, listener) = listening(&mut registry, PoolOptions::DEFAULT).await;
    let (connection, mut far) = connect_tls(&listener).await;
    pools.put(&upstream, connection, None);
    let connection = pools.take(&upstream).expect("tickets are no bytes");
    pools.put(&upstream, connection, None);
    pools.sweep();
    assert_eq!(upstream.metrics.idle.get(), 1, "nor to the sweep");
    // The TCP connection stays open.
    far.get_mut().1.send_close_notify();
    far.flush().await.unwrap();
    until_swept(&pools, &upstream).await;

    let (connection, mut far) = connect_tls(&listener).await;
    pools.put(&upstream, connection, None);
    pools.sweep();
    assert_eq!(upstream.metrics.idle.get(), 1);
    far.write_all(b"HTTP/1.1 408 Request Timeout\r\n")
        .await
        .unwrap();
    far.flush().await.unwrap();
    until_swept(&pools, &upstream).await;
}

#[tokio::test]
async fn one_sweep_notices_all_that_have_ended_however_many() {
    let (_, pools) = pools();
    let mut registry = Registry::new(Metrics::new());
    let (upstream, _listener) = listening(&mut registry, PoolOptions::DEFAULT).await;
    // More than a task may do I/O at a time before tokio calls everything pending.
    let mut ends = Vec::new();
    for _ in 0..300 {
        let (near, far) = UnixStream::pair().unwrap();
        let connection = Connection::new(Transport::Unix(near));
        assert!(connection.is_usable());
        pools.put(&upstream, connection, None);
        ends.push(far);
        tokio::task::yield_now().await;
    }
    drop(ends);
    // The runtime looks for events while it sleeps.
    tokio::time::sleep(Duration::from_millis(1)).await;
    pools.sweep();
    assert_eq!(upstream.metrics.idle.get(), 0);
}
