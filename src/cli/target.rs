//! `HOST[/PATH] UPSTREAM` of the commands that change keys: checked with the parser of `serve`, written in one
//! spelling.

use anyhow::{Context, Result, bail, ensure};

use crate::route::{
    Settings,
    key::{self, Key},
    value::UpstreamOptions,
};

/// What `UPSTREAM` may be besides an upstream.
const SETTINGS: &str = "@settings";

/// A key that is valid below its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// In the spelling that we write: host as lower-case A-labels, percent triples only where needed.
    pub(super) key: String,
    /// As it was typed; `etcdctl` may have stored it like that.
    pub(super) typed: String,
    pub(super) is_settings: bool,
}

impl Target {
    /// What `host_and_path` and `upstream` name below `prefix` (normalised).
    pub(super) fn parse(prefix: &str, host_and_path: &str, upstream: &str) -> Result<Self> {
        let typed = typed(prefix, host_and_path, upstream)?;
        let route = host_and_path.trim_end_matches('/');
        ensure!(
            upstream.contains(':') || upstream.starts_with('@') || upstream.is_empty(),
            "UPSTREAM {upstream:?} is no upstream: its port is missing, as in {upstream}:80"
        );
        let parsed =
            key::parse(prefix, typed.as_bytes()).with_context(|| format!("{route} {upstream}"))?;
        let (key, is_settings) = match parsed {
            Key::Upstream { route, address } => (format!("{prefix}{route}/{address}"), false),
            Key::Settings { route } => (format!("{prefix}{route}/{SETTINGS}"), true),
            Key::Fleet => bail!("HOST {route:?} is kept for Waypost's own keys"),
        };
        Ok(Self {
            key,
            typed,
            is_settings,
        })
    }

    /// Whether `serve` would take this value for this key; an absent one means the defaults.
    pub(super) fn check_value(&self, json: Option<&str>) -> Result<()> {
        let Some(json) = json else {
            ensure!(
                !self.is_settings,
                "{SETTINGS} needs its JSON, such as '{{\"balance\": \"random\"}}'"
            );
            return Ok(());
        };
        // `serve` takes any other text for "defaults"; typed here, it is a slip.
        if let Err(error) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json)
        {
            bail!("JSON {json}: not a JSON object such as '{{\"weight\": 5}}': {error}");
        }
        let verdict = if self.is_settings {
            Settings::parse(json.as_bytes()).err()
        } else {
            UpstreamOptions::parse(json.as_bytes()).err()
        };
        match verdict {
            Some(error) => bail!("JSON {json}: {error}"),
            None => Ok(()),
        }
    }
}

/// The key as it was typed, be it valid or not.
///
/// # Errors
///
/// Where it would be one of the fleet's own keys, or another one than it looks like.
pub(super) fn typed(prefix: &str, host_and_path: &str, upstream: &str) -> Result<String> {
    let route = host_and_path.trim_end_matches('/');
    ensure!(
        !route.is_empty(),
        "HOST is empty: name a host such as blog.example.com, or *"
    );
    ensure!(
        !route.starts_with('@'),
        "HOST {route:?} starts with \"@\", which is kept for Waypost's own keys"
    );
    if let Some((scheme, rest)) = route.split_once("://") {
        bail!("HOST {route:?} has a scheme, which no key has: leave out {scheme}://, as in {rest}");
    }
    ensure!(
        !route.starts_with('/'),
        "HOST {route:?} begins with a slash: the host comes first, as in blog.example.com{route}"
    );
    // Else `a b/c:80` would silently be taken for `a/b c:80`.
    ensure!(
        !upstream.contains('/'),
        "UPSTREAM {upstream:?} has a slash: a path goes behind the host, HOST/PATH; of a socket write unix:%2Frun%2Fapp.sock"
    );
    Ok(format!("{prefix}{route}/{upstream}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_keys_in_one_spelling() {
        for (host, upstream, key) in [
            (
                "blog.example.com",
                "10.0.0.7:4000",
                "/hosts/blog.example.com/10.0.0.7:4000",
            ),
            (
                "Blog.Example.com./api/",
                "app:80",
                "/hosts/blog.example.com/api/app:80",
            ),
            (
                "bücher.example",
                "[::1]:80",
                "/hosts/xn--bcher-kva.example/[::1]:80",
            ),
            ("*", "@settings", "/hosts/*/@settings"),
            ("a", "unix:%2Frun%2Fa.sock", "/hosts/a/unix:%2Frun%2Fa.sock"),
        ] {
            assert_eq!(Target::parse("/hosts/", host, upstream).unwrap().key, key);
        }
    }

    #[test]
    fn slips_are_refused_with_a_reason() {
        for (host, upstream, json, reason) in [
            ("", "a:80", None, "HOST is empty"),
            ("@waypost", "a:80", None, "Waypost's own"),
            ("a", "b/c:80", None, "behind the host"),
            (
                "a",
                "b",
                None,
                "no upstream: its port is missing, as in b:80",
            ),
            ("a", "127.0.0.1", None, "as in 127.0.0.1:80"),
            ("a", "", None, "empty segment"),
            (
                "http://a.test",
                "b:80",
                None,
                "leave out http://, as in a.test",
            ),
            ("/blog", "b:80", None, "begins with a slash"),
            ("a", "b:99999", None, "port"),
            ("a", "@setings", None, "@settings"),
            ("a//b", "c:80", None, "empty segment"),
            ("a", "b:80", Some("{weight: 5}"), "not a JSON object"),
            ("a", "b:80", Some("5"), "not a JSON object"),
            ("a", "b:80", Some(r#"{"weight": -1}"#), "weight"),
            ("a", "b:80", Some(r#"{"wait": 1}"#), "wait"),
            ("a", "b:80", Some(r#"{"balance": "random"}"#), "balance"),
            ("a", "@settings", None, "needs its JSON"),
            ("a", "@settings", Some(r#"{"weight": 5}"#), "weight"),
        ] {
            let error = Target::parse("/hosts/", host, upstream)
                .and_then(|target| target.check_value(json))
                .unwrap_err();
            let error = format!("{error:#}");
            assert!(
                error.contains(reason),
                "{host} {upstream} {json:?}: {error}"
            );
        }
    }
}
