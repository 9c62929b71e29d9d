//! How an access log line looks. Rendered into a buffer that each thread reuses: no allocation per line.

use std::{
    cell::RefCell,
    io::Write,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Version};
use serde::{Serialize, Serializer};

use super::Record;
use crate::config::AccessLogFormat;

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Renders a line, newline included, and shows it to `sink`.
pub(super) fn with_rendered(
    format: AccessLogFormat,
    record: &Record<'_>,
    sink: impl FnOnce(&[u8]),
) {
    LINE.with_borrow_mut(|line| {
        line.clear();
        match format {
            AccessLogFormat::Json => json(line, record),
            AccessLogFormat::Combined => combined(line, record),
        }
        line.push(b'\n');
        sink(line);
    });
}

/// The JSON line; the order of the fields is the order in the line.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(serialize_with = "timestamp")]
    time: SystemTime,
    #[serde(serialize_with = "display")]
    client: SocketAddr,
    forwarded_for: Option<IpAddr>,
    method: &'a str,
    host: &'a str,
    target: &'a str,
    version: &'static str,
    status: u16,
    reason: Option<&'static str>,
    route: Option<&'a str>,
    upstream: Option<&'a str>,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(serialize_with = "milliseconds")]
    duration_ms: Option<Duration>,
    #[serde(serialize_with = "milliseconds")]
    connect_ms: Option<Duration>,
    #[serde(serialize_with = "milliseconds")]
    first_byte_ms: Option<Duration>,
    retries: u32,
    revision: i64,
    tls: bool,
    #[serde(serialize_with = "header")]
    referer: Option<&'a HeaderValue>,
    #[serde(serialize_with = "header")]
    user_agent: Option<&'a HeaderValue>,
}

fn json(line: &mut Vec<u8>, record: &Record<'_>) {
    let json = Json {
        time: record.time,
        client: record.client,
        forwarded_for: record.forwarded_for,
        method: record.method.as_str(),
        host: record.host,
        target: record.target,
        version: version(record.version),
        status: record.status,
        reason: record.reason,
        route: record.route,
        upstream: record.upstream,
        request_bytes: record.request_bytes,
        response_bytes: record.response_bytes,
        duration_ms: Some(record.total),
        connect_ms: record.connect,
        first_byte_ms: record.first_byte,
        retries: record.retries,
        revision: record.revision,
        tls: record.tls,
        referer: record.referer,
        user_agent: record.user_agent,
    };
    serde_json::to_writer(line, &json).expect("a Vec takes every byte, and no field can fail");
}

fn timestamp<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&rfc3339(*time))
}

fn display<S: Serializer>(value: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn milliseconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        // Whole microseconds are exact in a double, so three decimals come out.
        Some(duration) => serializer.serialize_f64(duration.as_micros() as f64 / 1000.0),
        None => serializer.serialize_none(),
    }
}

/// Header values are bytes: UTF-8 where they are, else Latin-1, as HTTP once had it.
fn header<S: Serializer>(value: &Option<&HeaderValue>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(value) = value else {
        return serializer.serialize_none();
    };
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => {
            let text: String = value.as_bytes().iter().copied().map(char::from).collect();
            serializer.serialize_str(&text)
        }
    }
}

/// `client - - [time] "METHOD target version" status bytes "referer" "user agent"`
fn combined(line: &mut Vec<u8>, record: &Record<'_>) {
    let client = record.forwarded_for.unwrap_or_else(|| record.client.ip());
    let _ = write!(line, "{client} - - [");
    clf_time(line, record.time);
    line.extend_from_slice(b"] \"");
    escape(line, record.method.as_str().as_bytes());
    line.push(b' ');
    escape(line, record.target.as_bytes());
    line.push(b' ');
    line.extend_from_slice(version(record.version).as_bytes());
    line.extend_from_slice(b"\" ");
    line.extend_from_slice(itoa::Buffer::new().format(record.status).as_bytes());
    line.push(b' ');
    line.extend_from_slice(itoa::Buffer::new().format(record.response_bytes).as_bytes());
    for value in [record.referer, record.user_agent] {
        line.extend_from_slice(b" \"");
        escape(line, value.map_or(b"-", HeaderValue::as_bytes));
        line.push(b'"');
    }
}

/// As nginx does: what could end the field, the line or the terminal's patience becomes `\xHH`.
fn escape(line: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\' {
            line.push(byte);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            line.extend_from_slice(&[b'\\', b'x', HEX[high], HEX[low]]);
        }
    }
}

