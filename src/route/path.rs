//! Path prefixes, and the form of a path they are compared in.
//!
//! In that form every percent triple of a printable ASCII character is decoded, except of `/` and `%` (an encoded
//! slash separates no segments) and of `?` and `#` (which end a path unless they are encoded); everything else is an
//! upper-case triple, so it is always ASCII. Requests are looked up in it, with `.`, `..` and empty segments resolved as
//! an upstream would; what is forwarded stays as it came.

use std::{borrow::Cow, fmt, fmt::Write as _, str::FromStr};

/// Which paths of its host a route serves, on whole segments: `/api` is `/api` and `/api/x`, not `/apix`.
/// Empty for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPrefix(Box<str>);

/// Why a text is no path prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPrefix {
    /// `a//b`.
    #[error("the path prefix {0:?} has an empty segment; write single slashes")]
    EmptySegment(String),
    /// `.` or `..`, encoded or not: requests are compared with those resolved.
    #[error(
        "the path prefix {0:?} has a \".\" or \"..\" segment, which no request's path can match"
    )]
    DotSegment(String),
    /// `?` or `#`.
    #[error("the path prefix {0:?} has a \"?\" or \"#\", which end a path; write %3F or %23")]
    Delimiter(String),
}

/// Without the slash in front, as a key has it: `api/v1`.
impl FromStr for PathPrefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.contains(['?', '#']) {
            return Err(BadPrefix::Delimiter(text.to_owned()));
        }
        let mut canonical = String::with_capacity(text.len() + 1);
        for segment in text.split('/') {
            let segment = canonical_segment(segment);
            match &*segment {
                "" => return Err(BadPrefix::EmptySegment(text.to_owned())),
                "." | ".." => return Err(BadPrefix::DotSegment(text.to_owned())),
                segment => {
                    canonical.push('/');
                    canonical.push_str(segment);
                }
            }
        }
        Ok(Self(canonical.into()))
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PathPrefix {
    /// Starts with `/` and has no trailing one; empty for all paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it covers every path.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it covers a path that went through [`normalise`].
    pub fn covers(&self, normalised: &str) -> bool {
        normalised
            .strip_prefix(&*self.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.is_empty())
    }

    /// What of a raw path (no query) follows the prefix: empty, or starting with `/`. Segments are compared decoded,
    /// but nothing is resolved, so `None` is possible for a path whose normalised form is covered: such a path
    /// cannot be stripped without rewriting it.
    pub fn strip<'p>(&self, raw_path: &'p str) -> Option<&'p str> {
        let mut rest = raw_path;
        for expected in self.0.split('/').skip(1) {
            let behind_slash = rest.strip_prefix('/')?;
            let end = behind_slash.find('/').unwrap_or(behind_slash.len());
            let (segment, behind) = behind_slash.split_at(end);
            if canonical_segment(segment) != expected {
                return None;
            }
            rest = behind;
        }
        Some(rest)
    }
}

/// A raw path (no query) in the form prefixes are compared in. Borrowed if it is in that form already.
pub fn normalise(raw_path: &str) -> Cow<'_, str> {
    if !needs_work(raw_path.as_bytes()) {
        return Cow::Borrowed(raw_path);
    }
    let Some(segments) = raw_path.strip_prefix('/') else {
        // `*` of OPTIONS, or nothing: no prefix but the empty one covers it.
        return Cow::Borrowed("");
    };
    let mut path = String::with_capacity(raw_path.len() + 8);
    for segment in segments.split('/') {
        let segment = canonical_segment(segment);
        match &*segment {
            "" | "." => {}
            ".." => path.truncate(path.rfind('/').unwrap_or(0)),
            segment => {
                path.push('/');
                path.push_str(segment);
            }
        }
    }
    if path.is_empty() || raw_path.ends_with('/') {
        path.push('/');
    }
    Cow::Owned(path)
}

