//! A source and a publisher over the model, with a mirror between them that holds every update against the history.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{
    super::Etcd,
    mirror::Mirror,
    model::{Keys, Model},
    random_keys::{Expected, Member, Route},
};
use crate::{
    live::{Live, Status},
    route::{self, settings::Balance},
    source::{
        Update,
        publish::{Acceptance, Publisher},
        resolve::Names,
    },
    telemetry::metrics::Metrics,
};

const PREFIX: &str = "/hosts/";

/// Longest way to a table that is right, once nothing goes wrong any more: what was lost is found out every hour or so.
const SETTLED: Duration = Duration::from_secs(3 * 3600);

/// What one process would be.
pub struct Instance {
    model: Model,
    metrics: Arc<Metrics>,
    live: Arc<Live>,
    mirror: Arc<Mutex<Mirror>>,
    updates: mpsc::Sender<Update>,
    acceptance: Acceptance,
    source: JoinHandle<()>,
    further: [JoinHandle<()>; 2],
}

impl Instance {
    pub fn start(model: &Model, metrics: &Arc<Metrics>, seed: u64) -> Self {
        let live = Live::new(Status::before("etcd", ""));
        let (names, _, _) = Names::channels();
        let publisher = Publisher::new(
            live.clone(),
            metrics.clone(),
            PREFIX.to_owned(),
            Balance::RoundRobin,
            names,
        );
        let acceptance = publisher.acceptance();
        let mirror = Arc::new(Mutex::new(Mirror::default()));
        // Small, so that the source often has to wait.
        let (updates, told) = mpsc::channel(1 + usize::try_from(seed % 3).expect("small"));
        let (passed_on, receiver) = mpsc::channel(64);
        let tap = tap(model.clone(), live.clone(), mirror.clone(), told, passed_on);
        Self {
            source: source(model, &live, metrics, &updates, seed),
            further: [tokio::spawn(publisher.run(receiver)), tokio::spawn(tap)],
            model: model.clone(),
            metrics: metrics.clone(),
            live,
            mirror,
            updates,
            acceptance,
        }
    }

    /// The source starts anew, wherever it was, and knows nothing; what it fed goes on.
    pub async fn restart_source(&mut self, seed: u64) {
        self.source.abort();
        let _ = (&mut self.source).await;
        self.source = source(&self.model, &self.live, &self.metrics, &self.updates, seed);
    }

    /// All of it ends, wherever it was.
    pub async fn stop(self) {
        let [publisher, tap] = self.further;
        for task in [self.source, tap, publisher] {
            task.abort();
            let _ = task.await;
        }
    }

    /// Waits until the newest revision is applied, with all its deletions.
    pub async fn settle(&self) -> Result<(), String> {
        let mut applied = self.live.applied.subscribe();
        let settled = async {
            while self.check().is_ok() && !self.is_settled() {
                let _ = timeout(Duration::from_secs(60), applied.changed()).await;
            }
        };
        if timeout(SETTLED, settled).await.is_err() {
            let mirror = self.mirror();
            return Err(format!(
                "not settled within {SETTLED:?}: etcd is at {}, told up to {}, applied {:?}; {:?}",
                self.model.state().history().revision(),
                mirror.revision,
                *applied.borrow(),
                *self.live.status.borrow()
            ));
        }
        self.check()?;
        if !self.live.held.load().is_empty() {
            self.acceptance.accept().await.ok_or("no publisher")?;
            self.mirror().let_go();
            self.model.state().note("deletions were accepted");
        }
        self.check()?;
        let held = self.mirror().known.held();
        match held.is_empty() {
            true => Ok(()),
            false => Err(format!("{held:?} are held for ever")),
        }
    }

