//! Which certificate answers which name: exact names first, then wildcards of one label, then the listener's own.

use std::{collections::HashMap, sync::Arc};

use rustls::sign::CertifiedKey;

use super::certificate::Certificate;

/// The certificates of one listener, by the names they vouch for. Immutable; a reload makes a new one.
#[derive(Debug, Default)]
pub struct Choice {
    /// The listener's own, for clients that ask for no name or for one that nothing else fits.
    pub default: Option<Arc<Certificate>>,
    /// Those of the directory, in the order of their file names.
    pub named: Vec<Arc<Certificate>>,
    exact: HashMap<Box<str>, Arc<Certificate>>,
    /// `*.example.com` under `example.com`.
    wildcard: HashMap<Box<str>, Arc<Certificate>>,
}

impl Choice {
    /// Indexes the certificates. When several vouch for one name, the one that is valid longest answers (it is
    /// most likely the renewed one), and of equals the first.
    pub fn new(default: Option<Arc<Certificate>>, named: Vec<Arc<Certificate>>) -> Self {
        let mut choice = Self {
            default,
            ..Self::default()
        };
        for certificate in &named {
            for name in &certificate.names {
                let (index, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut choice.wildcard, parent),
                    None => (&mut choice.exact, &**name),
                };
                // Partial wildcards (`w*.example.com`) and ones in the middle vouch for nothing (RFC 9525 6.3).
                if name.is_empty() || name.contains('*') {
                    continue;
                }
                match index.get_mut(name) {
                    Some(present) if present.expires >= certificate.expires => {}
                    Some(present) => *present = certificate.clone(),
                    None => {
                        index.insert(name.into(), certificate.clone());
                    }
                }
            }
        }
        choice.named = named;
        choice
    }

    /// The certificate for a name, which is lower-case as rustls hands it out. Allocates nothing.
    pub fn pick(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            self.exact.get(name).or_else(|| {
                let (first, parent) = name.split_once('.')?;
                if first.is_empty() {
                    return None;
                }
                self.wildcard.get(parent)
            })
        });
        named
            .or(self.default.as_ref())
            .map(|certificate| &certificate.certified)
    }

    /// Whether it holds no certificate at all.
    pub fn is_empty(&self) -> bool {
        self.default.is_none() && self.named.is_empty()
    }

    /// Every certificate, the listener's own first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        self.default.iter().chain(&self.named)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::testing::*, *};

    fn certificate(dir: &Path, name: &str, sans: &[&str]) -> Arc<Certificate> {
        let files = write_pair(dir, name, sans);
        Arc::new(Certificate::read(&files, &provider()).unwrap())
    }

    #[test]
    fn exact_beats_wildcard_beats_default() {
        let dir = tempfile::tempdir().unwrap();
        let default = certificate(dir.path(), "default", &["anything"]);
        let wildcard = certificate(dir.path(), "wild", &["*.example.com", "other.org"]);
        let exact = certificate(dir.path(), "exact", &["blog.example.com"]);
        let odd = certificate(dir.path(), "odd", &["w*.example.net", "a.*.example.net"]);
        let named = vec![wildcard.clone(), exact.clone(), odd];
        let with_default = Choice::new(Some(default.clone()), named.clone());
        let without = Choice::new(None, named);

        let cases = [
            (Some("blog.example.com"), Some(&exact)),
            (Some("shop.example.com"), Some(&wildcard)),
            (Some("other.org"), Some(&wildcard)),
            // A wildcard stands for one label, and not for none.
            (Some("a.shop.example.com"), None),
            (Some("example.com"), None),
            (Some(".example.com"), None),
            (Some("www.example.net"), None),
            (Some("a.b.example.net"), None),
            (Some("unknown.org"), None),
            (Some("localhost"), None),
            (None, None),
        ];
        for (name, expected) in cases {
            let fits = |choice: &Choice, expected: Option<&Arc<Certificate>>| match (
                choice.pick(name),
                expected,
            ) {
                (Some(picked), Some(expected)) => Arc::ptr_eq(picked, &expected.certified),
                (picked, expected) => picked.is_none() && expected.is_none(),
            };
            assert!(fits(&without, expected), "{name:?} without a default");
            assert!(
                fits(&with_default, expected.or(Some(&default))),
                "{name:?} with a default"
            );
        }
    }

    #[test]
    fn of_two_for_one_name_the_one_valid_longest_answers() {
        let dir = tempfile::tempdir().unwrap();
        let expired = write_expired_pair(dir.path(), "a", &["a.example", "*.a.example"]);
        let expired = Arc::new(Certificate::read(&expired, &provider()).unwrap());
        let renewed = certificate(dir.path(), "b", &["a.example", "*.a.example"]);
        for named in [
            vec![expired.clone(), renewed.clone()],
            vec![renewed.clone(), expired.clone()],
        ] {
            let choice = Choice::new(None, named);
            for name in ["a.example", "x.a.example"] {
                let picked = choice.pick(Some(name)).unwrap();
                assert!(Arc::ptr_eq(picked, &renewed.certified), "{name}");
            }
        }
    }
}
