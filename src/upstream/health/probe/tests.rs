//! Upstreams of both protocols that are asked, and answer so or so.

use std::{net::SocketAddr, sync::Arc};

use http::Response;
use tokio::net::{TcpListener, TcpSocket};

use super::*;
use crate::upstream::{Endpoint, dial::Deny, health::testing::upstream, tls::UpstreamTls};

fn probe() -> Probe {
    let deny = Deny::new(vec!["127.0.0.9/32".parse().unwrap()], Vec::new());
    Probe::new(Dialler::new(deny.into(), Arc::new(UpstreamTls::new())))
}

fn tcp(address: SocketAddr) -> Endpoint {
    Endpoint::Tcp {
        address,
        name: None,
    }
}

fn settings(path: Option<&str>) -> CheckSettings {
    CheckSettings {
        path: path.map(Into::into),
        timeout: Duration::from_secs(10),
        ..CheckSettings::default()
    }
}

#[tokio::test]
async fn an_http2_upstream_is_asked_over_http2() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let mut asked = Vec::new();
        for status in [200, 503] {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(request) = connection.accept().await {
                let Ok((request, mut respond)) = request else {
                    break;
                };
                let response = Response::builder().status(status).body(()).unwrap();
                respond.send_response(response, true).unwrap();
                asked.push(request);
            }
        }
        asked
    });
    let upstream = upstream(tcp(address), Protocol::H2);
    let settings = settings(Some("/up?deep"));
    for (status, is_good) in [(200, true), (503, false)] {
        let finding = probe().ask(&upstream, &settings).await;
        assert_eq!(finding, Finding::Status(status, is_good));
    }
    let asked = served.await.unwrap();
    assert_eq!(asked.len(), 2);
    let expected = format!("http://{address}/up?deep");
    assert_eq!(asked[0].uri().to_string(), expected);
    assert_eq!(asked[0].headers()["user-agent"], USER_AGENT);
}

#[tokio::test]
async fn an_http2_upstream_may_say_so_much_before_its_answer_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for interims in [MAX_INTERIM, MAX_INTERIM + 1] {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                for _ in 0..interims {
                    let hints = Response::builder().status(103).body(()).unwrap();
                    respond.send_informational(hints).unwrap();
                }
                respond.send_response(Response::new(()), true).unwrap();
            }
        }
    });
    let upstream = upstream(tcp(address), Protocol::H2);
    let settings = settings(Some("/"));
    let finding = probe().ask(&upstream, &settings).await;
    assert_eq!(finding, Finding::Status(200, true));
    let finding = probe().ask(&upstream, &settings).await;
    assert!(finding.to_string().contains("16 interim"), "{finding}");
    assert_eq!(finding.is_good(), Some(false));
}

#[tokio::test]
async fn what_does_not_speak_http2_fails_its_check() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    });
    let upstream = upstream(tcp(address), Protocol::H2);
    let finding = probe().ask(&upstream, &settings(Some("/"))).await;
    assert!(finding.to_string().contains("HTTP/2"), "{finding}");
    assert_eq!(finding.is_good(), Some(false));
}

#[tokio::test]
async fn what_cannot_be_dialled_fails_its_check() {
    let denied = SocketAddr::from(([127, 0, 0, 9], 80));
    for (endpoint, reason) in [
        (Endpoint::Unresolved("a.test".into(), 80), "not resolve"),
        (
            Endpoint::Unix("/nowhere/at/all.sock".into()),
            "No such file",
        ),
        (tcp(denied), "--upstream-deny"),
    ] {
        let upstream = upstream(endpoint, Protocol::Http1);
        for path in [None, Some("/")] {
            let finding = probe().ask(&upstream, &settings(path)).await;
            assert!(finding.to_string().contains(reason), "{finding}");
            assert_eq!(finding.is_good(), Some(false));
        }
        let connects = upstream.metrics.connects.get();
        assert_eq!(connects, 0, "a check is no connection for requests");
    }
}

#[test]
fn our_own_want_of_descriptors_or_ports_says_nothing_of_an_upstream() {
    use rustix::io::Errno;
    for (error, is_good) in [
        (Errno::MFILE, None),
        (Errno::NFILE, None),
        (Errno::ADDRNOTAVAIL, None),
        (Errno::CONNREFUSED, Some(false)),
        (Errno::NETUNREACH, Some(false)),
    ] {
        let failure = Failure::Dial(DialError::Connect(error.into()));
        assert_eq!(failure.finding().is_good(), is_good, "{error}");
    }
}

#[tokio::test]
async fn a_connection_to_ourselves_is_told_from_one_to_an_upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let own = socket.local_addr().unwrap();
    let connected = socket
        .connect(own)
        .await
        .expect("a port that nobody listens on");
    assert!(is_ourselves(&Transport::Tcp(connected)));
    let address = listener.local_addr().unwrap();
    let connected = tokio::net::TcpStream::connect(address).await.unwrap();
    assert!(!is_ourselves(&Transport::Tcp(connected)));
}
