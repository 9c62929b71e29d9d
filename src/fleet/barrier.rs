//! Changes keys and waits until every instance has passed the change: a barrier is written in the same transaction,
//! and whoever was registered at that revision is to answer it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::{
    change::not_made,
    reach::{Reach, revision},
    records::{self, Acknowledgement, InstanceRecord},
    tally::{Late, Report, Tally},
};
use crate::{
    barrier::{self, Question},
    route::Revision,
    source::etcd::{Lease, backoff::back_off, fault::Fault},
};

/// How much longer than whoever waits a barrier lives, and so all that was written because of it.
const MARGIN: Duration = Duration::from_secs(10);

/// How often answers are looked for: from the first to the last of these, growing.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// Each look reads every answer, so a large fleet is looked at less often.
const LOOK_PER_INSTANCE: Duration = Duration::from_micros(200);

/// Between two tries at an etcd that fails.
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Keys to change, and what to wait for behind that.
#[derive(Clone, Debug)]
pub struct Change<'c> {
    /// What all keys are below (normalised).
    pub prefix: &'c str,
    /// What must hold for the change to be made.
    pub conditions: Vec<Compare>,
    /// The change; none to ask for the current revision alone.
    pub operations: Vec<TxnOp>,
    /// What to ask every instance.
    pub question: Question,
    /// How long to wait.
    pub timeout: Duration,
}

/// A change that is made, and the barrier behind it.
pub struct Barrier<'c> {
    reach: &'c Reach,
    prefix: &'c str,
    question: Question,
    id: String,
    lease: Lease,
    /// The revision of the change.
    pub revision: Revision,
    timeout: Duration,
    deadline: Instant,
}

