//! What no key shows by itself: routes that nobody serves, keys that another one shadows, hosts that hide a wider one.

use std::collections::{BTreeMap, HashMap};

use crate::{
    cli::plain,
    route::{
        HostPattern, PathPrefix, RouteId,
        entry::{self, Meaning},
        value::{UpstreamOptions, broken_object},
    },
    source::Entry,
    upstream::{Address, tls::UpstreamTls},
};

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// A key, a route or a host.
    pub(super) subject: String,
    /// What is wrong with it.
    pub(super) reason: String,
}

/// The routes that good keys make, as `serve` builds them.
#[derive(Default)]
pub(super) struct Routes<'e> {
    routes: BTreeMap<RouteId, Keys<'e>>,
    /// Keys of upstreams whose value begins like a JSON object and is none.
    broken_objects: Vec<(&'e [u8], serde_json::Error)>,
}

/// The keys of one route, in key order.
#[derive(Default)]
struct Keys<'e> {
    settings: Vec<&'e [u8]>,
    upstreams: Vec<(&'e [u8], Address, UpstreamOptions)>,
}

impl<'e> Routes<'e> {
    /// What these keys say; bad ones say nothing.
    pub(super) fn of(prefix: &str, entries: &'e [Entry]) -> Self {
        let mut routes = Self::default();
        for entry in entries {
            match entry::parse(prefix, &entry.key, &entry.value) {
                Ok(Meaning::Upstream {
                    route,
                    address,
                    options,
                }) => {
                    let keys = routes.routes.entry(route).or_default();
                    keys.upstreams.push((&entry.key, address, options));
                    let broken = broken_object(&entry.value).map(|error| (&*entry.key, error));
                    routes.broken_objects.extend(broken);
                }
                Ok(Meaning::Settings { route, .. }) => {
                    let keys = routes.routes.entry(route).or_default();
                    keys.settings.push(&entry.key);
                }
                Ok(Meaning::Fleet) | Err(_) => {}
            }
        }
        // A directory is read in no order, and the first key in order is the one in force.
        for keys in routes.routes.values_mut() {
            keys.settings.sort_unstable();
            keys.upstreams.sort_unstable_by_key(|(key, ..)| *key);
        }
        routes
    }

    /// What is wrong among them, route by route.
    pub(super) fn problems(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (route, keys) in &self.routes {
            if let Some(reason) = keys.unserved() {
                let subject = route.to_string();
                findings.push(Finding { subject, reason });
            }
            keys.shadowed(&mut findings);
        }
        findings
    }

    /// Hosts that are not asked for some paths of requests that seem to be theirs: right as the contract has it, and
    /// a surprise to many. One finding for each host so hidden.
    pub(super) fn hidden(&self) -> Vec<Finding> {
        let mut hosts: BTreeMap<&HostPattern, Vec<&PathPrefix>> = BTreeMap::new();
        for route in self.routes.keys() {
            hosts.entry(&route.host).or_default().push(&route.prefix);
        }
        let mut hidden: BTreeMap<&HostPattern, (&HostPattern, usize)> = BTreeMap::new();
        for (host, prefixes) in &hosts {
            let wider = wider(host)
                .into_iter()
                .find_map(|wider| hosts.get_key_value(&wider));
            let Some((wider, theirs)) = wider else {
                continue;
            };
            let is_hidden = |path: &&PathPrefix| {
                let is_ours = |ours: &&PathPrefix| ours.covers(path.as_str());
                !prefixes.iter().any(is_ours)
            };
            if theirs.iter().any(is_hidden) {
                hidden.entry(wider).or_insert((host, 0)).1 += 1;
            }
        }
        let finding = |(wider, (host, count)): (&HostPattern, (&HostPattern, usize))| {
            let others = match count {
                1 => String::new(),
                count => format!(" (nor for {} more)", count - 1),
            };
            Finding {
                subject: wider.to_string(),
                reason: format!(
                    "not asked for {host}{others}, which has routes of its own but not for every path: \
                     the others get 404, as the host is chosen before the path"
                ),
            }
        };
        hidden.into_iter().map(finding).collect()
    }

