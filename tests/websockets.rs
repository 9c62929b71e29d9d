//! How WebSockets end when their upstream is taken out, or the process drains: with 1001 between two frames, and never
//! before the drain timeout.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustls::pki_types::ServerName;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsConnector;

use crate::support::{
    etcd::EtcdCluster,
    fleet::{Begun, registered},
    http::{End, Wire},
    origin::{Origin, Served},
    tls::Authority,
    waypost::{Builder, Waypost},
    websocket::{Echo, Socket},
};

const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const REMOVED: &str = "1001 upstream removed";
/// The same as a frame.
const REMOVED_FRAME: &[u8] = b"\x88\x12\x03\xe9upstream removed";
/// A client's answer to it, masked by zeros.
const ANSWER: &[u8] = b"\x88\x82\0\0\0\0\x03\xe9";

/// How long a round of looks takes, and what a busy machine adds.
const ROUND: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn a_socket_outlives_its_upstream_by_the_drain_timeout_and_is_told() {
    let waypost = draining_within("1s").start().await;
    let (gone, kept) = (Echo::start().await, Echo::start().await);
    waypost.put("gone.test", &gone, "").await;
    waypost.put("weight.test", &kept, "").await;
    waypost.put("drain.test", &kept, "").await;
    let open = async |host| Socket::open(waypost.address(), host).await;
    let mut others = [open("weight.test").await, open("drain.test").await];
    let mut sockets = [open("gone.test").await, open("gone.test").await];
    waypost.put("weight.test", &kept, r#"{"weight": 0}"#).await;
    waypost.put("drain.test", &kept, r#"{"drain": true}"#).await;

    waypost.delete("gone.test", &gone).await;
    let deleted = Instant::now();
    for socket in &mut sockets {
        socket.echo("still of use").await;
    }
    for socket in &mut sockets {
        assert_eq!(socket.closed().await, REMOVED);
        let took = deleted.elapsed();
        let expected = Duration::from_millis(900)..Duration::from_secs(1) + 2 * ROUND;
        assert!(expected.contains(&took), "{took:?}");
    }
    assert_eq!(gone.ended(2).await, [REMOVED, REMOVED]);
    for other in &mut others {
        other.echo("no new requests, and this one lives").await;
    }
}

#[tokio::test]
async fn a_key_that_comes_back_in_time_keeps_its_sockets() {
    let waypost = draining_within("3s").start().await;
    let (echo, control) = (Echo::start().await, Echo::start().await);
    waypost.put("a.test", &echo, "").await;
    waypost.put("b.test", &control, "").await;
    let mut socket = Socket::open(waypost.address(), "a.test").await;
    let mut other = Socket::open(waypost.address(), "b.test").await;
    waypost.delete("a.test", &echo).await;
    waypost.delete("b.test", &control).await;
    // It is noticed in the meantime.
    assert!(socket.is_silent_for(ROUND).await);
    waypost.put("a.test", &echo, "").await;
    assert_eq!(other.closed().await, REMOVED);
    assert!(socket.is_silent_for(ROUND).await);
    socket.echo("here I am").await;
}

#[tokio::test]
async fn what_is_dialled_in_another_way_is_another_upstream() {
    let waypost = draining_within("100ms").start().await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let mut socket = Socket::open(waypost.address(), "a.test").await;
    waypost.put("a.test", &echo, r#"{"tls": true}"#).await;
    assert_eq!(socket.closed().await, REMOVED);
}

/// 10 MiB and more flow in frames without a pause: each arrives whole, up to the Close.
#[tokio::test]
async fn a_busy_socket_ends_between_two_frames() {
    const LENGTH: usize = 70_000;
    let waypost = draining_within("300ms").start().await;
    let origin = Origin::run(async |mut served| {
        accept(&mut served).await;
        let frame = [&b"\x82\x7f\0\0\0\0\0\x01\x11\x70"[..], &[7; LENGTH]].concat();
        let wire = std::mem::replace(&mut served.wire, Wire::over(tokio::io::empty()));
        let (mut wire, mut writing) = wire.split();
        let is_told = AtomicBool::new(false);
        // The frame that it is told in is finished.
        let speaking = async {
            loop {
                writing.write_all(&frame).await.unwrap();
                if is_told.load(Relaxed) {
                    break;
                }
            }
        };
        let listening = async {
            let close = wire.take(REMOVED_FRAME.len() + 4).await.unwrap();
            assert_eq!(unmasked(&close), REMOVED_FRAME);
            is_told.store(true, Relaxed);
        };
        tokio::join!(speaking, listening);
    })
    .await;
    waypost.put("a.test", &origin, "").await;
    let mut client = opened(Wire::connect(waypost.address()).await).await;
    let mut received = 0;
    let mut deleted = false;
    loop {
        let header = client.take(2).await.unwrap();
        if header == REMOVED_FRAME[..2] {
            break;
        }
        assert_eq!(header, b"\x82\x7f");
        let frame = client.take(8 + LENGTH).await.unwrap();
        assert!(frame[8..] == [7; LENGTH]);
        received += LENGTH;
        if received > 10 << 20 && !deleted {
            deleted = true;
            waypost.delete("a.test", &origin).await;
        }
    }
    assert!(deleted);
    assert_eq!(
        client.take(REMOVED_FRAME.len() - 2).await.unwrap(),
        REMOVED_FRAME[2..]
    );
    client.send(ANSWER).await;
    client.end().await;
}

/// Either side is in the middle of a frame when the time comes, and finishes it: the Close stands behind it.
#[tokio::test]
async fn a_frame_that_is_under_way_is_finished_first() {
    let waypost = draining_within("0s").start().await;
    let origin = Origin::run(async |mut served| {
        accept(&mut served).await;
        served.send(b"\x81\x08half").await;
        // The other direction is between frames.
        let close = served.wire.take(REMOVED_FRAME.len() + 4).await.unwrap();
        assert_eq!(unmasked(&close), REMOVED_FRAME);
        served.send(b"done\x81\x05never\x88\x02\x03\xe9").await;
        assert_eq!(served.wire.take_rest().await, (Vec::new(), End::Fin));
    })
    .await;
    waypost.put("a.test", &origin, "").await;
    let mut client = opened(Wire::connect(waypost.address()).await).await;
    assert_eq!(client.take(6).await.unwrap(), b"\x81\x08half");
    waypost.delete("a.test", &origin).await;
    assert_eq!(client.take(4).await.unwrap(), b"done");
    assert_eq!(
        client.take(REMOVED_FRAME.len()).await.unwrap(),
        REMOVED_FRAME
    );
    client.send(ANSWER).await;
    assert_eq!(client.end().await, End::Fin);
    origin.closed(1).await;

    let origin = Origin::run(async |mut served| {
        accept(&mut served).await;
        assert_eq!(served.wire.take(10).await.unwrap(), b"\x81\x88\0\0\0\0half");
        served.send(b"\x89\0").await;
        assert_eq!(served.wire.take(4).await.unwrap(), b"done");
        let close = served.wire.take(REMOVED_FRAME.len() + 4).await.unwrap();
        assert_eq!(unmasked(&close), REMOVED_FRAME);
        served.send(b"\x88\x02\x03\xe9").await;
        assert_eq!(served.wire.take_rest().await, (Vec::new(), End::Fin));
        served.note(Default::default());
    })
    .await;
    waypost.put("a.test", &origin, "").await;
    let mut client = opened(Wire::connect(waypost.address()).await).await;
    client.send(b"\x81\x88\0\0\0\0half").await;
    assert_eq!(client.take(2).await.unwrap(), b"\x89\0", "it has the half");
    waypost.delete("a.test", &origin).await;
    assert_eq!(
        client.take(REMOVED_FRAME.len()).await.unwrap(),
        REMOVED_FRAME
    );
    client.send(b"done").await;
    client.send(ANSWER).await;
    assert_eq!(client.end().await, End::Fin);
    origin.asked(1).await;
}

#[tokio::test]
async fn nothing_is_put_into_a_frame_that_does_not_end() {
    let waypost = draining_within("0s").start().await;
    let origin = Origin::run(async |mut served| {
        accept(&mut served).await;
        served.send(b"\x82\x7f\0\0\0\0\0\xa0\0\0").await;
        served.send([7; 100_000]).await;
        served.wire.take_rest().await;
    })
    .await;
    waypost.put("a.test", &origin, "").await;
    let mut client = opened(Wire::connect(waypost.address()).await).await;
    assert_eq!(client.take(10).await.unwrap()[..2], *b"\x82\x7f");
    waypost.delete("a.test", &origin).await;
    let (rest, _) = client.take_rest().await;
    assert!(rest == [7; 100_000], "{} bytes", rest.len());
    origin.closed(1).await;
}

#[tokio::test]
async fn who_does_not_answer_a_close_is_cut() {
    let waypost = draining_within("0s").start().await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let mut client = opened(Wire::connect(waypost.address()).await).await;
    waypost.delete("a.test", &echo).await;
    assert_eq!(
        client.take(REMOVED_FRAME.len()).await.unwrap(),
        REMOVED_FRAME
    );
    let told = Instant::now();
    client.end().await;
    let took = told.elapsed();
    let expected = Duration::from_secs(1)..Duration::from_secs(4);
    assert!(expected.contains(&took), "{took:?}");
    // The other side answered, and knows.
    assert_eq!(echo.ended(1).await, [REMOVED]);
}

#[tokio::test]
async fn a_socket_over_tls_is_told_too() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let waypost = draining_within("0s")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let stream = TcpStream::connect(waypost.address()).await.unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let connector = TlsConnector::from(authority.client_config(&["http/1.1"]));
    let stream = connector.connect(name, stream).await.unwrap();
    let mut client = opened(Wire::over(stream)).await;
    waypost.delete("a.test", &echo).await;
    assert_eq!(
        client.take(REMOVED_FRAME.len()).await.unwrap(),
        REMOVED_FRAME
    );
    client.send(ANSWER).await;
    assert_eq!(client.end().await, End::Fin);
    assert_eq!(echo.ended(1).await, [REMOVED]);
}

#[tokio::test]
async fn a_process_that_drains_tells_its_sockets_when_the_time_is_over() {
    let mut waypost = draining_within("1s").start().await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let mut socket = Socket::open(waypost.address(), "a.test").await;
    waypost.signal("TERM");
    waypost.log().until("no longer accepting").await;
    let draining = Instant::now();
    socket.echo("still").await;
    assert_eq!(socket.closed().await, "1001 shutting down");
    assert!(draining.elapsed() > Duration::from_millis(900));
    assert_eq!(echo.ended(1).await, ["1001 shutting down"]);
    assert_eq!(waypost.wait_exit().await, Some(0), "nobody lost anything");
    waypost.log().until("every request was finished").await;
}

#[tokio::test]
async fn a_socket_that_does_not_leave_counts_as_cut() {
    let mut waypost = draining_within("0s").start().await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let mut client = opened(Wire::connect(waypost.address()).await).await;
    waypost.signal("TERM");
    client.take_until("shutting down").await.unwrap();
    assert_eq!(waypost.wait_exit().await, Some(1));
    let line = waypost.log().until("requests were cut off").await;
    assert!(line.contains("requests=1"), "{line}");
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_sockets_to_leave() {
    let mut waypost = draining_within("0s").start().await;
    let echo = Echo::start().await;
    waypost.put("a.test", &echo, "").await;
    let mut client = opened(Wire::connect(waypost.address()).await).await;
    waypost.signal("TERM");
    client.take_until("shutting down").await.unwrap();
    let told = Instant::now();
    waypost.signal("TERM");
    client.end().await;
    let took = told.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(waypost.wait_exit().await, Some(1));
}

#[tokio::test]
async fn a_drain_by_delete_waits_for_its_sockets_to_end() {
    let etcd = EtcdCluster::start(1).await;
    let echo = Echo::start().await;
    let upstream = echo.to_string();
    etcd.put(&format!("/hosts/a.test/{upstream}"), "").await;
    let waypost = draining_within("2s").etcd(&etcd.endpoints()).start().await;
    let id = registered(&waypost).await;
    let mut socket = Socket::open(waypost.address(), "a.test").await;
    let delete = Begun::new(&etcd, &["delete", "a.test", &upstream, "--drain"]).await;
    delete.until_left(&etcd, &id, 1).await;
    socket.echo("still").await;
    assert_eq!(socket.closed().await, REMOVED);
    let ended = delete.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.ends_with("drained on 1 instance\n"),
        "{ended:?}"
    );
}

/// Each has carried a message, so that what a busy one takes and an idle one keeps is in the figure.
#[tokio::test]
async fn a_thousand_idle_sockets_cost_little_memory() {
    const COUNT: usize = 1_000;
    allow_many_files();
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let connector = TlsConnector::from(authority.client_config(&["http/1.1"]));
    for (scheme, most) in [("http", 8 << 10), ("https", 16 << 10)] {
        let listener = match scheme {
            "http" => "http://127.0.0.1:0".to_owned(),
            _ => format!("https://127.0.0.1:0?{}", pair.query()),
        };
        let waypost = Waypost::builder().listen(&listener).start().await;
        let echo = Echo::start().await;
        waypost.put("a.test", &echo, "").await;
        let mut sockets = Vec::new();
        let mut open = async |count| {
            for _ in 0..count {
                let stream = TcpStream::connect(waypost.address()).await.unwrap();
                let name = ServerName::try_from("a.test").unwrap();
                let wire = match scheme {
                    "http" => Wire::tcp(stream),
                    _ => Wire::over(connector.connect(name, stream).await.unwrap()),
                };
                let mut client = opened(wire).await;
                client
                    .send([&b"\x82\xfe\x0f\xa0\0\0\0\0"[..], &[7; 4_000]].concat())
                    .await;
                let echoed = client.take(4_004).await.unwrap();
                assert_eq!(echoed[..5], *b"\x82\x7e\x0f\xa0\x07");
                sockets.push(client);
            }
            waypost.memory().0
        };
        let before = open(100).await;
        let each = open(COUNT).await.saturating_sub(before) / COUNT;
        println!("{scheme}: {each} bytes each");
        assert!(each < most, "{scheme}: {each} bytes each");
    }
}

/// As many as the hard limit has room for: a client's and an upstream's end of each socket are ours.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit anybody may");
}

fn draining_within(drain_timeout: &str) -> Builder {
    let builder = Waypost::builder().flag("--drain-delay", "0");
    builder.flag("--drain-timeout", drain_timeout)
}

/// A client after its handshake.
async fn opened(mut client: Wire) -> Wire {
    let response = client.ask(HANDSHAKE).await;
    assert_eq!(response.status(), 101);
    client
}

/// An origin's part of the handshake.
async fn accept(served: &mut Served) {
    served.wire.head().await.unwrap();
    served.send(SWITCHING).await;
}

/// A short masked frame as it were without its mask.
fn unmasked(frame: &[u8]) -> Vec<u8> {
    assert_ne!(frame[1] & 0x80, 0, "towards an origin frames are masked");
    let (key, payload) = frame[2..].split_at(4);
    let bytes = payload.iter().zip(key.iter().cycle());
    let mut plain = vec![frame[0], frame[1] & 0x7f];
    plain.extend(bytes.map(|(byte, key)| byte ^ key));
    plain
}
