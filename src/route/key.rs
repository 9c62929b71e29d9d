//! Keys: what `<prefix><host>[/<path...>]/<upstream>` and `.../@settings` mean.

use std::fmt;

use super::{
    host::{BadPattern, HostPattern},
    path::{BadPrefix, PathPrefix},
};
use crate::upstream::address::{Address, BadAddress};

/// Longest key we take, in bytes.
const MAX_KEY: usize = 4096;

/// What a key below the prefix is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// An upstream of a route.
    Upstream {
        /// Whose.
        route: RouteId,
        /// Where it is.
        address: Address,
    },
    /// The settings of a route.
    Settings {
        /// Whose.
        route: RouteId,
    },
    /// `<prefix>@...`: the fleet's own, no route.
    Fleet,
}

/// Which route: a host and a path prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId {
    /// Which hosts it serves.
    pub host: HostPattern,
    /// Which paths of them.
    pub prefix: PathPrefix,
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.host, self.prefix)
    }
}

/// Why a key means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Longer than any key we take.
    #[error("the key has {0} bytes; 4096 are the limit")]
    TooLong(usize),
    /// Bytes that are no text.
    #[error("the key is not UTF-8; write other bytes of a path as percent triples")]
    NotUtf8,
    /// Not one of ours at all.
    #[error("the key is not below the prefix {0:?}")]
    OtherPrefix(String),
    /// `<prefix><host>`.
    #[error("the key names no upstream; write {0}/<ip>:<port>, or {0}/@settings")]
    NoUpstream(String),
    /// `a//b`, or a slash at the end.
    #[error("the key has an empty segment; write single slashes and none at the end")]
    EmptySegment,
    /// `.../@setings`.
    #[error(
        "{0:?} is not known as a last segment; @settings is the only one that starts with \"@\""
    )]
    UnknownSpecial(String),
    /// A bad host.
    #[error(transparent)]
    Host(#[from] BadPattern),
    /// A bad path prefix.
    #[error(transparent)]
    Prefix(#[from] BadPrefix),
    /// A bad upstream.
    #[error(transparent)]
    Address(#[from] BadAddress),
}

/// What `key` means below `prefix`, which ends in a slash.
///
/// # Errors
/// Says what is wrong with it and what to write instead.
pub fn parse(prefix: &str, key: &[u8]) -> Result<Key, BadKey> {
    if key.len() > MAX_KEY {
        return Err(BadKey::TooLong(key.len()));
    }
    let key = std::str::from_utf8(key).map_err(|_| BadKey::NotUtf8)?;
    let rest = key
        .strip_prefix(prefix)
        .ok_or_else(|| BadKey::OtherPrefix(prefix.to_owned()))?;
    if rest.starts_with('@') {
        return Ok(Key::Fleet);
    }
    if rest.split('/').any(str::is_empty) {
        return Err(BadKey::EmptySegment);
    }
    let (host, rest) = rest
        .split_once('/')
        .ok_or_else(|| BadKey::NoUpstream(key.to_owned()))?;
    let (path, last) = rest.rsplit_once('/').unwrap_or(("", rest));
    let route = RouteId {
        host: host.parse()?,
        prefix: path.parse()?,
    };
    match last {
        "@settings" => Ok(Key::Settings { route }),
        last if last.starts_with('@') => Err(BadKey::UnknownSpecial(last.to_owned())),
        last => match last.parse() {
            Ok(address) => Ok(Key::Upstream { route, address }),
            Err(BadAddress::Shape(_)) if !last.contains(':') => {
                Err(BadKey::NoUpstream(key.to_owned()))
            }
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_a_route_and_what_of_it() {
        for (key, route, last) in [
            (
                "/hosts/blog.example.com/10.0.0.7:4000",
                "blog.example.com",
                "10.0.0.7:4000",
            ),
            (
                "/hosts/fid.dev/api/127.0.0.1:8000",
                "fid.dev/api",
                "127.0.0.1:8000",
            ),
            (
                "/hosts/fid.dev/api/v1/127.0.0.1:8000",
                "fid.dev/api/v1",
                "127.0.0.1:8000",
            ),
            ("/hosts/*/app:80", "*", "app:80"),
            ("/hosts/*.Example.com/[::1]:80", "*.example.com", "[::1]:80"),
            ("/hosts/a/unix:%2Frun%2Fa.sock", "a", "unix:%2Frun%2Fa.sock"),
            ("/hosts/a/x:y/b:1", "a/x:y", "b:1"),
            // As a key has to spell them.
            ("/hosts/a/x%3fy%23/b:1", "a/x%3Fy%23", "b:1"),
            ("/hosts/a/@settings", "a", "@settings"),
            ("/hosts/a/b/@settings", "a/b", "@settings"),
        ] {
            let (id, text) = match parse("/hosts/", key.as_bytes()).expect(key) {
                Key::Upstream { route, address } => (route, address.to_string()),
                Key::Settings { route } => (route, "@settings".to_owned()),
                Key::Fleet => panic!("{key} is of a route"),
            };
            assert_eq!(
                (id.to_string().as_str(), text.as_str()),
                (route, last),
                "{key}"
            );
        }
    }

    #[test]
    fn the_fleets_own_keys_are_no_routes() {
        for key in [
            "/hosts/@waypost/pulse",
            "/hosts/@waypost/barriers/1",
            "/hosts/@x",
        ] {
            assert_eq!(parse("/hosts/", key.as_bytes()), Ok(Key::Fleet), "{key}");
        }
    }

    #[test]
    fn bad_keys_say_what_is_wrong() {
        for (key, expected) in [
            (
                "/hosts/blog.example.com",
                "names no upstream; write /hosts/blog.example.com/<ip>:<port>",
            ),
            ("/hosts/blog.example.com/api", "names no upstream"),
            (
                "/hosts/blog.example.com/10.0.0.7",
                "\"10.0.0.7\" lacks its port",
            ),
            ("/hosts/", "empty segment"),
            ("/hosts//10.0.0.7:80", "empty segment"),
            ("/hosts/a//10.0.0.7:80", "empty segment"),
            ("/hosts/a/10.0.0.7:80/", "empty segment"),
            ("/hosts/a/10.0.0.7:99999", "port"),
            ("/hosts/a/10.0.0.7:0", "port"),
            ("/hosts/a:80/10.0.0.7:80", "has a port"),
            ("/hosts/a/../10.0.0.7:80", "\"..\""),
            ("/hosts/a/@setings", "@settings is the only one"),
            ("/other/a/10.0.0.7:80", "\"/hosts/\""),
        ] {
            let error = parse("/hosts/", key.as_bytes()).expect_err(key).to_string();
            assert!(error.contains(expected), "{key}: {error}");
        }
        assert_eq!(parse("/hosts/", b"/hosts/a\xff/b:1"), Err(BadKey::NotUtf8));
        let huge = format!("/hosts/{}/b:1", "a/".repeat(4096));
        assert!(matches!(
            parse("/hosts/", huge.as_bytes()),
            Err(BadKey::TooLong(_))
        ));
    }

    /// Whatever bytes come from etcd: an answer, never a panic.
    #[test]
    fn no_key_panics() {
        const PIECES: [&[u8]; 17] = [
            b"/hosts/",
            b"a",
            b"/",
            b":",
            b"@",
            b"*",
            b".",
            b"[",
            b"]",
            b"%",
            b"\xc3",
            b"\xff",
            b"unix:",
            b"80",
            "\u{130}".as_bytes(),
            b"xn--",
            b"\0",
        ];
        for seed in 0..20_000_usize {
            let mut key = b"/hosts/".to_vec();
            let mut rest = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            while rest > 0 {
                key.extend_from_slice(PIECES[rest % PIECES.len()]);
                rest /= PIECES.len() * 3;
            }
            let _ = parse("/hosts/", &key);
        }
    }
}
