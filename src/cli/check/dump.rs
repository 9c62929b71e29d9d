//! What `etcdctl get --prefix` prints: a key and its value on lines of their own, or JSON with both in base64.

use anyhow::{Context, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;

use crate::source::Entry;

/// The keys of a dump.
///
/// # Errors
/// Names the line, or the key of the JSON, that is not as etcdctl writes it.
pub(super) fn parse(text: &[u8], prefix: &str) -> anyhow::Result<Vec<Entry>> {
    match text.trim_ascii_start().first() {
        Some(b'{') => json(text),
        _ => lines(text, prefix),
    }
}

/// A line that starts with the prefix is a key; what follows up to the next one is its value. A tab may stand
/// between the two instead of the end of the line.
fn lines(text: &[u8], prefix: &str) -> anyhow::Result<Vec<Entry>> {
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        if line.starts_with(prefix.as_bytes()) {
            let mut parts = line.splitn(2, |&byte| byte == b'\t');
            let key = parts.next().unwrap_or_default().to_vec();
            entries.push((key, parts.next().unwrap_or_default().to_vec()));
        } else if let Some((_, value)) = entries.last_mut() {
            if !value.is_empty() {
                value.push(b'\n');
            }
            value.extend_from_slice(line);
        } else {
            ensure!(
                line.trim_ascii().is_empty(),
                "line {}: {:?} is no key below {prefix}; is the --prefix right?",
                index + 1,
                String::from_utf8_lossy(line)
            );
        }
    }
    let entries = entries.into_iter();
    Ok(entries
        .map(|(key, value)| Entry {
            key: key.into(),
            value: value.trim_ascii_end().to_vec().into(),
            mod_revision: 0,
            lease: 0,
        })
        .collect())
}

#[derive(Deserialize)]
struct Dump {
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    more: bool,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    mod_revision: i64,
    #[serde(default)]
    lease: i64,
}

fn json(text: &[u8]) -> anyhow::Result<Vec<Entry>> {
    let dump: Dump =
        serde_json::from_slice(text).context("not what `etcdctl get --prefix -w json` prints")?;
    if dump.more {
        bail!("the dump is cut short (\"more\" is true): leave --limit off");
    }
    let decode = |text: &str, what: &str| {
        BASE64_STANDARD
            .decode(text)
            .with_context(|| format!("{what} {text:?} is not base64"))
    };
    let entries = dump.kvs.into_iter().map(|entry| {
        Ok(Entry {
            key: decode(&entry.key, "key")?.into(),
            value: decode(&entry.value, "value")?.into(),
            mod_revision: entry.mod_revision,
            lease: entry.lease,
        })
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_etcdctl_are_read() {
        let plain = "/hosts/a/b:80\n{\"weight\": 5}\n/hosts/a/c:80\n\n/hosts/a/d:80\ntwo\nlines\n";
        let tabbed = "\n/hosts/a/b:80\t{\"weight\": 5}\n/hosts/a/c:80\n/hosts/a/d:80\ttwo\nlines";
        let json = r#"{"header":{"revision":7},"kvs":[
            {"key":"L2hvc3RzL2EvYjo4MA==","create_revision":2,"mod_revision":3,"version":1,"value":"eyJ3ZWlnaHQiOiA1fQ=="},
            {"key":"L2hvc3RzL2EvYzo4MA==","mod_revision":4,"lease":9},
            {"key":"L2hvc3RzL2EvZDo4MA==","mod_revision":5,"value":"dHdvCmxpbmVz"}],"count":3}"#;
        for dump in [plain, tabbed, json] {
            let entries = parse(dump.as_bytes(), "/hosts/").expect(dump);
            let texts: Vec<_> = entries
                .iter()
                .map(|entry| (entry.key.escape_ascii().to_string(), entry.value.to_vec()))
                .collect();
            let expected = [
                ("/hosts/a/b:80".to_owned(), b"{\"weight\": 5}".to_vec()),
                ("/hosts/a/c:80".to_owned(), Vec::new()),
                ("/hosts/a/d:80".to_owned(), b"two\nlines".to_vec()),
            ];
            assert_eq!(texts, expected, "{dump}");
        }
    }

    #[test]
    fn what_etcdctl_did_not_write_is_told() {
        for (dump, expected) in [
            (
                "\n/other/a/b:80\n\n",
                "line 2: \"/other/a/b:80\" is no key below /hosts/",
            ),
            ("{\"kvs\": 5}", "not what `etcdctl get"),
            (r#"{"kvs": [{"key": "?"}]}"#, "\"?\" is not base64"),
            (r#"{"kvs": [], "more": true}"#, "cut short"),
        ] {
            let error = format!("{:#}", parse(dump.as_bytes(), "/hosts/").expect_err(dump));
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse(b"", "/hosts/").expect("nothing is fine").is_empty());
        assert!(parse(b"{}", "/hosts/").expect("nothing is fine").is_empty());
    }
}