    /// Values that seem to be options, and mean defaults like any other text that is no JSON object.
    pub(super) fn broken_objects(&self) -> Vec<Finding> {
        let finding = |(key, error): &(&[u8], serde_json::Error)| Finding {
            subject: plain(key),
            reason: format!("the value means defaults; was it to be JSON? {error}"),
        };
        self.broken_objects.iter().map(finding).collect()
    }

    /// Keys whose `"tls"` names files that are of no use on this machine.
    pub(super) fn unusable_files(&self) -> Vec<Finding> {
        let tls = UpstreamTls::new();
        let upstreams = self.routes.values().flat_map(|keys| &keys.upstreams);
        let finding = |(key, _, options): &(&[u8], _, UpstreamOptions)| {
            let error = tls.try_files(options.tls.as_deref()?).err()?;
            Some(Finding {
                subject: plain(key),
                reason: format!("no TLS from this machine: {error}"),
            })
        };
        upstreams.filter_map(finding).collect()
    }

    /// The upstreams that get requests, and the keys that name each.
    pub(super) fn in_use(&self) -> BTreeMap<String, (&Address, Vec<&'e [u8]>)> {
        let mut in_use = BTreeMap::new();
        for (key, address, options) in self.routes.values().flat_map(|keys| &keys.upstreams) {
            if options.takes_new_requests() {
                let (_, keys) = in_use
                    .entry(address.to_string())
                    .or_insert((address, Vec::new()));
                keys.push(*key);
            }
        }
        in_use
    }
}

impl Keys<'_> {
    /// Why requests for the route get 503, if they do.
    fn unserved(&self) -> Option<String> {
        if self.upstreams.is_empty() {
            return Some(
                "has settings and no upstream: requests get 503; put an upstream, or delete the settings".to_owned(),
            );
        }
        let is_idle = |(_, _, options): &(_, _, UpstreamOptions)| !options.takes_new_requests();
        self.upstreams.iter().all(is_idle).then(|| {
            "every upstream is drained or has weight 0: requests get 503; give one of them a weight"
                .to_owned()
        })
    }

    /// Keys without effect, because another one in another spelling says the same.
    fn shadowed(&self, findings: &mut Vec<Finding>) {
        let mut shadowed = |key: &[u8], by: &[u8], what: &str| {
            findings.push(Finding {
                subject: plain(key),
                reason: format!(
                    "shadowed by {}, which is {what} in another spelling: delete one of them",
                    plain(by)
                ),
            });
        };
        if let Some((first, others)) = self.settings.split_first() {
            for key in others {
                shadowed(key, first, "the settings of the same route");
            }
        }
        let mut first: HashMap<_, &[u8]> = HashMap::new();
        for (key, address, options) in &self.upstreams {
            let UpstreamOptions {
                tls,
                protocol,
                pool,
                proxy_protocol,
                ..
            } = options;
            let identity = (address, tls, protocol, pool, proxy_protocol);
            match first.get(&identity) {
                Some(by) => shadowed(key, by, "the same upstream of the same route"),
                None => {
                    first.insert(identity, *key);
                }
            }
        }
    }
}

