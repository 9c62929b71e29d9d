//! Whatever happens to etcd and on the way there, every update is a whole revision, and in the end the table is what
//! a fresh read of the keys would make.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{Instant, sleep};

use super::{
    instance::Instance,
    model::{History, Model, State, Weather},
    random_keys::{Operation, known, transaction},
};
use crate::telemetry::metrics::Metrics;

const CASES: u64 = 2_000;
const STEPS: usize = 16;

/// How long a step may last.
const PAUSES: [Duration; 9] = [
    Duration::ZERO,
    Duration::ZERO,
    Duration::from_micros(100),
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(300),
    Duration::from_secs(2),
    Duration::from_secs(20),
];

/// A key whose newest value is unlike every value before.
const MARK: &[u8] = b"/hosts/shop.x/10.0.0.2:80";

#[test]
fn the_first_quarter_of_random_histories_converges() {
    converge(0..CASES / 4);
}

#[test]
fn the_second_quarter_of_random_histories_converges() {
    converge(CASES / 4..CASES / 2);
}

#[test]
fn the_third_quarter_of_random_histories_converges() {
    converge(CASES / 2..CASES / 4 * 3);
}

#[test]
fn the_last_quarter_of_random_histories_converges() {
    converge(CASES / 4 * 3..CASES);
}

fn converge(seeds: Range<u64>) {
    let metrics = Metrics::new();
    let mut happened = BTreeMap::new();
    for seed in seeds {
        match run(seed, STEPS, &metrics) {
            Ok(counts) => {
                for (what, count) in counts {
                    *happened.entry(what).or_insert(0) += count;
                }
            }
            Err(failure) => panic!("{}", shortest(seed, failure, &metrics)),
        }
    }
    for what in EVERYTHING {
        let count = happened.get(what).copied().unwrap_or_default();
        assert!(count >= CASES / 200, "{what}: only {count} times");
    }
}

/// All that the model can do and the steps below.
const EVERYTHING: [&str; 22] = [
    "a pulse",
    "events were lost",
    "deletions were accepted",
    "a call failed",
    "a read gave up its pin",
    "a page was too large",
    "a read took several pages",
    "a watch was lost",
    "a watch fell silent",
    "a watch was compacted away",
    "a progress notice",
    "events were repeated",
    "a fragment",
    "a second watch was answered",
    "a lease ended",
    "compacted while away",
    "compacted again and again",
    "another history",
    "another history outran ours",
    "the source started anew",
    "the process started anew",
    "settled",
];

struct Failure {
    message: String,
    trace: Vec<String>,
}

/// The same case with as few steps as fail, told.
fn shortest(seed: u64, mut failure: Failure, metrics: &Arc<Metrics>) -> String {
    let mut steps = STEPS;
    for fewer in 1..STEPS {
        if let Err(shorter) = run(seed, fewer, metrics) {
            (failure, steps) = (shorter, fewer);
            break;
        }
    }
    format!(
        "seed {seed}, {steps} steps:\n{}\n{}",
        failure.trace.join("\n"),
        failure.message
    )
}

/// One case: what happened how often.
fn run(
    seed: u64,
    steps: usize,
    metrics: &Arc<Metrics>,
) -> Result<BTreeMap<&'static str, u64>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut case = Case::start(seed, metrics);
        match case.play(steps).await {
            Ok(()) => Ok(case.finish().await),
            Err(message) => Err(Failure {
                message,
                trace: case.trace,
            }),
        }
    })
}

struct Case {
    model: Model,
    metrics: Arc<Metrics>,
    instance: Option<Instance>,
    random: StdRng,
    weather: Weather,
    started: Instant,
    trace: Vec<String>,
    leases: i64,
    marks: u64,
}

