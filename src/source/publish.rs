//! From updates to tables: the one writer of [`Live`].
//!
//! The table itself is the state: each member knows its key, so an update is applied to the routes it names and to
//! nothing else. Keys are told apart as they are stored, so two spellings of one host don't delete each other.

mod archive;
mod barriers;
mod draft;
mod held;
mod log_limit;
mod names;
mod rejections;
mod restore;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

pub use self::held::Acceptance;
use self::{
    archive::Archive,
    barriers::Barriers,
    draft::{Draft, Workshop, WrittenSettings, WrittenUpstream},
    held::{Held, Reply},
    names::NameUses,
    rejections::{Rejections, rejected},
    restore::Waiting,
};
use super::{
    Change, Entry, History, Update,
    resolve::{Answer, Names},
    snapshot::Frame,
};
use crate::{
    live::{Live, Rejected},
    route::{
        Revision, Route, RouteId, Table,
        entry::{self, Meaning},
        key::{self, Key},
        settings::Balance,
    },
    telemetry::metrics::Metrics,
    upstream::{Registry, health::Checks, standing::Standings},
};

/// How many queued updates one swap may cover.
const MOST_UPDATES_A_SWAP: usize = 256;

/// How many routes are edited before they are built. Bounds the memory of a large snapshot, whose keys are sorted,
/// so that hardly any route is opened twice.
const MOST_DRAFTS: usize = 1024;

/// How long a table waits for names that are new in it.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);

/// Applies updates and publishes tables.
pub struct Publisher {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    prefix: String,
    default_balance: Balance,
    registry: Registry,
    standings: Standings,
    names: NameUses,
    /// What is published next.
    table: Table,
    is_table_changed: bool,
    /// `None` until the first update.
    revision: Option<Revision>,
    drafts: HashMap<RouteId, Draft>,
    rejections: Rejections,
    held: Held,
    accepts: mpsc::Receiver<Reply>,
    acceptance: Acceptance,
    barriers: Barriers,
    archive: Archive,
    /// What is on disk, until it runs.
    restored: Option<restore::Restored>,
    /// What was restored is in the table, which is not to be published yet.
    waiting: Option<Waiting>,
    /// etcd has said that the revision is of its history.
    is_vouched: bool,
    changed_keys: usize,
}

/// How far an update is to be believed against what is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It is the truth, whatever its revisions: the history may be another one.
    Snapshot,
    /// After a resume the stream repeats itself: what is older than what is known was seen.
    Stream,
}

/// Every key among `entries` that would be rejected, and why. What `check` prints is what [`Publisher`] does.
pub fn check<'e>(prefix: &str, entries: impl IntoIterator<Item = &'e Entry>) -> Vec<Rejected> {
    let judge = |entry: &Entry| {
        let error = entry::parse(prefix, &entry.key, &entry.value).err()?;
        Some(rejected(entry, error, false))
    };
    entries.into_iter().filter_map(judge).collect()
}

impl Publisher {
    /// A publisher of `live` for keys below `prefix`; `default_balance` is for routes that don't say.
    pub fn new(
        live: Arc<Live>,
        metrics: Arc<Metrics>,
        prefix: String,
        default_balance: Balance,
        names: Names,
    ) -> Self {
        let (acceptance, accepts) = Acceptance::channel();
        Self {
            acceptance,
            accepts,
            registry: Registry::new(metrics.clone()),
            standings: Standings::default(),
            live,
            metrics,
            prefix,
            default_balance,
            names: NameUses::new(names),
            table: Table::default(),
            is_table_changed: false,
            revision: None,
            drafts: HashMap::new(),
            rejections: Rejections::default(),
            held: Held::default(),
            barriers: Barriers::default(),
            archive: Archive::default(),
            restored: None,
            waiting: None,
            is_vouched: false,
            changed_keys: 0,
        }
    }

    /// Tells here what is to be kept on disk, whenever that changes.
    pub fn archiving(mut self, frames: watch::Sender<Option<Frame>>) -> Self {
        self.archive = Archive::telling(frames, &self.prefix);
        self
    }

