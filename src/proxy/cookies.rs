//! Cookies (RFC 6265), as far as balancing reads and writes them.

use std::{fmt::Write, time::Duration};

use http::{HeaderMap, HeaderValue, header::COOKIE};

use super::forwarded::Scheme;
use crate::{
    route::PathPrefix,
    upstream::balancer::{Sticky, tokens::Token},
};

/// The values of the cookies of this name, over all `Cookie` lines (HTTP/2 splits them). Those of longer paths come first
/// (RFC 6265 section 5.4).
pub fn values<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> {
    let lines = headers.get_all(COOKIE).into_iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b';'));
    pairs
        .filter_map(move |pair| pair.trim_ascii().strip_prefix(name.as_bytes()))
        .filter_map(|rest| rest.strip_prefix(b"="))
}

/// The `Set-Cookie` that keeps a client at the upstream of this token, for the paths that this prefix covers: other routes
/// of the host may have a cookie of the same name.
pub fn sticky(
    sticky: &Sticky,
    token: Token,
    prefix: &PathPrefix,
    scheme: Scheme,
) -> Option<HeaderValue> {
    let (name, path) = (&sticky.cookie, path(prefix));
    let mut text = format!("{name}={token}; Path={path}; HttpOnly; SameSite=Lax");
    if scheme == Scheme::Https {
        text.push_str("; Secure");
    }
    if let Some(ttl) = sticky.ttl {
        // 0 would take it away at once.
        let seconds = ttl.max(Duration::from_secs(1)).as_secs();
        write!(text, "; Max-Age={seconds}").expect("writing to a String does not fail");
    }
    HeaderValue::try_from(text).ok()
}

/// What clients compare with the beginning of a path, as they spell it: percent-encoded where browsers do so of
/// themselves. A segment with `;` can't stand in the attribute; the cookie is for what is in front of it then.
fn path(prefix: &PathPrefix) -> String {
    let end = prefix.as_str().find(';');
    let expressible = match end {
        Some(end) => prefix.as_str()[..end]
            .rsplit_once('/')
            .map_or("", |(parents, _)| parents),
        None => prefix.as_str(),
    };
    if expressible.is_empty() {
        return "/".to_owned();
    }
    let mut path = String::with_capacity(expressible.len());
    for char in expressible.chars() {
        match char {
            '"' | '#' | '<' | '>' | '?' | '^' | '`' | '{' | '}' => {
                write!(path, "%{:02X}", u32::from(char))
                    .expect("writing to a String does not fail");
            }
            char => path.push(char),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name_on_any_line() {
        for (lines, expected) in [
            (&[][..], &[][..]),
            (&["a=1"], &["1"]),
            (&["b=2; a=1; c=3"], &["1"]),
            (&["b=2;a=1"], &["1"]),
            (&["b=2", "a=1"], &["1"]),
            (&["a=1; a=2", "b=3; a=4"], &["1", "2", "4"]),
            (&["aa=1; xa=2; A=3"], &[]),
            (&["a"], &[]),
            (&["a; a=5"], &["5"]),
            (&["a="], &[""]),
            (&["a=b=c"], &["b=c"]),
            (&["b=\"a=1\""], &[]),
            (&[" ;; ; a=1 ;"], &["1"]),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, HeaderValue::from_static(line));
            }
            let found: Vec<_> = values(&headers, "a").collect();
            let expected: Vec<_> = expected.iter().map(|value| value.as_bytes()).collect();
            assert_eq!(found, expected, "{lines:?}");
        }
    }

    #[test]
    fn a_sticky_cookie_has_the_attributes_that_keep_it_safe() {
        let hour = Some(Duration::from_secs(3600));
        let (short, none) = (Some(Duration::from_millis(5)), None);
        for (ttl, scheme, expected) in [
            (none, Scheme::Http, "; Path=/; HttpOnly; SameSite=Lax"),
            (
                none,
                Scheme::Https,
                "; Path=/; HttpOnly; SameSite=Lax; Secure",
            ),
            (
                hour,
                Scheme::Http,
                "; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600",
            ),
            (
                short,
                Scheme::Https,
                "; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=1",
            ),
        ] {
            let settings = Sticky {
                cookie: "at".into(),
                ttl,
            };
            let token = Token::of("10.0.0.7:4000");
            let everywhere = PathPrefix::default();
            let value = sticky(&settings, token, &everywhere, scheme).expect("a header's value");
            assert_eq!(value, format!("at={token}{expected}"));
        }
    }

    #[test]
    fn the_path_is_the_prefix_as_clients_spell_it() {
        for (prefix, expected) in [
            ("", "/"),
            ("api", "/api"),
            ("api/v1", "/api/v1"),
            ("%61~b=c,d", "/a~b=c,d"),
            ("a%20b/%c3%bc%22%7b", "/a%20b/%C3%BC%22%7B"),
            ("100%25", "/100%25"),
            ("a/b;v=1/c", "/a"),
            ("a;b", "/"),
        ] {
            let prefix: PathPrefix = prefix.parse().expect("a prefix");
            assert_eq!(path(&prefix), expected);
        }
    }
}
