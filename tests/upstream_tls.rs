//! TLS towards upstreams: who we say we are, sessions that resume, and connections that were closed.

use std::sync::Arc;

use rustls::HandshakeKind;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify},
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    http::{Wire, get},
    origin::{Origin, answer_all},
    tls::{Authority, Pair},
    waypost::Waypost,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const POST: &str = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi";

fn value(authority: &Authority, client: Option<&Pair>) -> Value {
    let mut tls = json!({"ca": authority.file()});
    if let Some(client) = client {
        tls["cert"] = json!(client.certificate);
        tls["key"] = json!(client.key);
    }
    json!({"tls": tls})
}

#[tokio::test]
async fn an_upstream_that_asks_who_we_are_is_shown_the_certificate_of_its_value() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let pair = authority.server(&["127.0.0.1"]);
    let config = pair.server_config_for_clients(&authority);
    let origin = Origin::run_tls(config, answer_all(OK)).await;
    let (us, them) = (authority.client("us"), stranger.client("them"));
    let waypost = Waypost::builder().start().await;
    for (host, client, status) in [
        ("us.test", Some(&us), 200),
        ("them.test", Some(&them), 502),
        // As anybody else the upstream is another one, however warm its connections are.
        ("nobody.test", None, 502),
    ] {
        let value = value(&authority, client).to_string();
        waypost.put(host, &origin, &value).await;
        let response = get(waypost.address(), host, "/").await;
        assert_eq!(response.status(), status, "{host}: {response:?}");
    }

    let gone = Pair {
        key: us.key.with_extension("gone"),
        ..us
    };
    let value = value(&authority, Some(&gone)).to_string();
    waypost.put("gone.test", &origin, &value).await;
    let response = get(waypost.address(), "gone.test", "/").await;
    let told = (response.status(), response.error());
    assert_eq!(told, (502, "proxy_configuration_error"));
    let file = gone.key.display().to_string();
    assert!(response.text().contains(&file), "{response:?}");
}

#[tokio::test]
async fn the_second_connection_to_an_upstream_resumes_the_session_of_the_first() {
    let authority = Authority::new();
    let pair = authority.server(&["127.0.0.1"]);
    let acceptor = TlsAcceptor::from(pair.server_config(&["http/1.1"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handshakes = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            let kind = stream.get_ref().1.handshake_kind();
            handshakes.lock().await.push(kind);
            let mut wire = Wire::over(stream);
            while wire.request().await.is_some() {
                wire.send(OK).await;
            }
        }
    });
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let mut value = value(&authority, None);
    value["pool"] = json!({"max_idle": 0});
    waypost.put("a.test", address, &value.to_string()).await;
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..3 {
        assert_eq!(client.ask(POST).await.text(), "ok");
    }
    let expected = [
        Some(HandshakeKind::Full),
        Some(HandshakeKind::Resumed),
        Some(HandshakeKind::Resumed),
    ];
    assert_eq!(*seen.lock().await, expected);
}

#[tokio::test]
async fn a_connection_whose_session_was_closed_gets_no_post() {
    let authority = Authority::new();
    let pair = authority.server(&["127.0.0.1"]);
    let (close, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let origin = Origin::run_tls(pair.server_config(&["http/1.1"]), {
        let (close, closed) = (close.clone(), closed.clone());
        move |mut served| {
            let (close, closed) = (close.clone(), closed.clone());
            async move {
                served.request().await;
                served.send(OK).await;
                if served.connection == 1 {
                    // In one direction: what comes is still read.
                    close.notified().await;
                    served.wire.finish().await;
                    closed.notify_one();
                }
                while served.request().await.is_some() {
                    served.send(OK).await;
                }
            }
        }
    })
    .await;
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let value = value(&authority, None).to_string();
    waypost.put("a.test", &origin, &value).await;
    let mut client = Wire::connect(waypost.address()).await;
    assert_eq!(client.ask(POST).await.text(), "ok");
    close.notify_one();
    closed.notified().await;
    // Another request through the same worker, so that it has seen the end.
    let other = get(waypost.address(), "nobody.test", "/").await;
    assert_eq!(other.status(), 404);
    assert_eq!(client.ask(POST).await.text(), "ok");
    assert_eq!((origin.connections(), origin.requests().len()), (2, 2));
}