impl Case {
    fn start(seed: u64, metrics: &Arc<Metrics>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let members = random.random_range(1..=3);
        let model = Model::new(random.random(), members);
        let often = |random: &mut StdRng| *[0.0, 0.02, 0.1, 0.2].choose(random).expect("items");
        let weather = Weather {
            lost_calls: often(&mut random),
            lost_streams: often(&mut random),
            notice: *[20, 600]
                .map(Duration::from_secs)
                .choose(&mut random)
                .expect("items"),
            lost_events: *[0.0, 0.0, 0.0, 0.0, 0.0, 0.2]
                .choose(&mut random)
                .expect("items"),
            odd_responses: *[0.0, 0.3, 1.0].choose(&mut random).expect("items"),
            latency: *[0, 1, 20, 400]
                .map(Duration::from_millis)
                .choose(&mut random)
                .expect("items"),
            page_limit: *[1, 2, 5, usize::MAX].choose(&mut random).expect("items"),
        };
        model.change(|state| state.weather = weather);
        Self {
            instance: Some(Instance::start(&model, metrics, random.random())),
            metrics: metrics.clone(),
            model,
            random,
            started: Instant::now(),
            trace: vec![format!("{members} members, {weather:?}")],
            weather,
            leases: 0,
            marks: 0,
        }
    }

    /// So many steps, and then all must be well.
    async fn play(&mut self, steps: usize) -> Result<(), String> {
        for _ in 0..steps {
            self.step().await?;
            let pause = *PAUSES.choose(&mut self.random).expect("items");
            sleep(pause).await;
            self.instance().check()?;
        }
        self.settle().await
    }

