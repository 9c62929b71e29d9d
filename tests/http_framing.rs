//! How bodies are delimited, on both sides and in both directions.

use crate::support::{
    http::{End, Wire, ask},
    origin::Origin,
    waypost::Waypost,
};

const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

async fn in_front_of(origin: &Origin) -> Waypost {
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", origin, "").await;
    waypost
}

#[tokio::test]
async fn request_bodies_arrive_whole_whatever_the_method_and_framing() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE"] {
        for (fields, sent, body, framing) in [
            ("Content-Length: 5\r\n", "hello", "hello", "content-length"),
            ("Content-Length: 0\r\n", "", "", "content-length"),
            (
                "Transfer-Encoding: chunked\r\n",
                "5\r\nhello\r\n1;ext=\"x\"\r\n!\r\n0\r\n\r\n",
                "hello!",
                "transfer-encoding",
            ),
            (
                "Transfer-Encoding: chunked\r\n",
                "0\r\n\r\n",
                "",
                "transfer-encoding",
            ),
        ] {
            let request = format!("{method} / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{sent}");
            assert_eq!(client.ask(&request).await.status(), 200, "{request}");
            let arrived = origin.latest();
            assert_eq!(arrived.text(), body, "{request}");
            assert!(arrived.head.line.starts_with(method), "{request}");
            assert!(
                arrived.head.one(framing).is_some(),
                "{request}: {arrived:?}"
            );
        }
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn no_body_gets_no_framing_but_where_one_is_expected() {
    let origin = Origin::answering(EMPTY).await;
    let waypost = in_front_of(&origin).await;
    for (method, length) in [
        ("GET", None),
        ("DELETE", None),
        ("OPTIONS", None),
        ("POST", Some("0")),
    ] {
        let request = format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!(ask(waypost.address(), &request).await.status(), 200);
        let head = origin.latest().head;
        assert_eq!(head.one("content-length"), length, "{method}");
        assert_eq!(head.one("transfer-encoding"), None, "{method}");
    }
}

#[tokio::test]
async fn trailers_survive_both_ways() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         2\r\nok\r\n0\r\nX-Sum: 42\r\nContent-Length: 7\r\n\r\n",
    )
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    let request = "POST / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nTrailer: X-In\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-In: 1\r\n\r\n";
    for _ in 0..2 {
        let response = client.ask(request).await;
        assert_eq!(response.head.one("trailer"), Some("X-Sum"));
        assert_eq!(response.text(), "ok");
        assert_eq!(response.trailers, [("x-sum".to_owned(), "42".to_owned())]);
        let arrived = origin.latest();
        assert_eq!(arrived.head.one("te"), Some("trailers"));
        assert_eq!(arrived.head.one("trailer"), Some("X-In"));
        assert_eq!(arrived.trailers, [("x-in".to_owned(), "1".to_owned())]);
    }
    // Who does not ask for them does not get them.
    let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!((response.text(), response.trailers.len()), ("ok", 0));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    for (method, answer, length) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            Some("1234"),
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            None,
        ),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: x\r\n\r\n",
            None,
        ),
        ("GET", "HTTP/1.1 304 Not Modified\r\n\r\n", None),
        (
            "POST",
            "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
            Some("0"),
        ),
    ] {
        let origin = Origin::answering(answer).await;
        let waypost = in_front_of(&origin).await;
        let mut client = Wire::connect(waypost.address()).await;
        // Twice, as bytes of a body nobody expects would show in front of the second answer.
        for _ in 0..2 {
            let response = client
                .ask(format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n"))
                .await;
            assert!(
                answer.contains(&response.status().to_string()),
                "{answer}: {response:?}"
            );
            assert_eq!(
                response.head.one("content-length"),
                length,
                "{method} {answer}"
            );
        }
        assert_eq!(origin.connections(), 1, "{method} {answer}");
    }
}