impl<'c> Change<'c> {
    /// Makes the change with a barrier behind it; `None` if its conditions are not met.
    ///
    /// # Errors
    ///
    /// Why it was not made, or that this is not known.
    pub async fn make(self, reach: &'c Reach) -> Result<Option<Barrier<'c>>> {
        let deadline = Instant::now() + self.timeout;
        let id = format!("{:032x}", rand::random::<u128>());
        let lease = (reach
            .call(async |etcd| etcd.grant(self.timeout + MARGIN).await)
            .await)
            .context("nothing is written")?;
        let txn = self.transaction(&id, lease)?;
        let made = match commit_once(reach, txn, deadline).await {
            Ok(made) => made,
            Err((fault, is_in_doubt)) => {
                let _ = reach.call(async |etcd| etcd.revoke(lease).await).await;
                let key = self.question.key.as_deref().filter(|_| self.changes());
                return Err(match key {
                    Some(key) => not_made(fault, is_in_doubt, self.prefix, key),
                    None => anyhow::Error::new(fault).context("the instances could not be asked"),
                });
            }
        };
        let Some(revision) = made else {
            let _ = reach.call(async |etcd| etcd.revoke(lease).await).await;
            return Ok(None);
        };
        Ok(Some(Barrier {
            reach,
            prefix: self.prefix,
            question: self.question,
            id,
            lease,
            revision,
            timeout: self.timeout,
            deadline,
        }))
    }

    /// Whether it changes anything, rather than ask alone.
    fn changes(&self) -> bool {
        !self.operations.is_empty()
    }

    /// Sent again when its answer was lost, it finds its own barrier and changes nothing.
    fn transaction(&self, id: &str, lease: Lease) -> Result<Txn> {
        let key = barrier::key(self.prefix, id);
        let value = serde_json::to_vec(&self.question)?;
        let mut conditions = self.conditions.clone();
        conditions.push(Compare::version(key.as_str(), CompareOp::Equal, 0));
        let mut operations = self.operations.clone();
        let options = PutOptions::new().with_lease(lease);
        operations.push(TxnOp::put(key.as_str(), value, Some(options)));
        Ok(Txn::new()
            .when(conditions)
            .and_then(operations)
            .or_else([TxnOp::get(key, None)]))
    }
}

/// Waits until etcd has come to this revision.
///
/// # Errors
///
/// At `deadline`, where etcd is then.
pub async fn has_come(
    reach: &Reach,
    prefix: &str,
    wanted: Revision,
    deadline: std::time::Instant,
) -> Result<()> {
    loop {
        let any = GetOptions::new().with_count_only();
        let look = Txn::new().and_then([TxnOp::get(barrier::folder(prefix), Some(any))]);
        let problem = match reach.call(async |etcd| etcd.txn(look).await).await {
            Ok(answer) if revision(&answer) >= wanted => return Ok(()),
            Ok(answer) => format!(
                "etcd is at revision {}: {wanted} is still to come",
                revision(&answer)
            ),
            Err(fault) => fault.to_string(),
        };
        if Instant::now().into_std() + LONGEST_LOOK >= deadline {
            bail!(problem);
        }
        sleep(LONGEST_LOOK).await;
    }
}

/// The revision of the transaction, or `None` if its conditions are not met. Tried until `deadline`; then the last
/// fault, and whether it may be committed all the same.
async fn commit_once(
    reach: &Reach,
    txn: Txn,
    deadline: Instant,
) -> Result<Option<Revision>, (Fault, bool)> {
    let (mut failures, mut is_in_doubt) = (0, false);
    loop {
        let txn = txn.clone();
        let fault = match reach.call(async |etcd| etcd.txn(txn).await).await {
            Ok(answer) if answer.succeeded() => return Ok(Some(revision(&answer))),
            Ok(answer) => {
                let ours = found(&answer);
                return Ok(ours.iter().flatten().next().map(KeyValue::create_revision));
            }
            Err(fault) => fault,
        };
        failures += 1;
        is_in_doubt |= fault.leaves_in_doubt();
        // Once may be the fault of a login that has expired.
        let is_final = fault.is_refusal() && failures > 1;
        let pause = back_off(failures, LONGEST_RETRY, rand::random());
        if is_final || Instant::now() + pause >= deadline {
            return Err((fault, is_in_doubt));
        }
        sleep(pause).await;
    }
}

impl Barrier<'_> {
    /// Waits until every instance that was registered at the barrier's revision has answered, or is lost, or time is
    /// over; then takes the barrier away.
    ///
    /// # Errors
    ///
    /// When the instances could not be read, or the barrier has vanished: then nobody can say.
    pub async fn wait(self) -> Result<Report> {
        let report = self.answers().await;
        // Else it is gone with its lease.
        let revoke = self.reach.call(async |etcd| etcd.revoke(self.lease).await);
        if let Err(fault) = revoke.await {
            debug!(%fault, "the barrier is left to its lease");
        }
        report
    }

    async fn answers(&self) -> Result<Report> {
        let instances = self.instances().await?;
        let count = u32::try_from(instances.len()).unwrap_or(u32::MAX);
        let longest = LONGEST_LOOK.max(LOOK_PER_INSTANCE * count);
        let mut tally = Tally::of(instances);
        let mut fault = None;
        let (mut look, mut failures) = (FIRST_LOOK, 0);
        loop {
            let looked = timeout_at(self.deadline, self.look(&mut tally)).await;
            let pause = match looked {
                Ok(Ok(Sight::Standing)) => {
                    (fault, failures) = (None, 0);
                    look = (look * 3 / 2).min(longest);
                    look
                }
                Ok(Ok(Sight::PutAgain(at))) => {
                    let key = self.question.key.as_deref().unwrap_or_default();
                    bail!("{key} was put again, at revision {at}: its upstream is in use");
                }
                Ok(Ok(Sight::Gone)) => bail!(
                    "the barrier of revision {} is gone: etcd lost it, or somebody deleted it; whether every instance has passed is not known",
                    self.revision
                ),
                Ok(Err(error)) => {
                    failures += 1;
                    fault = Some(error.to_string());
                    back_off(failures, LONGEST_RETRY, rand::random())
                }
                Err(_) => Duration::ZERO,
            };
            if tally.is_settled() {
                return Ok(tally.report(None));
            }
            if Instant::now() + pause >= self.deadline {
                let after = self.timeout;
                return Ok(tally.report(Some(Late { after, fault })));
            }
            sleep(pause).await;
        }
    }

