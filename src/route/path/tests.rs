use super::*;

fn prefix(text: &str) -> PathPrefix {
    text.parse().expect(text)
}

#[test]
fn paths_are_normalised_for_look_up() {
    for (raw, expected) in [
        ("/", "/"),
        ("/api/x", "/api/x"),
        ("/api/", "/api/"),
        ("//api///x", "/api/x"),
        ("/a/./b/../c", "/a/c"),
        ("/a/%2e%2E/c", "/c"),
        ("/../../x", "/x"),
        ("/a/..", "/"),
        ("/%61pi", "/api"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%252Fb", "/a%252Fb"),
        ("/%zz%4", "/%zz%4"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/café", "/caf%C3%A9"),
        ("/.well-known/x", "/.well-known/x"),
        ("/a.b/c", "/a.b/c"),
        ("*", ""),
        ("", ""),
    ] {
        assert_eq!(normalise(raw), expected, "{raw}");
    }
}

#[test]
fn paths_are_tidied_to_what_means_the_same() {
    for (raw, expected) in [
        ("/", Some("/")),
        ("/a/b.c/~x;y=1,2/", Some("/a/b.c/~x;y=1,2/")),
        ("//a///b//", Some("/a/b/")),
        ("/a/./b/../c", Some("/a/c")),
        ("/a/.", Some("/a/")),
        ("/a/b/..", Some("/a/")),
        ("/..", Some("/")),
        ("/../../x", Some("/x")),
        ("/a/%2e%2E/c", Some("/c")),
        ("/.well-known/...", Some("/.well-known/...")),
        ("/%61%2D%7e", Some("/a-~")),
        ("/a%2fb%3bc%3F%23", Some("/a%2Fb%3Bc%3F%23")),
        ("/%252e%252e/x", Some("/%252e%252e/x")),
        ("/caf\u{e9}/%c3%a9", Some("/caf%C3%A9/%C3%A9")),
        ("/\"{}|\\^[]", Some("/%22%7B%7D%7C%5C%5E%5B%5D")),
        ("/%zz", None),
        ("/%%32e/x", None),
        ("/x%", None),
    ] {
        assert_eq!(tidied(raw).as_deref(), expected, "{raw}");
    }
    assert!(matches!(tidied("/a.b/c/"), Some(Cow::Borrowed(_))));
}

#[test]
fn a_tidied_path_is_looked_up_as_before_and_needs_no_more() {
    let pieces = [
        "/", "//", ".", "..", "%2e", "%2E", "a", "%61", "%2f", "%25", "2e", ";", "%3b", "\\",
        "\u{e9}", "%c3", "%",
    ];
    // Every way to put four of them one after the other.
    for n in 0..pieces.len().pow(4) {
        let piece = |place: u32| pieces[n / pieces.len().pow(place) % pieces.len()];
        let raw = format!("/{}{}{}{}", piece(0), piece(1), piece(2), piece(3));
        let Some(tidy) = tidied(&raw) else {
            assert!(raw.contains('%'), "{raw}");
            continue;
        };
        assert_eq!(tidied(&tidy).as_deref(), Some(&*tidy), "{raw}");
        let looked_up = |path: &str| normalise(path).trim_end_matches('/').to_owned();
        assert_eq!(looked_up(&tidy), looked_up(&raw), "{raw} as {tidy}");
    }
}

#[test]
fn plain_paths_are_borrowed() {
    for raw in ["/", "/api/x", "/a.b/c/", "/a;b=c,d"] {
        assert!(matches!(normalise(raw), Cow::Borrowed(_)), "{raw}");
    }
}

#[test]
fn a_prefix_covers_whole_segments() {
    for (text, path, expected) in [
        ("", "/x", true),
        ("", "", true),
        ("", "*", true),
        ("api", "/api", true),
        ("api", "/api/", true),
        ("api", "/api/x", true),
        ("api", "/apix", false),
        ("api", "/", false),
        ("api/v1", "/api/v1/x", true),
        ("api/v1", "/api/v10", false),
        ("%61pi", "/api", true),
        ("a%2Fb", "/a%2fb", true),
        ("a%2Fb", "/a/b", false),
        ("a/b", "/a%2fb", false),
        ("café", "/caf%c3%a9/x", true),
        ("api", "/x/..//api", true),
        ("api", "/api/../x", false),
    ] {
        assert_eq!(
            prefix(text).covers(&normalise(path)),
            expected,
            "{text:?} on {path:?}"
        );
    }
}

#[test]
fn stripping_keeps_the_rest_as_it_came() {
    for (text, raw, expected) in [
        ("", "/x", Some("/x")),
        ("api", "/api", Some("")),
        ("api", "/api/", Some("/")),
        ("api", "/%61pi/%7Ex//y/../z", Some("/%7Ex//y/../z")),
        ("a/b", "/a/b/c", Some("/c")),
        ("a%2Fb", "/a%2fb/c", Some("/c")),
        ("api", "//api/x", None),
        ("api", "/x/../api", None),
        ("api", "/apix", None),
        ("api", "*", None),
        ("api", "", None),
    ] {
        assert_eq!(prefix(text).strip(raw), expected, "{text:?} off {raw:?}");
    }
}

#[test]
fn bad_prefixes_are_refused_with_what_is_wrong() {
    for (text, expected) in [
        ("a//b", "empty segment"),
        ("/a", "empty segment"),
        ("a/", "empty segment"),
        ("a/./b", "\"..\""),
        ("a/%2e%2e", "\"..\""),
        ("a?b", "%3F"),
    ] {
        let error = text.parse::<PathPrefix>().expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_path_that_some_upstream_may_take_for_one_above_its_root_climbs_out() {
    for (path, expected) in [
        ("/", false),
        ("", false),
        ("/a/..", false),
        ("/a/../b/..", false),
        ("/a..b/..c/...", false),
        ("/a/b/../..", false),
        ("/;x/a/..", false),
        ("/..", true),
        ("/a/../..", true),
        ("/%2e%2E/a", true),
        ("/.%2e", true),
        // Some take two slashes for one, some a slash for any of these.
        ("/a//../..", true),
        ("/./..", true),
        ("/;/..", true),
        ("/..;/a", true),
        ("/..%2fa", true),
        ("/a%2F..%2f..", true),
        ("/..\\a", true),
        ("/..%5Ca", true),
        ("/a\\b/../..", true),
        ("/a%2Fb/..", false),
    ] {
        assert_eq!(climbs_out(path), expected, "{path}");
    }
}
