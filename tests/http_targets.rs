//! Which host and path a request is for, however it is spelled: over HTTP/1.1 as bytes, over HTTP/2 as raw fields.

use crate::support::{
    h2_origin::{Asked, H2Origin},
    h2_raw,
    http::{Wire, ask},
    origin::Origin,
    waypost::Waypost,
};

/// What the upstream is to be asked, `TARGET at HOST`, or the status of the refusal.
type Fate = Result<&'static str, u16>;

const REFUSED: Fate = Err(400);

/// The origin's own words for what it was asked.
fn asked(origin: &Origin) -> String {
    let head = origin.latest().head;
    let mut words = head.line.split(' ');
    let (_, target) = (words.next(), words.next().expect("a target"));
    assert_eq!(words.next(), Some("HTTP/1.1"), "{head:?}");
    assert_eq!(words.next(), None, "{head:?}");
    format!("{target} at {}", head.one("host").expect("a Host"))
}

/// Holds what came of a request against what was to: exactly one request upstream, or none.
fn check(origin: &Origin, before: usize, status: u16, fate: Fate, what: &str) {
    let more = origin.requests().len() - before;
    match fate {
        Ok(arrives) => {
            assert_eq!(status, 200, "{what}");
            assert_eq!(more, 1, "{what}");
            assert_eq!(asked(origin), arrives, "{what}");
        }
        Err(refused) => {
            assert_eq!(
                (status, more),
                (refused, 0),
                "{what}: {:?}",
                origin.requests().last()
            );
        }
    }
}