    /// Tells here of every health check that routes ask for.
    pub fn checked_by(mut self, checker: mpsc::UnboundedSender<Weak<Checks>>) -> Self {
        self.standings = Standings::checked_by(checker);
        self
    }

    /// How an operator makes it apply what it holds.
    pub fn acceptance(&self) -> Acceptance {
        self.acceptance.clone()
    }

    /// Applies updates until their sender is gone. What queued up meanwhile shares one swap.
    pub async fn run(mut self, mut updates: mpsc::Receiver<Update>) {
        let mut batch = Vec::with_capacity(MOST_UPDATES_A_SWAP);
        let mut status = self.live.status.subscribe();
        if self.restored.is_some() {
            self.restore();
            self.build_and_publish().await;
        }
        loop {
            let mut accepted = None;
            tokio::select! {
                received = updates.recv_many(&mut batch, MOST_UPDATES_A_SWAP) => {
                    if received == 0 {
                        return;
                    }
                }
                answer = self.names.answer() => self.apply_answer(answer),
                why = Waiting::in_vain(&mut self.waiting) => self.give_up_waiting(why),
                Some(reply) = self.accepts.recv(), if self.waiting.is_none() => accepted = Some((reply, self.accept_held())),
                () = self.held.due() => self.judge_held(),
                is_connected = self.held.connection(&mut status) => self.held.set_connected(is_connected),
                () = self.rejections.due() => {}
                () = self.barriers.due() => {}
            }
            for update in batch.drain(..) {
                self.apply(update);
            }
            self.build_and_publish().await;
            if let Some((reply, count)) = accepted {
                // Who asked may have left meanwhile.
                let _ = reply.send(count);
            }
        }
    }

    async fn build_and_publish(&mut self) {
        self.build_drafts();
        if self.names.has_open() {
            self.await_first_answers().await;
        }
        self.publish();
    }

    /// So that a name that is new, at the start or in place of an address, doesn't begin with requests failing.
    async fn await_first_answers(&mut self) {
        let answers = async {
            while self.names.has_open() {
                let answer = self.names.answer().await;
                self.apply_answer(answer);
            }
        };
        if tokio::time::timeout(FIRST_ANSWERS, answers).await.is_err() {
            debug!("the table goes out with names that are not resolved yet");
            self.names.give_up();
        }
        self.build_drafts();
    }

