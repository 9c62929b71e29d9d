//! What is tried again, and what never is.

use serde_json::json;

use crate::support::{
    http::{Wire, ask, get},
    origin::{Origin, Refusing},
    waypost::Waypost,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn one_worker() -> Waypost {
    Waypost::builder().flag("--workers", 1).start().await
}

/// Answers each connection's first request, and ends the connection at its second, having read it.
async fn gives_up_on_the_second() -> Origin {
    Origin::run(async |mut served| {
        served.request().await;
        served.send(OK).await;
        served.request().await;
        if served.connection > 1 {
            served.send(OK).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_refusing_upstream_costs_nobody_a_request() {
    let waypost = one_worker().await;
    let refusing = [Refusing::new(), Refusing::new(), Refusing::new()];
    let origin = Origin::named("ok").await;
    for refusing in &refusing {
        waypost.put("a.test", refusing, "").await;
    }
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        for _ in 0..4 {
            let request =
                format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello");
            assert_eq!(client.ask(request).await.text(), "ok", "{method}");
            assert_eq!(origin.latest().text(), "hello", "{method}");
        }
    }
    assert_eq!(origin.requests().len(), 16);
}

#[tokio::test]
async fn a_get_on_a_stale_connection_goes_out_again() {
    let origin = gives_up_on_the_second().await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    assert_eq!(client.ask(GET).await.text(), "ok");
    assert_eq!(client.ask(GET).await.text(), "ok");
    assert_eq!((origin.requests().len(), origin.connections()), (3, 2));
}

#[tokio::test]
async fn a_post_that_may_have_been_read_is_not_sent_twice() {
    let origin = gives_up_on_the_second().await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    assert_eq!(client.ask(GET).await.text(), "ok");
    let response = client
        .ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    assert_eq!(
        (response.status(), response.error()),
        (502, "connection_terminated")
    );
    assert_eq!(origin.requests().len(), 2);
}

#[tokio::test]
async fn a_put_whose_body_was_begun_is_not_sent_twice() {
    let origin = gives_up_on_the_second().await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    assert_eq!(client.ask(GET).await.text(), "ok");
    let response = client
        .ask("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    assert_eq!(response.status(), 502);
    assert_eq!(origin.requests().len(), 2);
}

#[tokio::test]
async fn idle_connections_that_the_upstream_closed_are_not_used() {
    // Closed in order after each answer, without having said so.
    let origin = Origin::closing(OK).await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    for count in 1..=10 {
        let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(client.ask(post).await.text(), "ok");
        origin.closed(count).await;
        // Another request through the same worker, so that it has seen the end.
        assert_eq!(
            get(waypost.address(), "nobody.test", "/").await.status(),
            404
        );
    }
    assert_eq!(origin.requests().len(), 10);
}

#[tokio::test]
async fn a_reset_before_the_answer_is_tried_once_more_elsewhere() {
    let resetting = Origin::run(async |mut served| {
        served.request().await;
        served.wire.reset();
    })
    .await;
    let origin = Origin::named("ok").await;
    let waypost = one_worker().await;
    waypost.put("a.test", &resetting, "").await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..6 {
        assert_eq!(client.ask(GET).await.text(), "ok");
    }
    assert_eq!(origin.requests().len(), 6);
    // Every other one began there: a second attempt takes nobody's turn.
    assert_eq!(resetting.requests().len(), 3);
    // A POST may have been acted on.
    let mut answers = Vec::new();
    for _ in 0..2 {
        let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
        answers.push(client.ask(post).await.status());
    }
    answers.sort_unstable();
    assert_eq!(answers, [200, 502]);
    assert_eq!(resetting.requests().len(), 4);
}

#[tokio::test]
async fn two_attempts_are_all_that_a_broken_route_costs() {
    let origin = Origin::closing("").await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    let response = ask(waypost.address(), GET).await;
    assert_eq!(
        (response.status(), response.error()),
        (502, "connection_terminated")
    );
    assert_eq!(origin.requests().len(), 2);
}

#[tokio::test]
async fn half_an_answer_is_not_asked_for_again() {
    let origin = Origin::closing("HTTP/1.1 200 OK\r\nX").await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    let response = ask(waypost.address(), GET).await;
    assert_eq!(
        (response.status(), response.error()),
        (502, "http_response_incomplete")
    );
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn a_connection_is_not_kept_longer_than_its_upstream_says() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    let waypost = one_worker().await;
    waypost.put("a.test", &origin, "").await;
    let settings = json!({"timeouts": {"idle": "1s"}}).to_string();
    waypost.put("a.test", "@settings", &settings).await;
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..3 {
        assert_eq!(client.ask(GET).await.text(), "ok");
    }
    assert_eq!(origin.connections(), 3);
}
