//! Which host and path a request is for, however it is spelled: over HTTP/1.1 as bytes, over HTTP/2 as raw fields.

use crate::support::{h2_raw, http::ask, origin::Origin, waypost::Waypost};

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
        ("OPTIONS http://a.test", a, Ok("* at a.test")),
        ("OPTIONS HTTPS://A.test:443", a, Ok("* at A.test:443")),
        ("OPTIONS http://a.test#x", a, Ok("* at a.test")),
        (
            "OPTIONS http://[::1]:81",
            Some("[::1]:81"),
            Ok("* at [::1]:81"),
        ),
        ("OPTIONS http://a.test/", a, Ok("/ at a.test")),
        ("OPTIONS http://a.test/#x", a, Ok("/ at a.test")),
        ("OPTIONS http://a.test?x", a, Ok("/?x at a.test")),
        ("OPTIONS http://a.test?", a, Ok("/? at a.test")),
        ("OPTIONS /", a, Ok("/ at a.test")),
        ("OPTIONS http://u@a.test", a, REFUSED),
        ("OPTIONS http://b.test", a, REFUSED),
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
async fn a_redirect_to_https_names_the_same_host_whatever_the_target() {
    let origin = Origin::named("o").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    let settings = r#"{"redirect_https": true}"#;
    waypost.put("a.test", "@settings", settings).await;
    for (line, location) in [
        ("GET /x?y", "https://a.test/x?y"),
        ("GET //b.test/x", "https://a.test//b.test/x"),
        ("GET http://A.test:80?y", "https://a.test/?y"),
        // The server as a whole: a URL without a path (RFC 9112 section 3.2.4).
        ("OPTIONS *", "https://a.test"),
        ("OPTIONS http://a.test", "https://a.test"),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: a.test\r\n\r\n");
        let response = ask(waypost.address(), request).await;
        assert_eq!(response.status(), 308, "{line}");
        assert_eq!(response.head.one("location"), Some(location), "{line}");
    }
    assert_eq!(origin.requests().len(), 0);
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
