//! Keys and values for random tests, each with its meaning beside it, and what any set of them must come to: told
//! without the product's parsers, so that it can be held against them.

use std::collections::BTreeMap;

use rand::{Rng, RngExt, seq::IndexedRandom};

/// A key that random tests write, and what it says.
pub struct Key {
    pub text: &'static [u8],
    pub says: Says,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Route and upstream.
    Upstream(&'static str, &'static str),
    /// Of this route.
    Settings(&'static str),
    /// Rejected, whatever its value.
    Nonsense,
    /// Nothing about routes.
    Nothing,
}

const fn key(text: &'static str, says: Says) -> Key {
    Key {
        text: text.as_bytes(),
        says,
    }
}

/// Below `/hosts/` all of them. Several spell one route in several ways.
pub const KEYS: [Key; 28] = {
    use Says::{Nonsense, Nothing, Settings, Upstream};
    [
        key(
            "/hosts/blog.x/10.0.0.1:80",
            Upstream("blog.x", "10.0.0.1:80"),
        ),
        key(
            "/hosts/Blog.x/10.0.0.1:80",
            Upstream("blog.x", "10.0.0.1:80"),
        ),
        key(
            "/hosts/blog.x./10.0.0.1:80",
            Upstream("blog.x", "10.0.0.1:80"),
        ),
        key(
            "/hosts/blog.x/10.0.0.2:80",
            Upstream("blog.x", "10.0.0.2:80"),
        ),
        key(
            "/hosts/Blog.x/10.0.0.3:80",
            Upstream("blog.x", "10.0.0.3:80"),
        ),
        key("/hosts/blog.x/@settings", Settings("blog.x")),
        key("/hosts/Blog.x/@settings", Settings("blog.x")),
        key("/hosts/BLOG.X/@settings", Settings("blog.x")),
        key(
            "/hosts/blog.x/api/10.0.0.1:80",
            Upstream("blog.x/api", "10.0.0.1:80"),
        ),
        key(
            "/hosts/blog.x/%61pi/10.0.0.1:80",
            Upstream("blog.x/api", "10.0.0.1:80"),
        ),
        key(
            "/hosts/Blog.x/api/10.0.0.5:80",
            Upstream("blog.x/api", "10.0.0.5:80"),
        ),
        key("/hosts/blog.x/api/@settings", Settings("blog.x/api")),
        key("/hosts/Blog.x/%61pi/@settings", Settings("blog.x/api")),
        key(
            "/hosts/blog.x/api/v1/10.0.0.1:80",
            Upstream("blog.x/api/v1", "10.0.0.1:80"),
        ),
        key(
            "/hosts/shop.x/10.0.0.1:80",
            Upstream("shop.x", "10.0.0.1:80"),
        ),
        key(
            "/hosts/shop.x/10.0.0.2:80",
            Upstream("shop.x", "10.0.0.2:80"),
        ),
        key("/hosts/*.x/10.0.0.4:80", Upstream("*.x", "10.0.0.4:80")),
        key("/hosts/*.X/[::1]:80", Upstream("*.x", "[::1]:80")),
        key("/hosts/*/10.0.0.4:80", Upstream("*", "10.0.0.4:80")),
        key("/hosts/*/@settings", Settings("*")),
        key("/hosts/only.settings/@settings", Settings("only.settings")),
        key("/hosts/blog.x", Nonsense),
        key("/hosts/blog.x/10.0.0.1:99999", Nonsense),
        key("/hosts/blog.x//10.0.0.1:80", Nonsense),
        key("/hosts/blog.x/@setings", Nonsense),
        Key {
            text: b"/hosts/blog.x/\xff\xfe/10.0.0.1:80",
            says: Nonsense,
        },
        key("/hosts/@waypost/barriers/x", Nothing),
        key("/hosts/@other", Nothing),
    ]
};

/// For upstreams: the text, and the weight it asks for; `None` is rejected.
const OPTIONS: [(&str, Option<u32>); 9] = [
    ("", Some(1)),
    ("any text", Some(1)),
    ("[1]", Some(1)),
    ("{\"weight\": 1", Some(1)),
    ("{\"weight\": 5}", Some(5)),
    ("{\"weight\": 2}", Some(2)),
    ("{\"drain\": true}", Some(1)),
    ("{\"weight\": -1}", None),
    ("{\"wieght\": 1}", None),
];

/// For settings: the text, and the balance it comes to; `None` is rejected.
const SETTINGS: [(&str, Option<&str>); 5] = [
    ("{}", Some("round-robin")),
    ("{\"balance\": \"round-robin\"}", Some("round-robin")),
    ("{\"balance\": \"random\"}", Some("random")),
    ("{\"balnce\": \"random\"}", None),
    ("any text", None),
];

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Put(&'static [u8], String),
    Delete(&'static [u8]),
}

/// A transaction over one to four keys, none of them twice.
pub fn transaction(random: &mut impl Rng) -> Vec<Operation> {
    let count = *[1, 1, 1, 2, 2, 3, 4].choose(random).expect("it has items");
    let keys: Vec<&Key> = KEYS.sample(random, count).collect();
    let operation = |key: &Key| match random.random_bool(0.6) {
        true => Operation::Put(key.text, value(key, random).to_owned()),
        false => Operation::Delete(key.text),
    };
    keys.into_iter().map(operation).collect()
}

/// Any of the values that fit the key, bad ones included.
fn value(key: &Key, random: &mut impl Rng) -> &'static str {
    match key.says {
        Says::Settings(_) => SETTINGS[random.random_range(0..SETTINGS.len())].0,
        _ => OPTIONS[random.random_range(0..OPTIONS.len())].0,
    }
}

/// The key with this text, if it is one of these.
pub fn known(text: &[u8]) -> Option<&'static [u8]> {
    let found = KEYS.iter().find(|key| key.text == text)?;
    Some(found.text)
}

