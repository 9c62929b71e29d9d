//! The upstreams that one worker has ejected: told when it begins, and when it is over.

use std::{
    cell::{Cell, RefCell},
    sync::{Arc, Weak},
};

use tracing::{info, warn};

use crate::{
    moment::Moment,
    route::Member,
    upstream::{
        Upstream,
        ejection::{Ejection, Term},
    },
};

/// The ejections in force that this worker began.
#[derive(Default)]
pub struct Ejections {
    in_force: RefCell<Vec<InForce>>,
    /// How many were logged since the last sweep, and how many were not.
    logged: Cell<u32>,
    unlogged: Cell<u32>,
}

/// An ejection in force.
struct InForce {
    route: Arc<str>,
    /// It may be removed meanwhile, with nothing left to tell.
    upstream: Weak<Upstream>,
    /// Where the route has outlier settings of its own.
    own: Option<Weak<Ejection>>,
    term: Term,
}

/// How many a worker logs from sweep to sweep, each way: when a network fails, all of its upstreams do at once.
const MOST_LOGGED: u32 = 20;

impl Ejections {
    /// `member` is out now, for its failures in `route`.
    pub fn begin(&self, route: &Arc<str>, member: &Member, term: &Term) {
        let (upstream, standing) = (&member.upstream, member.standing.as_deref());
        let own = standing.and_then(|standing| standing.ejection.as_ref());
        upstream.metrics.ejections.inc();
        self.in_force.borrow_mut().push(InForce {
            route: route.clone(),
            upstream: Arc::downgrade(upstream),
            own: own.map(Arc::downgrade),
            term: *term,
        });
        if self.may_log() {
            let seconds = term.until.since(Moment::now()).as_secs_f32().round();
            warn!(
                route = &**route,
                upstream = &*upstream.name,
                seconds,
                times = term.times,
                "upstream ejected: {}",
                term.fault
            );
        }
    }

    /// Tells of those whose time is over. Called every second.
    pub fn sweep(&self, now: impl FnOnce() -> Moment) {
        self.logged.set(0);
        let unlogged = self.unlogged.replace(0);
        if unlogged > 0 {
            warn!(
                count = unlogged,
                "further upstreams were ejected, or came back"
            );
        }
        let mut in_force = self.in_force.borrow_mut();
        if in_force.is_empty() {
            return;
        }
        let now = now();
        in_force.retain(|ejected| {
            if ejected.term.until > now {
                return true;
            }
            if let Some(upstream) = ejected.ended(now)
                && self.may_log()
            {
                info!(
                    route = &*ejected.route,
                    upstream = &*upstream.name,
                    "upstream is used again"
                );
            }
            false
        });
    }

    fn may_log(&self) -> bool {
        let may = self.logged.get() < MOST_LOGGED;
        let counter = if may { &self.logged } else { &self.unlogged };
        counter.set(counter.get() + 1);
        may
    }
}

impl InForce {
    /// Whose ejection this was, if that is still there and was not ejected again meanwhile.
    fn ended(&self, now: Moment) -> Option<Arc<Upstream>> {
        let upstream = self.upstream.upgrade()?;
        let is_in = |ejection: &Ejection| {
            ejection.latest() == Some(self.term) && !ejection.is_in_force_at(|| now)
        };
        let is_in = match &self.own {
            Some(own) => is_in(&*own.upgrade()?),
            None => is_in(&upstream.ejection),
        };
        is_in.then_some(upstream)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        route::{Role, Route, Settings, testing::route},
        telemetry::logging::testing::logged,
        upstream::ejection::{Fault, Outlier},
    };

    const START: Moment = Moment::from_millis(1000);

    fn at(seconds: u64) -> Moment {
        START.after(Duration::from_secs(seconds))
    }

    /// Ejects the route's one member, as seen by this worker.
    fn eject(worker: &Ejections, route: &Route, seconds: u64) {
        let (member, settings) = (&route.members[0], &route.settings.outlier);
        let term = (member.ejection()).eject(Fault::Status(500), settings, at(seconds));
        worker.begin(&route.name, member, &term.expect("it is in"));
    }

    #[test]
    fn who_is_ejected_again_is_not_told_to_be_used_again() {
        let own = Outlier {
            ejection: Duration::from_secs(20),
            ..Outlier::default()
        };
        for outlier in [Outlier::default(), own] {
            let length = outlier.ejection.as_secs();
            let settings = Settings {
                outlier,
                ..Settings::default()
            };
            let route = route(settings, &[(1, Role::Serving)]);
            let ejected = &route.members[0].upstream.metrics.ejected;
            let (first, second) = (Ejections::default(), Ejections::default());
            let lines = logged(|| {
                eject(&first, &route, 0);
                eject(&second, &route, length);
                assert_eq!(ejected.get(), 1);
                first.sweep(|| at(length));
                second.sweep(|| at(length));
            });
            let told = |lines: &[String]| {
                let is_back = |line: &&String| line.contains("upstream is used again");
                lines.iter().filter(is_back).count()
            };
            assert_eq!((ejected.get(), told(&lines)), (1, 0), "{lines:#?}");
            let lines = logged(|| second.sweep(|| at(3 * length)));
            assert_eq!((ejected.get(), told(&lines)), (0, 1), "{lines:#?}");
        }
    }
}