#[tokio::test]
async fn each_form_of_target_is_one_request_or_refused() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("*", &origin, "").await;
    let a = Some("a.test");
    let cases: &[(&str, Option<&str>, Fate)] = &[
        // RFC 9112 section 3.2.1: origin-form.
        ("GET /", a, Ok("/ at a.test")),
        ("GET /x?y", a, Ok("/x?y at a.test")),
        ("GET /http://b.test/", a, Ok("/http://b.test/ at a.test")),
        ("GET //b.test/x", a, Ok("//b.test/x at a.test")),
        ("GET /x#y", a, Ok("/x at a.test")),
        ("GET /x?y#z?", a, Ok("/x?y at a.test")),
        ("GET ?x", a, REFUSED),
        ("GET #x", a, REFUSED),
        ("GET x/y", a, REFUSED),
        ("GET ../x", a, REFUSED),
        ("GET \\x", a, REFUSED),
        ("GET %2Fx", a, REFUSED),
        // Section 3.2.2: absolute-form.
        ("GET http://a.test/x?y", a, Ok("/x?y at a.test")),
        ("GET https://a.test/x", a, Ok("/x at a.test")),
        ("GET HTTP://a.test/x", a, Ok("/x at a.test")),
        ("GET hTTpS://a.test/x", a, Ok("/x at a.test")),
        ("GET http://a.test", a, Ok("/ at a.test")),
        ("GET http://a.test?x", a, Ok("/?x at a.test")),
        ("GET http://a.test#x", a, Ok("/ at a.test")),
        ("GET http://a.test/x#y", a, Ok("/x at a.test")),
        ("GET http://a.test/?", a, Ok("/? at a.test")),
        ("GET http://A.Test/x", a, Ok("/x at A.Test")),
        ("GET http://a.test./x", a, Ok("/x at a.test.")),
        (
            "GET http://[::1]:81/x",
            Some("[::1]:81"),
            Ok("/x at [::1]:81"),
        ),
        ("GET http://a.test/x", Some("A.TEST."), Ok("/x at a.test")),
        ("GET http://a.test:80/x", a, Ok("/x at a.test:80")),
        ("GET http://a.test:/x", a, Ok("/x at a.test:")),
        ("GET http://a.test/x", Some("a.test:80"), Ok("/x at a.test")),
        ("GET https://a.test:443/x", a, Ok("/x at a.test:443")),
        (
            "GET http://a.test:81/x",
            Some("a.test:81"),
            Ok("/x at a.test:81"),
        ),
        ("GET http://a.test:81/x", a, REFUSED),
        ("GET http://a.test/x", Some("a.test:81"), REFUSED),
        ("GET https://a.test/x", Some("a.test:80"), REFUSED),
        ("GET http://a.test/x", Some("b.test"), REFUSED),
        ("GET http://a.test/x", Some(""), REFUSED),
        ("GET http://a.test/x", Some("a.test@"), REFUSED),
        ("GET http://a.test/x", None, REFUSED),
        (
            "GET http://a.test/x",
            Some("a.test\r\nHost: a.test"),
            REFUSED,
        ),
        ("GET http://u@a.test/x", a, REFUSED),
        ("GET http://u:p@a.test/x", a, REFUSED),
        ("GET http://@a.test/x", a, REFUSED),
        ("GET http://a.test@b.test/x", a, REFUSED),
        ("GET http://a.test\\@b.test/x", a, REFUSED),
        ("GET http://a.test%2F@b.test/x", a, REFUSED),
        ("GET http://a.test,b.test/x", a, REFUSED),
        ("GET http://a%2etest/x", a, REFUSED),
        ("GET http:///x", a, REFUSED),
        ("GET http:/x", a, REFUSED),
        ("GET http:x", a, REFUSED),
        ("GET http://", a, REFUSED),
        ("GET http://:80/x", a, REFUSED),
        ("GET http://a.test:x/", a, REFUSED),
        ("GET http://a.test:65536/", a, REFUSED),
        ("GET http://a.test:80:80/", a, REFUSED),
        ("GET http://[::1/x", a, REFUSED),
        ("GET ftp://a.test/x", a, REFUSED),
        ("GET ws://a.test/x", a, REFUSED),
        ("GET httpx://a.test/x", a, REFUSED),
        ("GET file:///etc/passwd", a, REFUSED),
        ("GET urn:x", a, REFUSED),
        // Section 3.2.3: authority-form, and CONNECT.
        ("GET a.test", a, REFUSED),
        ("GET a.test:80", a, REFUSED),
        ("OPTIONS a.test:80", a, REFUSED),
        ("CONNECT a.test:443", Some("a.test:443"), Err(501)),
        ("CONNECT a.test:443", a, Err(501)),
        ("CONNECT /", a, Err(501)),
        ("CONNECT http://a.test/", a, Err(501)),
        // Section 3.2.4: asterisk-form.
        ("OPTIONS *", a, Ok("* at a.test")),
        ("OPTIONS /*", a, Ok("/* at a.test")),
        ("OPTIONS http://a.test/", a, Ok("/ at a.test")),
        ("OPTIONS *", None, REFUSED),
        ("OPTIONS *?x", a, REFUSED),
        ("OPTIONS *x", a, REFUSED),
        ("OPTIONS **", a, REFUSED),
        ("GET *", a, REFUSED),
        ("POST *", a, REFUSED),
        ("options *", a, REFUSED),
    ];
    for (line, host, fate) in cases {
        let before = origin.requests().len();
        let host = host.map(|host| format!("Host: {host}\r\n"));
        let request = format!("{line} HTTP/1.1\r\n{}\r\n", host.unwrap_or_default());
        let response = ask(waypost.address(), &request).await;
        if response.status() != 200 {
            assert!(response.error().starts_with("http_request_"), "{request:?}");
        }
        check(&origin, before, response.status(), *fate, &request);
    }
}

