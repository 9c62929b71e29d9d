//! Requests that are none, that mean two things, or that are too large: refused, or passed on as exactly one.

use crate::support::{
    http::{End, Wire},
    origin::Origin,
    waypost::Waypost,
};

#[tokio::test]
async fn malformed_requests_are_400_or_one_canonical_request() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("*", &origin, "").await;
    let head = "GET / HTTP/1.1\r\nHost: a.test\r\n";
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (format!("{head}Host: a.test\r\n\r\n"), 400),
        (format!("{head}Host: b.test\r\n\r\n"), 400),
        (
            "GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n".to_owned(),
            400,
        ),
        ("GET / HTTP/1.1\r\nHost: a@b.test\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a test\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a.test/x\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a..test\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), 400),
        ("GET * HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        (
            "GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n".to_owned(),
            400,
        ),
        (
            "GET http://u:p@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
            400,
        ),
        (format!("{head}X : y\r\n\r\n"), 400),
        (format!("{head} X: y\r\n\r\n"), 400),
        (format!("{head}X: y\r\n z\r\n\r\n"), 400),
        (format!("{head}: y\r\n\r\n"), 400),
        (format!("{head}X: a\0b\r\n\r\n"), 400),
        (format!("{head}X: a\rb\r\n\r\n"), 400),
        (format!("{head}X\r\n\r\n"), 400),
        (format!("{head}Content-Length: +5\r\n\r\nhello"), 400),
        (format!("{head}Content-Length: 0x5\r\n\r\nhello"), 400),
        (format!("{head}Content-Length: -1\r\n\r\n"), 400),
        (format!("{head}Content-Length: 5 5\r\n\r\nhello"), 400),
        (format!("{head}Content-Length: 5, 6\r\n\r\nhello"), 400),
        (
            format!("{head}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
            400,
        ),
        (
            format!("{head}Content-Length: 99999999999999999999\r\n\r\n"),
            400,
        ),
        (
            "GET / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            400,
        ),
        (format!("{head}Transfer-Encoding: gzip\r\n\r\n"), 400),
        (
            format!("{head}Transfer-Encoding: chunked, gzip\r\n\r\n"),
            400,
        ),
        (
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            501,
        ),
        ("GET /<x> HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        ("GET /` HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        ("GET / x HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        ("GET x HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.2\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/2.0\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        ("G@T / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), 400),
        (
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n".to_owned(),
            501,
        ),
    ] {
        let before = origin.requests().len();
        let mut client = Wire::connect(waypost.address()).await;
        let response = client.ask(&request).await;
        if response.status() == 200 {
            let arrived = origin.latest();
            panic!("{request:?} went on as {arrived:?}");
        }
        assert_eq!(response.status(), status, "{request:?}: {response:?}");
        assert_eq!(
            response.error().split('_').next(),
            Some("http"),
            "{request:?}"
        );
        assert_eq!(origin.requests().len(), before, "{request:?}");
    }
}

#[tokio::test]
async fn ambiguous_framing_makes_one_request_at_most() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("*", &origin, "").await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
    ] {
        let before = origin.requests().len();
        let mut client = Wire::connect(waypost.address()).await;
        let request = format!("POST / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n0\r\n\r\n{smuggled}");
        client.send(request).await;
        client.finish().await;
        let (answers, _) = client.take_rest().await;
        let answers = String::from_utf8_lossy(&answers).into_owned();
        for request in &origin.requests()[before..] {
            let framings = request.head.all("content-length").len()
                + request.head.all("transfer-encoding").len();
            assert_eq!(framings, 1, "{fields}: {request:?}");
            assert!(
                !fields.contains("chunked")
                    || !request.head.line.contains("smuggled")
                    || answers.matches("HTTP/1.1 200").count() <= 2
            );
        }
    }
}

#[tokio::test]
async fn oversized_requests_are_refused_each_in_its_way() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("*", &origin, "").await;
    let many: String = (0..150).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (request, status) in [
        (
            format!(
                "GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n",
                "x".repeat(17_000)
            ),
            414,
        ),
        (
            format!(
                "GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n",
                "x".repeat(70_000)
            ),
            414,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n",
                "x".repeat(200_000)
            ),
            431,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n",
                "x".repeat(85_000)
            ),
            431,
        ),
        (format!("GET / HTTP/1.1\r\nHost: a.test\r\n{many}\r\n"), 431),
        (
            format!(
                "GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n",
                "x".repeat(16_000)
            ),
            200,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n",
                "x".repeat(60_000)
            ),
            200,
        ),
    ] {
        let mut client = Wire::connect(waypost.address()).await;
        let response = client.ask(&request).await;
        assert_eq!(
            response.status(),
            status,
            "{} bytes: {:?}",
            request.len(),
            response.head
        );
        if status != 200 {
            assert_eq!(response.error(), "http_request_error");
            // A reset could overtake the answer.
            client.finish().await;
            assert_eq!(client.end().await, End::Fin, "{} bytes", request.len());
        }
    }
}

#[tokio::test]
async fn a_line_without_cr_is_refused_in_words_wherever_a_buffer_ends() {
    let waypost = Waypost::builder().start().await;
    for around in [1 << 10, 8 << 10, 9 << 10, 16 << 10, 32 << 10] {
        for length in around - 6..=around + 6 {
            let head = "GET / HTTP/1.1\r\nHost: a.test\r\nX: ";
            let request = format!("{head}{}\n", "x".repeat(length - head.len() - 1));
            let mut client = Wire::connect(waypost.address()).await;
            client.send(&request).await;
            let answer = client.try_response("GET").await;
            let status = answer.map(|answer| answer.status());
            assert_eq!(status, Ok(400), "{length} bytes");
        }
    }
}

#[tokio::test]
async fn the_preface_of_http2_behind_a_request_is_refused_in_words() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("*", &origin, "").await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for behind in ["", "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"] {
        let mut client = Wire::connect(waypost.address()).await;
        let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n{preface}{behind}");
        client.send(request).await;
        assert_eq!(client.response("GET").await.status(), 200, "{behind:?}");
        let refused = client.try_response("GET").await;
        let status = refused.map(|answer| answer.status());
        assert_eq!(status, Ok(400), "{behind:?}");
        assert_eq!(client.end().await, End::Fin, "{behind:?}");
    }
}
