//! A watch stream of the model.

use std::{collections::VecDeque, time::Duration};

use rand::RngExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    super::super::{assembly::Response, fault::Fault, transport::Watch},
    State,
    link::Link,
};
use crate::{route::Revision, source::Change};

/// What keepalives need to find out that nobody is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// One watch, from creation to whatever ends it. Nothing is lost when a wait for its next response is dropped.
pub struct Stream {
    link: Link,
    news: watch::Receiver<()>,
    /// The revision it brings next.
    next: Revision,
    /// Deletions up to here are compacted away.
    forgotten: Revision,
    /// Up to where compaction was noticed.
    compacted: Revision,
    is_created: bool,
    /// How many second watches were asked for, and on what, as far as they are not answered.
    asked: i64,
    questions: VecDeque<(Vec<u8>, Revision)>,
    /// Sent, and under way until `arrives`.
    queue: VecDeque<Response>,
    arrives: Instant,
    last: Instant,
    silent_since: Option<Instant>,
    /// Packets are lost for good.
    is_dead: bool,
}

/// What a look at the model comes to.
enum Look {
    Heard(Box<Result<Response, Fault>>),
    /// Nothing before this, unless there is news.
    Nothing(Instant),
}

impl Watch for Stream {
    async fn response(&mut self) -> Result<Response, Fault> {
        loop {
            self.news.borrow_and_update();
            match self.look() {
                Look::Heard(response) => {
                    self.last = Instant::now();
                    return *response;
                }
                Look::Nothing(until) => tokio::select! {
                    biased;
                    _ = self.news.changed() => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    async fn ask(&mut self, key: &[u8], revision: Revision) -> Result<(), Fault> {
        self.asked += 1;
        self.questions.push_back((key.to_vec(), revision));
        Ok(())
    }

    async fn take_back(&mut self, _: i64) -> Result<(), Fault> {
        Ok(())
    }
}

impl Stream {
    pub fn over(link: Link, revision: Revision) -> Self {
        let now = Instant::now();
        Self {
            news: link.model.news.subscribe(),
            link,
            next: revision,
            forgotten: 0,
            compacted: 0,
            is_created: false,
            asked: 0,
            questions: VecDeque::new(),
            queue: VecDeque::new(),
            arrives: now,
            last: now,
            silent_since: None,
            is_dead: false,
        }
    }

    fn look(&mut self) -> Look {
        let model = self.link.model.clone();
        let state = &mut *model.state();
        let heard = |response| Look::Heard(Box::new(response));
        if let Some(fault) = self.link.broken(state) {
            return heard(Err(fault));
        }
        if self.is_dead || state.members[self.link.member].is_silent {
            let gives_up = *self.silent_since.get_or_insert(Instant::now()) + KEEPALIVE;
            if Instant::now() < gives_up {
                return Look::Nothing(gives_up);
            }
            state.note("a watch fell silent");
            return heard(Err(Fault::Unreachable("keepalive timed out".to_owned())));
        }
        self.silent_since = None;
        if self.queue.is_empty() {
            if !self.send(state) {
                return Look::Nothing(self.last + state.weather.notice);
            }
            self.arrives = Instant::now() + state.delay();
        }
        if Instant::now() < self.arrives {
            return Look::Nothing(self.arrives);
        }
        if let Some(ending) = self.ending(state) {
            return ending.map_or_else(|| Look::Nothing(Instant::now()), |end| heard(Err(end)));
        }
        let next = self.queue.pop_front().expect("looked at above");
        heard(Ok(next))
    }

    /// What may end it at any response: with an error, or, for a while, with nothing at all.
    fn ending(&mut self, state: &mut State) -> Option<Option<Fault>> {
        if !state.happens(state.weather.lost_streams) {
            return None;
        }
        state.note("a watch was lost");
        Some(match state.random.random_range(0..3) {
            0 => Some(Fault::Unreachable("etcd closed the watch".to_owned())),
            1 => Some(Fault::Refused("auth token expired".to_owned())),
            _ => {
                self.is_dead = true;
                None
            }
        })
    }

    /// What the member has to say; false if that is nothing.
    fn send(&mut self, state: &mut State) -> bool {
        let compacted = state.history().compacted;
        let newest = state.history().revision();
        if !self.is_created {
            self.is_created = true;
            self.forgotten = compacted;
            self.compacted = compacted;
            self.queue.push_back(Response {
                created: true,
                revision: newest,
                ..Response::default()
            });
            if self.next < compacted {
                self.cancel(state, compacted);
            }
            return true;
        }
        // A watch that is served as commits happen has what it needs; one that lags does not.
        if compacted > self.compacted {
            self.compacted = compacted;
            if self.next < compacted && state.happens(0.5) {
                self.cancel(state, compacted);
                return true;
            }
        }
        let member = &state.members[self.link.member];
        let available = member.lags_at.map_or(newest, |lags_at| lags_at.min(newest));
        while self.next <= available && self.queue.is_empty() {
            self.send_events(state, available);
        }
        if let Some((key, revision)) = self.questions.pop_front() {
            self.answer(state, &key, revision, available);
        }
        if !self.queue.is_empty() {
            return true;
        }
        if Instant::now() < self.last + state.weather.notice {
            return false;
        }
        state.note("a progress notice");
        self.queue.push_back(Response {
            revision: available,
            ..Response::default()
        });
        true
    }

    fn cancel(&mut self, state: &mut State, compacted: Revision) {
        state.note("a watch was compacted away");
        self.queue.push_back(Response {
            canceled: true,
            compact_revision: compacted,
            ..Response::default()
        });
    }

    /// What a second watch brings.
    fn answer(&mut self, state: &mut State, key: &[u8], from: Revision, available: Revision) {
        state.note("a second watch was answered");
        let history = state.history();
        let changes = (from..=available).flat_map(|revision| history.changes(revision));
        let meant = changes.filter(|change| change.key() == key);
        let events: Vec<Change> = meant.cloned().collect();
        let response = Response {
            watch_id: self.asked,
            revision: history.revision(),
            ..Response::default()
        };
        let is_compacted = events.is_empty();
        self.queue.push_back(Response {
            created: true,
            ..response.clone()
        });
        self.queue.push_back(Response {
            events,
            canceled: is_compacted,
            compact_revision: if is_compacted { history.compacted } else { 0 },
            ..response
        });
    }

    /// Whole revisions, one or several, in one response or in fragments.
    fn send_events(&mut self, state: &mut State, available: Revision) {
        let mut from = self.next;
        let through = match state.random.random_bool(0.5) {
            true => available,
            false => state.random.random_range(self.next..=available),
        };
        self.next = through + 1;
        let is_odd = state.happens(state.weather.odd_responses);
        if is_odd && state.random.random_bool(0.3) {
            state.note("events were repeated");
            from = (from - 2).max(self.forgotten + 1).min(through);
        }
        if state.happens(state.weather.lost_events) {
            state.note("events were lost");
            from = through;
        }
        let history = state.history();
        let events = (from..=through).flat_map(|revision| history.changes(revision));
        let is_kept = |change: &&Change| {
            matches!(change, Change::Put(_)) || change.mod_revision() > self.forgotten
        };
        let mut events: Vec<Change> = events.filter(is_kept).cloned().collect();
        let revision = history.revision();
        let response = |events: Vec<Change>, fragment| Response {
            events,
            fragment,
            revision,
            ..Response::default()
        };
        // The answer to a request that somebody else made: it claims what is still to come.
        let report = || Response {
            watch_id: -1,
            revision,
            ..Response::default()
        };
        if is_odd {
            self.queue.push_back(report());
        }
        while is_odd && events.len() > 1 {
            let piece = state.random.random_range(1..events.len());
            let rest = events.split_off(piece);
            state.note("a fragment");
            self.queue.push_back(response(events, true));
            if state.random.random_bool(0.2) {
                self.queue.push_back(report());
            }
            events = rest;
        }
        if !events.is_empty() {
            self.queue.push_back(response(events, false));
        }
    }
}
