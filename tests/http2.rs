//! HTTP/2 in front: over TLS by ALPN and in the clear with prior knowledge, with foreign clients.

use std::{net::SocketAddr, process::Output, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    process::Command,
    time::{sleep, timeout},
};

use crate::support::{
    http::Wire,
    origin::{Origin, Refusing},
    tls::Authority,
    waypost::{Waypost, eventually},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

type Body = BoxBody<Bytes, std::convert::Infallible>;

async fn in_front_of(origin: &Origin) -> Waypost {
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", origin, "").await;
    waypost
}

async fn connect(address: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn full(text: &'static str) -> Body {
    Full::new(Bytes::from(text)).boxed()
}

/// A body without a length, with these trailers.
fn streamed(text: &'static str, trailers: Option<(&'static str, &'static str)>) -> Body {
    let mut frames = vec![Ok(Frame::data(Bytes::from(text)))];
    if let Some((name, value)) = trailers {
        let mut map = HeaderMap::new();
        map.insert(name, value.parse().unwrap());
        frames.push(Ok(Frame::trailers(map)));
    }
    StreamBody::new(futures_util::stream::iter(frames)).boxed()
}

fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    let uri = format!("http://a.test{path}");
    Request::builder()
        .method(method)
        .uri(uri)
        .body(body)
        .unwrap()
}

async fn text(response: Response<Incoming>) -> (String, HeaderMap) {
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    (
        String::from_utf8(collected.to_bytes().to_vec()).unwrap(),
        trailers,
    )
}

async fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[tokio::test]
async fn bodies_arrive_with_and_without_a_length() {
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin).await;
    let mut client = connect(waypost.address()).await;
    for (method, body, length, coding, arrives) in [
        ("GET", full(""), None, None, ""),
        ("POST", full(""), Some("0"), None, ""),
        ("POST", full("hello"), Some("5"), None, "hello"),
        (
            "POST",
            streamed("hello", None),
            None,
            Some("chunked"),
            "hello",
        ),
        (
            "GET",
            streamed("hello", None),
            None,
            Some("chunked"),
            "hello",
        ),
        ("DELETE", full("hello"), Some("5"), None, "hello"),
    ] {
        let response = client
            .send_request(request(method, "/x?y", body))
            .await
            .unwrap();
        assert_eq!(
            (response.status().as_u16(), response.version()),
            (200, Version::HTTP_2)
        );
        assert_eq!(response.headers().get("connection"), None);
        assert_eq!(text(response).await.0, "ok");
        let arrived = origin.latest();
        assert_eq!(arrived.head.line, format!("{method} /x?y HTTP/1.1"));
        assert_eq!(arrived.head.one("host"), Some("a.test"));
        assert_eq!(arrived.head.one("content-length"), length, "{method}");
        assert_eq!(arrived.head.one("transfer-encoding"), coding, "{method}");
        assert_eq!(arrived.text(), arrives);
    }
}

#[tokio::test]
async fn trailers_pass_as_grpc_needs_them() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n",
    )
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = connect(waypost.address()).await;
    let mut asking = request("POST", "/", streamed("hi", Some(("x-sum", "7"))));
    asking
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let response = client.send_request(asking).await.unwrap();
    let (body, trailers) = text(response).await;
    assert_eq!(
        (body.as_str(), trailers["grpc-status"].to_str().unwrap()),
        ("ok", "0")
    );
    let arrived = origin.latest();
    assert_eq!(arrived.head.one("te"), Some("trailers"));
    assert_eq!(arrived.trailers, [("x-sum".to_owned(), "7".to_owned())]);
}

#[tokio::test]
async fn cookie_crumbs_are_joined() {
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin).await;
    let mut client = connect(waypost.address()).await;
    let mut asking = request("GET", "/", full(""));
    for crumb in ["a=1", "b=2; c=3", "d=4"] {
        asking
            .headers_mut()
            .append("cookie", crumb.parse().unwrap());
    }
    client.send_request(asking).await.unwrap();
    assert_eq!(
        origin.latest().head.one("cookie"),
        Some("a=1; b=2; c=3; d=4")
    );
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let waypost = Waypost::builder().start().await;
    for (method, answer, length) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
            Some("99"),
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            None,
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\n\r\n", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
    ] {
        let origin = Origin::answering(answer).await;
        waypost.put("a.test", &origin, "").await;
        let mut client = connect(waypost.address()).await;
        let response = client
            .send_request(request(method, "/", full("")))
            .await
            .unwrap();
        let declared = response
            .headers()
            .get("content-length")
            .map(|length| length.to_str().unwrap().to_owned());
        assert_eq!(declared.as_deref(), length, "{method} {answer}");
        assert_eq!(text(response).await.0, "", "{method} {answer}");
        waypost.delete("a.test", &origin).await;
    }
}

