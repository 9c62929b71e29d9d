//! Which routes use which names, and what these resolve to.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use tracing::info;

use super::{
    super::resolve::{Answer, Names},
    draft::{Draft, name_of},
};
use crate::route::{Route, RouteId};

/// The names in use.
pub(super) struct NameUses {
    names: Names,
    uses: HashMap<Arc<str>, NameUse>,
    /// Asked for, not answered, and worth waiting for.
    open: HashSet<Arc<str>>,
}

#[derive(Default)]
struct NameUse {
    /// Sorted; empty while unknown.
    addresses: Vec<IpAddr>,
    /// Of the other family.
    fallbacks: Vec<IpAddr>,
    routes: HashSet<RouteId>,
}

impl NameUses {
    pub(super) fn new(names: Names) -> Self {
        Self {
            names,
            uses: HashMap::new(),
            open: HashSet::new(),
        }
    }

    /// Whether a name had no answer at all yet, not even "no address", and was not [given up](Self::give_up).
    pub(super) fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Waits no longer for the names that are open.
    pub(super) fn give_up(&mut self) {
        self.open.clear();
    }

    /// The next answer; to be [learned](Self::learn).
    pub(super) async fn answer(&mut self) -> Answer {
        self.names.answer().await
    }

    /// Its addresses, and those of the other family.
    pub(super) fn addresses_of(&self, name: &str) -> (&[IpAddr], &[IpAddr]) {
        let known = self.uses.get(name);
        known.map_or((&[], &[]), |name| (&name.addresses, &name.fallbacks))
    }

    /// Takes an answer in. The routes to be built again for it.
    pub(super) fn learn(&mut self, answer: Answer) -> impl Iterator<Item = &RouteId> {
        self.open.remove(&answer.name);
        let name_use = self.uses.get_mut(&answer.name);
        let changed = name_use.and_then(|name_use| {
            let Answer {
                name,
                addresses,
                fallbacks,
            } = answer;
            if name_use.addresses == addresses && name_use.fallbacks == fallbacks {
                return None;
            }
            info!(name = &*name, ?addresses, ?fallbacks, "name resolved");
            (name_use.addresses, name_use.fallbacks) = (addresses, fallbacks);
            Some(&name_use.routes)
        });
        changed.into_iter().flatten()
    }

    /// Asks for the names a route has got.
    pub(super) fn take_up(&mut self, draft: &Draft) {
        for name in draft.names() {
            if !self.uses.contains_key(name) {
                let name: Arc<str> = name.into();
                self.names.watch(name.clone());
                self.open.insert(name.clone());
                self.uses.insert(name, NameUse::default());
            }
            if let Some(name_use) = self.uses.get_mut(name) {
                name_use.routes.insert(draft.id().clone());
            }
        }
    }

    /// Lets go of the names a route had and has no more.
    pub(super) fn let_go(&mut self, draft: &Draft) {
        let Some(former) = draft.before().map(|route| names_of(route)) else {
            return;
        };
        let names = draft.names();
        for name in former.iter().filter(|name| !names.contains(&***name)) {
            let Some(name_use) = self.uses.get_mut(&**name) else {
                continue;
            };
            name_use.routes.remove(draft.id());
            if name_use.routes.is_empty() {
                self.uses.remove(&**name);
                self.open.remove(&**name);
                self.names.forget(name);
            }
        }
    }
}

fn names_of(route: &Route) -> HashSet<Box<str>> {
    let members = route.members.iter();
    members
        .filter_map(|member| name_of(&member.upstream.identity.endpoint.written()).map(Box::from))
        .collect()
}
