//! The keys that are not in force as written.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tracing::{debug, warn};

use super::{
    super::Entry,
    log_limit::{LogLimit, quoted},
};
use crate::live::{Live, Rejected, RejectedKeys};
use crate::{route::Revision, telemetry::metrics::Metrics};

/// How many are shown; further ones are counted.
pub(super) const SHOWN: usize = 10_000;

/// Longest piece of a key that is shown, in bytes: a bad one may be of any length.
const SHOWN_KEY: usize = 1024;

/// Longest reason, in characters: it may quote a value.
const SHOWN_REASON: usize = 1000;

/// Every rejected key, and whether readers know.
#[derive(Default)]
pub(super) struct Rejections {
    keys: BTreeMap<Bytes, Arc<Rejected>>,
    is_changed: bool,
    log: LogLimit,
}

impl Rejections {
    /// Notes and logs one, unless it is known.
    pub(super) fn add(&mut self, key: &Bytes, rejected: Rejected) {
        let known = self.keys.get(key);
        if known.is_some_and(|known| **known == rejected) {
            return;
        }
        let Rejected {
            mod_revision,
            last_good_in_force,
            ..
        } = rejected;
        // Some are written again and again, such as the pulse of a fleet whose prefix lies within ours.
        let is_told = known.is_some_and(|known| {
            known.reason == rejected.reason && known.last_good_in_force == last_good_in_force
        });
        let (shown, reason) = (quoted(&rejected.key), quoted(&rejected.reason));
        if is_told {
            debug!(key = %shown, mod_revision, "key rejected as before: {reason}");
        } else if self.log.admits() {
            warn!(key = %shown, mod_revision, last_good_in_force, "key rejected: {reason}");
        }
        self.is_changed = true;
        self.keys.insert(key.clone(), Arc::new(rejected));
    }

    /// Ends when [`publish`](Self::publish) has something to log.
    pub(super) async fn due(&self) {
        self.log.due().await;
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
        if let Some(keys) = self.log.take_owed() {
            warn!(keys, "further keys rejected; /api/rejected lists them");
        }
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
    let mut key = String::from_utf8_lossy(shown).into_owned();
    if shown.len() < entry.key.len() {
        key.push('\u{2026}');
    }
    Rejected {
        key,
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

#[cfg(test)]
mod tests {
    use super::{
        super::{barriers::tests::live, log_limit::LINES},
        *,
    };
    use crate::telemetry::logging::testing::logged;

    fn add(rejections: &mut Rejections, key: &str, reason: &str, mod_revision: Revision) {
        let entry = Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::new(),
            mod_revision,
            lease: 0,
        };
        let rejected = rejected(&entry, reason, false);
        rejections.add(&entry.key, rejected);
    }

    #[test]
    fn a_key_that_is_written_again_is_logged_again_only_for_another_reason() {
        let mut rejections = Rejections::default();
        let lines = logged(|| {
            for (reason, mod_revision) in [("bad", 1), ("bad", 2), ("worse", 3), ("bad", 4)] {
                add(&mut rejections, "/hosts/x", reason, mod_revision);
            }
        });
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert_eq!(rejections.mod_revision(b"/hosts/x"), Some(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_rejections_is_a_few_short_lines() {
        let mut rejections = Rejections::default();
        let (live, metrics) = (live(), Metrics::new());
        let lines = logged(|| {
            for number in 0..500 {
                let key = format!("/hosts/{number}/{}", "x".repeat(4000));
                add(&mut rejections, &key, &key, number);
                rejections.publish(&live, &metrics);
            }
        });
        assert_eq!(lines.len(), LINES);
        assert!(lines.iter().all(|line| line.len() < 1000), "{lines:#?}");
        rejections.due().await;
        let lines = logged(|| rejections.publish(&live, &metrics));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("further keys rejected; /api/rejected"));
        assert!(lines[0].contains("keys=480"), "{}", lines[0]);
        let shown = live.rejected.load();
        assert!(shown.shown.iter().all(|rejected| rejected.key.len() < 1100));
    }
}