/// The keys as a follower of etcd has to know them: the last good version of each, whether a bad one came since, and
/// whether the version is held, though another history lacks the key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known(BTreeMap<Vec<u8>, Versions>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Versions {
    good: Option<Version>,
    is_rejected: bool,
    is_held: bool,
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub value: Vec<u8>,
    pub mod_revision: i64,
}

impl Known {
    pub fn put(&mut self, key: &[u8], version: Version) {
        let Some(says) = says(key) else {
            return;
        };
        let versions = self.0.entry(key.to_vec()).or_default();
        versions.is_held = false;
        versions.is_rejected = !is_good(says, &version.value);
        if !versions.is_rejected {
            versions.good = Some(version);
        }
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    /// Everything is read anew. What is not among these is gone, unless the history is another: then it is held.
    pub fn replace<'k>(
        &mut self,
        entries: impl Iterator<Item = (&'k [u8], Version)> + Clone,
        is_another: bool,
    ) {
        let present: Vec<&[u8]> = entries.clone().map(|(key, _)| key).collect();
        self.0.retain(|key, versions| {
            if present.contains(&&**key) {
                return true;
            }
            versions.is_held |= is_another;
            versions.is_rejected = false;
            versions.is_held && versions.good.is_some()
        });
        for (key, version) in entries {
            self.put(key, version);
        }
    }

    /// What is held.
    pub fn held(&self) -> Vec<String> {
        let held = self.0.iter().filter(|(_, versions)| versions.is_held);
        held.map(|(key, _)| String::from_utf8_lossy(key).into_owned())
            .collect()
    }

    /// Nothing is held any more.
    pub fn let_go(&mut self) {
        self.0.retain(|_, versions| !versions.is_held);
    }

    /// What must be served, and what must be rejected.
    pub fn expected(&self) -> Expected {
        let mut expected = Expected::default();
        for (key, versions) in &self.0 {
            let text = String::from_utf8_lossy(key).into_owned();
            if versions.is_rejected {
                let has_good = versions.good.is_some();
                expected.rejected.insert(text.clone(), has_good);
            }
            let (Some(version), Some(says)) = (&versions.good, says(key)) else {
                continue;
            };
            expected.add(says, text, version);
        }
        expected
    }
}

/// Routes and rejections, in a form that a table as well as the admin API can be brought to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub routes: BTreeMap<String, Route>,
    /// The key, and whether its last good version is in force.
    pub rejected: BTreeMap<String, bool>,
}

/// A route as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub balance: String,
    /// The key in force and its mod_revision.
    pub settings: Option<(String, i64)>,
    /// In key order.
    pub members: Vec<Member>,
}

/// A member as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub key: String,
    pub upstream: String,
    pub weight: u32,
    pub alias: bool,
    pub mod_revision: i64,
}

impl Expected {
    /// Keys come in their order.
    fn add(&mut self, says: Says, key: String, version: &Version) {
        let (Says::Upstream(route, _) | Says::Settings(route)) = says else {
            return;
        };
        let route = (self.routes.entry(route.to_owned())).or_insert_with(|| Route {
            balance: "round-robin".to_owned(),
            settings: None,
            members: Vec::new(),
        });
        match says {
            Says::Upstream(_, upstream) => {
                let known = |member: &Member| member.upstream == upstream;
                route.members.push(Member {
                    alias: route.members.iter().any(known),
                    key,
                    upstream: upstream.to_owned(),
                    weight: weight(&version.value).expect("a good version"),
                    mod_revision: version.mod_revision,
                });
            }
            _ if route.settings.is_none() => {
                route.balance = balance(&version.value).expect("a good version").to_owned();
                route.settings = Some((key, version.mod_revision));
            }
            _ => {}
        }
    }
}

/// `None`: none of ours to know.
fn says(key: &[u8]) -> Option<Says> {
    let found = KEYS.iter().find(|known| known.text == key)?;
    (found.says != Says::Nothing).then_some(found.says)
}

/// Whether a version of a key with this value is taken.
fn is_good(says: Says, value: &[u8]) -> bool {
    match says {
        Says::Upstream(..) => weight(value).is_some(),
        Says::Settings(_) => balance(value).is_some(),
        Says::Nonsense | Says::Nothing => false,
    }
}

fn weight(value: &[u8]) -> Option<u32> {
    let listed = OPTIONS.iter().find(|(text, _)| text.as_bytes() == value);
    listed.map_or(Some(1), |(_, weight)| *weight)
}

fn balance(value: &[u8]) -> Option<&'static str> {
    let listed = SETTINGS.iter().find(|(text, _)| text.as_bytes() == value);
    listed.and_then(|(_, balance)| *balance)
}
