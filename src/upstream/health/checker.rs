//! Makes the checks: one task that knows when which is due, and a bounded number of them at one time.

use std::{
    collections::HashMap,
    future,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{self, JoinError, JoinSet},
    time::{Instant, interval_at, sleep_until},
};
use tracing::{debug, error, info, warn};

use super::{
    Checks, Finding, Initial,
    schedule::{First, MOST_A_SECOND, Newcomer, Schedule, Turn},
};
use crate::telemetry::metrics::{HealthCheckMetrics, Metrics};

/// The most checks at one time, and so the most descriptors they take.
const MOST_AT_ONCE: usize = 256;

/// How many new ones are taken in at one go.
const MOST_NEW: usize = 16 * 1024;

/// How soon a check that is being made is given up once nobody wants to know any more.
const NOTICED: Duration = Duration::from_secs(1);

/// What one check counts in the average of the latest.
const LATEST: f64 = 0.01;

/// Makes every check it is told of again and again, for as long as somebody holds it. `A` asks an upstream once.
pub struct Checker<A> {
    ask: A,
    metrics: Arc<Metrics>,
    schedule: Schedule<Weak<Checks>>,
    running: JoinSet<Option<Finding>>,
    /// What belongs to each task of `running`.
    turns: HashMap<task::Id, Running>,
    /// By how many seconds checks begin late, on average of the latest ones.
    delay: f64,
    /// Whether the log says that there are more checks than are made.
    is_stretched: bool,
}

struct Running {
    turn: Turn<Weak<Checks>>,
    began: Instant,
}

impl<A, F> Checker<A>
where
    A: Fn(Arc<Checks>) -> F,
    F: Future<Output = Finding> + Send + 'static,
{
    /// A checker that asks by `ask`, which bounds what that takes.
    pub fn new(ask: A, metrics: Arc<Metrics>) -> Self {
        Self {
            ask,
            metrics,
            schedule: Schedule::new(|checks| checks.strong_count() > 0, Instant::now()),
            running: JoinSet::new(),
            turns: HashMap::new(),
            delay: 0.0,
            is_stretched: false,
        }
    }

    /// Makes checks until it is dropped, and gives up those that it makes then. Of each it is told once.
    pub async fn run(mut self, mut told: mpsc::UnboundedReceiver<Weak<Checks>>) {
        let (mut new, mut is_told) = (Vec::new(), true);
        loop {
            self.begin_due();
            self.show();
            let has_room = self.turns.len() < MOST_AT_ONCE;
            let next = self.schedule.next().filter(|_| has_room);
            tokio::select! {
                count = told.recv_many(&mut new, MOST_NEW), if is_told => match count {
                    // Who told is gone; the table still serves, and what is in it is still checked.
                    0 => is_told = false,
                    _ => self.admit(&mut new),
                },
                Some(ended) = self.running.join_next_with_id() => self.end(ended),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                // Nothing to check, and nobody to tell of more.
                else => future::pending().await,
            }
        }
    }

    fn admit(&mut self, new: &mut Vec<Weak<Checks>>) {
        let mut wanted = Vec::with_capacity(new.len());
        for what in new.drain(..) {
            let Some(checks) = what.upgrade() else {
                continue;
            };
            let first = match checks.settings.initial {
                Initial::Healthy => First::Spread,
                Initial::Unhealthy => First::AtOnce,
            };
            wanted.push(Newcomer {
                what,
                interval: checks.settings.interval,
                first,
            });
        }
        self.schedule.admit(wanted.into_iter(), Instant::now());
    }

    fn begin_due(&mut self) {
        let now = Instant::now();
        while self.turns.len() < MOST_AT_ONCE
            && let Some(turn) = self.schedule.take(now)
        {
            let Some(checks) = turn.what.upgrade() else {
                self.schedule.give_back(turn, now, now);
                continue;
            };
            self.delay += (turn.late.as_secs_f64() - self.delay) * LATEST;
            let asked = (self.ask)(checks);
            let unwanted = until_nobody_wants(turn.what.clone());
            let task = self.running.spawn(async move {
                tokio::select! {
                    finding = asked => Some(finding),
                    () = unwanted => None,
                }
            });
            self.turns.insert(task.id(), Running { turn, began: now });
        }
    }

    fn end(&mut self, ended: Result<(task::Id, Option<Finding>), JoinError>) {
        let (id, finding) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A bug of ours must not end the checks of this upstream.
                error!(%error, "a health check failed in itself; it is made again");
                (error.id(), None)
            }
        };
        let Some(Running { turn, began }) = self.turns.remove(&id) else {
            return;
        };
        let now = Instant::now();
        if let (Some(finding), Some(checks)) = (finding, turn.what.upgrade()) {
            let counts = self.counts();
            match finding.is_good() {
                Some(true) => counts.good.inc(),
                Some(false) => counts.bad.inc(),
                None => counts.unknown.inc(),
            }
            conclude(&checks, finding, now);
        }
        self.schedule.give_back(turn, began, now);
    }

    fn counts(&self) -> &HealthCheckMetrics {
        &self.metrics.health_checks
    }

    /// Says how much there is to check, and whether that is too much.
    fn show(&mut self) {
        let checks = self.schedule.waiting() + self.turns.len();
        let stretch = self.schedule.stretch();
        let counts = self.counts();
        counts.checks.set(i64::try_from(checks).unwrap_or(i64::MAX));
        counts.stretch.set(stretch);
        counts.delay_seconds.set(self.delay);
        if stretch > 1.0 && !self.is_stretched {
            self.is_stretched = true;
            warn!(
                checks,
                stretch,
                "health checks are asked for more often than {MOST_A_SECOND} times a second: all intervals are longer"
            );
        } else if stretch <= 1.0 && self.is_stretched {
            self.is_stretched = false;
            info!(checks, "health checks are made as often as asked for again");
        }
    }
}

