//! Which answers to a check are good, over everything that an upstream may speak.

use super::*;

#[tokio::test]
async fn without_a_path_a_connection_is_enough() {
    let waypost = Waypost::builder().start().await;
    let (sick, well) = (Patient::start().await, Patient::start().await);
    let address = sick.to_string();
    let health = r#"{"health": {"interval": "100ms"}}"#;
    waypost.put("a.test", "@settings", health).await;
    waypost.put("a.test", &sick, "").await;
    waypost.put("a.test", &well, "").await;
    eventually("it is checked", async || well.origin.connections() >= 3).await;
    assert_eq!(well.origin.requests().len(), 0, "nothing is asked for");
    drop(sick);
    until_unhealthy(&waypost, &address, 1).await;
    waypost.log().until("connecting failed").await;
    let before = well.requests();
    ask_often(&waypost, "a.test").await;
    assert_eq!(well.requests(), before + MANY);
    let _again = Origin::run_at(&address, answer_all(OK)).await;
    until_unhealthy(&waypost, &address, 0).await;
}

#[tokio::test]
async fn good_answers_are_good_however_their_bodies_end() {
    let waypost = Waypost::builder().start().await;
    for (host, answer) in [
        ("ok.test", OK),
        ("1-0.test", "HTTP/1.0 200 OK\r\n\r\nto the end"),
        (
            "redirect.test",
            "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n",
        ),
        ("empty.test", "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            "interim.test",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "cut.test",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\ncut",
        ),
    ] {
        let origin = Origin::closing(answer).await;
        proves_good(&waypost, host, &origin).await;
        assert_eq!(
            origin.latest().head.line,
            "GET /healthz HTTP/1.1",
            "no redirect is followed"
        );
    }
    // Bodies that never end keep nobody waiting.
    let slow = Origin::run(async |mut served| {
        served.request().await;
        served.send("HTTP/1.1 200 OK\r\n\r\n").await;
        while served.send("x").await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let endless = Origin::run(async |mut served| {
        served.request().await;
        served.send("HTTP/1.1 200 OK\r\n\r\n").await;
        while served.send([b'x'; 64 * 1024]).await {}
    })
    .await;
    for (host, origin) in [("slow.test", &slow), ("endless.test", &endless)] {
        proves_good(&waypost, host, origin).await;
        origin.closed(1).await;
    }
}

#[tokio::test]
async fn bad_answers_and_none_are_bad() {
    let waypost = Waypost::builder().start().await;
    let status = |code: &str| format!("HTTP/1.1 {code} So\r\ncontent-length: 0\r\n\r\n");
    let silent = Origin::run(async |mut served| {
        served.request().await;
        served.wire.end().await;
    });
    let drip = Origin::run(async |mut served| {
        served.request().await;
        served.send("HTTP/1.1 200 OK\r\nx: ").await;
        while served.send("x").await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let endless_head = Origin::run(async |mut served| {
        served.request().await;
        served.send("HTTP/1.1 200 OK\r\nx: ").await;
        while served.send([b'x'; 16 * 1024]).await {}
    });
    let endless_interim = Origin::run(async |mut served| {
        served.request().await;
        while served.send("HTTP/1.1 103 Early Hints\r\n\r\n").await {}
    });
    for (host, origin, reason) in [
        (
            "error.test",
            Origin::closing(status("500")).await,
            "it answered 500",
        ),
        (
            "missing.test",
            Origin::closing(status("404")).await,
            "it answered 404",
        ),
        (
            "switched.test",
            Origin::closing(status("101")).await,
            "it answered 101",
        ),
        (
            "nonsense.test",
            Origin::closing("SSH-2.0-OpenSSH_9\r\n\r\n").await,
            "malformed response head",
        ),
        (
            "hung-up.test",
            Origin::closing("").await,
            "closed the connection before an answer",
        ),
        ("silent.test", silent.await, "no answer within 300ms"),
        ("drip.test", drip.await, "no answer within 300ms"),
        ("head.test", endless_head.await, "response head too large"),
        ("interim.test", endless_interim.await, "interim responses"),
    ] {
        let health = json!({"path": "/", "interval": "100ms", "timeout": "300ms", "unhealthy": 1});
        let settings = json!({ "health": health }).to_string();
        waypost.put(host, "@settings", &settings).await;
        waypost.put(host, &origin, "").await;
        until_unhealthy(&waypost, &origin, 1).await;
        let line = told_of(&waypost, &origin).await;
        assert!(line.contains(reason), "{host}: {line}");
        // Until it is out of the way: the next one is to find a free machine.
        waypost.delete(host, &origin).await;
    }
}

#[tokio::test]
async fn which_statuses_are_good_is_for_the_route_to_say() {
    let waypost = Waypost::builder().start().await;
    let origin = Origin::closing("HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n").await;
    let settings = |expect: &str| {
        let health =
            json!({"path": "/", "expect": expect, "interval": "100ms", "initial": "unhealthy"});
        json!({ "health": health }).to_string()
    };
    waypost
        .put("strict.test", "@settings", &settings("200,204"))
        .await;
    waypost.put("strict.test", &origin, "").await;
    origin.asked(5).await;
    assert_eq!(unhealthy(&waypost, &origin).await, 1.0);
    waypost
        .put("mild.test", "@settings", &settings("200,400-403"))
        .await;
    waypost.put("mild.test", &origin, "").await;
    waypost.log().until("upstream is healthy").await;
    assert_eq!(
        unhealthy(&waypost, &origin).await,
        1.0,
        "for the other route it isn't"
    );
}

#[tokio::test]
async fn upstreams_are_checked_over_tls_as_they_are_asked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let pair = authority.server(&["127.0.0.1"]);
    let waypost = Waypost::builder().start().await;
    for (host, path, ca, is_good) in [
        ("path.test", Some("/healthz"), authority.file(), true),
        ("connect.test", None, authority.file(), true),
        (
            "path-stranger.test",
            Some("/healthz"),
            stranger.file(),
            false,
        ),
        ("connect-stranger.test", None, stranger.file(), false),
    ] {
        let origin = Origin::run_tls(pair.server_config(&["http/1.1"]), answer_all(OK)).await;
        let initial = if is_good { "unhealthy" } else { "healthy" };
        let health = json!({"path": path, "interval": "100ms", "initial": initial});
        waypost
            .put(host, "@settings", &json!({ "health": health }).to_string())
            .await;
        waypost
            .put(host, &origin, &json!({"tls": {"ca": ca}}).to_string())
            .await;
        until_unhealthy(&waypost, &origin, if is_good { 0 } else { 1 }).await;
        if is_good {
            assert_eq!(load::ask(waypost.address(), host, "/").await.status(), 200);
        } else {
            let line = told_of(&waypost, &origin).await;
            assert!(line.contains("TLS handshake failed"), "{line}");
        }
    }
}

#[tokio::test]
async fn an_http2_upstream_is_checked_over_tls_as_it_is_asked() {
    let authority = Authority::new();
    let pair = authority.server(&["127.0.0.1"]);
    let is_up = Arc::new(AtomicBool::new(true));
    let sick = H2Origin::run_tls(pair.server_config(&["h2"]), {
        let is_up = is_up.clone();
        move |served| {
            let is_up = is_up.clone();
            served.each(move |mut exchange| {
                let is_well =
                    exchange.asked.head.uri.path() != "/healthz" || is_up.load(Ordering::Relaxed);
                async move {
                    drop(exchange.head(if is_well { 200 } else { 503 }, &[], true));
                }
            })
        }
    })
    .await;
    let old = Origin::run_tls(pair.server_config(&["http/1.1"]), answer_all(OK)).await;
    let waypost = Waypost::builder().start().await;
    let value = json!({"protocol": "h2", "tls": {"ca": authority.file()}}).to_string();
    waypost.put("a.test", "@settings", CHECKED).await;
    waypost.put("a.test", &sick, &value).await;
    sick.asked(1).await;
    let check = sick.latest();
    let expected = format!("https://{sick}/healthz");
    assert_eq!(check.head.uri.to_string(), expected);
    let agent = format!("waypost/{} health-check", env!("CARGO_PKG_VERSION"));
    assert_eq!(check.field("user-agent"), Some(agent));
    assert_eq!(unhealthy(&waypost, &sick).await, 0.0);

    is_up.store(false, Ordering::Relaxed);
    until_unhealthy(&waypost, &sick, 1).await;
    let line = told_of(&waypost, &sick).await;
    assert!(line.contains("it answered 503"), "{line}");
    is_up.store(true, Ordering::Relaxed);
    until_unhealthy(&waypost, &sick, 0).await;
    ask_often(&waypost, "a.test").await;

    // One that has to be asked otherwise fails, whatever it would answer.
    waypost.put("a.test", &old, &value).await;
    until_unhealthy(&waypost, &old, 1).await;
    let line = told_of(&waypost, &old).await;
    assert!(line.contains("it does not offer HTTP/2"), "{line}");
    assert_eq!(old.requests().len(), 0);
}

#[tokio::test]
async fn a_unix_socket_is_checked_too() {
    let waypost = Waypost::builder().start().await;
    let directory = tempfile::tempdir().unwrap();
    let sick = Patient::at(directory.path().join("app.sock")).await;
    let well = Patient::start().await;
    waypost.put("a.test", "@settings", CHECKED).await;
    waypost.put("a.test", &sick, "").await;
    waypost.put("a.test", &well, "").await;
    sick.checked(1).await;
    assert_eq!(sick.checks()[0].head.one("host"), Some("localhost"));
    sick.is_up(false);
    until_unhealthy(&waypost, &sick, 1).await;
    let before = sick.requests();
    ask_often(&waypost, "a.test").await;
    assert_eq!(sick.requests(), before);
    sick.is_up(true);
    until_unhealthy(&waypost, &sick, 0).await;
}
