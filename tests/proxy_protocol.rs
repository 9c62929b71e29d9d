//! The PROXY protocol in front of Waypost: who the client is, and who may say so.

use serde_json::Value;

use crate::support::{
    http::Wire,
    neighbour::Neighbour,
    origin::Origin,
    tls::Authority,
    waypost::{Builder, Waypost, eventually, program},
};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
/// Of version 2: `PROXY` and `LOCAL`, each for TCP over IPv4 from 192.0.2.1:56324.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb";
const V2_LOCAL: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb";
/// Of version 2, from 2001:db8::1, with a TLV.
const V2_IPV6: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x29\
    \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\xdc\x04\x01\xbb\
    \x04\0\x02..";

/// A plain listener and one with TLS, both of which want a header of whoever is in `trusted`.
fn listening(authority: &Authority, trusted: &str) -> Builder {
    let pair = authority.server(&["a.test"]);
    Waypost::builder()
        .listen("http://127.0.0.1:0?proxy_protocol=true")
        .listen(&format!(
            "https://127.0.0.1:0?proxy_protocol=true&{}",
            pair.query()
        ))
        .flag("--trusted-proxies", trusted)
        .flag("--access-log", "json")
}

async fn in_front_of(origin: &Origin, builder: Builder) -> Waypost {
    let waypost = builder.start().await;
    waypost.put("a.test", origin, "").await;
    waypost
}

/// A connection of the second listener, with this header in front of the handshake.
async fn over_tls(waypost: &Waypost, authority: &Authority, header: &[u8]) -> Wire {
    let mut wire = Wire::connect(waypost.addresses()[1]).await;
    wire.send(header).await;
    wire.over_tls(authority.client_config(&[]), "a.test").await
}

#[tokio::test]
async fn the_client_is_who_the_header_says() {
    let authority = Authority::new();
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin, listening(&authority, "127.0.0.1")).await;
    let mut lines = 0;
    for (header, client, told) in [
        (
            &b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"[..],
            "192.0.2.1:56324",
            "192.0.2.1",
        ),
        (
            b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n",
            "[2001:db8::1]:56324",
            "2001:db8::1",
        ),
        (V2, "192.0.2.1:56324", "192.0.2.1"),
        (V2_IPV6, "[2001:db8::1]:56324", "2001:db8::1"),
        // Nobody says who: what the request claims is still no proxy's word.
        (b"PROXY UNKNOWN\r\n", "127.0.0.1:", "127.0.0.1"),
        // The load balancer speaks for itself, and is trusted.
        (V2_LOCAL, "127.0.0.1:", "6.6.6.6, 127.0.0.1"),
    ] {
        let what = header.escape_ascii().to_string();
        let mut at_once = Wire::connect(waypost.address()).await;
        at_once.send([header, REQUEST.as_bytes()].concat()).await;
        assert_eq!(at_once.response("GET").await.text(), "ok", "{what}");
        // Each line is waited for, so that the next one is the next request's.
        lines += 1;
        waypost
            .output()
            .find(|all| all.get(lines - 1).cloned())
            .await;
        // The header holds for the whole connection.
        let mut wires = vec![at_once, over_tls(&waypost, &authority, header).await];
        let mut bytewise = Wire::connect(waypost.address()).await;
        for byte in header {
            bytewise.send([*byte]).await;
        }
        wires.push(bytewise);
        for mut wire in wires {
            assert_eq!(wire.ask(REQUEST).await.text(), "ok", "{what}");
            let addresses = origin
                .latest()
                .head
                .one("x-forwarded-for")
                .map(String::from);
            assert_eq!(addresses.as_deref(), Some(told), "{what}");
            lines += 1;
            let line = waypost.output().find(|all| all.get(lines - 1).cloned());
            let line: Value = serde_json::from_str(&line.await.expect("a line")).unwrap();
            let logged = line["client"].as_str().unwrap();
            assert!(logged.starts_with(client), "{what}: {logged}");
        }
    }
}

#[tokio::test]
async fn a_header_from_a_stranger_is_refused_and_so_is_anything_else() {
    let authority = Authority::new();
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin, listening(&authority, "10.0.0.0/8,::1")).await;
    let header = [b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", REQUEST.as_bytes()].concat();
    let cases = [&header[..], REQUEST.as_bytes(), V2, b"\x16\x03\x01"];
    for (count, bytes) in (1..).zip(cases) {
        let mut wire = Wire::connect(waypost.address()).await;
        wire.send(bytes).await;
        wire.end().await;
        let refused = async || {
            let labels = [("reason", "untrusted_peer")];
            waypost
                .metric("waypost_refused_connections_total", &labels)
                .await
                == f64::from(count)
        };
        eventually("it is counted", refused).await;
    }
    let line = waypost.log().until("connection refused").await;
    for text in ["127.0.0.1:", "proxy_protocol=true", "--trusted-proxies"] {
        assert!(line.contains(text), "{line}");
    }
    assert_eq!(origin.connections(), 0);
    // One line for many: two workers say one each, at most.
    assert!(waypost.log().count("connection refused") <= 2);
}