    fn is_settled(&self) -> bool {
        let state = &*self.model.state();
        let mirror = self.mirror();
        // The fleet's own keys are not compared with what etcd has: a lost one stays lost.
        let is_compared = |key: &[u8]| {
            !key.starts_with(b"/hosts/@") || !state.happened.contains_key("events were lost")
        };
        let compared = |keys: &Keys| -> Keys {
            keys.clone()
                .into_iter()
                .filter(|(key, _)| is_compared(key))
                .collect()
        };
        let history = state.histories.last().expect("there always is one");
        compared(&mirror.keys) == compared(history.newest())
            && mirror.revision == history.revision()
            && *self.live.applied.borrow() == Some(mirror.revision)
    }

    /// Whether all is well so far: every update was right, and so is the table of the last one, once it is there.
    pub fn check(&self) -> Result<(), String> {
        let mut tasks = self.further.iter().chain([&self.source]);
        let mirror = &mut *self.mirror();
        mirror.see_held(&self.live);
        if let Some(wrong) = &mirror.wrong {
            return Err(wrong.clone());
        }
        if tasks.any(JoinHandle::is_finished) {
            return Err("a task ended".to_owned());
        }
        if *self.live.applied.borrow() != Some(mirror.revision) {
            return Ok(());
        }
        let held: Vec<_> = self
            .live
            .held
            .load()
            .iter()
            .map(ToString::to_string)
            .collect();
        if held != mirror.known.held() {
            return Err(format!("{held:?} are held, not {:?}", mirror.known.held()));
        }
        let (expected, published) = (mirror.known.expected(), published(&self.live));
        if expected == published {
            return Ok(());
        }
        Err(format!(
            "at {} the table must be\n{expected:#?}\nbut is\n{published:#?}",
            mirror.revision
        ))
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror
            .lock()
            .expect("no code panics while it holds it")
    }
}

fn source(
    model: &Model,
    live: &Arc<Live>,
    metrics: &Arc<Metrics>,
    updates: &mpsc::Sender<Update>,
    seed: u64,
) -> JoinHandle<()> {
    let source = Etcd::over(model.clone(), PREFIX.to_owned(), seed).counted_in(metrics.clone());
    tokio::spawn(source.run(live.clone(), updates.clone()))
}

async fn tap(
    model: Model,
    live: Arc<Live>,
    mirror: Arc<Mutex<Mirror>>,
    mut told: mpsc::Receiver<Update>,
    passed_on: mpsc::Sender<Update>,
) {
    while let Some(update) = told.recv().await {
        let outcome = {
            let state = &*model.state();
            let mirror = &mut *mirror.lock().expect("no code panics while it holds it");
            mirror.see_held(&live);
            let outcome = mirror.take(&update, &state.histories);
            // What the watch lost is not there until a reconcile finds out.
            match state.weather.lost_events > 0.0 || state.happened.contains_key("events were lost")
            {
                true => Ok(()),
                false => outcome,
            }
        };
        if let Err(wrong) = outcome {
            let mirror = &mut *mirror.lock().expect("no code panics while it holds it");
            mirror.wrong.get_or_insert(wrong);
        }
        if passed_on.send(update).await.is_err() {
            return;
        }
    }
}

/// The table, as it is looked at.
fn published(live: &Live) -> Expected {
    let table = live.table.load();
    let rejected = live.rejected.load();
    Expected {
        routes: (table.routes())
            .map(|route| (route.name.to_string(), shown(route)))
            .collect(),
        rejected: (rejected.shown.iter())
            .map(|rejected| (rejected.key.clone(), rejected.last_good_in_force))
            .collect(),
    }
}

fn shown(route: &route::Route) -> Route {
    let balance = match route.settings.balance {
        None | Some(Balance::RoundRobin) => "round-robin",
        Some(Balance::Random) => "random",
        Some(other) => panic!("{other:?} is not among the random keys"),
    };
    let settings = (route.settings_key.as_ref()).map(|in_force| &in_force.version);
    Route {
        balance: balance.to_owned(),
        settings: settings.map(|version| (version.key.to_string(), version.mod_revision)),
        members: (route.members.iter())
            .map(|member| Member {
                key: member.key.key.to_string(),
                upstream: member.upstream.name.to_string(),
                weight: member.weight,
                alias: member.is_alias,
                mod_revision: member.key.mod_revision,
            })
            .collect(),
    }
}