/// `10/Oct/2000:13:55:36 +0000`, made from `2000-10-10T13:55:36.000Z`.
fn clf_time(line: &mut Vec<u8>, time: SystemTime) {
    const MONTHS: [&[u8]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    let mut text = [b'0'; 24];
    let _ = write!(&mut text[..], "{}", rfc3339(time));
    let month = usize::from(text[5] - b'0') * 10 + usize::from(text[6] - b'0');
    line.extend_from_slice(&text[8..10]);
    line.push(b'/');
    line.extend_from_slice(MONTHS[month.clamp(1, 12) - 1]);
    line.push(b'/');
    line.extend_from_slice(&text[..4]);
    line.push(b':');
    line.extend_from_slice(&text[11..19]);
    line.extend_from_slice(b" +0000");
}

/// A clock before 1970, which `humantime` would panic on, shows as 1970.
fn rfc3339(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(time.max(SystemTime::UNIX_EPOCH))
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn record<'a>(referer: &'a HeaderValue, user_agent: &'a HeaderValue) -> Record<'a> {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(971_186_136_042),
            client: "[2001:db8::1]:4711".parse().unwrap(),
            forwarded_for: Some("192.0.2.9".parse().unwrap()),
            method: &Method::POST,
            host: "blog.example.com",
            target: "/a?b=\"c\"",
            version: Version::HTTP_2,
            referer: Some(referer),
            user_agent: Some(user_agent),
            status: 502,
            reason: Some("connection_refused"),
            route: Some("blog.example.com/a"),
            upstream: None,
            request_bytes: 7,
            response_bytes: 31,
            total: Duration::from_micros(12_345),
            connect: None,
            first_byte: Some(Duration::from_millis(3)),
            retries: 1,
            revision: 42,
            tls: true,
        }
    }

    fn rendered(format: AccessLogFormat, record: &Record<'_>) -> String {
        let mut text = String::new();
        with_rendered(format, record, |line| {
            text = String::from_utf8(line.to_vec()).unwrap();
        });
        text
    }

    #[test]
    fn a_json_line_has_every_field() {
        let referer = HeaderValue::from_bytes(b"http://x/\"\\\t").unwrap();
        let agent = HeaderValue::from_bytes(b"caf\xe9").unwrap();
        let text = rendered(AccessLogFormat::Json, &record(&referer, &agent));
        let expected = concat!(
            r#"{"time":"2000-10-10T13:55:36.042Z","client":"[2001:db8::1]:4711","forwarded_for":"192.0.2.9","#,
            r#""method":"POST","#,
            r#""host":"blog.example.com","target":"/a?b=\"c\"","version":"HTTP/2.0","status":502,"#,
            r#""reason":"connection_refused","route":"blog.example.com/a","upstream":null,"#,
            r#""request_bytes":7,"response_bytes":31,"duration_ms":12.345,"connect_ms":null,"#,
            r#""first_byte_ms":3.0,"retries":1,"revision":42,"tls":true,"#,
            r#""referer":"http://x/\"\\\t","user_agent":"café"}"#,
            "\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_combined_line_cannot_be_broken_out_of() {
        let referer = HeaderValue::from_bytes(b"http://x/\" 200 \\").unwrap();
        let agent = HeaderValue::from_bytes(b"a\tb\xff").unwrap();
        let text = rendered(AccessLogFormat::Combined, &record(&referer, &agent));
        let expected = concat!(
            r#"192.0.2.9 - - [10/Oct/2000:13:55:36 +0000] "POST /a?b=\x22c\x22 HTTP/2.0" 502 31 "#,
            r#""http://x/\x22 200 \x5C" "a\x09b\xFF""#,
            "\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn absent_headers_are_a_dash_and_an_early_clock_does_no_harm() {
        let value = HeaderValue::from_static("");
        let record = Record {
            time: SystemTime::UNIX_EPOCH - Duration::from_secs(1),
            forwarded_for: None,
            referer: None,
            user_agent: None,
            ..record(&value, &value)
        };
        let text = rendered(AccessLogFormat::Combined, &record);
        assert!(
            text.starts_with("2001:db8::1 - - [01/Jan/1970:00:00:00 +0000]"),
            "{text}"
        );
        assert!(text.ends_with("\"-\" \"-\"\n"), "{text}");
        rendered(AccessLogFormat::Json, &record);
    }
}
