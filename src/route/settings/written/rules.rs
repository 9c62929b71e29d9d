//! What a request or response is rewritten by, as written.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use crate::route::{
    host,
    settings::{HeaderRules, HostHeader},
    value::BadValue,
};

/// What frames a message or names its host is ours alone: a rule on it could smuggle requests.
pub const RESERVED: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-connection",
];

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenHeaders {
    set: BTreeMap<String, String>,
    add: BTreeMap<String, String>,
    remove: Vec<String>,
}

pub(super) fn host_header(text: String) -> Result<HostHeader, BadValue> {
    match text.as_str() {
        "preserve" => return Ok(HostHeader::Preserve),
        "upstream" => return Ok(HostHeader::Upstream),
        _ => {}
    }
    host::canonical(text.as_bytes())
        .ok()
        .and_then(|_| HeaderValue::from_str(&text).ok())
        .map(HostHeader::Literal)
        .ok_or_else(|| {
            let problem = format!("{text:?} is neither \"preserve\", \"upstream\" nor a host");
            BadValue::field("host_header", problem)
        })
}

pub(super) fn add_prefix(text: String) -> Result<Box<str>, BadValue> {
    let bad = |problem: &str| Err(BadValue::field("add_prefix", format!("{text:?} {problem}")));
    let Some(segments) = text.strip_prefix('/') else {
        return bad("does not start with \"/\"");
    };
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    if !text.bytes().all(|byte| byte.is_ascii_graphic())
        || text.contains(['?', '#', '<', '>', '"', '`', '\\', '^', '{', '|', '}'])
    {
        return bad("has a character that must be percent-encoded in a path");
    }
    if segments.is_empty() {
        return Ok("".into());
    }
    if segments
        .split('/')
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return bad("has an empty, \".\" or \"..\" segment");
    }
    Ok(format!("/{segments}").into())
}

pub(super) fn add_query(text: String) -> Result<Box<str>, BadValue> {
    let bad = |problem: &str| Err(BadValue::field("add_query", format!("{text:?} {problem}")));
    if text.starts_with('?') {
        return bad("starts with \"?\", which is put before it anyway");
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['#', '<', '>', '"']) {
        return bad("has a character that must be percent-encoded in a query");
    }
    Ok(text.into())
}

pub(super) fn header_rules(
    field: &str,
    written: Option<WrittenHeaders>,
) -> Result<HeaderRules, BadValue> {
    let Some(written) = written else {
        return Ok(HeaderRules::default());
    };
    let fields = |rule: &str, fields: BTreeMap<String, String>| {
        let place = format!("{field}.{rule}");
        let mut parsed: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            let name = header_name(&place, &name)?;
            let value = HeaderValue::from_str(&value).map_err(|_| {
                BadValue::field(
                    &place,
                    format_args!("the value of {name} has control characters"),
                )
            })?;
            if parsed.iter().any(|(other, _)| *other == name) {
                return Err(BadValue::field(
                    &place,
                    format_args!("{name} stands there twice"),
                ));
            }
            parsed.push((name, value));
        }
        Ok(parsed)
    };
    Ok(HeaderRules {
        set: fields("set", written.set)?,
        add: fields("add", written.add)?,
        remove: {
            let place = format!("{field}.remove");
            let names = written.remove.iter().map(|name| header_name(&place, name));
            names.collect::<Result<_, _>>()?
        },
    })
}

fn header_name(place: &str, name: &str) -> Result<HeaderName, BadValue> {
    let parsed: HeaderName = name
        .parse()
        .map_err(|_| BadValue::field(place, format_args!("{name:?} is no header name")))?;
    if RESERVED.contains(&parsed.as_str()) {
        return Err(BadValue::field(
            place,
            format_args!("{name} may not be changed by a rule (for Host there is \"host_header\")"),
        ));
    }
    Ok(parsed)
}
