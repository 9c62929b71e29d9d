//! Answers the barriers that stand, each as soon as what it asks for is so.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{
    reach::Reach,
    records::{self, Acknowledgement},
};
use crate::{
    barrier::{self, OpenBarrier},
    gate::Gate,
    live::Live,
    route::{
        Table,
        key::{self, Key},
    },
    source::etcd::{backoff::back_off, fault::Fault},
};

/// How often a drain is looked at: from the first to the last of these, growing.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// How often the requests that are left are told, if there is news.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Between two tries to tell anything.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// How many other keys of the same upstream are named.
const NAMED: usize = 3;

/// What answers need.
#[derive(Clone)]
pub(super) struct Acknowledger {
    pub(super) id: Arc<str>,
    pub(super) prefix: String,
    pub(super) reach: Arc<Reach>,
    pub(super) live: Arc<Live>,
    pub(super) gate: Gate,
}

impl Acknowledger {
    /// Answers every barrier that stands, for ever. Of one that goes, so does the task that would answer it.
    pub(super) async fn answer_all(&self) {
        let mut tasks = JoinSet::new();
        let mut answering: HashMap<Arc<str>, AbortHandle> = HashMap::new();
        let mut barriers = self.live.barriers.subscribe();
        loop {
            let open = barriers.borrow_and_update().clone();
            answering.retain(|id, task| {
                let stands = open.contains_key(id);
                if !stands {
                    task.abort();
                }
                stands
            });
            for (id, barrier) in &open {
                if answering.contains_key(id) {
                    continue;
                }
                let (this, barrier) = (self.clone(), barrier.clone());
                let task = tasks.spawn(async move { this.answer(&barrier).await });
                answering.insert(id.clone(), task);
            }
            tokio::select! {
                changed = barriers.changed() => if changed.is_err() {
                    return;
                },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn answer(&self, barrier: &OpenBarrier) {
        let question = match &barrier.question {
            Ok(question) => question,
            Err(reason) => {
                let rejected = Some(format!("the barrier can't be read: {reason}"));
                return self.tell_surely(barrier, &done(rejected)).await;
            }
        };
        let drains = question.drain && barrier.rejection.is_none();
        let key = question.key.as_ref().filter(|_| drains);
        let mut requests = self.gate.pass(key).await;
        let (also, also_total) = match key {
            Some(key) => self.others_at(key.clone()).await,
            None => Default::default(),
        };
        let (mut told, mut told_at, mut times) = (None, Instant::now(), 0);
        let mut look = FIRST_LOOK;
        while requests > 0 {
            if told.is_none() || (told != Some(requests) && told_at.elapsed() >= TELL_EVERY) {
                let progress = Acknowledgement {
                    requests,
                    also: also.clone(),
                    also_total,
                    ..Acknowledgement::default()
                };
                // One that is under way when we leave must not come after the last word.
                let before = Some(times);
                match self
                    .tell(&barrier.id, barrier.lease, &progress, before)
                    .await
                {
                    Ok(is_told) => times += i64::from(is_told),
                    Err(fault) => debug!(%fault, "could not tell how far a drain is"),
                }
                (told, told_at) = (Some(requests), Instant::now());
            }
            sleep(look).await;
            look = (look * 3 / 2).min(LONGEST_LOOK);
            requests = self.gate.pass(key).await;
        }
        let rejected = barrier.rejection.clone();
        let answer = Acknowledgement {
            also,
            also_total,
            ..done(rejected)
        };
        self.tell_surely(barrier, &answer).await;
    }

    /// Other keys by which the upstream of this one is used. Looks at every route, so not on this runtime's threads.
    async fn others_at(&self, key: Arc<str>) -> (Vec<String>, usize) {
        let (table, prefix) = (self.live.table.load_full(), self.prefix.clone());
        let look = tokio::task::spawn_blocking(move || others_at(&table, &prefix, &key));
        look.await.unwrap_or_default()
    }

    async fn tell_surely(&self, barrier: &OpenBarrier, answer: &Acknowledgement) {
        let mut failures = 0;
        loop {
            let fault = match self.tell(&barrier.id, barrier.lease, answer, None).await {
                Ok(true) => return debug!(barrier = %barrier.id, "barrier acknowledged"),
                Ok(false) => return debug!(barrier = %barrier.id, "the barrier was gone before"),
                Err(fault) => fault,
            };
            failures += 1;
            if failures == 1 {
                warn!(barrier = %barrier.id, error = %fault, "could not acknowledge a barrier; trying again");
            }
            sleep(back_off(failures, LONGEST_RETRY, rand::random())).await;
        }
    }

    /// Tells, if the barrier still stands, and if it was told as many times `before` as is given; whether that is so.
    async fn tell(
        &self,
        barrier: &str,
        lease: i64,
        answer: &Acknowledgement,
        before: Option<i64>,
    ) -> Result<bool, Fault> {
        let value = serde_json::to_vec(answer)
            .map_err(|error| Fault::Unreachable(format!("writing JSON: {error}")))?;
        let key = format!(
            "{}{}",
            records::acknowledgements(&self.prefix, barrier),
            self.id
        );
        let stands = barrier::key(&self.prefix, barrier);
        let mut conditions = vec![Compare::version(stands, CompareOp::Greater, 0)];
        conditions
            .extend(before.map(|times| Compare::version(key.as_str(), CompareOp::Equal, times)));
        let options = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when(conditions)
            .and_then([TxnOp::put(key, value, Some(options))]);
        match self.reach.call(async |etcd| etcd.txn(txn).await).await {
            Ok(answer) => Ok(answer.succeeded()),
            Err(fault) if fault.is_lost_lease() => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Answers a barrier for an instance that serves nothing any more.
    pub(super) async fn answer_at_the_end(&self, id: &str, lease: i64) -> Result<(), Fault> {
        let rejected = {
            let open = self.live.barriers.borrow();
            open.get(id).and_then(|barrier| barrier.rejection.clone())
        };
        let answer = done(rejected);
        self.tell(id, lease, &answer, None).await.map(|_| ())
    }
}

fn done(rejected: Option<String>) -> Acknowledgement {
    Acknowledgement {
        done: true,
        rejected,
        ..Acknowledgement::default()
    }
}

/// The other keys of a table that name the same upstream as this key does: the first of them, and how many there are.
fn others_at(table: &Table, prefix: &str, key: &str) -> (Vec<String>, usize) {
    let Ok(Key::Upstream { address, .. }) = key::parse(prefix, key.as_bytes()) else {
        return Default::default();
    };
    // By key, so that all instances name the same ones.
    let mut first: BTreeSet<&str> = BTreeSet::new();
    let mut total = 0;
    let mut of_route: HashSet<&str> = HashSet::new();
    for route in table.routes() {
        let others = route.members.iter().filter(|other| *other.key.key != *key);
        let same = others.filter(|other| other.upstream.identity.endpoint.written() == address);
        // A name has a member for each of its addresses.
        of_route.extend(same.map(|other| &*other.key.key));
        total += of_route.len();
        for other in of_route.drain() {
            first.insert(other);
            if first.len() > NAMED {
                first.pop_last();
            }
        }
    }
    (first.into_iter().map(str::to_owned).collect(), total)
}