#[tokio::test]
async fn pseudo_fields_are_one_request_or_refused() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("*", &origin, "").await;
    // Method, scheme, authority, path and Host.
    type Fields = [Option<&'static str>; 5];
    let fields = |method, scheme, authority, path| [Some(method), scheme, authority, path, None];
    let get = |path| fields("GET", Some("http"), Some("a.test"), Some(path));
    let scheme = |scheme| fields("GET", Some(scheme), Some("a.test"), Some("/x"));
    let hosts = |authority, host| [Some("GET"), Some("http"), authority, Some("/x"), host];
    let cases: &[(Fields, Fate)] = &[
        // RFC 9113 section 8.3.1.
        (get("/x?y"), Ok("/x?y at a.test")),
        (get("//b.test/x"), Ok("//b.test/x at a.test")),
        (get("/x#y"), Ok("/x at a.test")),
        (get("?x"), REFUSED),
        (get(""), REFUSED),
        (get("x"), REFUSED),
        (get("*"), REFUSED),
        (get("http://a.test/x"), REFUSED),
        (get("a.test"), REFUSED),
        (get("/x y"), REFUSED),
        (get("/x\ry"), REFUSED),
        (get("/x HTTP/1.1\r\nx: y"), REFUSED),
        (scheme("https"), Ok("/x at a.test")),
        (scheme("HTTP"), Ok("/x at a.test")),
        (scheme("ftp"), REFUSED),
        (scheme(""), REFUSED),
        (scheme("http:"), REFUSED),
        (fields("GET", None, Some("a.test"), Some("/x")), REFUSED),
        (fields("GET", Some("http"), Some("a.test"), None), REFUSED),
        (hosts(Some("A.test:81"), None), Ok("/x at A.test:81")),
        (hosts(None, Some("a.test")), Ok("/x at a.test")),
        (hosts(None, None), REFUSED),
        (hosts(Some(""), None), REFUSED),
        (hosts(None, Some("")), REFUSED),
        (
            hosts(Some("a.test"), Some("A.TEST.:80")),
            Ok("/x at a.test"),
        ),
        (hosts(Some("a.test"), Some("a.test:81")), REFUSED),
        (hosts(Some("a.test:81"), Some("a.test")), REFUSED),
        (hosts(Some("a.test"), Some("b.test")), REFUSED),
        (hosts(Some("a.test"), Some("")), REFUSED),
        (hosts(Some("u@a.test"), None), REFUSED),
        (hosts(Some("u:p@a.test"), Some("a.test")), REFUSED),
        (hosts(Some("a.test/x"), None), REFUSED),
        (hosts(Some("a.test?"), None), REFUSED),
        (
            fields("OPTIONS", Some("http"), Some("a.test"), Some("*")),
            Ok("* at a.test"),
        ),
        (
            fields("OPTIONS", Some("http"), Some("a.test"), Some("*x")),
            REFUSED,
        ),
        (fields("CONNECT", None, Some("a.test:443"), None), Err(501)),
        (
            fields("CONNECT", Some("http"), Some("a.test"), Some("/")),
            REFUSED,
        ),
    ];
    for (fields, fate) in cases {
        let before = origin.requests().len();
        let names = [":method", ":scheme", ":authority", ":path", "host"];
        let fields: Vec<_> = (names.iter().zip(fields))
            .filter_map(|(name, value)| Some((name.as_bytes(), value.as_deref()?.as_bytes())))
            .collect();
        let outcome = h2_raw::ask(waypost.address(), &fields).await;
        let what = fields
            .iter()
            .map(|(name, value)| format!("{}: {}; ", name.escape_ascii(), value.escape_ascii()));
        let what = what.collect::<String>();
        check(&origin, before, outcome.status(), *fate, &what);
    }
}

/// Where a request may name its host.
#[derive(Clone, Copy, Debug)]
enum Place {
    Host,
    Target,
    Authority,
    HostOfHttp2,
}

impl Place {
    const ALL: [Self; 4] = [Self::Host, Self::Target, Self::Authority, Self::HostOfHttp2];

