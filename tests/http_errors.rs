//! What Waypost answers by itself, and that its reason is always told.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    http::{End, Message, Wire, ask, get, timed},
    origin::{Origin, Refusing},
    waypost::Waypost,
};

fn assert_explained(response: &Message, status: u16, error: &str) {
    assert_eq!(
        (response.status(), response.error()),
        (status, error),
        "{response:?}"
    );
    assert!(
        response.text().starts_with(&status.to_string()),
        "{response:?}"
    );
}

#[tokio::test]
async fn unknown_hosts_and_paths_are_404_and_keep_the_connection() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test/api", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    for (host, path, details) in [
        ("b.test", "/", "no route for host b.test"),
        ("a.test", "/", "no route for this path"),
    ] {
        let response = client
            .ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
            .await;
        assert_explained(&response, 404, "destination_not_found");
        assert!(response.text().contains(details), "{response:?}");
    }
    let response = client
        .ask("GET /api HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_route_without_a_usable_upstream_is_503() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost
        .put("a.test", &origin, &json!({"weight": 0}).to_string())
        .await;
    let response = get(waypost.address(), "a.test", "/").await;
    assert_explained(&response, 503, "destination_unavailable");
}

#[tokio::test]
async fn upstreams_that_fail_are_502_each_with_its_reason() {
    let waypost = Waypost::builder().start().await;
    let refusing = Refusing::new();
    waypost.put("refused.test", &refusing, "").await;
    let response = get(waypost.address(), "refused.test", "/").await;
    assert_explained(&response, 502, "connection_refused");

    let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    let bomb = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let fields: String = (0..150).map(|n| format!("X-{n}: 1\r\n")).collect();
    let fields = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    for (answer, error) in [
        ("", "connection_terminated"),
        ("HTTP/1.1 200", "http_response_incomplete"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "http_response_incomplete"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "http_protocol_error"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx",
            "http_response_transfer_coding",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "http_response_transfer_coding",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "http_response_transfer_coding",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "http_protocol_error",
        ),
        ("HTTP/2 200\r\n\r\n", "http_protocol_error"),
        (&flood, "http_response_header_section_size"),
        (&bomb, "http_response_header_section_size"),
        (&fields, "http_response_header_section_size"),
    ] {
        let origin = Origin::closing(answer).await;
        waypost.put("a.test", &origin, "").await;
        let mut client = Wire::connect(waypost.address()).await;
        let response = client.ask("POST / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let short = &answer[..answer.len().min(80)];
        assert_eq!(
            (response.status(), response.error()),
            (502, error),
            "{short:?}"
        );
        assert_eq!(origin.requests().len(), 1, "{short:?}");
        // The client is not to blame: its connection serves on.
        waypost.delete("a.test", &origin).await;
        let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(response.status(), 404, "{short:?}");
    }
}

#[tokio::test]
async fn what_may_not_or_can_not_be_dialled_is_502() {
    let waypost = Waypost::builder()
        .flag("--upstream-deny", "127.0.0.2/32")
        .start()
        .await;
    let nowhere = tempfile::tempdir().unwrap().path().join("gone.sock");
    let nowhere = format!("unix:{}", nowhere.to_str().unwrap().replace('/', "%2F"));
    let (own, admin) = (waypost.address().to_string(), waypost.admin().to_string());
    for (host, upstream, error) in [
        ("own.test", &*own, "proxy_loop_detected"),
        ("admin.test", &admin, "proxy_loop_detected"),
        ("denied.test", "127.0.0.2:80", "destination_ip_prohibited"),
        ("unix.test", &nowhere, "connection_refused"),
        ("name.test", "nobody.invalid:80", "dns_error"),
    ] {
        waypost.put(host, upstream, "").await;
        let response = get(waypost.address(), host, "/").await;
        assert_explained(&response, 502, error);
    }
}

#[tokio::test]
async fn slow_upstreams_are_504() {
    let origin = Origin::run(async |mut served| {
        served.request().await;
        served.wire.end().await;
    })
    .await;
    let waypost = Waypost::builder().start().await;
    for (host, timeouts, details) in [
        (
            "response.test",
            json!({"response": "200ms"}),
            "no response in time",
        ),
        (
            "request.test",
            json!({"request": "200ms"}),
            "the request took too long",
        ),
    ] {
        waypost.put(host, &origin, "").await;
        let settings = json!({"timeouts": timeouts}).to_string();
        waypost.put(host, "@settings", &settings).await;
        let (response, took) = timed(get(waypost.address(), host, "/")).await;
        assert_explained(&response, 504, "http_response_timeout");
        assert!(response.text().contains(details), "{response:?}");
        assert!(
            took >= Duration::from_millis(200) && took < Duration::from_secs(2),
            "{took:?}"
        );
    }
    // Giving up closes the connection.
    origin.closed(2).await;
}

#[tokio::test]
async fn a_connect_that_takes_too_long_is_504() {
    // A full accept queue: the kernel drops further handshakes.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", address, "").await;
    let settings = json!({"timeouts": {"connect": "200ms"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let (response, took) = timed(get(waypost.address(), "a.test", "/")).await;
    assert_explained(&response, 504, "connection_timeout");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn bodies_over_the_routes_limit_are_413() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let settings = json!({"max_body": "1KiB"}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\n";
    let full = "x".repeat(1024);
    let fits = format!("{head}Content-Length: 1024\r\n\r\n{full}");
    assert_eq!(ask(waypost.address(), fits).await.status(), 200);
    let fits = format!("{head}Transfer-Encoding: chunked\r\n\r\n400\r\n{full}\r\n0\r\n\r\n");
    assert_eq!(ask(waypost.address(), fits).await.status(), 200);

    let mut client = Wire::connect(waypost.address()).await;
    let announced = client
        .ask(format!("{head}Content-Length: 1025\r\n\r\n"))
        .await;
    assert_explained(&announced, 413, "http_request_error");
    assert_eq!(announced.head.one("connection"), Some("close"));
    // The answer is not lost to a reset, though the body comes all the same.
    client.send("x".repeat(1025)).await;
    client.finish().await;
    assert_eq!(client.end().await, End::Fin);

    let streamed =
        format!("{head}Transfer-Encoding: chunked\r\n\r\n400\r\n{full}\r\n1\r\nx\r\n0\r\n\r\n");
    let streamed = ask(waypost.address(), streamed).await;
    assert_explained(&streamed, 413, "http_request_error");
    // Of the streamed one the upstream may have seen the beginning, never the end.
    let whole = origin
        .requests()
        .into_iter()
        .filter(|request| request.whole);
    assert_eq!(whole.count(), 2);
}

#[tokio::test]
async fn a_request_head_that_never_ends_is_408() {
    let waypost = Waypost::builder().start().await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a.te").await;
    let (response, took) = timed(client.response("GET")).await;
    assert_eq!(
        (response.status(), response.error()),
        (408, "http_request_error")
    );
    assert!((9..13).contains(&took.as_secs()), "{took:?}");
    assert_eq!(client.end().await, End::Fin);
}

/// An empty one is as good as any (RFC 9112 section 4).
#[tokio::test]
async fn a_status_that_has_no_name_is_given_none() {
    let origin = Origin::answering("HTTP/1.1 599 Odd\r\nContent-Length: 2\r\n\r\nok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let response = ask(waypost.address(), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(response.head.line, "HTTP/1.1 599 ");
}
