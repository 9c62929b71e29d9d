//! What an upstream is asked for: path and query of a request, as the settings of its route change them.

use std::borrow::Cow;

use super::{
    Route,
    path::{climbs_out, tidied},
    settings::NormalizePath,
};

/// A path and a query in the pieces they are written in, so that nothing is joined before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTarget<'r> {
    /// `add_prefix`.
    added: &'r str,
    /// The path, or what stripping left of it.
    rest: Cow<'r, str>,
    /// `add_query`.
    added_query: &'r str,
    /// `?` and the query of the request, if there is one.
    query: &'r str,
}

/// Why a path cannot be changed as the settings want it: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// `strip_prefix`, of `//api/x`.
    #[error("the path is spelled so that its prefix cannot be stripped without changing the rest")]
    Prefix,
    /// `"normalize_path": "forward"`, of `/%zz`.
    #[error("the path has a % that begins no triple of hex digits, so it cannot be normalised")]
    Percent,
    /// `add_prefix`, before `/../x`.
    #[error("the path's \"..\" would lead out of the prefix that is put before it")]
    Climbs,
}

impl UpstreamTarget<'_> {
    /// To be written one after the other.
    pub fn pieces(&self) -> [&str; 6] {
        let (added, rest) = (self.added, &*self.rest);
        match (self.added_query, self.query) {
            ("", query) => [added, rest, query, "", "", ""],
            (static_query, "" | "?") => [added, rest, "?", static_query, "", ""],
            (static_query, query) => [added, rest, "?", static_query, "&", &query[1..]],
        }
    }
}

impl Route {
    /// What a raw path is asked for as upstream: normalise, strip, then add. `query` starts with `?`, or is empty.
    ///
    /// # Errors
    /// Of a path whose spelling forbids one of these.
    pub fn upstream_target<'r>(
        &'r self,
        raw_path: &'r str,
        query: &'r str,
    ) -> Result<UpstreamTarget<'r>, BadPath> {
        let settings = &*self.settings;
        // The server as a whole (RFC 9110 section 9.3.7): there is no path to change.
        if raw_path == "*" {
            return Ok(UpstreamTarget {
                added: "",
                rest: Cow::Borrowed(raw_path),
                added_query: "",
                query,
            });
        }
        let path = match settings.normalize_path {
            NormalizePath::Forward => tidied(raw_path).ok_or(BadPath::Percent)?,
            NormalizePath::LookUp | NormalizePath::Off => Cow::Borrowed(raw_path),
        };
        let rest = match (settings.strip_prefix, path) {
            (false, path) => path,
            (true, Cow::Borrowed(path)) => {
                Cow::Borrowed(self.prefix.strip(path).ok_or(BadPath::Prefix)?)
            }
            (true, Cow::Owned(path)) => {
                Cow::Owned(self.prefix.strip(&path).ok_or(BadPath::Prefix)?.to_owned())
            }
        };
        let added = &*settings.add_prefix;
        // An upstream resolves it with the prefix, which then bounds nothing.
        if !added.is_empty() && climbs_out(&rest) {
            return Err(BadPath::Climbs);
        }
        Ok(UpstreamTarget {
            added,
            rest: match (added, &*rest) {
                ("", "") => Cow::Borrowed("/"),
                _ => rest,
            },
            added_query: &settings.add_query,
            query,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        route::{Settings, testing},
        telemetry::metrics::Metrics,
    };

    fn target(settings: &Settings, path: &str, query: &str) -> Result<String, BadPath> {
        let route = Route {
            settings: settings.clone().into(),
            ..testing::of("a.test/api", Box::default(), &Metrics::new())
        };
        let target = route.upstream_target(path, query);
        target.map(|target| target.pieces().concat())
    }

    #[test]
    fn queries_are_joined_by_one_mark() {
        for (added, query, expected) in [
            ("", "", "/api"),
            ("", "?", "/api?"),
            ("", "?x", "/api?x"),
            ("k=v", "", "/api?k=v"),
            ("k=v", "?", "/api?k=v"),
            ("k=v", "?x=1", "/api?k=v&x=1"),
            ("k=v&l", "?&", "/api?k=v&l&&"),
            ("k", "??", "/api?k&?"),
        ] {
            let settings = Settings {
                add_query: added.into(),
                ..Settings::default()
            };
            let joined = target(&settings, "/api", query);
            assert_eq!(joined.as_deref(), Ok(expected), "{added} and {query}");
            assert_eq!(target(&settings, "*", "").as_deref(), Ok("*"));
        }
    }

    #[test]
    fn paths_are_normalised_then_stripped_then_added_to() {
        use NormalizePath::{Forward, LookUp};
        for (normalize_path, strip_prefix, added, path, expected) in [
            (LookUp, false, "", "/x/..//%61pi", Ok("/x/..//%61pi")),
            (Forward, false, "", "/x/..//%61pi", Ok("/api")),
            (Forward, false, "", "/api/%zz", Err(BadPath::Percent)),
            (LookUp, true, "", "/%61pi/%zz", Ok("/%zz")),
            (LookUp, true, "", "//api/x", Err(BadPath::Prefix)),
            (Forward, true, "", "//api/x", Ok("/x")),
            (Forward, true, "", "/x/../api/.", Ok("/")),
            (
                Forward,
                true,
                "/base",
                "/x/../api/./%2e%2e/api//y",
                Ok("/base/y"),
            ),
            (Forward, true, "/base", "/api", Ok("/base")),
            (Forward, true, "", "/./api", Ok("/")),
            (LookUp, true, "/base", "/api/x/../y", Ok("/base/x/../y")),
            (LookUp, true, "/base", "/api/../api/y", Err(BadPath::Climbs)),
            (LookUp, false, "/base", "/../api", Err(BadPath::Climbs)),
            (LookUp, false, "", "/../api", Ok("/../api")),
            (Forward, false, "/base", "/../api", Ok("/base/api")),
            (Forward, false, "/base", "/..%2fapi", Err(BadPath::Climbs)),
            (Forward, true, "/base", "*", Ok("*")),
        ] {
            let settings = Settings {
                normalize_path,
                strip_prefix,
                add_prefix: added.into(),
                ..Settings::default()
            };
            let found = target(&settings, path, "");
            assert_eq!(
                found.as_deref(),
                expected.as_ref().copied(),
                "{path} {settings:?}"
            );
        }
    }
}