/// The patterns that would be asked if this one were not there, the most specific first.
fn wider(host: &HostPattern) -> Vec<HostPattern> {
    if *host == HostPattern::Any {
        return Vec::new();
    }
    let suffixes = host.text().match_indices('.');
    let wildcards = suffixes.map(|(dot, _)| HostPattern::Wildcard(host.text()[dot + 1..].into()));
    wildcards.chain([HostPattern::Any]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(keys: &[(&str, &str)]) -> Vec<Entry> {
        let entry = |(key, value): &(&str, &str)| Entry {
            key: key.as_bytes().to_vec().into(),
            value: value.as_bytes().to_vec().into(),
            mod_revision: 1,
            lease: 0,
        };
        keys.iter().map(entry).collect()
    }

    fn lines(findings: Vec<Finding>) -> Vec<String> {
        let line = |finding: Finding| format!("{}: {}", finding.subject, finding.reason);
        findings.into_iter().map(line).collect()
    }

    #[test]
    fn routes_that_nobody_serves_are_found() {
        let entries = entries(&[
            ("/hosts/a/@settings", "{}"),
            ("/hosts/a/api/b:80", ""),
            ("/hosts/b/@settings", "{}"),
            ("/hosts/b/c:80", r#"{"drain": true}"#),
            ("/hosts/b/d:80", r#"{"weight": 0}"#),
            ("/hosts/c/@settings", "{}"),
            ("/hosts/c/d:80", r#"{"weight": -1}"#),
            ("/hosts/d/e:80", r#"{"weight": 0}"#),
            ("/hosts/d/f:80", ""),
            ("/hosts/e/x", "rejected, so there is no route"),
        ]);
        let found = lines(Routes::of("/hosts/", &entries).problems());
        let starts: Vec<_> = found.iter().map(|line| &line[..18]).collect();
        assert_eq!(
            starts,
            [
                "a: has settings an",
                "b: every upstream ",
                "c: has settings an"
            ],
            "{found:#?}"
        );
    }

    #[test]
    fn keys_that_say_the_same_in_another_spelling_are_found() {
        let entries = entries(&[
            ("/hosts/a/@settings", "{}"),
            ("/hosts/a/%41/b:80", ""),
            ("/hosts/a/A/b:80", ""),
            ("/hosts/a/B:80", ""),
            ("/hosts/a/b:80", r#"{"tls": true}"#),
            ("/hosts/a/b:80.", "rejected"),
            ("/hosts/a/[::1]:80", ""),
            ("/hosts/A/[0::1]:80", r#"{"weight": 9}"#),
            ("/hosts/a/[0:0::1]:80", r#"{"proxy_protocol": "v1"}"#),
            ("/hosts/A./@settings", "{}"),
        ]);
        let found = lines(Routes::of("/hosts/", &entries).problems());
        let starts = [
            "/hosts/a/@settings: shadowed by /hosts/A./@settings, which is the settings",
            "/hosts/a/[::1]:80: shadowed by /hosts/A/[0::1]:80, which is the same upstream",
            "/hosts/a/A/b:80: shadowed by /hosts/a/%41/b:80,",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (line, start) in found.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
        }
    }

    #[test]
    fn hosts_that_hide_a_wider_one_are_noted() {
        let entries = entries(&[
            ("/hosts/*/z:80", ""),
            ("/hosts/*.example.com/z:80", ""),
            ("/hosts/*.example.com/deep/z:80", ""),
            ("/hosts/a.example.com/api/z:80", ""),
            ("/hosts/b.example.com/z:80", ""),
            ("/hosts/c.b.example.com/api/z:80", ""),
            ("/hosts/*.net/z:80", ""),
            ("/hosts/*.net/api/z:80", ""),
            ("/hosts/a.net/api/z:80", ""),
            ("/hosts/*.org/deep/er/z:80", ""),
            ("/hosts/a.org/deep/z:80", ""),
        ]);
        let found = lines(Routes::of("/hosts/", &entries).hidden());
        let starts = [
            "*.example.com: not asked for a.example.com (nor for 1 more), which",
            "*.net: not asked for a.net, which",
            "*: not asked for *.org, which",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (line, start) in found.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
        }
    }

    #[test]
    fn values_that_seem_to_be_options_and_are_none_are_noted() {
        let entries = entries(&[
            ("/hosts/a/b:80", "{weight: 5}"),
            ("/hosts/a/c:80", r#"{"weight": 5}"#),
            ("/hosts/a/d:80", "up"),
            ("/hosts/b/@settings", "{weight: 5}"),
            ("/hosts/b/x", "{weight: 5}"),
        ]);
        assert_eq!(
            lines(Routes::of("/hosts/", &entries).broken_objects()),
            [
                "/hosts/a/b:80: the value means defaults; was it to be JSON? key must be a string at line 1 column 2"
            ]
        );
    }

    #[test]
    fn an_upstream_in_use_is_named_once_with_all_its_keys() {
        let entries = entries(&[
            ("/hosts/a/10.0.0.1:80", ""),
            ("/hosts/b/10.0.0.1:80", r#"{"weight": 2}"#),
            ("/hosts/c/10.0.0.1:80", r#"{"drain": true}"#),
            ("/hosts/c/10.0.0.2:80", r#"{"drain": true}"#),
        ]);
        let routes = Routes::of("/hosts/", &entries);
        let in_use = routes.in_use();
        let (_, keys) = &in_use["10.0.0.1:80"];
        assert_eq!(
            (in_use.len(), &keys[..]),
            (
                1,
                &[&b"/hosts/a/10.0.0.1:80"[..], b"/hosts/b/10.0.0.1:80"][..]
            )
        );
    }
}
