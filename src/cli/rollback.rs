//! `waypost rollback`: puts back the keys as they were at a revision.

mod plan;

use std::{
    fmt::Write as _,
    io::{self, BufRead, IsTerminal},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, bail};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use self::plan::{Plan, Step};
use super::{difference, plain, scope::Scope};
use crate::{
    config::{Usage, etcd::EtcdArgs},
    fleet::change::ChangeRecord,
    route::Revision,
    source::etcd::{Connection, Connector, fault::Fault},
};

/// How often the keys are read anew because compaction outran the reading.
const READS: u32 = 3;

/// Put the keys back as they were at a revision
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost history blog.example.com                  which revision was good?
  waypost rollback --to 1207 blog.example.com       show the difference, and ask
  waypost rollback --to 1207 --yes                  every host, without asking

Shown is what will happen: + a key put back, - one deleted, ~ another value. Keys that are or were bound to a lease are
left alone: who registered them writes them.
Up to 127 keys and 1 MiB change in one transaction; more change host by host, puts before deletes. A key that somebody
else changes meanwhile is never overwritten: the transaction fails, and what was done until then is told.

Exit codes: 0 done, or nothing to do; 1 refused, failed or declined; 2 usage, such as nobody to ask and no --yes.")]
pub struct Rollback {
    /// The revision whose state is put back; `waypost history` shows them
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    pub to: Revision,
    /// Only this host, `*.SUFFIX` or `*`, or a path of it and what lies below
    #[arg(value_name = "HOST[/PATH]")]
    pub route: Option<String>,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

impl Rollback {
    /// Shows the difference, asks, and puts the state back.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the arguments, which revisions there are, or how far it got.
    pub async fn run(self) -> Result<ExitCode> {
        let (config, prefix) = self.etcd.resolve()?;
        let scope = Scope::parse(&prefix, self.route.as_deref())?;
        let connection = Connector::new(config)?.answering(&prefix).await;
        let connection = connection.context("nothing is changed")?;
        let plan = self.plan(&connection, &prefix, &scope).await?;
        let transactions = plan.transactions().len();
        super::print(&shown(&plan, transactions))?;
        if plan.steps.is_empty() {
            let name = scope.name();
            eprintln!(
                "nothing to do: {name}: no difference to revision {}",
                self.to
            );
            return Ok(ExitCode::SUCCESS);
        }
        if !self.yes && !self.ask(plan.steps.len()).await? {
            eprintln!("nothing is changed");
            return Ok(ExitCode::FAILURE);
        }
        self.carry_out(&plan, &connection, &prefix).await?;
        Ok(ExitCode::SUCCESS)
    }

    /// What is to be done, from the keys as they are now.
    async fn plan(&self, connection: &Connection, prefix: &str, scope: &Scope) -> Result<Plan> {
        let mut newest = connection.revision(prefix).await?;
        if self.to > newest {
            bail!(
                "revision {} is still to come: etcd is at revision {newest}",
                self.to
            );
        }
        let then = match connection.entries_at(prefix, self.to).await {
            Err(Fault::Compacted) => {
                let oldest = oldest(connection, prefix).await?;
                bail!(
                    "revision {} is compacted away; the oldest that etcd still has is {oldest}",
                    self.to
                );
            }
            entries => entries.context("reading the keys as they were")?,
        };
        for _ in 1..READS {
            match connection.entries_at(prefix, newest).await {
                Err(Fault::Compacted) => newest = connection.revision(prefix).await?,
                now => return Ok(Plan::between(scope, now?, then)),
            }
        }
        let now = connection.entries_at(prefix, newest).await;
        Ok(Plan::between(scope, now.context("reading the keys")?, then))
    }

    /// On the terminal, if there is one.
    async fn ask(&self, keys: usize) -> Result<bool> {
        if !io::stdin().is_terminal() {
            return Err(Usage::error(
                "nothing is changed: standard input is no terminal to ask on; look at the difference above and add --yes",
            ));
        }
        let keys = match keys {
            1 => "this key".to_owned(),
            keys => format!("these {keys} keys"),
        };
        eprint!("change {keys} to the state of revision {}? [y/N] ", self.to);
        // Off the runtime, which keeps the connection alive meanwhile.
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|_| line)
        });
        let answer = answer.await?.context("reading the answer")?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES"))
    }

    async fn carry_out(&self, plan: &Plan, connection: &Connection, prefix: &str) -> Result<()> {
        let mut command = format!("waypost rollback --to {}", self.to);
        if let Some(route) = &self.route {
            let _ = write!(command, " {route}");
        }
        let record = ChangeRecord::of(command);
        let transactions = plan.transactions();
        let total = transactions.len();
        for (index, range) in transactions.into_iter().enumerate() {
            let so_far = SoFar {
                done: range.start,
                next: range.len(),
                all: plan.steps.len(),
            };
            let steps = &plan.steps[range];
            let committed = connection
                .commit(transaction(steps, &record, prefix)?)
                .await;
            let committed = committed.map_err(|fault| {
                let so_far = so_far.told(fault.leaves_in_doubt());
                anyhow::Error::new(fault).context(so_far)
            })?;
            if !committed.succeeded {
                let culprit = changed_meanwhile(connection, steps).await;
                bail!("{culprit}; {}", so_far.told(false));
            }
            let number = match total {
                1 => String::new(),
                _ => format!(" ({} of {total})", index + 1),
            };
            let puts = steps.iter().filter(|step| step.then.is_some()).count();
            let deletes = steps.len() - puts;
            super::print(&format!(
                "revision {}: {puts} put, {deletes} deleted{number}\n",
                committed.revision
            ))?;
        }
        Ok(())
    }
}