/// Once nobody but whoever asks holds them. Looked at now and then: those who let go don't know of us.
async fn until_nobody_wants(checks: Weak<Checks>) {
    let mut looks = interval_at(Instant::now() + NOTICED, NOTICED);
    loop {
        looks.tick().await;
        if checks.strong_count() <= 1 {
            return;
        }
    }
}

fn conclude(checks: &Checks, finding: Finding, now: Instant) {
    let (upstream, path) = (&*checks.upstream.name, checks.settings.path.as_deref());
    debug!(upstream, path, "health check: {finding}");
    if !checks.note(finding, now.into_std()) {
        return;
    }
    let report = checks.report();
    let reason = report.last.map(|last| last.finding.to_string());
    match report.is_healthy {
        true => info!(upstream, path, reason, "upstream is healthy"),
        false => warn!(upstream, path, reason, "upstream is unhealthy"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::time::{sleep, timeout};

    use super::{
        super::{CheckSettings, testing::checks},
        *,
    };
    use crate::upstream::Endpoint;

    const SECOND: Duration = Duration::from_secs(1);

    /// A checker that runs, and what it is told by.
    fn run<F>(
        ask: impl Fn(Arc<Checks>) -> F + Send + 'static,
    ) -> (mpsc::UnboundedSender<Weak<Checks>>, Arc<Metrics>)
    where
        F: Future<Output = Finding> + Send + 'static,
    {
        let (tell, told) = mpsc::unbounded_channel();
        let metrics = Metrics::new();
        tokio::spawn(Checker::new(ask, metrics.clone()).run(told));
        (tell, metrics)
    }

    fn settings(interval: Duration) -> CheckSettings {
        CheckSettings {
            interval,
            ..CheckSettings::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn findings_turn_the_verdict_until_they_turn_it_back() {
        let is_up = Arc::new(Mutex::new(false));
        let ask = {
            let is_up = is_up.clone();
            move |_| {
                let is_up = *is_up.lock().unwrap();
                future::ready(Finding::Status(if is_up { 200 } else { 503 }, is_up))
            }
        };
        let (tell, metrics) = run(ask);
        let checks = checks(1, settings(SECOND));
        tell.send(Arc::downgrade(&checks)).unwrap();
        // The first within a second, two more after up to 1.1 s each.
        sleep(SECOND * 4).await;
        assert!(!checks.is_healthy());
        *is_up.lock().unwrap() = true;
        sleep(SECOND * 3).await;
        assert!(checks.is_healthy());
        let report = checks.report();
        assert_eq!(report.last.unwrap().finding, Finding::Status(200, true));
        let counts = &metrics.health_checks;
        assert!(counts.bad.get() >= 3 && counts.good.get() >= 2);
        assert_eq!(counts.checks.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_is_never_made_twice_at_one_time_nor_too_many() {
        #[derive(Default)]
        struct Seen {
            running: usize,
            most: usize,
            asked: HashSet<u16>,
        }
        let seen = Arc::new(Mutex::new(Seen::default()));
        let ask = {
            let seen = seen.clone();
            move |checks: Arc<Checks>| {
                let seen = seen.clone();
                async move {
                    let port = match checks.upstream.identity.endpoint {
                        Endpoint::Tcp { address, .. } => address.port(),
                        _ => unreachable!("all are at ports"),
                    };
                    {
                        let mut seen = seen.lock().unwrap();
                        seen.running += 1;
                        seen.most = seen.most.max(seen.running);
                        assert!(seen.asked.insert(port), "twice at one time");
                    }
                    sleep(SECOND * 3).await;
                    let mut seen = seen.lock().unwrap();
                    seen.running -= 1;
                    seen.asked.remove(&port);
                    Finding::failed("no answer")
                }
            }
        };
        let (tell, metrics) = run(ask);
        let all: Vec<_> = (0..400)
            .map(|port| checks(port, settings(SECOND)))
            .collect();
        for checks in &all {
            tell.send(Arc::downgrade(checks)).unwrap();
        }
        sleep(SECOND * 60).await;
        assert_eq!(seen.lock().unwrap().most, MOST_AT_ONCE);
        let delay = metrics.health_checks.delay_seconds.get();
        assert!((0.5..3.0).contains(&delay), "late by {delay} s");
        let known = all.iter().filter(|checks| checks.report().last.is_some());
        assert_eq!(known.count(), 400, "all have their turn");
        // 20 rounds of 256: a panic in the closure would have ended one.
        assert!(metrics.health_checks.bad.get() > 15 * 256);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_holds_is_checked_no_more_and_given_up_where_it_is() {
        struct Asked(Arc<AtomicUsize>);
        impl Drop for Asked {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let (asking, count) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let ask = {
            let (asking, count) = (asking.clone(), count.clone());
            move |checks: Arc<Checks>| {
                let asked = Asked(asking.clone());
                asking.fetch_add(1, Ordering::Relaxed);
                count.fetch_add(1, Ordering::Relaxed);
                async move {
                    let _asked = asked;
                    let _checks = checks;
                    future::pending().await
                }
            }
        };
        let (tell, metrics) = run(ask);
        let removed = checks(1, settings(SECOND));
        let stays = checks(2, settings(SECOND));
        for checks in [&removed, &stays] {
            tell.send(Arc::downgrade(checks)).unwrap();
        }
        sleep(SECOND * 2).await;
        assert_eq!(asking.load(Ordering::Relaxed), 2);
        let upstream = Arc::downgrade(&removed.upstream);
        drop(removed);
        sleep(NOTICED * 2).await;
        assert_eq!(asking.load(Ordering::Relaxed), 1, "the other goes on");
        assert!(upstream.upgrade().is_none(), "its pools may close");
        sleep(SECOND * 60).await;
        assert_eq!(count.load(Ordering::Relaxed), 2);
        assert_eq!(metrics.health_checks.checks.get(), 1);
        assert_eq!(metrics.health_checks.bad.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_fails_in_itself_is_made_again() {
        let count = Arc::new(AtomicUsize::new(0));
        let ask = {
            let count = count.clone();
            move |_| {
                let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
                async move {
                    assert!(!is_first, "a bug, for once");
                    Finding::Connected
                }
            }
        };
        let (tell, _) = run(ask);
        let checks = checks(1, settings(SECOND));
        tell.send(Arc::downgrade(&checks)).unwrap();
        let found = async {
            while checks.report().last.is_none() {
                sleep(SECOND / 10).await;
            }
        };
        timeout(SECOND * 5, found).await.expect("checked again");
    }

    #[tokio::test(start_paused = true)]
    async fn who_told_may_end_and_the_checks_go_on() {
        let count = Arc::new(AtomicUsize::new(0));
        let ask = {
            let count = count.clone();
            move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                future::ready(Finding::Connected)
            }
        };
        let (tell, told) = mpsc::unbounded_channel();
        let checker = tokio::spawn(Checker::new(ask, Metrics::new()).run(told));
        let checks = checks(1, settings(SECOND));
        tell.send(Arc::downgrade(&checks)).unwrap();
        drop(tell);
        sleep(SECOND * 10).await;
        assert!(count.load(Ordering::Relaxed) >= 8);
        drop(checks);
        // Nothing is left to wait for.
        sleep(SECOND * 10).await;
        assert!(!checker.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_thousand_upstreams_are_checked_at_a_bounded_rate() {
        let begun = Instant::now();
        let a_second = Arc::new(Mutex::new(vec![0_usize; 120]));
        let ask = {
            let a_second = a_second.clone();
            move |_| {
                let second = begun.elapsed().as_secs() as usize;
                a_second.lock().unwrap()[second] += 1;
                async {
                    sleep(Duration::from_millis(20)).await;
                    Finding::Connected
                }
            }
        };
        let (tell, metrics) = run(ask);
        let first = checks(1, settings(SECOND * 5));
        let all: Vec<_> = (0..100_000)
            .map(|_| Arc::new(Checks::new(first.upstream.clone(), first.settings.clone())))
            .collect();
        for checks in &all {
            tell.send(Arc::downgrade(checks)).unwrap();
        }
        sleep(SECOND * 115).await;
        let a_second = a_second.lock().unwrap()[..115].to_vec();
        let most = MOST_A_SECOND as usize + 21;
        assert!(
            a_second.iter().all(|checks| *checks <= most),
            "{a_second:?}"
        );
        let least = MOST_A_SECOND as usize * 7 / 10;
        let even = a_second[..100].iter().all(|checks| *checks >= least);
        assert!(even, "{a_second:?}");
        let met = all.iter().filter(|checks| checks.report().last.is_some());
        assert_eq!(
            met.count(),
            100_000,
            "nobody waits longer than the stretch says"
        );
        assert_eq!(metrics.health_checks.stretch.get(), 20.0);
        assert_eq!(metrics.health_checks.checks.get(), 100_000);
        drop(all);
        sleep(SECOND * 130).await;
        assert_eq!(metrics.health_checks.checks.get(), 0);
        assert_eq!(metrics.health_checks.stretch.get(), 1.0);
    }
}
