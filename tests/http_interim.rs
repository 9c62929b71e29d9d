//! 1xx: relayed in order, and `Expect: 100-continue` between both sides.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::support::{
    http::{Message, Wire, ask, timed},
    origin::Origin,
    waypost::Waypost,
};

async fn in_front_of(origin: &Origin) -> Waypost {
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", origin, "").await;
    waypost
}

fn lines(response: &Message) -> Vec<String> {
    response
        .interim
        .iter()
        .map(|head| head.line.clone())
        .collect()
}

#[tokio::test]
async fn interim_responses_are_relayed_in_order() {
    let origin = Origin::answering(
        "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    for _ in 0..2 {
        let response = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(response.text(), "ok");
        assert_eq!(
            lines(&response),
            ["HTTP/1.1 102 Processing", "HTTP/1.1 103 Early Hints"]
        );
        assert_eq!(
            response.interim[1].fields,
            [("link".to_owned(), "</a>".to_owned())]
        );
    }
    // Pipelined, none may get between another's bytes.
    client
        .send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".repeat(10))
        .await;
    for _ in 0..10 {
        let response = client.response("GET").await;
        assert_eq!((response.status(), response.text()), (200, "ok"));
    }
    let response = ask(waypost.address(), "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    assert_eq!((response.text(), response.interim.len()), ("ok", 0));
}

#[tokio::test]
async fn an_interim_response_does_not_wait_for_the_final_one() {
    let go = Arc::new(Notify::new());
    let origin = Origin::run({
        let go = go.clone();
        move |mut served| {
            let go = go.clone();
            async move {
                served.request().await;
                served
                    .send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
                    .await;
                go.notified().await;
                served.send("HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        }
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().status(), 103);
    go.notify_one();
    assert_eq!(client.response("GET").await.status(), 204);
}

#[tokio::test]
async fn a_body_is_sent_once_the_upstream_says_continue() {
    let origin = Origin::run(async |mut served| {
        let head = served.wire.head().await.unwrap();
        assert_eq!(head.one("expect"), Some("100-continue"));
        assert!(served.wire.is_silent_for(Duration::from_millis(200)).await);
        served.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let body = served.wire.take(5).await.unwrap();
        served.note(Message {
            head,
            body,
            ..Message::default()
        });
        served
            .send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
    })
    .await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        )
        .await;
    let (head, took) = timed(client.head()).await;
    assert_eq!(head.unwrap().status(), 100);
    assert!(
        took > Duration::from_millis(150) && took < Duration::from_millis(900),
        "{took:?}"
    );
    client.send("hello").await;
    assert_eq!(client.response("POST").await.status(), 200);
    assert_eq!(origin.latest().text(), "hello");
}

#[tokio::test]
async fn an_upstream_that_knows_no_continue_gets_the_body_after_a_second() {
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        )
        .await;
    let (head, took) = timed(client.head()).await;
    assert_eq!(head.unwrap().status(), 100);
    assert!(
        took > Duration::from_millis(900) && took < Duration::from_secs(2),
        "{took:?}"
    );
    client.send("hello").await;
    assert_eq!(client.response("POST").await.text(), "ok");
    assert_eq!(origin.latest().text(), "hello");
}

#[tokio::test]
async fn a_refusal_spares_the_body() {
    let refusal = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n";
    let origin = Origin::refusing_early(refusal).await;
    let waypost = in_front_of(&origin).await;
    let mut client = Wire::connect(waypost.address()).await;
    let request =
        "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let response = client.ask(request).await;
    assert_eq!((response.status(), response.interim.len()), (417, 0));
    origin.closed(1).await;
}

#[tokio::test]
async fn an_http_1_0_client_is_told_no_continue() {
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin).await;
    let request =
        "POST / HTTP/1.0\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello";
    let (response, took) = timed(ask(waypost.address(), request)).await;
    assert_eq!((response.text(), response.interim.len()), ("ok", 0));
    assert!(took < Duration::from_millis(800), "{took:?}");
    assert_eq!(origin.latest().head.one("expect"), None);
}