/// The difference, and what else is to be known before it is agreed to.
fn shown(plan: &Plan, transactions: usize) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        let line = difference::line(&step.key, step.now.as_ref(), step.then.as_ref());
        let _ = writeln!(text, "{line}");
    }
    for (key, lease) in &plan.left_alone {
        let _ = writeln!(
            text,
            "left alone, as it is or was bound to lease {lease:x}: {}",
            plain(key)
        );
    }
    if transactions > 1 {
        let _ = writeln!(
            text,
            "too much for one transaction: host by host, in {transactions} of them, puts before deletes"
        );
    }
    text
}

/// Puts the state of these keys back, unless one of them is no longer as it was read.
fn transaction(steps: &[Step], record: &ChangeRecord, prefix: &str) -> Result<Txn> {
    let mut conditions = Vec::with_capacity(steps.len());
    let mut operations = Vec::with_capacity(steps.len() + 1);
    for step in steps {
        // 0 for a key that is not there.
        let revision = step.now.as_ref().map_or(0, |entry| entry.mod_revision);
        conditions.push(Compare::mod_revision(
            &*step.key,
            CompareOp::Equal,
            revision,
        ));
        operations.push(match &step.then {
            Some(then) => TxnOp::put(&*step.key, &*then.value, None),
            None => TxnOp::delete(&*step.key, None),
        });
    }
    operations.push(record.write(prefix)?);
    Ok(Txn::new().when(conditions).and_then(operations))
}

/// Which of these keys made the transaction fail.
async fn changed_meanwhile(connection: &Connection, steps: &[Step]) -> String {
    let keys: Vec<&[u8]> = steps.iter().map(|step| &*step.key).collect();
    let Ok(newest) = connection.newest(&keys).await else {
        return "a key was changed meanwhile".to_owned();
    };
    let changed = steps.iter().zip(newest).filter_map(|(step, newest)| {
        let read = step.now.as_ref().map_or(0, |entry| entry.mod_revision);
        let is = newest.as_ref().map_or(0, |entry| entry.mod_revision);
        let key = plain(&step.key);
        match is {
            _ if is == read => None,
            0 => Some(format!("{key} was deleted meanwhile")),
            _ => Some(format!("{key} was changed meanwhile, at revision {is}")),
        }
    });
    let changed: Vec<_> = changed.take(10).collect();
    match changed.is_empty() {
        true => "a key was changed meanwhile, and back".to_owned(),
        false => changed.join(", "),
    }
}

/// How many of the changes shown are made.
struct SoFar {
    done: usize,
    /// How many come next, in one transaction.
    next: usize,
    all: usize,
}

impl SoFar {
    /// When the next transaction failed, perhaps without an answer.
    fn told(&self, is_in_doubt: bool) -> String {
        let Self { done, next, all } = self;
        let again = "run it again to see the difference as it is now";
        match (is_in_doubt, done) {
            (false, 0) => format!("nothing is changed: {again}"),
            (false, _) => format!(
                "the first {done} of the {all} changes shown are made and the others are not: {again}"
            ),
            (true, 0) if next == all => {
                format!("whether the changes shown are made is not known: {again}")
            }
            (true, _) => format!(
                "the first {done} of the {all} changes shown are made; whether the next {next} are is not known: {again}"
            ),
        }
    }
}

/// The oldest revision whose state can be read: that of the last compaction.
async fn oldest(connection: &Connection, prefix: &str) -> Result<Revision> {
    let mut past = connection.past(prefix, 1).await?;
    match past.next().await {
        Ok(_) => Ok((past.first() - 1).max(1)),
        Err(fault) => Err(anyhow!(fault).context("asking etcd how far back it remembers")),
    }
}
