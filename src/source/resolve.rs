//! Names of upstreams to addresses: resolved when a route begins to use one, again whenever the answer's time to live
//! is over, no more when no route uses it. `/etc/hosts` counts, as it stood when the process started.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    Resolver, TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
};
use rand::RngExt;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

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
}

#[derive(Debug)]
pub(super) enum Question {
    Watch(Arc<str>),
    Forget(Arc<str>),
}

impl Names {
    /// Starts the resolver, on the runtime this is called in. It ends when the value is dropped.
    pub fn start() -> Self {
        let (names, mut questions, answers) = Self::channels();
        tokio::spawn(async move {
            let resolver = Arc::new(system_resolver());
            let permits = Arc::new(Semaphore::new(MOST_QUESTIONS));
            let mut watched = HashMap::new();
            let mut tasks = JoinSet::new();
            while let Some(question) = questions.recv().await {
                match question {
                    Question::Watch(name) => {
                        let watch = Watch {
                            name: name.clone(),
                            resolver: resolver.clone(),
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

fn system_resolver() -> Option<TokioResolver> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        warn!("no name servers: {error}; names of upstreams resolve through /etc/hosts alone");
        Resolver::builder_with_config(ResolverConfig::default(), Default::default())
    });
    let options = builder.options_mut();
    // A dual-stack upstream is one process behind two addresses: taking both would give it a double share, and fail
    // half of its requests where only one family is routed.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    // How often a failure is asked again is ours to say.
    options.negative_max_ttl = Some(SHORTEST);
    builder
        .build()
        .inspect_err(|error| warn!("names of upstreams cannot be resolved: {error}"))
        .ok()
}

struct Watch {
    name: Arc<str>,
    resolver: Arc<Option<TokioResolver>>,
    permits: Arc<Semaphore>,
    answers: mpsc::UnboundedSender<Answer>,
}

impl Watch {
    async fn run(self) {
        let mut last: Option<Vec<IpAddr>> = None;
        let mut failures = 0;
        loop {
            let (addresses, pause) = match self.look_up().await {
                Ok((addresses, pause)) => {
                    failures = 0;
                    (Some(addresses), pause)
                }
                Err(error) => {
                    debug!(name = &*self.name, "not resolved: {error}");
                    failures += 1;
                    (last.is_none().then(Vec::new), back_off(failures))
                }
            };
            if let Some(addresses) = addresses
                && last.as_ref() != Some(&addresses)
            {
                if addresses.is_empty() {
                    warn!(
                        name = &*self.name,
                        "name of an upstream has no address; asking on"
                    );
                }
                last = Some(addresses.clone());
                let name = self.name.clone();
                if self.answers.send(Answer { name, addresses }).is_err() {
                    return;
                }
            }
            sleep(pause).await;
        }
    }

    /// The addresses, and for how long they serve.
    async fn look_up(&self) -> Result<(Vec<IpAddr>, Duration), String> {
        let _permit = self.permits.acquire().await;
        let resolver = self.resolver.as_ref().as_ref().ok_or("no resolver")?;
        let found = resolver.lookup_ip(&*self.name).await;
        let found = found.map_err(|error| error.to_string())?;
        let mut addresses: Vec<IpAddr> = found.iter().collect();
        if addresses.is_empty() {
            return Err("no address".to_owned());
        }
        addresses.sort_unstable();
        addresses.dedup();
        let time_to_live = found
            .valid_until()
            .saturating_duration_since(Instant::now().into_std());
        Ok((addresses, time_to_live.clamp(SHORTEST, LONGEST)))
    }
}

/// Doubling, and jittered by half, so that many names don't ask in step.
fn back_off(failures: u32) -> Duration {
    let full = SHORTEST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    full.min(LONGEST_BACK_OFF)
        .mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_resolves_to_a_loopback_address() {
        let mut names = Names::start();
        names.watch("localhost".into());
        let answer = names.answer().await;
        assert_eq!(&*answer.name, "localhost");
        assert!(!answer.addresses.is_empty());
        assert!(answer.addresses.iter().all(IpAddr::is_loopback));
    }

    #[tokio::test]
    async fn a_name_without_address_is_answered_with_none() {
        let mut names = Names::start();
        names.watch("nowhere.invalid".into());
        let answer = tokio::time::timeout(Duration::from_secs(20), names.answer()).await;
        assert_eq!(
            answer.expect("an answer in time").addresses,
            Vec::<IpAddr>::new()
        );
    }

    #[test]
    fn failures_are_retried_ever_more_rarely_within_bounds() {
        for (failures, least, most) in [
            (1, 0.5, 1.0),
            (2, 1.0, 2.0),
            (5, 8.0, 16.0),
            (99, 15.0, 30.0),
        ] {
            let pause = back_off(failures).as_secs_f64();
            assert!((least..=most).contains(&pause), "{failures}: {pause}");
        }
    }
}
