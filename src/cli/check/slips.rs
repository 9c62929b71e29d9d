//! What good values say without effect, or with one that may surprise: notes, as `serve` takes them all.

use serde_json::Value;

use super::findings::Finding;
use crate::{
    cli::plain,
    route::entry::{self, Meaning},
    source::Entry,
};

/// What seems not to be meant, key by key.
pub(super) fn slips(prefix: &str, entries: &[Entry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in entries {
        let Ok(value) = serde_json::from_slice::<Value>(&entry.value) else {
            continue;
        };
        let reasons = match entry::parse(prefix, &entry.key, &entry.value) {
            Ok(Meaning::Upstream { .. }) => of_upstream(&value),
            Ok(Meaning::Settings { settings, .. }) => {
                let health = settings.health.as_deref();
                let is_late = health.is_some_and(|health| health.timeout > health.interval);
                of_settings(&value, is_late)
            }
            Ok(Meaning::Fleet) | Err(_) => continue,
        };
        findings.extend(reasons.into_iter().map(|reason| Finding {
            subject: plain(&entry.key),
            reason,
        }));
    }
    findings
}

fn of_upstream(value: &Value) -> Vec<String> {
    let mut reasons = Vec::new();
    for field in ["ca", "cert", "key"] {
        let path = value["tls"][field].as_str();
        if let Some(path) = path.filter(|path| !path.starts_with('/')) {
            reasons.push(format!(
                "tls.{field}: {path:?} is looked for where each instance was started; write the path from / on"
            ));
        }
    }
    reasons
}

fn of_settings(value: &Value, is_late: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut note = |is_so: bool, reason: &str| {
        if is_so {
            reasons.push(reason.to_owned());
        }
    };
    let outlier = &value["outlier"];
    let percent = outlier["failure_percent"].as_u64();
    note(
        !outlier["min_requests"].is_null() && percent.unwrap_or(0) == 0,
        "outlier.min_requests is for \"failure_percent\", which is not set",
    );
    let balance = value["balance"].as_str();
    note(
        !value["hash_on"].is_null() && balance != Some("hash"),
        "hash_on is for \"balance\": \"hash\", which is not set here (--balance hash would do)",
    );
    note(
        is_late,
        "health.timeout is longer than the interval: an upstream that hangs is checked less often",
    );
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_effect_or_a_surprising_one_is_noted() {
        for (key, value, expected) in [
            ("a/b:80", "", &[][..]),
            ("a/b:80", "5", &[]),
            ("a/b:80", r#"{"hash_on": "path"}"#, &[]),
            ("a/b:80", r#"{"tls": {"ca": "/ca.pem"}}"#, &[]),
            (
                "a/b:80",
                r#"{"tls": {"ca": "ca.pem", "cert": "/us.pem", "key": "us.key"}}"#,
                &["tls.ca: \"ca.pem\"", "tls.key: \"us.key\""],
            ),
            (
                "a/@settings",
                r#"{"balance": "hash", "hash_on": "path"}"#,
                &[],
            ),
            ("a/@settings", r#"{"hash_on": "path"}"#, &["hash_on is for"]),
            (
                "a/@settings",
                r#"{"balance": "random", "hash_on": "path"}"#,
                &["hash_on is for"],
            ),
            (
                "a/@settings",
                r#"{"outlier": {"failure_percent": 30, "min_requests": 5}}"#,
                &[],
            ),
            (
                "a/@settings",
                r#"{"outlier": {"failure_percent": 0, "min_requests": 5}}"#,
                &["outlier.min_requests is for"],
            ),
            ("a/@settings", r#"{"health": {"timeout": "5s"}}"#, &[]),
            (
                "a/@settings",
                r#"{"health": {"timeout": "6s"}}"#,
                &["health.timeout is longer"],
            ),
            ("a/@settings", r#"{"hash_on": "rejected"}"#, &[]),
        ] {
            let entry = Entry {
                key: format!("/hosts/{key}").into(),
                value: value.to_owned().into(),
                mod_revision: 1,
                lease: 0,
            };
            let found = slips("/hosts/", &[entry]);
            assert_eq!(found.len(), expected.len(), "{value}: {found:?}");
            for (finding, start) in found.iter().zip(expected) {
                assert!(finding.reason.starts_with(start), "{value}: {finding:?}");
                assert_eq!(finding.subject, format!("/hosts/{key}"));
            }
        }
    }
}
