//! A model of etcd behind the source's own seam: several members with one history, and everything that can go wrong
//! between them and us. What happens is drawn from a seed, so it happens again the same way.

mod history;
mod link;
mod stream;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::watch;

pub use self::history::{History, Keys};
use self::link::Link;
use super::super::{fault::Fault, transport::Connect};
use crate::route::Revision;

/// A cluster, as everybody who knows of it shares it.
#[derive(Clone)]
pub struct Model {
    endpoints: Arc<Vec<String>>,
    state: Arc<Mutex<State>>,
    news: watch::Sender<()>,
}

/// How the cluster is.
pub struct State {
    /// The last is the one it has now; a wiped or restored cluster begins another.
    pub histories: Vec<History>,
    pub members: Vec<Member>,
    pub weather: Weather,
    /// How often what happened: a model in which a thing never happens tests nothing.
    pub happened: BTreeMap<&'static str, u64>,
    random: StdRng,
}

/// One member, as its clients see it.
#[derive(Clone, Debug, Default)]
pub struct Member {
    pub is_down: bool,
    /// Packets to it and from it are lost.
    pub is_silent: bool,
    /// It has not come further than this revision.
    pub lags_at: Option<Revision>,
    /// How often its connections were cut.
    pub cuts: u64,
}

/// What goes wrong, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Of calls, requests and answers each.
    pub lost_calls: f64,
    /// Of watch responses.
    pub lost_streams: f64,
    /// Of watch responses: split into fragments, repeated, or preceded by a progress report nobody can rely on.
    pub odd_responses: f64,
    /// Of watch responses: nothing but their newest revision comes.
    pub lost_events: f64,
    /// How often a watch says that nothing happened.
    pub notice: Duration,
    /// A message takes up to this long.
    pub latency: Duration,
    /// As though larger pages were too large for one answer.
    pub page_limit: usize,
}

impl Weather {
    pub const CALM: Self = Self {
        lost_calls: 0.0,
        lost_streams: 0.0,
        odd_responses: 0.0,
        lost_events: 0.0,
        notice: Duration::from_secs(600),
        latency: Duration::from_millis(1),
        page_limit: usize::MAX,
    };
}

impl Model {
    pub fn new(seed: u64, members: usize) -> Self {
        let endpoints = (0..members).map(|member| format!("model://{member}"));
        Self {
            endpoints: Arc::new(endpoints.collect()),
            state: Arc::new(Mutex::new(State {
                histories: vec![History::new(1)],
                members: vec![Member::default(); members],
                weather: Weather::CALM,
                happened: BTreeMap::new(),
                random: StdRng::seed_from_u64(seed),
            })),
            news: watch::Sender::new(()),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds it")
    }

    /// Changes something, and tells every watch.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.news.send_replace(());
        changed
    }
}

impl State {
    pub fn history(&mut self) -> &mut History {
        self.histories.last_mut().expect("there always is one")
    }

    /// Breaks the connections that there are.
    pub fn cut(&mut self) {
        self.members.iter_mut().for_each(|member| member.cuts += 1);
    }

    /// The cluster goes on with this history instead of its own.
    pub fn replace(&mut self, history: History) {
        self.histories.push(history);
        for member in &mut self.members {
            member.cuts += 1;
            member.lags_at = None;
        }
    }

    pub fn note(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability)
    }

    fn delay(&mut self) -> Duration {
        self.weather.latency.mul_f64(self.random.random())
    }
}

impl Connect for Model {
    type Transport = Link;

    fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    async fn connect(&self, endpoint: &str) -> Result<Link, Fault> {
        let member = self.endpoints.iter().position(|known| known == endpoint);
        let link = Link::to(self, member.expect("one of its endpoints"));
        link.call(|_| Ok(())).await?;
        Ok(link)
    }
}
