//! The keys that are not in force as written.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tracing::warn;

use super::super::Entry;
use crate::live::{Live, Rejected, RejectedKeys};
use crate::{route::Revision, telemetry::metrics::Metrics};

/// How many are shown; further ones are counted.
pub(super) const SHOWN: usize = 10_000;

/// How many are logged between two swaps; a whole bad prefix would drown everything else.
const LOGGED: usize = 100;

/// Longest piece of a key that is shown, in bytes: a bad one may be of any length.
const SHOWN_KEY: usize = 4096;

/// Longest reason, in characters: it may quote a value.
const SHOWN_REASON: usize = 1000;

/// Every rejected key, and whether readers know.
#[derive(Default)]
pub(super) struct Rejections {
    keys: BTreeMap<Bytes, Rejected>,
    is_changed: bool,
    logged: usize,
}

impl Rejections {
    /// Notes and logs one, unless it is known.
    pub(super) fn add(&mut self, key: &Bytes, rejected: Rejected) {
        if self.keys.get(key) == Some(&rejected) {
            return;
        }
        self.logged += 1;
        if self.logged <= LOGGED {
            warn!(
                key = rejected.key,
                mod_revision = rejected.mod_revision,
                last_good_in_force = rejected.last_good_in_force,
                "key rejected: {}",
                rejected.reason
            );
        }
        self.is_changed = true;
        self.keys.insert(key.clone(), rejected);
    }

    /// The key is good, or gone.
    pub(super) fn clear(&mut self, key: &[u8]) {
        self.is_changed |= self.keys.remove(key).is_some();
    }

    pub(super) fn mod_revision(&self, key: &[u8]) -> Option<Revision> {
        self.keys.get(key).map(|rejected| rejected.mod_revision)
    }

    /// Why this key is rejected, if it is.
    pub(super) fn reason(&self, key: &[u8]) -> Option<String> {
        self.keys.get(key).map(|rejected| rejected.reason.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.keys()
    }

    /// Tells readers, if there is news.
    pub(super) fn publish(&mut self, live: &Live, metrics: &Metrics) {
        if self.logged > LOGGED {
            warn!(
                keys = self.logged - LOGGED,
                "further keys rejected; /api/rejected lists them"
            );
        }
        self.logged = 0;
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        let total = self.keys.len();
        let shown = self.keys.values().take(SHOWN).cloned().collect();
        live.rejected.store(Arc::new(RejectedKeys { shown, total }));
        let total = i64::try_from(total).unwrap_or(i64::MAX);
        metrics.control_plane.rejected_keys.set(total);
    }
}

/// A rejection of `entry` for `reason`.
pub(super) fn rejected(entry: &Entry, reason: impl ToString, last_good_in_force: bool) -> Rejected {
    let shown = &entry.key[..entry.key.len().min(SHOWN_KEY)];
    Rejected {
        key: String::from_utf8_lossy(shown).into_owned(),
        reason: shown_reason(&reason.to_string()),
        mod_revision: entry.mod_revision,
        last_good_in_force,
    }
}

/// Reasons go to logs and terminals as they are, so nothing they quote may steer those.
fn shown_reason(reason: &str) -> String {
    let plain = |character: char| match character.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => character,
    };
    let mut shown: String = reason.chars().take(SHOWN_REASON).map(plain).collect();
    if reason.chars().nth(SHOWN_REASON).is_some() {
        shown.push('\u{2026}');
    }
    shown
}