#[tokio::test]
async fn an_error_in_answer_to_head_has_no_body() {
    let waypost = Waypost::builder().start().await;
    let mut client = connect(waypost.address()).await;
    let asking = request("HEAD", "/", full(""));
    let response = client.send_request(asking).await.unwrap();
    assert_eq!(response.status().as_u16(), 404);
    assert!(response.headers().contains_key("content-length"));
    assert_eq!(text(response).await.0, "");
    assert!(client.ready().await.is_ok());
}

#[tokio::test]
async fn errors_and_cut_bodies_are_seen_and_spare_other_streams() {
    let waypost = Waypost::builder().start().await;
    let refusing = Refusing::new();
    let cut = Origin::closing("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello").await;
    let good = Origin::named("ok").await;
    waypost.put("a.test/refusing", &refusing, "").await;
    waypost.put("a.test/cut", &cut, "").await;
    waypost.put("a.test/good", &good, "").await;
    let mut client = connect(waypost.address()).await;
    let response = client
        .send_request(request("GET", "/refusing", full("")))
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 502);
    let explained = response.headers()["proxy-status"].to_str().unwrap();
    assert!(
        explained.starts_with("waypost; error=connection_refused"),
        "{explained}"
    );
    // The reset may overtake the head; what it may not do is to look like an end.
    if let Ok(response) = client.send_request(request("GET", "/cut", full(""))).await {
        response.into_body().collect().await.expect_err("it is cut");
    }
    let response = client
        .send_request(request("GET", "/unknown", full("")))
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 404);
    let mut asking = request("GET", "/good", full(""));
    for n in 0..150 {
        let name: http::HeaderName = format!("x-{n}").parse().unwrap();
        asking.headers_mut().insert(name, "1".parse().unwrap());
    }
    let response = client.send_request(asking).await.unwrap();
    assert_eq!(response.status().as_u16(), 431);
    let response = client
        .send_request(request("GET", "/good", full("")))
        .await
        .unwrap();
    assert_eq!(text(response).await.0, "ok");
}

#[tokio::test]
async fn one_host_is_asked_for_or_400() {
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin).await;
    let mut client = connect(waypost.address()).await;
    for (host, status) in [
        ("a.test", 200),
        ("A.test:80", 200),
        ("b.test", 400),
        ("", 400),
    ] {
        let mut asking = request("GET", "/", full(""));
        asking.headers_mut().insert("host", host.parse().unwrap());
        let response = client.send_request(asking).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{host}");
    }
}

