//! Names of upstreams to addresses: resolved when a route begins to use one, again whenever the answer's time to live
//! is over, no more when no route uses it. `/etc/hosts` counts, as it stood when the process started.

mod lookup;

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::{Hosts, Resolver, TokioResolver, config::ResolverConfig};
use rand::RngExt;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::sleep,
};
use tracing::{debug, warn};

use self::lookup::{Found, Lookups};

/// An answer serves at least this long, whatever its time to live: a zero must not become a busy loop.
const SHORTEST: Duration = Duration::from_secs(1);
/// And at most this long, so that a change is noticed although an old answer promised hours.
const LONGEST: Duration = Duration::from_secs(300);
/// Between failures: doubling from [`SHORTEST`] up to this.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);
/// How many questions may be out at one time.
const MOST_QUESTIONS: usize = 64;

/// The names in use, seen from the publisher: what to resolve goes out, answers come in.
pub struct Names {
    questions: mpsc::UnboundedSender<Question>,
    answers: mpsc::UnboundedReceiver<Answer>,
}

/// What a name resolves to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name.
    pub name: Arc<str>,
    /// Sorted, each once. Empty if the first attempt failed; a later failure is no answer, the last one stands.
    pub addresses: Vec<IpAddr>,
    /// The addresses of the other family, for dials that fail with the former; sorted, each once.
    pub fallbacks: Vec<IpAddr>,
}

#[derive(Debug)]
pub(super) enum Question {
    Watch(Arc<str>),
    Forget(Arc<str>),
}

impl Names {
    /// Starts the resolver, on the runtime this is called in. It ends when the value is dropped.
    pub fn start() -> Self {
        Self::asking(system_resolver)
    }

    /// The same, by other look-ups than the system's.
    fn asking(lookups: impl FnOnce() -> Option<Lookups> + Send + 'static) -> Self {
        let (names, mut questions, answers) = Self::channels();
        tokio::spawn(async move {
            let lookups = Arc::new(lookups());
            let permits = Arc::new(Semaphore::new(MOST_QUESTIONS));
            let mut watched = HashMap::new();
            let mut tasks = JoinSet::new();
            while let Some(question) = questions.recv().await {
                match question {
                    Question::Watch(name) => {
                        let watch = Watch {
                            name: name.clone(),
                            lookups: lookups.clone(),
                            permits: permits.clone(),
                            answers: answers.clone(),
                        };
                        watched.insert(name, tasks.spawn(watch.run()));
                    }
                    Question::Forget(name) => {
                        if let Some(task) = watched.remove(&name) {
                            task.abort();
                        }
                    }
                }
                while tasks.try_join_next().is_some() {}
            }
        });
        names
    }

    pub(super) fn channels() -> (
        Self,
        mpsc::UnboundedReceiver<Question>,
        mpsc::UnboundedSender<Answer>,
    ) {
        let (question_sender, questions) = mpsc::unbounded_channel();
        let (answer_sender, answers) = mpsc::unbounded_channel();
        let names = Self {
            questions: question_sender,
            answers,
        };
        (names, questions, answer_sender)
    }

    /// Keeps `name` resolved from now on.
    pub fn watch(&self, name: Arc<str>) {
        // Fails only while the runtime shuts down.
        let _ = self.questions.send(Question::Watch(name));
    }

    /// Resolves `name` no more.
    pub fn forget(&self, name: &str) {
        let _ = self.questions.send(Question::Forget(name.into()));
    }

    /// The next answer that differs from the last one of its name.
    pub async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // The resolver is gone with its runtime: what is known stands.
            None => std::future::pending().await,
        }
    }
}

fn system_resolver() -> Option<Lookups> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        warn!("no name servers: {error}; names of upstreams resolve through /etc/hosts alone");
        Resolver::builder_with_config(ResolverConfig::default(), Default::default())
    });
    // How often a failure is asked again is ours to say.
    builder.options_mut().negative_max_ttl = Some(SHORTEST);
    let resolver = builder
        .build()
        .inspect_err(|error| warn!("names of upstreams cannot be resolved: {error}"))
        .ok()?;
    let hosts = Hosts::from_system()
        .inspect_err(|error| debug!("no hosts file: {error}"))
        .unwrap_or_default();
    Some(Lookups::by(resolver, hosts))
}

struct Watch {
    name: Arc<str>,
    lookups: Arc<Option<Lookups>>,
    permits: Arc<Semaphore>,
    answers: mpsc::UnboundedSender<Answer>,
}

impl Watch {
    async fn run(self) {
        let mut last: Option<Answer> = None;
        let mut failures = 0;
        loop {
            let (answer, pause) = match self.look_up(last.as_ref()).await {
                Ok(found) => {
                    failures = 0;
                    let pause = found.time_to_live.clamp(SHORTEST, LONGEST);
                    (Some(self.answer(found, last.as_ref())), pause)
                }
                Err(error) => {
                    debug!(name = &*self.name, "not resolved: {error}");
                    failures += 1;
                    let nothing = last.is_none().then(|| self.nothing());
                    (nothing, back_off(failures))
                }
            };
            if let Some(answer) = answer
                && last.as_ref() != Some(&answer)
            {
                if answer.addresses.is_empty() {
                    warn!(
                        name = &*self.name,
                        "name of an upstream has no address; asking on"
                    );
                }
                last = Some(answer.clone());
                if self.answers.send(answer).is_err() {
                    return;
                }
            }
            sleep(pause).await;
        }
    }

    async fn look_up(&self, last: Option<&Answer>) -> Result<Found, String> {
        let _permit = self.permits.acquire().await;
        let lookups = self.lookups.as_ref().as_ref().ok_or("no resolver")?;
        let knows_v4 = last.is_some_and(|last| last.addresses.iter().any(IpAddr::is_ipv4));
        lookups.find(&self.name, knows_v4).await
    }

    /// Where the other family could not be asked for, its last addresses stand.
    fn answer(&self, found: Found, last: Option<&Answer>) -> Answer {
        let is_other = |address: &IpAddr| address.is_ipv4() != found.addresses[0].is_ipv4();
        let known = || last.map(|last| last.fallbacks.clone()).unwrap_or_default();
        let mut fallbacks = found.fallbacks.unwrap_or_else(known);
        fallbacks.retain(is_other);
        Answer {
            name: self.name.clone(),
            addresses: found.addresses,
            fallbacks,
        }
    }

    fn nothing(&self) -> Answer {
        Answer {
            name: self.name.clone(),
            addresses: Vec::new(),
            fallbacks: Vec::new(),
        }
    }
}

/// Doubling, and jittered by half, so that many names don't ask in step.
fn back_off(failures: u32) -> Duration {
    let full = SHORTEST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    full.min(LONGEST_BACK_OFF)
        .mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests;