#[tokio::test]
async fn lengths_are_rewritten_from_what_was_decoded() {
    for (answer, body, reused) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "hello",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 Evil\r\n\r\n",
            "hello",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            "hello",
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
            "hello",
            true,
        ),
    ] {
        let origin = Origin::answering(answer).await;
        let waypost = Waypost::builder().flag("--workers", 1).start().await;
        waypost.put("a.test", &origin, "").await;
        let mut client = Wire::connect(waypost.address()).await;
        for _ in 0..2 {
            let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            assert_eq!(response.head.line, "HTTP/1.1 200 OK", "{answer}");
            assert_eq!(response.text(), body, "{answer}");
        }
        let connections = if reused { 1 } else { 2 };
        assert_eq!(origin.connections(), connections, "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_is_passed_on() {
    for answer in [
        "HTTP/1.1 200 OK\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\n\r\nhello",
    ] {
        let origin = Origin::closing(answer).await;
        let waypost = in_front_of(&origin).await;
        let mut client = Wire::connect(waypost.address()).await;
        for _ in 0..2 {
            let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            assert_eq!((response.text(), response.whole), ("hello", true));
            assert_eq!(response.head.one("transfer-encoding"), Some("chunked"));
        }
    }
}

#[tokio::test]
async fn truncation_is_never_a_clean_end() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloxx0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n-1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nfffffffffffffffff\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nffffffffffffffff\r\nxx",
    ] {
        let origin = Origin::closing(answer).await;
        let waypost = in_front_of(&origin).await;
        for version in ["1.1", "1.0"] {
            let request = format!("GET / HTTP/{version}\r\nHost: a.test\r\n\r\n");
            let mut client = Wire::connect(waypost.address()).await;
            client.send(&request).await;
            let Ok(head) = client.head().await else {
                continue;
            };
            assert_eq!(head.status(), 200, "{answer}");
            let (rest, end) = client.take_rest().await;
            let rest = String::from_utf8_lossy(&rest).into_owned();
            assert!(!rest.contains("\r\n0\r\n"), "{answer}: {rest}");
            if version == "1.0" && head.one("content-length").is_none() {
                assert_eq!(end, End::Reset, "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn http_1_0_clients_are_served_as_they_understand_it() {
    let chunked = Origin::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    .await;
    let known = Origin::named("hello").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("chunked.test", &chunked, "").await;
    waypost.put("known.test", &known, "").await;

    let mut client = Wire::connect(waypost.address()).await;
    let response = client
        .ask("GET / HTTP/1.0\r\nHost: chunked.test\r\nConnection: keep-alive\r\n\r\n")
        .await;
    assert_eq!(response.head.line, "HTTP/1.0 200 OK");
    assert_eq!(response.head.one("transfer-encoding"), None);
    assert_eq!((response.text(), response.end), ("hello", Some(End::Fin)));

    let mut client = Wire::connect(waypost.address()).await;
    let response = client
        .ask("GET / HTTP/1.0\r\nHost: known.test\r\n\r\n")
        .await;
    assert_eq!(
        (response.text(), response.head.one("content-length")),
        ("hello", Some("5"))
    );
    assert_eq!(client.end().await, End::Fin);

    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..2 {
        let response = client
            .ask("GET / HTTP/1.0\r\nHost: known.test\r\nConnection: keep-alive\r\n\r\n")
            .await;
        assert_eq!(response.head.one("connection"), Some("keep-alive"));
        assert_eq!(response.text(), "hello");
    }
    assert_eq!(known.latest().head.line, "GET / HTTP/1.1");

    // Hosts came with HTTP/1.1: without one there is only the route for every host.
    let nameless = "GET / HTTP/1.0\r\n\r\n";
    assert_eq!(ask(waypost.address(), nameless).await.status(), 404);
    waypost.put("*", &known, "").await;
    assert_eq!(ask(waypost.address(), nameless).await.text(), "hello");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::run(async |mut served| {
        while let Some(request) = served.request().await {
            let path = request.head.line.split(' ').nth(1).unwrap();
            let length = path.len();
            served
                .send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}"
                ))
                .await;
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    let requests: String = (0..20)
        .map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a.test\r\n\r\n"))
        .collect();
    client.send(requests).await;
    for n in 0..20 {
        assert_eq!(client.response("GET").await.text(), format!("/{n}"));
    }
    client.send("POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(client.response("POST").await.text(), "/a");
    assert_eq!(client.response("GET").await.text(), "/b");
}