    /// The status for a request that names this host here, and nowhere else it needn't.
    async fn ask(self, waypost: &Waypost, host: &[u8]) -> u16 {
        let get = (&b":method"[..], &b"GET"[..]);
        let (scheme, path) = ((&b":scheme"[..], &b"http"[..]), (&b":path"[..], &b"/"[..]));
        match self {
            Self::Host | Self::Target => {
                let target: &[&[u8]] = match self {
                    Self::Target => &[b"http://", host],
                    _ => &[],
                };
                let request = [
                    &[&b"GET "[..]],
                    target,
                    &[
                        b"/ HTTP/1.1\r\nHost: ",
                        host,
                        b"\r\nConnection: close\r\n\r\n",
                    ],
                ];
                let mut wire = Wire::connect(waypost.address()).await;
                wire.ask(request.concat().concat()).await.status()
            }
            Self::Authority => {
                let fields = [get, scheme, (&b":authority"[..], host), path];
                h2_raw::ask(waypost.address(), &fields).await.status()
            }
            Self::HostOfHttp2 => {
                let fields = [get, scheme, path, (&b"host"[..], host)];
                h2_raw::ask(waypost.address(), &fields).await.status()
            }
        }
    }
}

#[tokio::test]
async fn hosts_are_what_they_mean_wherever_they_are_named_or_refused() {
    let waypost = Waypost::builder().start().await;
    let routes = [
        "a.test",
        "[::1]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "127.0.0.1",
        "bücher.test",
        "my_host",
        "*.w.test",
    ];
    let mut origins = Vec::new();
    for route in routes {
        let origin = Origin::named(route).await;
        waypost.put(route, &origin, "").await;
        origins.push((route, origin));
    }
    let label = "l".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}.w.test", "l".repeat(54));
    let (too_long, long_label) = (format!("l{longest}"), format!("l{label}.w.test"));
    // A route's name, nothing for a host that is fine and has none, or a refusal.
    let cases: &[(&str, Result<Option<&str>, u16>)] = &[
        ("a.test", Ok(Some("a.test"))),
        ("A.TeST", Ok(Some("a.test"))),
        ("a.test.", Ok(Some("a.test"))),
        ("a.test:80", Ok(Some("a.test"))),
        ("a.test.:8080", Ok(Some("a.test"))),
        ("a.test:", Ok(Some("a.test"))),
        ("a.test:0", Ok(Some("a.test"))),
        ("a.test:65535", Ok(Some("a.test"))),
        ("a.test:00080", Ok(Some("a.test"))),
        ("[::1]", Ok(Some("[::1]"))),
        ("[::1]:80", Ok(Some("[::1]"))),
        ("[::1]:", Ok(Some("[::1]"))),
        ("[0:0:0::0:1]", Ok(Some("[::1]"))),
        (
            "[0000:0000:0000:0000:0000:0000:0000:0001]",
            Ok(Some("[::1]")),
        ),
        ("[::0.0.0.1]", Ok(Some("[::1]"))),
        ("[FE80::1]", Ok(Some("[fe80::1]"))),
        ("[::ffff:127.0.0.1]", Ok(Some("[::ffff:127.0.0.1]"))),
        ("[::FFFF:7F00:1]:80", Ok(Some("[::ffff:127.0.0.1]"))),
        ("127.0.0.1:80", Ok(Some("127.0.0.1"))),
        ("xn--bcher-kva.test", Ok(Some("bücher.test"))),
        ("XN--BCHER-KVA.test", Ok(Some("bücher.test"))),
        ("Xn--BcHer-Kva.Test.:1", Ok(Some("bücher.test"))),
        ("my_host", Ok(Some("my_host"))),
        ("x.w.test", Ok(Some("*.w.test"))),
        (&longest, Ok(Some("*.w.test"))),
        ("w.test", Ok(None)),
        ("127.1", Ok(None)),
        ("0x7f.0.0.1", Ok(None)),
        ("[::]", Ok(None)),
        ("bucher.test", Ok(None)),
        ("xn--a", Ok(None)),
        ("-", Ok(None)),
        ("", Err(400)),
        (".", Err(400)),
        ("..", Err(400)),
        (".a.test", Err(400)),
        ("a..test", Err(400)),
        ("a.test..", Err(400)),
        (&too_long, Err(400)),
        (&long_label, Err(400)),
        ("a.test:65536", Err(400)),
        ("a.test:000080", Err(400)),
        ("a.test:+80", Err(400)),
        ("a.test:-1", Err(400)),
        ("a.test:8o", Err(400)),
        ("a.test:80:80", Err(400)),
        ("a.test: 80", Err(400)),
        (":80", Err(400)),
        ("::1", Err(400)),
        ("[::1", Err(400)),
        ("::1]", Err(400)),
        ("[]", Err(400)),
        ("[[::1]]", Err(400)),
        ("[::1].", Err(400)),
        ("[::1]x", Err(400)),
        ("[::1]:x", Err(400)),
        ("[::1]:65536", Err(400)),
        ("[::1%25eth0]", Err(400)),
        ("[::1%eth0]", Err(400)),
        ("[fe80::1%251]", Err(400)),
        ("[1::2::3]", Err(400)),
        ("[::12345]", Err(400)),
        ("[::1.2.3]", Err(400)),
        ("[127.0.0.1]", Err(400)),
        ("[v1.fe80::a]", Err(400)),
        ("[a.test]", Err(400)),
        ("bücher.test", Err(400)),
        ("a。test", Err(400)),
        ("@a.test", Err(400)),
        ("u@a.test", Err(400)),
        ("u:p@a.test", Err(400)),
        ("a.test@", Err(400)),
        ("a.test,a.test", Err(400)),
        ("a.test, a.test", Err(400)),
        ("a.test a.test", Err(400)),
        ("a .test", Err(400)),
        ("a.test/", Err(400)),
        ("a.test/x", Err(400)),
        ("a.test\\x", Err(400)),
        ("a.test?x", Err(400)),
        ("a.test#x", Err(400)),
        ("a.test;x", Err(400)),
        ("http://a.test", Err(400)),
        ("a%2Etest", Err(400)),
        ("a.test%00", Err(400)),
        ("*", Err(400)),
        ("*.w.test", Err(400)),
        ("a'b", Err(400)),
        ("a\"b", Err(400)),
        ("(a)", Err(400)),
        ("a=b", Err(400)),
        ("a+b", Err(400)),
        ("a$b", Err(400)),
        ("a\tb", Err(400)),
        ("a\0b", Err(400)),
        ("a\x7fb", Err(400)),
    ];
    for (host, expected) in cases {
        for place in Place::ALL {
            // There it ends what is asked for as the host, and means something else.
            if matches!(place, Place::Target) && host.contains(['/', '?', '#']) {
                continue;
            }
            let before: Vec<_> = origins
                .iter()
                .map(|(_, origin)| origin.requests().len())
                .collect();
            let status = place.ask(&waypost, host.as_bytes()).await;
            let what = format!("{host:?} as {place:?}");
            let reached = origins.iter().zip(&before);
            let reached =
                reached.filter(|((_, origin), before)| origin.requests().len() > **before);
            let reached: Vec<_> = reached.map(|((route, _), _)| *route).collect();
            match expected {
                Ok(Some(route)) => {
                    assert_eq!((status, &*reached), (200, &[*route][..]), "{what}");
                    let (_, origin) = origins.iter().find(|(name, _)| name == route).unwrap();
                    assert_eq!(origin.latest().head.one("host"), Some(*host), "{what}");
                }
                Ok(None) => assert_eq!((status, reached.len()), (404, 0), "{what}"),
                Err(refused) => assert_eq!((status, reached.len()), (*refused, 0), "{what}"),
            }
        }
    }
    for host in [&b"a\xfftest"[..], b"b\xfccher.test"] {
        for place in Place::ALL {
            assert_eq!(
                place.ask(&waypost, host).await,
                400,
                "{} as {place:?}",
                host.escape_ascii()
            );
        }
    }
}

