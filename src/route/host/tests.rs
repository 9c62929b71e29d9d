use super::*;

#[test]
fn patterns_parse_to_their_canonical_text() {
    for (text, expected) in [
        ("blog.example.com", "blog.example.com"),
        ("Blog.Example.COM.", "blog.example.com"),
        ("*", "*"),
        ("*.Example.com", "*.example.com"),
        ("localhost", "localhost"),
        ("my_host", "my_host"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.BÜCHER.example", "*.xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[0:0::1]", "[::1]"),
    ] {
        let pattern: HostPattern = text.parse().expect(text);
        assert_eq!(pattern.to_string(), expected, "{text}");
    }
}

#[test]
fn bad_patterns_are_refused_with_what_is_wrong() {
    for (text, expected) in [
        ("", "empty"),
        (".", "empty"),
        ("*.", "empty"),
        ("a.example.com:80", "has a port"),
        ("[::1]:80", "has a port"),
        ("[::1", "IPv6"),
        ("[nonsense]", "IPv6"),
        ("[::1]x", "IPv6"),
        ("a..b", "empty label"),
        (".a", "empty label"),
        ("a.*.b", "\"*\""),
        ("*a.b", "\"*\""),
        ("**", "\"*\""),
        ("*.*.b", "\"*\""),
        ("a b", "valid"),
        ("user@host", "valid"),
        ("a%20b", "valid"),
        ("a\0b", "valid"),
        ("xn--a", "valid"),
    ] {
        let error = text.parse::<HostPattern>().expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let long = format!("{}.example", "a".repeat(64));
    assert!(matches!(
        long.parse::<HostPattern>(),
        Err(BadPattern::TooLong(_))
    ));
}

#[test]
fn canonical_hosts_are_borrowed() {
    for (authority, expected) in [
        ("blog.example.com", "blog.example.com"),
        ("blog.example.com:8080", "blog.example.com"),
        ("blog.example.com.", "blog.example.com"),
        ("blog.example.com.:443", "blog.example.com"),
        ("blog.example.com:", "blog.example.com"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:80", "[::1]"),
    ] {
        let host = canonical(authority.as_bytes()).expect(authority);
        assert_eq!(host, expected, "{authority}");
        assert!(matches!(host, Cow::Borrowed(_)), "{authority}");
    }
}

#[test]
fn other_spellings_are_made_canonical() {
    for (authority, expected) in [
        ("BLOG.example.com:80", "blog.example.com"),
        ("[0::0:1]", "[::1]"),
        ("[FE80::1]:9", "[fe80::1]"),
    ] {
        assert_eq!(canonical(authority.as_bytes()).expect(authority), expected);
    }
}

#[test]
fn what_is_no_host_is_refused() {
    for authority in [
        "",
        ".",
        ":80",
        "..",
        "a..b",
        ".a",
        "a..",
        "user@host",
        "a b",
        " a",
        "a\t",
        "a\r\nb",
        "a/b",
        "a#b",
        "a?b",
        "a\\b",
        "*.example.com",
        "a%41",
        "bücher.example",
        "a:80a",
        "a:-1",
        "a:65536",
        "a:000080",
        "a:80:80",
        "::1",
        "[::1",
        "[::1]x",
        "[::1]:x",
        "[::1%eth0]",
        "[]",
    ] {
        assert_eq!(canonical(authority.as_bytes()), Err(BadHost), "{authority}");
    }
    assert_eq!(canonical(b"a\xff"), Err(BadHost));
    let (label, longer) = ("a".repeat(63), "a".repeat(64));
    for long in [
        [&*label; 4].join("."),
        format!("{longer}.test"),
        format!("a.{longer}"),
        format!("{longer}.:80"),
    ] {
        assert_eq!(canonical(long.as_bytes()), Err(BadHost), "{long}");
    }
    let long = [&*label, &label, &label, &label[..61]].join(".");
    assert_eq!(
        canonical(format!("{long}.:80").as_bytes()),
        Ok(Cow::Borrowed(&*long))
    );
}
