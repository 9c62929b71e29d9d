//! TLS on both sides: which certificate a client gets, and which an upstream must have.

use std::{net::SocketAddr, sync::Arc};

use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::{net::TcpStream, sync::Notify};
use tokio_rustls::TlsConnector;

use crate::support::{
    http::{End, Wire, get},
    origin::{Origin, answer_all},
    tls::Authority,
    waypost::Waypost,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn connect(
    address: SocketAddr,
    authority: &Authority,
    name: &str,
    alpn: &[&str],
) -> std::io::Result<(Wire, Option<Vec<u8>>)> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(authority.client_config(alpn))
        .connect(name, stream)
        .await?;
    let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    Ok((Wire::over(stream), protocol))
}

#[tokio::test]
async fn the_certificate_is_chosen_by_name() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    authority.server_in(directory.path(), &["a.test"]);
    authority.server_in(directory.path(), &["*.b.test"]);
    let fallback = authority.server(&["fallback.test"]);
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder()
        .listen(&format!("https://127.0.0.1:0?{}", fallback.query()))
        .flag("--tls-dir", directory.path().display())
        .start()
        .await;
    waypost.put("*", &origin, "").await;
    for (name, valid) in [
        ("a.test", true),
        ("x.b.test", true),
        ("fallback.test", true),
        ("other.test", false),
    ] {
        let connected = connect(waypost.address(), &authority, name, &["http/1.1"]).await;
        assert_eq!(connected.is_ok(), valid, "{name}");
        let Ok((mut client, protocol)) = connected else {
            continue;
        };
        assert_eq!(protocol.as_deref(), Some(&b"http/1.1"[..]));
        for _ in 0..2 {
            let response = client
                .ask(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"))
                .await;
            assert_eq!(response.text(), "ok");
        }
        assert_eq!(origin.latest().head.one("x-forwarded-proto"), Some("https"));
    }
    let (_, protocol) = connect(waypost.address(), &authority, "a.test", &["h2", "http/1.1"])
        .await
        .unwrap();
    assert_eq!(protocol.as_deref(), Some(&b"h2"[..]));
    let (_, protocol) = connect(waypost.address(), &authority, "a.test", &[])
        .await
        .unwrap();
    assert_eq!(protocol, None);
}

#[tokio::test]
async fn a_large_body_and_a_cut_one_pass_through_tls() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let body = "x".repeat(3 << 20);
    let whole = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    let seen = Arc::new(Notify::new());
    let cut = Origin::run({
        let seen = seen.clone();
        move |mut served| {
            let seen = seen.clone();
            async move {
                served.request().await;
                served
                    .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
                    .await;
                seen.notified().await;
            }
        }
    })
    .await;
    let waypost = Waypost::builder()
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    waypost.put("a.test", &whole, "").await;
    waypost.put("a.test/cut", &cut, "").await;
    let (mut client, _) = connect(waypost.address(), &authority, "a.test", &[])
        .await
        .unwrap();
    let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(response.body == body.as_bytes());
    client
        .send("GET /cut HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await;
    client.take_until("hello\r\n").await.unwrap();
    seen.notify_one();
    assert_eq!(client.end().await, End::Reset, "no orderly end of TLS");
    let (mut client, _) = connect(waypost.address(), &authority, "a.test", &[])
        .await
        .unwrap();
    let upload = format!(
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let response = client.ask(upload).await;
    assert!(response.body == body.as_bytes());
    assert!(whole.latest().body == body.as_bytes());
}

#[tokio::test]
async fn plain_http_on_a_tls_port_gets_no_answer_and_harms_nobody() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let waypost = Waypost::builder()
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    client.take_rest().await;
    assert!(
        connect(waypost.address(), &authority, "a.test", &[])
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn an_upstreams_certificate_is_checked_against_its_authority_and_name() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let pair = authority.server(&["inner.test", "127.0.0.1"]);
    let origin = Arc::new(Origin::run_tls(pair.server_config(&["http/1.1"]), answer_all(OK)).await);
    let plain = Origin::run(async |mut served| {
        let _ = served.wire.fill().await;
        served.send("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    let waypost = Waypost::builder().start().await;
    let (ca, other) = (authority.file(), stranger.file());
    for (host, upstream, tls, outcome) in [
        ("ca.test", &*origin, json!({"ca": ca}), Ok("ok")),
        (
            "sni.test",
            &*origin,
            json!({"ca": ca, "sni": "inner.test"}),
            Ok("ok"),
        ),
        (
            "insecure.test",
            &*origin,
            json!({"insecure": true}),
            Ok("ok"),
        ),
        (
            "stranger.test",
            &*origin,
            json!({"ca": other}),
            Err("tls_certificate_error"),
        ),
        (
            "system.test",
            &*origin,
            json!(true),
            Err("tls_certificate_error"),
        ),
        (
            "name.test",
            &*origin,
            json!({"ca": ca, "sni": "outer.test"}),
            Err("tls_certificate_error"),
        ),
        (
            "plain.test",
            &plain,
            json!({"ca": ca}),
            Err("tls_protocol_error"),
        ),
    ] {
        waypost
            .put(host, upstream, &json!({"tls": tls}).to_string())
            .await;
        let response = get(waypost.address(), host, "/").await;
        match outcome {
            Ok(text) => assert_eq!(response.text(), text, "{host}: {response:?}"),
            Err(error) => assert_eq!(
                (response.status(), response.error()),
                (502, error),
                "{host}: {response:?}"
            ),
        }
    }
    // Its connections are kept like any others.
    let before = origin.connections();
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..5 {
        assert_eq!(
            client
                .ask("GET / HTTP/1.1\r\nHost: ca.test\r\n\r\n")
                .await
                .text(),
            "ok"
        );
    }
    assert!(origin.connections() <= before + 1);
}