/// The path and query that the origin was asked for.
fn target(asked: &Asked) -> &str {
    asked.head.uri.path_and_query().expect("a path").as_str()
}

#[tokio::test]
async fn path_bytes_arrive_as_they_came_or_are_refused() {
    let (h1, h2) = (Origin::named("o").await, H2Origin::named("o").await);
    let waypost = Waypost::builder().start().await;
    waypost.put("one.test", &h1, "").await;
    waypost.put("two.test", &h2, r#"{"protocol": "h2"}"#).await;
    let mut targets: Vec<Vec<u8>> = [
        "/%2F",
        "/%2f",
        "/%zz",
        "/%",
        "/%%",
        "/%4",
        "/%00",
        "/%0d%0aX:%20y",
        "/;",
        "/a;b=c/d;e",
        "//",
        "///x//",
        "/.",
        "/..",
        "/../..",
        "/a/../b",
        "/./a/.",
        "/%2e%2E/",
        "/a//../b",
        "/\\",
        "/..\\x",
        "/|",
        "/{}",
        "/{\"a\":[1]}",
        "/\"",
        "/^",
        "/[]",
        "/~",
        "/'()*!$&,;=:@",
        "/+",
        "/%20",
        "/caf\u{e9}/\u{1f600}",
        "/%C3%A9",
        "/:80",
        "/*",
        "/?",
        "/??",
        "/?a?b",
        "/?/../..",
        "/?a;b&%zz&c=%2f&d=+",
        "/?'|{}^`\\[]~@",
        "/?caf\u{e9}",
        "/x?y=//&z=..",
        "/@host/",
        "/-._~",
        "/http://b.test/x",
        "/%F0%9F%98%80",
        "/%ff",
    ]
    .map(|target| target.as_bytes().to_vec())
    .into();
    // Each byte by itself, in the path and in the query.
    for byte in 0..=255 {
        targets.push(vec![b'/', b'a', byte, b'b']);
        targets.push(vec![b'/', b'?', b'a', byte, b'b']);
    }
    for target in &targets {
        let query = target
            .iter()
            .position(|&byte| byte == b'?')
            .unwrap_or(target.len());
        let (path, query) = target.split_at(query);
        // What no URI may have (RFC 3986 section 2), as far as it is refused.
        let is_control = |byte: &u8| matches!(byte, 0..=b' ' | 0x7f);
        let is_refused = target.iter().any(is_control)
            || path.iter().any(|byte| b"<>`".contains(byte))
            || query.iter().any(|byte| b"<>\"".contains(byte))
            || std::str::from_utf8(target).is_err();
        let end = target
            .iter()
            .position(|&byte| byte == b'#')
            .unwrap_or(target.len());
        let arrives = std::str::from_utf8(&target[..end]).unwrap_or_default();
        for host in ["one.test", "two.test"] {
            for front in ["HTTP/1.1", "HTTP/2"] {
                let before = (h1.requests().len(), h2.requests().len());
                let status = match front {
                    "HTTP/1.1" => {
                        let head =
                            format!(" HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
                        let request = [b"GET ", &target[..], head.as_bytes()].concat();
                        ask(waypost.address(), request).await.status()
                    }
                    _ => {
                        let fields = [
                            (&b":method"[..], &b"GET"[..]),
                            (b":scheme", b"http"),
                            (b":authority", host.as_bytes()),
                            (b":path", target),
                        ];
                        h2_raw::ask(waypost.address(), &fields).await.status()
                    }
                };
                let what = format!("{} to {host} over {front}", target.escape_ascii());
                let more = (
                    h1.requests().len() - before.0,
                    h2.requests().len() - before.1,
                );
                if is_refused {
                    assert_eq!((status, more), (400, (0, 0)), "{what}");
                    continue;
                }
                assert_eq!(status, 200, "{what}");
                match host {
                    "one.test" => assert_eq!(
                        h1.latest().head.line,
                        format!("GET {arrives} HTTP/1.1"),
                        "{what}"
                    ),
                    _ => assert_eq!(target_of(&h2), arrives, "{what}"),
                }
                assert_eq!(more.0 + more.1, 1, "{what}");
            }
        }
    }
}

fn target_of(origin: &H2Origin) -> String {
    target(&origin.latest()).to_owned()
}
