//! `waypost check` against the keys of a live etcd: each kind of finding, and the exit code.

use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};

use crate::support::{
    etcd::EtcdCluster,
    waypost::{Ended, waypost, write},
};

#[tokio::test]
async fn all_is_well_when_every_upstream_answers() {
    let etcd = EtcdCluster::start(1).await;
    let (listener, port) = listen().await;
    let socket = etcd.directory().join("app.sock");
    let unix = UnixListener::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap().replace('/', "%2F");
    for key in [
        format!("a.test/127.0.0.1:{port}"),
        format!("a.test/api/localhost:{port}"),
        format!("b.test/unix:{socket}"),
        "@waypost/pulse".to_owned(),
    ] {
        etcd.put(&format!("/hosts/{key}"), "").await;
    }
    // Being drained, it may be gone already.
    etcd.put("/hosts/b.test/127.0.0.1:1", r#"{"drain": true}"#)
        .await;
    let checked = check(&etcd, &[]).await;
    assert_eq!(
        (checked.code, &*checked.stdout),
        (Some(0), "5 keys checked, no problems\n")
    );
    drop((listener, unix));
    let checked = check(&etcd, &[]).await;
    assert_eq!(checked.code, Some(1));
    for line in [
        format!("/hosts/a.test/127.0.0.1:{port}: the upstream does not answer: 127.0.0.1:{port}: "),
        format!("/hosts/a.test/api/localhost:{port}: the upstream does not answer: 127.0.0.1:"),
        format!("/hosts/b.test/unix:{socket}: the upstream does not answer: "),
        "5 keys checked, 3 problems".to_owned(),
    ] {
        has_line(&checked, &line);
    }
    let checked = check(&etcd, &["--no-dial"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[tokio::test]
async fn an_upstream_of_many_keys_is_asked_once_and_a_denied_one_never() {
    let etcd = EtcdCluster::start(1).await;
    for host in ["a", "b", "c"] {
        etcd.put(&format!("/hosts/{host}.test/127.0.0.1:1"), "")
            .await;
    }
    etcd.put("/hosts/d.test/169.254.169.254:80", "").await;
    etcd.put("/hosts/d.test/nowhere.invalid:80", "").await;
    let checked = check(&etcd, &[]).await;
    assert_eq!(checked.code, Some(1));
    for line in [
        "/hosts/a.test/127.0.0.1:1 (and 2 more): the upstream does not answer: 127.0.0.1:1: ",
        "/hosts/d.test/169.254.169.254:80: the upstream does not answer: 169.254.169.254:80: the address is denied",
        "/hosts/d.test/nowhere.invalid:80: the upstream does not answer: no address was found for the name",
        "5 keys checked, 3 problems",
    ] {
        has_line(&checked, line);
    }
    let config = etcd.directory().join("waypost.toml");
    write(&config, "upstream-deny = \"127.0.0.0/8\"\n");
    let checked = check(&etcd, &["--config", config.to_str().unwrap()]).await;
    has_line(
        &checked,
        "/hosts/a.test/127.0.0.1:1 (and 2 more): the upstream does not answer: 127.0.0.1:1: the address is denied",
    );
}

#[tokio::test]
async fn a_silent_upstream_is_given_its_time_and_many_share_it() {
    let etcd = EtcdCluster::start(1).await;
    // A full queue: connects to it hang, as those to a machine that is off.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let listener = listener.unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let filler = std::net::TcpStream::connect(address).unwrap();
    for host in ["a", "b", "c", "d"] {
        let key = format!("/hosts/{host}.test/{address}");
        etcd.put(&key, "").await;
    }
    let started = Instant::now();
    let checked = check(&etcd, &["--connect-timeout", "300ms"]).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(started.elapsed() >= Duration::from_millis(300));
    has_line(
        &checked,
        &format!(
            "/hosts/a.test/{address} (and 3 more): the upstream does not answer: {address}: no connection within 300ms"
        ),
    );
    drop(filler);
}

#[tokio::test]
async fn what_no_key_shows_by_itself_is_found() {
    let etcd = EtcdCluster::start(1).await;
    for (key, value) in [
        ("a.test/10.0.0.1:80", r#"{"weight": -1}"#),
        ("b.test/@settings", r#"{"mirror": "b:80"}"#),
        ("c.test/@settings", r#"{"balance": "random"}"#),
        ("d.test/10.0.0.1:80", r#"{"weight": 0}"#),
        ("e.test/10.0.0.1:80", ""),
        ("E.test/10.0.0.1:80", ""),
        ("*.f.test/10.0.0.1:80", ""),
        ("x.f.test/api/10.0.0.1:80", ""),
    ] {
        etcd.put(&format!("/hosts/{key}"), value).await;
    }
    let checked = check(&etcd, &["--no-dial"]).await;
    assert_eq!(checked.code, Some(1));
    let lines: Vec<_> = checked.stdout.lines().collect();
    for (line, start) in lines.iter().zip([
        "/hosts/a.test/10.0.0.1:80: weight: ",
        "/hosts/b.test/@settings: mirror: unknown field `mirror`",
        "c.test: has settings and no upstream",
        "d.test: every upstream is drained or has weight 0",
        "/hosts/e.test/10.0.0.1:80: shadowed by /hosts/E.test/10.0.0.1:80, ",
        "note: *.f.test: not asked for x.f.test, ",
        "8 keys checked, 5 problems, 1 note",
    ]) {
        assert!(line.starts_with(start), "{start}: {lines:#?}");
    }
    assert_eq!(lines.len(), 7, "{lines:#?}");
}

#[tokio::test]
async fn a_key_that_would_steer_the_terminal_is_printed_harmlessly() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/\x1b[2J\n/hosts/b.test/c:80", "")
        .await;
    let checked = check(&etcd, &[]).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(!checked.stdout.contains('\x1b'), "{checked:?}");
    has_line(&checked, "/hosts/a.test/\u{fffd}[2J\u{fffd}/hosts/b.test/");
}

async fn check(etcd: &EtcdCluster, flags: &[&str]) -> Ended {
    let endpoint = etcd.endpoints()[0].clone();
    waypost(&[&["check", "--etcd", &endpoint], flags].concat()).await
}

/// A listener, and its port.
async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn has_line(ended: &Ended, start: &str) {
    let found = ended.stdout.lines().any(|line| line.starts_with(start));
    assert!(found, "no line starts with {start:?}: {ended:?}");
}
