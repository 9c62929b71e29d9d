//! What a reverse proxy asks its upstreams for, for every client and every upstream. `reverse_proxy` has the other
//! sentences about heads.

use serde_json::json;

use crate::support::pairs::{Asks, Body, Pairs, Says, fields};

fn asks(path: &'static str) -> Asks {
    Asks {
        method: "GET",
        path,
        fields: Vec::new(),
        body: Body::None,
    }
}

/// "Static and request queries joined; `;` and `%zz` in a query forwarded raw; `%2F` in a path preserved; `/base` +
/// `/dir` = `/base/dir` with one slash whatever the inputs."
#[tokio::test]
async fn paths_and_queries_are_joined_and_nothing_else() {
    let joined: &[(&str, &str)] = &[
        ("/dir", "/base/dir?k=v"),
        ("/dir/", "/base/dir/?k=v"),
        ("/", "/base/?k=v"),
        ("/?", "/base/?k=v"),
        ("/dir?x=1;y&%zz", "/base/dir?k=v&x=1;y&%zz"),
        ("/a%2Fb%2f//c", "/base/a%2Fb%2f//c?k=v"),
    ];
    let as_it_came: &[(&str, &str)] = &[
        ("/", "/"),
        ("/?", "/?"),
        ("/dir?x=1;y&%zz", "/dir?x=1;y&%zz"),
        ("/a%2Fb%2f//c/../%zz", "/a%2Fb%2f//c/../%zz"),
    ];
    for (settings, cases) in [
        (json!({"add_prefix": "/base", "add_query": "k=v"}), joined),
        (json!({"add_prefix": "/base/", "add_query": "k=v"}), joined),
        (json!({"add_prefix": "/", "add_query": ""}), as_it_came),
        (json!({}), as_it_came),
    ] {
        let pairs = Pairs::new(&settings.to_string(), empty()).await;
        for pair in pairs.all() {
            for (path, expected) in cases {
                assert_eq!(pair.ask(&asks(path)).await.line, "200", "{pair:?} {path}");
                let line = pair.latest().line;
                assert_eq!(line, format!("GET {expected}"), "{pair:?} {settings}");
            }
        }
    }
}

/// RFC 9110 section 7.6.2: who counts hops is counted for, and heard of the last one.
#[tokio::test]
async fn max_forwards_is_counted_down_to_an_answer() {
    let pairs = Pairs::new(
        "{}",
        Says {
            length: Some(0),
            ..Says::default()
        },
    )
    .await;
    for pair in pairs.all() {
        for (method, hops, expected) in [
            ("OPTIONS", "0", Err("200")),
            ("OPTIONS", "000", Err("200")),
            ("OPTIONS", "1", Ok("0")),
            ("OPTIONS", "10", Ok("9")),
            ("OPTIONS", "many", Ok("many")),
            ("OPTIONS", "+0", Ok("+0")),
            ("OPTIONS", "99999999999", Ok("99999999999")),
            ("TRACE", "0", Err("501")),
            ("TRACE", "3", Ok("2")),
            ("GET", "0", Ok("0")),
        ] {
            let before = pair.asked();
            let asks = Asks {
                method,
                fields: fields(&[("max-forwards", hops)]),
                ..asks("/")
            };
            let answer = pair.ask(&asks).await;
            let what = format!("{pair:?}: {method} {hops}");
            match expected {
                Ok(hops) => {
                    assert_eq!(answer.line, "200", "{what}");
                    assert_eq!(pair.latest().all("max-forwards"), [hops], "{what}");
                }
                Err(status) => {
                    assert_eq!(answer.line, status, "{what}");
                    assert_eq!(pair.asked(), before, "{what}");
                }
            }
        }
    }
}

fn empty() -> Says {
    Says {
        length: Some(0),
        ..Says::default()
    }
}
