//! `[HOST[/PATH]]` of the commands that look at many keys: which of them they are about, however those are spelled.

use anyhow::{Context, Result, ensure};

use crate::route::{HostPattern, PathPrefix, RouteId};

/// The keys of every host, of one, or of one path of it and what lies below; never the fleet's own.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    prefix: String,
    route: Option<RouteId>,
}

impl Scope {
    /// What `host_and_path` names below `prefix` (normalised).
    pub(super) fn parse(prefix: &str, host_and_path: Option<&str>) -> Result<Self> {
        let route = host_and_path.map(|text| {
            let (host, path) = text.split_once('/').unwrap_or((text, ""));
            ensure!(
                !host.starts_with('@'),
                "HOST {host:?} is kept for Waypost's own keys"
            );
            let route = || {
                anyhow::Ok(RouteId {
                    host: host.parse()?,
                    prefix: path.trim_end_matches('/').parse()?,
                })
            };
            route().with_context(|| format!("HOST[/PATH] {text:?}"))
        });
        Ok(Self {
            prefix: prefix.to_owned(),
            route: route.transpose()?,
        })
    }

    /// Whether this key, good or bad, is among them.
    pub(super) fn covers(&self, key: &[u8]) -> bool {
        let Some(rest) = key.strip_prefix(self.prefix.as_bytes()) else {
            return false;
        };
        if rest.starts_with(b"@") {
            return false;
        }
        let Some(route) = &self.route else {
            return true;
        };
        let rest = String::from_utf8_lossy(rest);
        let (host, rest) = rest.split_once('/').unwrap_or((&rest, ""));
        if host.parse().ok() != Some(route.host.clone()) {
            return false;
        }
        let path = rest.rsplit_once('/').map_or("", |(path, _)| path);
        route.prefix.is_empty()
            || path
                .parse()
                .is_ok_and(|path: PathPrefix| route.prefix.covers(path.as_str()))
    }

    /// The host that a key belongs to, in one spelling if it is a good one.
    pub(super) fn host_of(&self, key: &[u8]) -> String {
        let rest = key.strip_prefix(self.prefix.as_bytes()).unwrap_or(key);
        let rest = String::from_utf8_lossy(rest);
        let host = rest.split('/').next().unwrap_or_default();
        host.parse()
            .map_or_else(|_| host.to_owned(), |host: HostPattern| host.to_string())
    }

    /// As it was named, for people.
    pub(super) fn name(&self) -> String {
        match &self.route {
            Some(route) => route.to_string(),
            None => format!("the keys below {}", self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_its_keys_in_every_spelling() {
        for (scope, key, expected) in [
            (None, "/hosts/a/b:80", true),
            (None, "/hosts/nonsense", true),
            (None, "/hosts/@waypost/pulse", false),
            (None, "/other/a/b:80", false),
            (Some("A."), "/hosts/a/b:80", true),
            (Some("a"), "/hosts/A./b/c/@settings", true),
            (Some("a"), "/hosts/a/nonsense", true),
            (Some("a"), "/hosts/ab/b:80", false),
            (Some("a"), "/hosts/*.a/b:80", false),
            (Some("*"), "/hosts/a/b:80", false),
            (Some("*"), "/hosts/*/b:80", true),
            (Some("bücher.de"), "/hosts/xn--bcher-kva.de/b:80", true),
            (Some("a/api/"), "/hosts/a/%61pi/b:80", true),
            (Some("a/api"), "/hosts/a/api/v1/b:80", true),
            (Some("a/api"), "/hosts/a/apis/b:80", false),
            (Some("a/api"), "/hosts/a/b:80", false),
        ] {
            let covers = Scope::parse("/hosts/", scope)
                .unwrap()
                .covers(key.as_bytes());
            assert_eq!(covers, expected, "{scope:?} {key}");
        }
        for bad in ["", "/x", "@waypost", "a:80", "a/b//c", "a b"] {
            let error = Scope::parse("/hosts/", Some(bad)).expect_err(bad);
            assert!(format!("{error:#}").contains("HOST"), "{error:#}");
        }
    }
}