    async fn finish(mut self) -> BTreeMap<&'static str, u64> {
        if let Some(instance) = self.instance.take() {
            instance.stop().await;
        }
        std::mem::take(&mut self.model.state().happened)
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.random.random_range(0..100) {
            0..40 => self.commit(),
            40..45 => self.expire(),
            45..48 => self.tell("elsewhere", |state| state.history().commit_elsewhere()),
            48..55 => self.compact(),
            55..62 => self.tell("cut", State::cut),
            62..70 => self.trouble_a_member(),
            70..76 => self.tell("members well", well),
            76..82 => self.compact_a_deletion_while_away().await,
            82..86 => self.compact_again_and_again().await,
            86..89 => self.begin_another_history().await?,
            89..92 => self.restart_source().await,
            92..95 => self.restart().await,
            _ => self.settle().await?,
        }
        Ok(())
    }

    fn commit(&mut self) {
        let operations = transaction(&mut self.random);
        let lease = match self.random.random_bool(0.15) {
            true => self.random.random_range(1..4),
            false => 0,
        };
        self.leases = self.leases.max(lease);
        self.tell(&format!("lease {lease}: {}", told(&operations)), |state| {
            state.history().commit(&operations, lease);
        });
    }

    fn expire(&mut self) {
        let lease = self.random.random_range(1..4);
        self.tell(&format!("lease {lease} ends"), |state| {
            let before = state.history().revision();
            state.history().expire(lease);
            if state.history().revision() > before {
                state.note("a lease ended");
            }
        });
    }

    fn compact(&mut self) {
        let newest = self.model.state().history().revision();
        let revision = match self.random.random_bool(0.5) {
            true => newest,
            false => self.random.random_range(1..=newest),
        };
        self.tell(&format!("compact {revision}"), |state| {
            let history = state.history();
            history.compacted = history.compacted.max(revision);
        });
    }

    fn trouble_a_member(&mut self) {
        let kind = self.random.random_range(0..3);
        let index = self
            .random
            .random_range(0..self.model.state().members.len());
        let text = format!("member {index} {}", ["down", "silent", "lags"][kind]);
        self.tell(&text, |state| {
            let newest = state.history().revision();
            let member = &mut state.members[index];
            match kind {
                0 => member.is_down = true,
                1 => member.is_silent = true,
                _ => member.lags_at = Some(newest),
            }
        });
    }

    /// The deletion can be seen neither in a read at its revision nor by a watch that begins there.
    async fn compact_a_deletion_while_away(&mut self) {
        self.tell("all members down", |state| {
            (state.members.iter_mut()).for_each(|member| member.is_down = true);
        });
        sleep(Duration::from_millis(self.random.random_range(0..30))).await;
        let keys: Vec<_> = {
            let state = &mut *self.model.state();
            let keys = state.history().newest().keys();
            keys.filter_map(|key| known(key)).collect()
        };
        let Some(key) = keys.choose(&mut self.random) else {
            return;
        };
        let operations = [Operation::Delete(key)];
        self.tell(&format!("{} and compact", told(&operations)), |state| {
            let history = state.history();
            history.commit(&operations, 0);
            history.compacted = history.revision();
            state.note("compacted while away");
        });
        if self.random.random_bool(0.5) {
            self.tell("members well", well);
        }
    }

    /// Faster than pages are read.
    async fn compact_again_and_again(&mut self) {
        if self.random.random_bool(0.5) {
            self.restart_source().await;
        }
        for _ in 0..self.random.random_range(3..20) {
            self.commit();
            self.compact();
            let pause = self.random.random_range(0..30);
            sleep(Duration::from_millis(pause)).await;
        }
        self.note("compacted again and again");
    }

    /// Wiped, restored from a backup, or another cluster altogether. The newest key is one that no other history has,
    /// and we have seen it: without any such key nobody could tell. Perhaps we are about to read everything for another
    /// reason, or the new history has outrun ours and can't be asked about it.
    async fn begin_another_history(&mut self) -> Result<(), String> {
        self.mark();
        self.settle().await?;
        if self.random.random_bool(0.5) {
            self.tell("all members down", |state| {
                (state.members.iter_mut()).for_each(|member| member.is_down = true);
            });
            self.mark();
            self.tell("compact all, members well", |state| {
                compact_all(state);
                well(state);
            });
            sleep(Duration::from_millis(self.random.random_range(0..300))).await;
        }
        let kind = self.random.random_range(0..3);
        let newest = self.model.state().history().revision();
        let backup = self.random.random_range(1..newest.max(2));
        let text = ["wiped", "another cluster", "restored"][kind];
        let commits = self.random.random_range(0..12);
        self.tell(&format!("{text} ({backup} of {newest})"), |state| {
            let cluster_id = state.history().cluster_id;
            let history = match kind {
                0 => History::new(cluster_id),
                1 => History::new(cluster_id + 1),
                _ => state.history().restored(backup),
            };
            state.replace(history);
        });
        for _ in 0..commits {
            self.commit();
        }
        self.note("another history");
        if self.random.random_bool(0.5) {
            while self.model.state().history().revision() <= newest {
                self.commit();
            }
            self.tell("compact all", compact_all);
            self.note("another history outran ours");
        }
        Ok(())
    }

    fn mark(&mut self) {
        self.marks += 1;
        let operations = [Operation::Put(MARK, format!("mark {}", self.marks))];
        self.tell(&told(&operations), |state| {
            state.history().commit(&operations, 0);
        });
    }

    async fn restart_source(&mut self) {
        self.tell("the source starts anew", |state| {
            state.note("the source started anew");
        });
        let seed = self.random.random();
        if let Some(instance) = &mut self.instance {
            instance.restart_source(seed).await;
        }
    }

    async fn restart(&mut self) {
        self.tell("the process starts anew", |state| {
            state.note("the process started anew");
        });
        if let Some(instance) = self.instance.take() {
            instance.stop().await;
        }
        let seed = self.random.random();
        self.instance = Some(Instance::start(&self.model, &self.metrics, seed));
    }

    /// All is well for a while, and so must be the table.
    async fn settle(&mut self) -> Result<(), String> {
        self.tell("settle", |state| {
            well(state);
            state.weather = Weather::CALM;
        });
        self.instance().settle().await?;
        let weather = self.weather;
        self.model.change(|state| {
            state.weather = weather;
            state.note("settled");
        });
        Ok(())
    }

    fn instance(&self) -> &Instance {
        self.instance.as_ref().expect("one runs between steps")
    }

    fn note(&self, what: &'static str) {
        self.model.change(|state| state.note(what));
    }

    fn tell(&mut self, what: &str, change: impl FnOnce(&mut State)) {
        let revision = self.model.change(|state| {
            change(state);
            state.history().revision()
        });
        let at = self.started.elapsed().as_secs_f64();
        self.trace.push(format!("{at:9.3} s {revision:3}: {what}"));
    }
}

fn well(state: &mut State) {
    for member in &mut state.members {
        member.is_down = false;
        member.is_silent = false;
        member.lags_at = None;
    }
}

fn compact_all(state: &mut State) {
    let history = state.history();
    history.compacted = history.revision();
}

fn told(operations: &[Operation]) -> String {
    let told = operations.iter().map(|operation| match operation {
        Operation::Put(key, value) => format!("put {} {value:?}", String::from_utf8_lossy(key)),
        Operation::Delete(key) => format!("delete {}", String::from_utf8_lossy(key)),
    });
    told.collect::<Vec<_>>().join(", ")
}
