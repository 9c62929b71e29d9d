//! `normalize_path`: what of a path is normalised, and that no spelling gets around a prefix that guards.

use serde_json::json;

use crate::support::{
    front::{Asks, Caller, Front},
    origin::Origin,
    waypost::Waypost,
};

#[tokio::test]
async fn a_path_is_normalised_as_its_route_says_and_gets_around_no_other() {
    let waypost = Waypost::builder().start().await;
    let mut origins = Vec::new();
    for (route, settings) in [
        ("a.test", json!({})),
        ("a.test/admin", json!({})),
        ("a.test/raw", json!({"normalize_path": "off"})),
        ("a.test/raw/admin", json!({"normalize_path": "lookup"})),
        (
            "a.test/tidy",
            json!({"normalize_path": "forward", "add_query": "k=v"}),
        ),
        (
            "a.test/cut",
            json!({"normalize_path": "forward", "strip_prefix": true, "add_prefix": "/base"}),
        ),
    ] {
        let origin = Origin::named(route).await;
        waypost.put(route, &origin, "").await;
        waypost.put(route, "@settings", &settings.to_string()).await;
        origins.push((route, origin));
    }
    let mut callers = Vec::new();
    for front in [Front::Http11, Front::H2] {
        callers.push((front, Caller::new(front, waypost.address()).await));
    }
    // The route, and what its upstream is asked for.
    let cases: &[(&str, Option<(&str, &str)>)] = &[
        ("/x/../y//z/%2e/%7e", Some(("a.test", "/x/../y//z/%2e/%7e"))),
        ("/x/../admin/./y", Some(("a.test/admin", "/x/../admin/./y"))),
        ("/%61dmin", Some(("a.test/admin", "/%61dmin"))),
        ("/admin%2fx", Some(("a.test", "/admin%2fx"))),
        ("/admin/../x", Some(("a.test", "/admin/../x"))),
        ("/raw", Some(("a.test/raw", "/raw"))),
        (
            "/raw//x/./%zz/../y?q",
            Some(("a.test/raw", "/raw//x/./%zz/../y?q")),
        ),
        (
            "/raw/%2e%2e%2fadmin",
            Some(("a.test/raw", "/raw/%2e%2e%2fadmin")),
        ),
        ("/raw/admin/x", Some(("a.test/raw/admin", "/raw/admin/x"))),
        ("/r%61w", None),
        ("//raw", None),
        ("/./raw", None),
        ("/x/../raw", None),
        ("/raw/../admin", None),
        ("/raw/%2E%2e/admin", None),
        ("/raw/../x", None),
        ("/raw/%61dmin", None),
        ("/raw//admin", None),
        ("/raw/x/../admin", None),
        ("/raw/admin/../x", None),
        (
            "/raw/admin/./x",
            Some(("a.test/raw/admin", "/raw/admin/./x")),
        ),
        ("/tidy", Some(("a.test/tidy", "/tidy?k=v"))),
        (
            "/x/..//tidy/%7Ea%2fb/./%3b;/?q=%7E",
            Some(("a.test/tidy", "/tidy/~a%2Fb/%3B;/?k=v&q=%7E")),
        ),
        (
            "/t%69dy/..%2f/%c3%a9|",
            Some(("a.test/tidy", "/tidy/..%2F/%C3%A9%7C?k=v")),
        ),
        (
            "/tidy/%25%32%65/",
            Some(("a.test/tidy", "/tidy/%252e/?k=v")),
        ),
        ("/tidy/%%32e%%32e/admin", None),
        ("/tidy/%zz", None),
        (
            "/tidy/../admin/%7e",
            Some(("a.test/admin", "/tidy/../admin/%7e")),
        ),
        ("//c%75t/./x", Some(("a.test/cut", "/base/x"))),
        ("/cut/y/..", Some(("a.test/cut", "/base/"))),
        ("/cut", Some(("a.test/cut", "/base"))),
    ];
    for (path, expected) in cases {
        for (front, caller) in &mut callers {
            let before: usize = origins
                .iter()
                .map(|(_, origin)| origin.requests().len())
                .sum();
            let asks = Asks {
                method: "GET",
                host: "a.test",
                path,
                body: None,
            };
            let seen = caller.ask(asks).await;
            let after: usize = origins
                .iter()
                .map(|(_, origin)| origin.requests().len())
                .sum();
            match expected {
                None => {
                    let error = seen.error.as_deref();
                    assert_eq!(
                        (seen.status, error),
                        (Some(400), Some("http_request_error")),
                        "{path} {front:?}"
                    );
                    assert_eq!(after, before, "{path} {front:?}");
                }
                Some((route, target)) => {
                    assert_eq!(
                        (seen.status, &*seen.body),
                        (Some(200), *route),
                        "{path} {front:?}"
                    );
                    let (_, origin) = origins.iter().find(|(name, _)| name == route).unwrap();
                    let line = format!("GET {target} HTTP/1.1");
                    assert_eq!(origin.latest().head.line, line, "{path} {front:?}");
                }
            }
        }
        // What is said of it before it is asked.
        let url: String = path.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let explained = waypost
            .api(&format!("/api/explain?url=http://a.test{url}"))
            .await;
        match expected {
            None => assert_eq!(explained["status"], 400, "{path}: {explained}"),
            Some((route, target)) => {
                assert_eq!(explained["route"]["name"], *route, "{path}: {explained}");
                assert_eq!(
                    explained["forward"]["target"], *target,
                    "{path}: {explained}"
                );
            }
        }
    }
}