/// A raw path (no query) as it is forwarded where the settings want it normalised (RFC 3986 section 6.2.2): `.`, `..`
/// and empty segments resolved, triples of unreserved characters decoded, all others in upper case, and triples for
/// what may not stand in a path. It means the same, and is looked up as the same. Borrowed if it is so already.
///
/// `None` if a `%` begins no triple: what follows might come to be one.
pub fn tidied(raw_path: &str) -> Option<Cow<'_, str>> {
    if !needs_tidying(raw_path.as_bytes()) {
        return Some(Cow::Borrowed(raw_path));
    }
    let mut path = String::with_capacity(raw_path.len() + 8);
    let mut ends_in_slash = true;
    for segment in raw_path.split('/').skip(1) {
        let segment = tidied_segment(segment)?;
        ends_in_slash = matches!(&*segment, "" | "." | "..");
        match &*segment {
            "" | "." => {}
            ".." => path.truncate(path.rfind('/').unwrap_or(0)),
            segment => {
                path.push('/');
                path.push_str(segment);
            }
        }
    }
    if ends_in_slash || path.is_empty() {
        path.push('/');
    }
    Some(Cow::Owned(path))
}

/// Whether some upstream may take a raw path for one above its own root: `/a/../..`, but `/..%2f`, `/..\` and `/..;x` too,
/// which are plain segments to others. Where in doubt it is.
pub fn climbs_out(raw_path: &str) -> bool {
    if !raw_path.contains("..") && !raw_path.contains("%2e") && !raw_path.contains("%2E") {
        return false;
    }
    let mut depth = 0_usize;
    for segment in raw_path.split('/') {
        let decoded = canonical_segment(segment).replace("%2F", "/");
        let parts = decoded.split(['/', '\\']);
        // What servlet containers take for a segment's parameters.
        let mut parts = parts.map(|part| part.split(';').next().unwrap_or_default());
        let climbs = parts.clone().filter(|part| *part == "..").count();
        let Some(left) = depth.checked_sub(climbs) else {
            return true;
        };
        let descends = climbs == 0 && parts.any(|part| !part.is_empty() && part != ".");
        depth = left + usize::from(descends);
    }
    false
}

fn needs_tidying(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        if !may_stand(byte) && byte != b'/' || previous == b'/' && matches!(byte, b'/' | b'.') {
            return true;
        }
        previous = byte;
    }
    path.first() != Some(&b'/')
}

/// A character of a path that means itself (`pchar` without triples, RFC 3986 section 3.3).
fn may_stand(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn tidied_segment(raw: &str) -> Option<String> {
    let bytes = raw.as_bytes();
    let mut tidied = String::with_capacity(raw.len() + 8);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            match decode_triple(&bytes[at + 1..])? {
                decoded if is_unreserved(decoded) => tidied.push(char::from(decoded)),
                decoded => push_triple(&mut tidied, decoded),
            }
            at += 3;
            continue;
        }
        match may_stand(byte) {
            true => tidied.push(char::from(byte)),
            false => push_triple(&mut tidied, byte),
        }
        at += 1;
    }
    Some(tidied)
}

/// One pass: a `%`, a byte that is encoded in the canonical form, `//` or `/.`.
fn needs_work(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        if byte == b'%' || !is_kept(byte) || previous == b'/' && matches!(byte, b'/' | b'.') {
            return true;
        }
        previous = byte;
    }
    path.first() != Some(&b'/')
}

/// Printable ASCII stands for itself.
fn is_kept(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

fn canonical_segment(raw: &str) -> Cow<'_, str> {
    let bytes = raw.as_bytes();
    if bytes.iter().all(|&byte| byte != b'%' && is_kept(byte)) {
        return Cow::Borrowed(raw);
    }
    let mut canonical = String::with_capacity(raw.len() + 8);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let triple = (byte == b'%')
            .then(|| decode_triple(&bytes[at + 1..]))
            .flatten();
        at += if triple.is_some() { 3 } else { 1 };
        match triple {
            Some(decoded) if is_kept(decoded) && !b"/%?#".contains(&decoded) => {
                canonical.push(char::from(decoded));
            }
            Some(decoded) => push_triple(&mut canonical, decoded),
            None if is_kept(byte) => canonical.push(char::from(byte)),
            None => push_triple(&mut canonical, byte),
        }
    }
    Cow::Owned(canonical)
}

fn decode_triple(digits: &[u8]) -> Option<u8> {
    let digit = |index: usize| char::from(*digits.get(index)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn push_triple(text: &mut String, byte: u8) {
    write!(text, "%{byte:02X}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests;