    fn apply(&mut self, update: Update) {
        let mut from = None;
        let revision = match update {
            Update::Snapshot {
                entries,
                revision,
                history,
                cluster_id,
                last_good,
            } => {
                self.apply_snapshot(&entries, revision, history, &last_good);
                self.replaced();
                from = cluster_id;
                revision
            }
            Update::Changes { changes, revision } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self.put(&entry, Origin::Stream),
                        Change::Delete { key, mod_revision } => {
                            self.delete(&key, mod_revision, Origin::Stream);
                        }
                    }
                }
                revision
            }
            Update::Progress { revision } => revision,
            Update::Vouched { through } => return self.vouched(through),
        };
        self.revision = Some(revision);
        self.archive.confirm(revision, from);
        self.see_whether_caught_up();
    }

    fn apply_snapshot(
        &mut self,
        entries: &[Entry],
        revision: Revision,
        history: History,
        last_good: &[Entry],
    ) {
        self.barriers.retain(&self.prefix, entries);
        self.delete_absent(entries, revision, history);
        self.archive.retain(entries, &self.held);
        for entry in last_good.iter().chain(entries) {
            self.put(entry, Origin::Snapshot);
        }
    }

    fn delete_absent(&mut self, entries: &[Entry], revision: Revision, history: History) {
        self.build_drafts();
        if self.table.counts().routes == 0 && self.rejections.is_empty() {
            return;
        }
        let present: HashSet<&[u8]> = entries.iter().map(|entry| &*entry.key).collect();
        let rejected = self.rejections.keys();
        let rejected = rejected.filter(|key| !present.contains(&***key)).cloned();
        for key in rejected.collect::<Vec<_>>() {
            self.rejections.clear(&key);
        }
        let in_force = self.table.routes().flat_map(|route| keys_of(route));
        let gone = in_force.filter(|key| !present.contains(key.as_bytes()) && !self.held.has(key));
        let gone: Vec<Arc<str>> = gone.cloned().collect();
        match history {
            History::Another => self.hold(gone),
            History::Continued => {
                for key in gone {
                    let key = Bytes::copy_from_slice(key.as_bytes());
                    self.delete(&key, revision, Origin::Snapshot);
                }
            }
        }
    }

    fn put(&mut self, entry: &Entry, origin: Origin) {
        let key = match key::parse(&self.prefix, &entry.key) {
            Ok(Key::Fleet) => {
                self.archive.put(entry);
                return self.barriers.put(&self.prefix, entry);
            }
            Ok(key) => key,
            Err(error) => {
                self.archive.reject(entry, false);
                let rejected = rejected(entry, error, false);
                self.rejections.add(&entry.key, rejected);
                return;
            }
        };
        let rejected_at = self.rejections.mod_revision(&entry.key);
        let was_held = self.held.release(&entry.key);
        let Some((text, draft)) = self.open(&key, &entry.key) else {
            return;
        };
        let mod_revision = entry.mod_revision;
        let known = draft.mod_revision(text);
        // A held version is of another history: its revision says nothing about this one's.
        if !was_held && is_seen(origin, rejected_at.or(known), mod_revision) {
            return;
        }
        let is_change = match entry::meaning(key, &entry.value) {
            Ok(Meaning::Upstream {
                address, options, ..
            }) => draft.put_upstream(
                text,
                WrittenUpstream {
                    address,
                    options,
                    mod_revision,
                },
            ),
            Ok(Meaning::Settings { settings, .. }) => draft.put_settings(
                text,
                WrittenSettings {
                    settings,
                    mod_revision,
                },
            ),
            Ok(Meaning::Fleet) => false,
            Err(error) => {
                let rejected = rejected(entry, error, known.is_some());
                self.archive.reject(entry, known.is_some());
                self.rejections.add(&entry.key, rejected);
                return;
            }
        };
        self.archive.put(entry);
        self.rejections.clear(&entry.key);
        if is_change {
            debug!(key = text, mod_revision, "key put");
            self.changed_keys += 1;
        }
        self.bound_drafts();
    }

    fn delete(&mut self, raw_key: &Bytes, mod_revision: Revision, origin: Origin) {
        self.barriers.delete(&self.prefix, raw_key);
        let rejected_at = self.rejections.mod_revision(raw_key);
        if is_seen(origin, rejected_at, mod_revision) {
            return;
        }
        let origin = match self.held.release(raw_key) {
            true => Origin::Snapshot,
            false => origin,
        };
        if let Ok(key) = key::parse(&self.prefix, raw_key)
            && let Some((text, draft)) = self.open(&key, raw_key)
            && !is_seen(
                origin,
                rejected_at.or(draft.mod_revision(text)),
                mod_revision,
            )
            && draft.delete(text)
        {
            debug!(key = text, mod_revision, "key deleted");
            self.changed_keys += 1;
        }
        self.archive.delete(raw_key, mod_revision, origin);
        self.rejections.clear(raw_key);
        self.bound_drafts();
    }

    /// The draft of the route a key belongs to, and the key as text.
    fn open<'k>(&mut self, key: &Key, raw_key: &'k [u8]) -> Option<(&'k str, &mut Draft)> {
        let (Key::Upstream { route, .. } | Key::Settings { route }) = key else {
            return None;
        };
        let text = std::str::from_utf8(raw_key).ok()?;
        Some((text, open(&mut self.drafts, &self.table, route)))
    }

    fn bound_drafts(&mut self) {
        if self.drafts.len() >= MOST_DRAFTS {
            self.build_drafts();
        }
    }

    fn build_drafts(&mut self) {
        let mut drafts = std::mem::take(&mut self.drafts);
        // All of them first: a name that moves from one route to another is in use throughout.
        for draft in drafts.values().filter(|draft| draft.is_changed()) {
            self.names.take_up(draft);
        }
        for (_, draft) in drafts.drain() {
            if draft.is_changed() {
                self.build(draft);
            }
        }
        // Its allocation serves the next batch.
        self.drafts = drafts;
    }

    fn build(&mut self, draft: Draft) {
        let id = draft.id().clone();
        let before = draft.before().cloned();
        self.names.let_go(&draft);
        let names = &self.names;
        let route = draft.build(&mut Workshop {
            registry: &mut self.registry,
            standings: &mut self.standings,
            metrics: &self.metrics,
            default_balance: self.default_balance,
            is_first_table: self.live.applied.borrow().is_none(),
            addresses_of: |name: &str| names.addresses_of(name),
        });
        // The new ones first: who is in both stays listed throughout.
        for member in route.iter().flat_map(|route| &route.members) {
            member.upstream.enlist();
        }
        for member in before.iter().flat_map(|route| &route.members) {
            member.upstream.delist();
        }
        match route {
            Some(route) => self.table.insert(route),
            None => self.table.remove(&id),
        }
        self.is_table_changed = true;
    }

    fn apply_answer(&mut self, answer: Answer) {
        for id in self.names.learn(answer) {
            open(&mut self.drafts, &self.table, id).touch();
        }
        // Now, because the next answer may change which routes use which name.
        self.build_drafts();
    }

    fn publish(&mut self) {
        let Some(revision) = self.revision.filter(|_| self.waiting.is_none()) else {
            return;
        };
        let is_first = self.live.applied.borrow().is_none();
        let is_swap = std::mem::take(&mut self.is_table_changed) || is_first;
        self.rejections.publish(&self.live, &self.metrics);
        self.held.publish(&self.live, &self.metrics);
        if is_swap {
            self.table.revision = revision;
            self.live.table.store(Arc::new(self.table.clone()));
            let counts = self.table.counts();
            info!(
                revision,
                changed_keys = self.changed_keys,
                hosts = counts.hosts,
                "routes applied"
            );
            self.changed_keys = 0;
            let control_plane = &self.metrics.control_plane;
            control_plane.table_swaps.inc();
            control_plane.hosts.set(gauge(counts.hosts));
            control_plane.routes.set(gauge(counts.routes));
        }
        self.metrics.control_plane.revision.set(revision);
        self.live.applied.send_modify(|applied| {
            *applied = Some(revision);
            // With it: a revision of another history must not pass for one of this.
            if self.is_vouched {
                self.live.is_unvouched.store(false, Ordering::Relaxed);
            }
        });
        self.archive.publish();
        self.barriers
            .publish(&self.live, &self.rejections, &self.held);
    }
}

fn open<'d>(drafts: &'d mut HashMap<RouteId, Draft>, table: &Table, id: &RouteId) -> &'d mut Draft {
    drafts
        .entry(id.clone())
        .or_insert_with(|| Draft::open(id.clone(), table.route(id)))
}

/// Whether a change is older than what is known of its key. A rejected version is newer than the one in force, which
/// may even be of another history and have a higher revision: so where there is one, `known` is its revision.
fn is_seen(origin: Origin, known: Option<Revision>, mod_revision: Revision) -> bool {
    origin == Origin::Stream && known.is_some_and(|known| known > mod_revision)
}

fn keys_of(route: &Route) -> impl Iterator<Item = &Arc<str>> {
    let members = route.members.iter().map(|member| &member.key);
    let settings = (route.settings_key.iter()).flat_map(|in_force| {
        let further = in_force.further.iter().map(|other| &other.key);
        further.chain([&in_force.version])
    });
    members.chain(settings).map(|version| &version.key)
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
