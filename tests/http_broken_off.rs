//! Responses that break off as soon as they have begun: a client that got nothing would take it for the end of an idle
//! connection, and ask again (RFC 9112 section 9.3.1).

use crate::support::{http::Wire, origin::Origin, waypost::Waypost};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn what_came_before_an_upstream_broke_off_is_with_the_client() {
    let waypost = Waypost::builder().start().await;
    for broken in [
        format!("{CHUNKED}5\r\nhello\r\n5\r\n"),
        format!("{CHUNKED}5\r\nhello\r\nzz\r\n"),
        format!("{CHUNKED}5\r\nhello\r\n0\r\nno trailer\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhello".to_owned(),
    ] {
        let origin = Origin::closing(&broken).await;
        waypost.put("a.test", &origin, "").await;
        for _ in 0..10 {
            let response = Wire::connect(waypost.address()).await.ask(GET).await;
            assert_eq!(response.status(), 200, "{broken}");
            assert_eq!(
                (response.text(), response.whole),
                ("hello", false),
                "{broken}"
            );
        }
        waypost.delete("a.test", &origin).await;
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_it_too() {
    const SIZE: usize = 16 << 20;
    let size = format!("{SIZE:x}");
    let response = format!("{CHUNKED}{size}\r\n{}\r\nzz\r\n", "x".repeat(SIZE));
    let origin = Origin::closing(&response).await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let mut client = Wire::connect(waypost.address()).await;
    client.send(GET).await;
    // By now all has come that has room on the way.
    origin.asked(1).await;
    let response = client.response("GET").await;
    assert_eq!((response.body.len(), response.whole), (SIZE, false));
}
