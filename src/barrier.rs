//! Barriers: what a command that waits writes beside its change, what the publisher meets behind that change, and
//! what every instance then answers.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{route::Revision, source::Entry};

/// Where below the prefix barriers stand: in the watched range, because their order against the routes matters.
const FOLDER: &str = "@waypost/barriers/";

/// The longest id and the longest question that are taken; ours are far shorter.
const LONGEST_ID: usize = 64;
const LONGEST_QUESTION: usize = 16 * 1024;

/// What a barrier asks of every instance, as JSON in its value. Fields of later versions are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The key that was changed with it; `None` asks only for its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Arc<str>>,
    /// Whether requests sent on behalf of the key are to be over.
    #[serde(default)]
    pub drain: bool,
}

/// A barrier that stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBarrier {
    /// Which one.
    pub id: Arc<str>,
    /// The lease it is bound to, and every answer to it.
    pub lease: i64,
    /// The revision that it came with: all up to here is applied.
    pub revision: Revision,
    /// What it asks, or why that can't be read.
    pub question: Result<Question, String>,
    /// Why what it asks about is not in force as etcd has it: then nothing is waited for.
    pub rejection: Option<String>,
}

/// The key of a barrier.
pub fn key(prefix: &str, id: &str) -> String {
    format!("{prefix}{FOLDER}{id}")
}

/// What all keys of barriers begin with.
pub fn folder(prefix: &str) -> String {
    format!("{prefix}{FOLDER}")
}

/// The id in the key of a barrier; `None` for every other key.
pub fn id<'k>(prefix: &str, key: &'k [u8]) -> Option<&'k str> {
    let rest = key.strip_prefix(prefix.as_bytes())?;
    let id = std::str::from_utf8(rest.strip_prefix(FOLDER.as_bytes())?).ok()?;
    let is_id = !id.is_empty() && id.len() <= LONGEST_ID && !id.contains('/');
    is_id.then_some(id)
}

/// The barrier of this key and value; `None` for every other key.
pub fn parse(prefix: &str, entry: &Entry) -> Option<OpenBarrier> {
    Some(OpenBarrier {
        id: id(prefix, &entry.key)?.into(),
        lease: entry.lease,
        revision: entry.mod_revision,
        question: question(&entry.value),
        rejection: None,
    })
}

fn question(value: &Bytes) -> Result<Question, String> {
    if value.len() > LONGEST_QUESTION {
        return Err(format!("it is {} bytes long", value.len()));
    }
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mod_revision: 7,
            lease: 42,
        }
    }

    #[test]
    fn a_question_comes_back_as_it_was_written() {
        for question in [
            Question::default(),
            Question {
                key: Some("/hosts/a/b:80".into()),
                drain: true,
            },
        ] {
            let value = serde_json::to_string(&question).unwrap();
            let barrier = parse("/hosts/", &entry(&key("/hosts/", "0a"), &value)).unwrap();
            assert_eq!(
                (&*barrier.id, barrier.lease, barrier.revision),
                ("0a", 42, 7)
            );
            assert_eq!(barrier.question, Ok(question));
        }
        let later = entry(&key("/", "1"), r#"{"drain": true, "of": "tomorrow"}"#);
        assert!(parse("/", &later).unwrap().question.unwrap().drain);
    }

    #[test]
    fn what_is_no_barrier_is_none_and_a_bad_question_says_why() {
        for key in [
            "/hosts/@waypost/pulse",
            "/hosts/@waypost/barriers/",
            "/hosts/@waypost/barriers/a/b",
            "/hosts/a/b:80",
            "/other/@waypost/barriers/a",
            &format!("/hosts/@waypost/barriers/{}", "a".repeat(65)),
        ] {
            assert_eq!(parse("/hosts/", &entry(key, "{}")), None, "{key}");
        }
        let not_utf8 = b"/hosts/@waypost/barriers/\xff";
        assert_eq!(id("/hosts/", not_utf8), None);
        for (value, reason) in [
            ("", "EOF"),
            (r#"{"drain": 5}"#, "boolean"),
            ("[[", "expected a string"),
        ] {
            let barrier = parse("/hosts/", &entry("/hosts/@waypost/barriers/a", value)).unwrap();
            let error = barrier.question.unwrap_err();
            assert!(error.contains(reason), "{value}: {error}");
        }
        let huge = " ".repeat(LONGEST_QUESTION + 1);
        let barrier = parse("/hosts/", &entry("/hosts/@waypost/barriers/a", &huge));
        assert!(barrier.unwrap().question.is_err());
    }
}