#[tokio::test]
async fn a_cancelled_stream_cancels_its_request_upstream() {
    let origin = Origin::run(async |mut served| {
        served.request().await;
        served.wire.take_rest().await;
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = connect(waypost.address()).await;
    let pending = tokio::spawn(client.send_request(request("GET", "/", full(""))));
    origin.asked(1).await;
    pending.abort();
    origin.closed(1).await;
    assert!(client.ready().await.is_ok(), "the connection lives on");
}

#[tokio::test]
async fn a_hundred_streams_run_at_once() {
    // Nobody is answered before all have asked.
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(100));
    let origin = Origin::run(move |mut served| {
        let barrier = barrier.clone();
        async move {
            served.request().await;
            barrier.wait().await;
            served
                .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let client = connect(waypost.address()).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut client = client.clone();
        streams.push(tokio::spawn(async move {
            let response = client
                .send_request(request("GET", "/", full("")))
                .await
                .unwrap();
            text(response).await.0
        }));
    }
    for stream in streams {
        assert_eq!(stream.await.unwrap(), "ok");
    }
}

#[tokio::test]
async fn curl_is_served_in_the_clear_and_over_tls() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    waypost.put("a.test", &origin, "").await;
    let [plain, tls] = waypost.addresses() else {
        panic!("two listeners");
    };
    let ca = authority.file().display().to_string();
    for (scheme, port, version, version_seen) in [
        ("http", plain.port(), "--http2-prior-knowledge", "2"),
        ("http", plain.port(), "--http1.1", "1.1"),
        // curl asks for h2c by upgrade, which is not served.
        ("http", plain.port(), "--http2", "1.1"),
        ("https", tls.port(), "--http2", "2"),
        ("https", tls.port(), "--http1.1", "1.1"),
    ] {
        for upload in [false, true] {
            let url = format!("{scheme}://a.test:{port}/x");
            let resolve = format!("a.test:{port}:127.0.0.1");
            let mut arguments = vec!["-sS", version, "--resolve", &resolve, "--cacert", &ca];
            arguments.extend(["-w", " %{http_version} %{http_code}", &url]);
            if upload {
                arguments.extend(["-d", "hello"]);
            }
            let output = run("curl", &arguments).await;
            let printed = String::from_utf8_lossy(&output.stdout);
            assert_eq!(
                printed,
                format!("ok {version_seen} 200"),
                "{arguments:?}: {output:?}"
            );
            let arrived = origin.latest();
            assert_eq!(arrived.head.one("x-forwarded-proto"), Some(scheme));
            assert_eq!(arrived.text(), if upload { "hello" } else { "" });
        }
    }
}

#[tokio::test]
async fn h2load_loses_no_request() {
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("*", &origin, "").await;
    for version in ["h2c", "http/1.1"] {
        let url = format!("http://{}/", waypost.address());
        let arguments = ["-n", "2000", "-c", "4", "-m", "50", "-p", version, &url];
        let output = run("h2load", &arguments).await;
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(
            printed.contains("2000 succeeded, 0 failed, 0 errored"),
            "{version}: {printed}"
        );
        assert!(
            printed.contains("status codes: 2000 2xx"),
            "{version}: {printed}"
        );
    }
    eventually("all are counted", async || origin.requests().len() == 4000).await;
}

/// What a client of another make had on its way when the process began to drain is served; the rest was not looked at.
#[tokio::test]
async fn h2load_gets_every_answer_of_a_process_that_drains() {
    let origin = Origin::run(async |mut served| {
        while served.request().await.is_some() {
            sleep(Duration::from_millis(20)).await;
            served.send(OK).await;
        }
    })
    .await;
    for version in ["h2c", "http/1.1"] {
        let before = origin.requests().len();
        let mut waypost = Waypost::builder().flag("--drain-delay", "0").start().await;
        waypost.put("*", &origin, "").await;
        let url = format!("http://{}/", waypost.address());
        let arguments = ["-n", "100000", "-c", "4", "-m", "25", "-p", version, &url];
        let loading = run("h2load", &arguments);
        let draining = async {
            origin.asked(before + 300).await;
            waypost.signal("TERM");
            waypost.wait_exit().await
        };
        let (output, code) = tokio::join!(loading, draining);
        assert_eq!(code, Some(0), "{version}: nothing was cut");
        let printed = String::from_utf8_lossy(&output.stdout);
        let codes = printed.split_once("status codes: ").expect("a summary").1;
        let (good, rest) = codes.split_once(' ').expect("numbers");
        assert!(
            rest.starts_with("2xx, 0 3xx, 0 4xx, 0 5xx"),
            "{version}: {printed}"
        );
        let served = origin.requests().len() - before;
        assert_eq!(good.parse(), Ok(served), "{version}: {printed}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_no_slow_request() {
    let waypost = Waypost::builder().start().await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.send(b"\0\0\0\x04\0\0\0\0\0").await;
    let ping = b"\0\0\x08\x06\0\0\0\0\x0012345678";
    client.send(ping).await;
    client.take_until("12345678").await.unwrap();
    // Beyond the time that a request's head may take.
    let told_off = client.take_until("HTTP/1.1 408");
    let told_off = timeout(Duration::from_millis(10_600), told_off).await;
    assert!(told_off.is_err(), "{told_off:?}");
    client.send(ping).await;
    client.take_until("12345678").await.unwrap();
}
