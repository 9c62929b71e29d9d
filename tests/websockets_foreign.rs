//! WebSockets between a client and a server of another make: nothing of what they say or agree on is changed.

use crate::support::{foreign, tls::Authority, waypost::Waypost};

#[tokio::test]
async fn a_foreign_client_and_server_notice_nothing() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    let ca = authority.file().display().to_string();
    let [plain, tls] = waypost.addresses() else {
        panic!("two listeners");
    };
    for (compression, port, trusted) in [
        ("deflate", plain.port(), None),
        ("plain", tls.port(), Some(&*ca)),
    ] {
        let server = foreign::Server::start("websocket_server.py", &[compression]).await;
        waypost.put("a.test", &server, "").await;
        let port = port.to_string();
        let arguments = [&*port, compression].into_iter().chain(trusted);
        let printed = foreign::run("websocket_client.py", &arguments.collect::<Vec<_>>()).await;
        assert_eq!(printed.lines().count(), 5, "{printed}");
        server.says("closed 4001 bye").await;
        waypost.delete("a.test", &server).await;
    }
}

#[tokio::test]
async fn a_foreign_server_behind_http2_is_talked_to_by_a_client_of_http1() {
    let waypost = Waypost::builder().start().await;
    let server = foreign::Server::start("websocket_http2_server.py", &[]).await;
    waypost
        .put("a.test", &server, r#"{"protocol": "h2"}"#)
        .await;
    let port = waypost.address().port().to_string();
    let printed = foreign::run("websocket_client.py", &[&port, "plain"]).await;
    assert_eq!(printed.lines().count(), 5, "{printed}");
    server.says("closed 4001 bye").await;
}
