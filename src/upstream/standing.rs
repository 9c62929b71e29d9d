//! What a route's settings say of a member beyond the defaults: whose checks and whose ejection count for it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Weak},
};

use tokio::sync::mpsc;

use super::{
    Slot, Upstream,
    ejection::{Ejection, Outlier, Window},
    health::{CheckSettings, Checks},
};
use crate::moment::Moment;

/// How an upstream stands with a route that has settings of its own about it. Most have none: a million hosts must
/// not pay for it.
#[derive(Debug, Default)]
pub struct Standing {
    /// For settings other than the defaults: those count in [`Upstream::ejection`].
    pub ejection: Option<Arc<Ejection>>,
    /// If the share of its failures counts.
    pub window: Option<Arc<Window>>,
    /// If it is checked.
    pub checks: Option<Arc<Checks>>,
    /// When it came into a route that others were in already, if the route starts members slowly.
    pub entered: Option<Moment>,
}

impl Standing {
    /// Whether this upstream may get requests of the route.
    pub fn is_good(&self, upstream: &Upstream) -> bool {
        let ejection = self.ejection.as_deref().unwrap_or(&upstream.ejection);
        !ejection.is_in_force()
            && self
                .checks
                .as_ref()
                .is_none_or(|checks| checks.is_healthy())
    }
}

/// Hands out one [`Checks`] per upstream and check settings, one [`Ejection`] per upstream and outlier settings:
/// what is known of an upstream survives changes of the table, and routes with the same settings share it.
#[derive(Default)]
pub struct Standings {
    ejections: Shared<Outlier, Ejection>,
    windows: Shared<Outlier, Window>,
    checks: Shared<Arc<CheckSettings>, Checks>,
    /// Told of each new [`Checks`]; `None`: nobody makes them.
    checker: Option<mpsc::UnboundedSender<Weak<Checks>>>,
}

impl Standings {
    /// Tells `checker` of all checks that are to be made.
    pub fn checked_by(checker: mpsc::UnboundedSender<Weak<Checks>>) -> Self {
        Self {
            checker: Some(checker),
            ..Self::default()
        }
    }

    /// How `upstream` stands with routes of these settings; `None` where they ask for nothing but the defaults.
    pub fn standing(
        &mut self,
        upstream: &Arc<Upstream>,
        outlier: &Outlier,
        health: Option<&Arc<CheckSettings>>,
    ) -> Option<Box<Standing>> {
        let has_own_ejection = *outlier != Outlier::default();
        if !has_own_ejection && health.is_none() {
            return None;
        }
        let new = || Ejection::counted_by(upstream.metrics.ejected.clone());
        let ejection = has_own_ejection.then(|| (self.ejections).of(upstream.slot, outlier, new));
        let window = (outlier.failure_percent)
            .map(|_| (self.windows).of(upstream.slot, outlier, Window::default));
        let checks = health.map(|health| self.checks(upstream, health));
        Some(Box::new(Standing {
            ejection,
            window,
            checks,
            entered: None,
        }))
    }

    fn checks(&mut self, upstream: &Arc<Upstream>, health: &Arc<CheckSettings>) -> Arc<Checks> {
        let mut is_new = false;
        let checks = self.checks.of(upstream.slot, health, || {
            is_new = true;
            Checks::new(upstream.clone(), health.clone())
        });
        if let Some(checker) = self.checker.as_ref().filter(|_| is_new) {
            // Fails only while the process ends.
            let _ = checker.send(Arc::downgrade(&checks));
        }
        checks
    }
}

/// Values by upstream and settings, for as long as somebody holds them.
struct Shared<S, T> {
    known: HashMap<(Slot, S), Weak<T>>,
    /// Size of `known` at which dead entries are swept.
    sweep_at: usize,
}

/// Below this many entries a sweep is not worth its while.
const LEAST_SWEEP: usize = 1024;

impl<S, T> Default for Shared<S, T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            sweep_at: LEAST_SWEEP,
        }
    }
}

impl<S: Clone + Eq + Hash, T> Shared<S, T> {
    fn of(&mut self, slot: Slot, settings: &S, new: impl FnOnce() -> T) -> Arc<T> {
        let key = (slot, settings.clone());
        if let Some(known) = self.known.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, value| value.strong_count() > 0);
            self.sweep_at = (self.known.len() * 2).max(LEAST_SWEEP);
        }
        let value = Arc::new(new());
        self.known.insert(key, Arc::downgrade(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        telemetry::metrics::Metrics,
        upstream::{Registry, testing},
    };

    fn upstream(registry: &mut Registry, port: u16) -> Arc<Upstream> {
        registry.upstream(&testing::plain(testing::local(port)))
    }

    #[test]
    fn routes_with_the_same_settings_share_what_is_known_and_others_dont() {
        let mut registry = Registry::new(Metrics::new());
        let (one, other) = (upstream(&mut registry, 1), upstream(&mut registry, 2));
        let (checker, mut told) = mpsc::unbounded_channel();
        let mut standings = Standings::checked_by(checker);
        let outlier = Outlier {
            ejection: Duration::from_secs(1),
            ..Outlier::default()
        };
        let check = Arc::new(CheckSettings::default());
        assert!(
            standings
                .standing(&one, &Outlier::default(), None)
                .is_none()
        );
        let mut ask = |upstream, outlier: &Outlier, health: Option<&Arc<CheckSettings>>| {
            *standings
                .standing(upstream, outlier, health)
                .expect("not the defaults")
        };
        let first = ask(&one, &outlier, Some(&check));
        // Another route's settings, which say the same.
        let alike = Arc::new(CheckSettings::default());
        let second = ask(&one, &outlier, Some(&alike));
        let same = |a: &Standing, b: &Standing| {
            let ejection = Arc::ptr_eq(a.ejection.as_ref().unwrap(), b.ejection.as_ref().unwrap());
            let checks = Arc::ptr_eq(a.checks.as_ref().unwrap(), b.checks.as_ref().unwrap());
            (ejection, checks)
        };
        assert_eq!(same(&first, &second), (true, true));
        let slow = Arc::new(CheckSettings {
            interval: Duration::from_secs(60),
            ..CheckSettings::default()
        });
        let third = ask(&one, &outlier, Some(&slow));
        assert_eq!(
            same(&first, &third),
            (true, false),
            "checked in another way"
        );
        let fourth = ask(&other, &outlier, Some(&check));
        assert_eq!(same(&first, &fourth), (false, false), "another upstream");
        let fifth = ask(&one, &Outlier::default(), Some(&check));
        assert!(fifth.ejection.is_none(), "the upstream's own");
        let known = [&first, &third, &fourth].map(|standing| standing.checks.as_ref().unwrap());
        for checks in known {
            let told = told.try_recv().expect("the checker is told");
            assert!(Arc::ptr_eq(&told.upgrade().unwrap(), checks));
        }
        assert!(told.try_recv().is_err(), "of each once");
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let mut shared = Shared::<u32, u32>::default();
        let slot = Slot {
            index: 1,
            generation: 0,
        };
        let kept = shared.of(slot, &0, || 7);
        for settings in 1..=10_000 {
            shared.of(slot, &settings, || 0);
        }
        assert!(shared.known.len() <= LEAST_SWEEP, "{}", shared.known.len());
        assert!(Arc::ptr_eq(&kept, &shared.of(slot, &0, || 8)));
    }
}
