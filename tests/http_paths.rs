//! Path and query arrive byte for byte, or the request is refused.

use crate::support::{h2_origin::H2Origin, h2_raw, http::ask, origin::Origin, waypost::Waypost};

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
        "/?'|{}^\\[]~@",
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
        let query = target.iter().position(|&byte| byte == b'?');
        let query = query.map_or(&[][..], |at| &target[at..]);
        // What no URI may have (RFC 3986 section 2), as far as it is refused.
        let is_control = |byte: &u8| matches!(byte, 0..=b' ' | 0x7f);
        let is_refused = target.iter().any(is_control)
            || target.iter().any(|byte| b"<>`".contains(byte))
            || query.contains(&b'"')
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
                    _ => assert_eq!(asked_of(&h2), arrives, "{what}"),
                }
                assert_eq!(more.0 + more.1, 1, "{what}");
            }
        }
    }
}

/// The path and query that the origin was asked for.
fn asked_of(origin: &H2Origin) -> String {
    let uri = &origin.latest().head.uri;
    uri.path_and_query().expect("a path").to_string()
}

/// An upstream would resolve it with the prefix.
#[tokio::test]
async fn no_path_leads_out_of_the_prefix_that_is_put_before_it() {
    let origin = Origin::named("ok").await;
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", &origin, "").await;
    for (settings, path, expected) in [
        (r#"{"add_prefix": "/t"}"#, "/a/../b", Some("/t/a/../b")),
        (r#"{"add_prefix": "/t"}"#, "/../other", None),
        (r#"{"add_prefix": "/t"}"#, "/%2e%2e/other", None),
        (r#"{"add_prefix": "/t"}"#, "/..%2fother", None),
        (
            r#"{"add_prefix": "/t", "normalize_path": "off"}"#,
            "/../other",
            None,
        ),
        (
            r#"{"add_prefix": "/t", "normalize_path": "forward"}"#,
            "/../other",
            Some("/t/other"),
        ),
        ("{}", "/../other", Some("/../other")),
    ] {
        waypost.put("a.test", "@settings", settings).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n");
        let response = ask(waypost.address(), request).await;
        match expected {
            None => assert_eq!(response.status(), 400, "{path} {settings}"),
            Some(expected) => {
                assert_eq!(response.status(), 200, "{path} {settings}");
                let line = origin.latest().head.line;
                assert_eq!(line, format!("GET {expected} HTTP/1.1"));
            }
        }
    }
}