#[tokio::test]
async fn a_load_balancer_that_sends_no_header_is_refused() {
    let authority = Authority::new();
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin, listening(&authority, "127.0.0.1")).await;
    let mut tampered = V2.to_vec();
    tampered[13] = 0x10;
    let cases = [
        REQUEST.as_bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
        &[&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
        &tampered,
    ];
    let mut count = 0;
    for address in waypost.addresses() {
        for bytes in &cases {
            let mut wire = Wire::connect(*address).await;
            wire.send(bytes).await;
            wire.end().await;
            count += 1;
            let refused = async || {
                let labels = [("reason", "proxy_header")];
                let refused = waypost.metric("waypost_refused_connections_total", &labels);
                refused.await == f64::from(count)
            };
            eventually("it is counted", refused).await;
        }
    }
    let line = waypost.log().until("connection refused").await;
    assert!(
        line.contains("does not begin with a PROXY header"),
        "{line}"
    );
    // A check that connects and leaves is nothing to complain of.
    drop(Wire::connect(waypost.address()).await);
    let mut wire = Wire::connect(waypost.address()).await;
    wire.send(V2).await;
    assert_eq!(wire.ask(REQUEST).await.text(), "ok");
    let labels = [("reason", "proxy_header")];
    let refused = waypost.metric("waypost_refused_connections_total", &labels);
    assert_eq!(refused.await, f64::from(count));
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn requests_are_hashed_by_the_client_that_the_header_names() {
    let authority = Authority::new();
    let (one, two) = (Origin::named("one").await, Origin::named("two").await);
    let waypost = in_front_of(&one, listening(&authority, "127.0.0.1")).await;
    waypost.put("a.test", &two, "").await;
    waypost
        .put("a.test", "@settings", r#"{"balance": "hash"}"#)
        .await;
    let mut answers = Vec::new();
    for last in (0..40).chain(0..40) {
        let mut wire = Wire::connect(waypost.address()).await;
        wire.send(format!("PROXY TCP4 192.0.2.{last} 198.51.100.2 1 2\r\n"))
            .await;
        answers.push(wire.ask(REQUEST).await.text().to_owned());
    }
    let (first, second) = answers.split_at(40);
    assert_eq!(first, second);
    for name in ["one", "two"] {
        assert!(first.iter().any(|answer| answer == name), "{first:?}");
    }
}

#[tokio::test]
async fn haproxy_in_front_names_its_clients() {
    let authority = Authority::new();
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin, listening(&authority, "127.0.0.1")).await;
    for version in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2-ssl-cn proxy-v2-options crc32c,unique-id",
    ] {
        for (index, address) in waypost.addresses().iter().enumerate() {
            let haproxy = Neighbour::haproxy(&format!(
                "listen front\n  mode tcp\n  bind LISTEN\n  server waypost {address} {version}"
            ))
            .await;
            let mut wire = Wire::connect_from([127, 66, 0, 9], haproxy.address()).await;
            if index == 1 {
                wire = wire.over_tls(authority.client_config(&[]), "a.test").await;
            }
            assert_eq!(wire.ask(REQUEST).await.text(), "ok", "{version}");
            let head = origin.latest().head;
            assert_eq!(head.one("x-forwarded-for"), Some("127.66.0.9"), "{version}");
            let scheme = ["http", "https"][index];
            assert_eq!(head.one("x-forwarded-proto"), Some(scheme), "{version}");
        }
    }
}

#[tokio::test]
async fn haproxys_health_checks_say_that_they_are_its_own() {
    let authority = Authority::new();
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin, listening(&authority, "127.0.0.1")).await;
    let address = waypost.address();
    for version in ["send-proxy", "send-proxy-v2"] {
        let before = origin.requests().len();
        let _haproxy = Neighbour::haproxy(&format!(
            "listen front\n  mode http\n  bind LISTEN\n  option httpchk\n  \
             http-check send meth GET uri /check ver HTTP/1.1 hdr Host a.test\n  \
             server waypost {address} check inter 50ms {version} check-send-proxy"
        ))
        .await;
        origin.asked(before + 2).await;
        let head = origin.latest().head;
        assert_eq!(head.line, "GET /check HTTP/1.1");
        assert_eq!(head.one("x-forwarded-for"), Some("127.0.0.1"), "{version}");
    }
}

#[tokio::test]
async fn curl_says_who_it_is_over_either_protocol() {
    let authority = Authority::new();
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin, listening(&authority, "127.0.0.0/8")).await;
    let [plain, tls] = [0, 1].map(|index| waypost.addresses()[index].port());
    let ca = authority.file().display().to_string();
    for (url, flag) in [
        (format!("http://a.test:{plain}/"), "--http1.1"),
        (format!("http://a.test:{plain}/"), "--http2-prior-knowledge"),
        (format!("https://a.test:{tls}/"), "--http1.1"),
        (format!("https://a.test:{tls}/"), "--http2"),
    ] {
        let resolve = ["a.test", "127.0.0.1"].join(&format!(":{}:", url_port(&url)));
        let arguments = [
            "--silent",
            "--show-error",
            "--max-time",
            "15",
            "--haproxy-protocol",
            flag,
            &url,
            "--cacert",
            &ca,
            "--resolve",
            &resolve,
            "--interface",
            "127.66.0.9",
        ];
        let output = program("curl", &arguments).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.stdout, b"ok", "{flag} {url}: {said}");
        let addresses = origin
            .latest()
            .head
            .one("x-forwarded-for")
            .map(String::from);
        assert_eq!(addresses.as_deref(), Some("127.66.0.9"), "{flag} {url}");
    }
}

fn url_port(url: &str) -> &str {
    url.trim_end_matches('/').rsplit(':').next().unwrap()
}

#[tokio::test]
async fn a_listener_that_nobody_may_send_a_header_to_does_not_start() {
    let ended = Waypost::builder()
        .listen("http://127.0.0.1:0?proxy_protocol=true")
        .run_to_end()
        .await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    for text in ["proxy_protocol=true", "127.0.0.1:0", "--trusted-proxies"] {
        assert!(ended.stderr.contains(text), "{}", ended.stderr);
    }
}