    /// Who was registered when the change was made.
    async fn instances(&self) -> Result<Vec<InstanceRecord>> {
        let folder = records::instances(self.prefix);
        let mut failures = 0;
        loop {
            let then = GetOptions::new().with_prefix().with_revision(self.revision);
            let read = Txn::new().and_then([TxnOp::get(folder.as_str(), Some(then))]);
            match self.reach.call(async |etcd| etcd.txn(read).await).await {
                Ok(answer) => {
                    let pairs = found(&answer).into_iter().flatten();
                    return Ok(pairs.filter_map(|pair| instance(&folder, &pair)).collect());
                }
                Err(fault) => {
                    failures += 1;
                    let pause = back_off(failures, LONGEST_RETRY, rand::random());
                    if Instant::now() + pause >= self.deadline || fault == Fault::Compacted {
                        return Err(fault).with_context(|| format!(
                            "revision {} is written, but the instances could not be read, so whether they have passed it is not known",
                            self.revision
                        ));
                    }
                    sleep(pause).await;
                }
            }
        }
    }

    /// One look at the answers, and at who is registered still.
    async fn look(&self, tally: &mut Tally) -> Result<Sight, Fault> {
        let acknowledgements = records::acknowledgements(self.prefix, &self.id);
        let instances = records::instances(self.prefix);
        let all = || GetOptions::new().with_prefix();
        let mut operations = vec![
            TxnOp::get(barrier::key(self.prefix, &self.id), None),
            TxnOp::get(acknowledgements.as_str(), Some(all())),
            TxnOp::get(instances.as_str(), Some(all().with_keys_only())),
        ];
        let drained = self.question.key.as_deref().filter(|_| self.question.drain);
        operations.extend(drained.map(|key| TxnOp::get(key, None)));
        let txn = Txn::new().and_then(operations);
        let answer = self.reach.call(async |etcd| etcd.txn(txn).await).await?;
        let mut found = found(&answer).into_iter();
        let mut next = || found.next().unwrap_or_default();
        let (barrier, answers, registered, again) = (next(), next(), next(), next());
        for pair in &answers {
            if let Some(id) = name(&acknowledgements, pair.key())
                && let Ok(answer) = serde_json::from_slice::<Acknowledgement>(pair.value())
            {
                tally.answered(id, answer);
            }
        }
        let registered = registered.iter();
        tally.registered(registered.filter_map(|pair| registered_as(&instances, pair)));
        Ok(match again.first() {
            // Also if all have answered: what they answered about is over.
            Some(again) => Sight::PutAgain(again.mod_revision()),
            None if tally.is_settled() => Sight::Standing,
            None if barrier.is_empty() => Sight::Gone,
            None => Sight::Standing,
        })
    }
}

/// What a look showed besides the answers.
enum Sight {
    Standing,
    /// The barrier is gone, and nobody answers it any more.
    Gone,
    /// The key that is drained is there again, since this revision.
    PutAgain(Revision),
}

fn instance(folder: &str, pair: &KeyValue) -> Option<InstanceRecord> {
    let id = registered_as(folder, pair)?;
    // Whatever is written there, somebody is.
    let mut record: InstanceRecord = serde_json::from_slice(pair.value()).unwrap_or_default();
    record.id = Arc::from(id);
    Some(record)
}

/// The id of an instance. What has no lease is something else, such as the change record of the fleet below
/// `<prefix>instances/`.
fn registered_as<'p>(folder: &str, pair: &'p KeyValue) -> Option<&'p str> {
    name(folder, pair.key()).filter(|_| pair.lease() != 0)
}

/// What stands in the folder itself: below it may be the folder of another fleet.
fn name<'k>(folder: &str, key: &'k [u8]) -> Option<&'k str> {
    let name = std::str::from_utf8(key.strip_prefix(folder.as_bytes())?).ok()?;
    (!name.contains('/')).then_some(name)
}

/// What each read of a transaction found.
fn found(answer: &TxnResponse) -> Vec<Vec<KeyValue>> {
    let reads = answer.op_responses().into_iter();
    reads
        .map(|read| match read {
            TxnOpResponse::Get(mut found) => found.take_kvs(),
            _ => Vec::new(),
        })
        .collect()
}
