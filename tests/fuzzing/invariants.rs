//! What holds for whatever bytes the parsers are given, beyond that they return: a function for each kind.

use std::borrow::Cow;

use waypost::{
    route::{
        host,
        key::{self, Key},
        path,
        settings::Settings,
        value::UpstreamOptions,
    },
    worker::proxy_protocol::{self, Parsed},
};

/// A key that is understood means the same when it is written as it is shown.
pub fn keys(bytes: &[u8]) {
    const PREFIX: &str = "/hosts/";
    let whole = [PREFIX.as_bytes(), bytes].concat();
    let Ok(parsed) = key::parse(PREFIX, &whole) else {
        return;
    };
    let shown = match &parsed {
        Key::Upstream { route, address } => format!("{PREFIX}{route}/{address}"),
        Key::Settings { route } => format!("{PREFIX}{route}/@settings"),
        Key::Fleet => return,
    };
    let again = key::parse(PREFIX, shown.as_bytes());
    assert_eq!(again, Ok(parsed), "{shown:?}");
}

/// What is no JSON object means the defaults, and errors say something.
pub fn values(bytes: &[u8]) {
    match UpstreamOptions::parse(bytes) {
        Ok(options) => {
            let is_object = serde_json::from_slice::<serde_json::Value>(bytes)
                .is_ok_and(|value| value.is_object());
            assert!(is_object || options == UpstreamOptions::default());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Settings are a JSON object.
pub fn settings(bytes: &[u8]) {
    match Settings::parse(bytes) {
        Ok(_) => {
            let value = serde_json::from_slice::<serde_json::Value>(bytes);
            assert!(value.is_ok_and(|value| value.is_object()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A host's canonical form is its own, and stands in no way that a field or a log could be split by.
pub fn hosts(bytes: &[u8]) {
    let Ok(canonical) = host::canonical(bytes) else {
        return;
    };
    assert!(
        !canonical.is_empty() && canonical.len() <= 253,
        "{canonical:?}"
    );
    let is_plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.[]:".contains(&byte);
    assert!(canonical.bytes().all(is_plain), "{canonical:?}");
    assert_eq!(
        host::canonical(canonical.as_bytes()),
        Ok(Cow::Borrowed(&*canonical))
    );
}

/// A normalised path has nothing left to normalise, and no spelling gets around a prefix by it.
pub fn paths(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else {
        return;
    };
    let path = format!("/{path}");
    let normalised = path::normalise(&path);
    // A `%` that begins no triple may do so in front of what was one.
    if path::tidied(&path).is_some() {
        assert_eq!(path::normalise(&normalised), normalised, "{path:?}");
    }
    let mut segments = normalised.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        assert!(
            segment != "." && segment != "..",
            "{path:?}: {normalised:?}"
        );
        assert!(!segment.is_empty() || is_last, "{path:?}: {normalised:?}");
    }
}

/// A header is whole, the beginning of one, or none: whatever follows it, and however little of it is there.
pub fn proxy_headers(bytes: &[u8]) {
    let parsed = proxy_protocol::parse(bytes);
    if let Ok(Parsed::Whole(header)) = parsed {
        assert!(header.length <= bytes.len());
        assert_eq!(proxy_protocol::parse(&bytes[..header.length]), parsed);
        for end in 0..header.length {
            let part = proxy_protocol::parse(&bytes[..end]);
            assert_eq!(part, Ok(Parsed::Incomplete), "{end} bytes of {bytes:?}");
        }
    }
}
