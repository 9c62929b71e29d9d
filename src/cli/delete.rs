//! `waypost delete`: takes an upstream off a route.

use std::process::ExitCode;

use anyhow::{Context, Result};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::{
    target::Target,
    waiting::{self, WaitArgs},
};
use crate::{
    barrier::Question,
    config::{Usage, etcd::EtcdArgs},
    fleet::{
        barrier::Change,
        change::{ChangeRecord, not_made},
        reach::Reach,
        tally::{Report, Subject},
    },
    source::etcd::Connector,
};

const DRAINED: &str = "drained on";

/// Take an upstream off a route, or the route's settings
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost delete blog.example.com 10.0.0.7:4000
  waypost delete blog.example.com/api 10.0.0.8:4000
  waypost delete blog.example.com @settings
  waypost delete blog.example.com 10.0.0.7:4000 --drain && ssh 10.0.0.7 systemctl stop blog

Requests that run are finished. With --wait it ends when no registered instance routes by the key any more, with --drain
when none has a request running that was sent on its behalf, WebSockets and streams included: then the upstream may be
stopped, unless another key names it too, of which it warns.
Exits 1 if there is no such key, unless --drain finds that no other key names the upstream: so a drain whose time was
over can be begun again. Exits 1 too if an instance vanishes or has not got there at --timeout: the key stays deleted.")]
pub struct Delete {
    /// The host, `*.SUFFIX` or `*`, and the path prefix that the route is for
    #[arg(value_name = "HOST[/PATH]")]
    pub route: String,
    /// The upstream as `put` was given it, or `@settings`
    #[arg(value_name = "UPSTREAM")]
    pub upstream: String,
    /// Wait until no instance routes by it
    #[arg(long)]
    pub wait: bool,
    /// Wait until no instance has a request running at it either
    #[arg(long)]
    pub drain: bool,
    /// For how long, and for how many
    #[command(flatten)]
    pub waiting: WaitArgs,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

impl Delete {
    /// Deletes the key and prints the revision; exit code 1 if it isn't there.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the arguments, or that etcd doesn't answer.
    pub async fn run(self) -> Result<ExitCode> {
        let waits = self.wait || self.drain;
        (self.waiting).check(waits, "--wait or --drain", &self.etcd)?;
        let (config, prefix) = self.etcd.resolve()?;
        let target = Target::parse(&prefix, &self.route, &self.upstream)?;
        if self.drain && target.is_settings {
            return Err(Usage::error(
                "--drain is about an upstream; settings have no requests, so say --wait",
            ));
        }
        let record = ChangeRecord::of(format!("waypost delete {} {}", self.route, self.upstream));
        let connector = Connector::new(config)?;
        let connection = connector.answering(&prefix).await;
        let connection = connection.context("nothing is written")?;

        let mut spellings = vec![&target.key];
        if target.typed != target.key {
            spellings.push(&target.typed);
        }
        if waits {
            let reach = Reach::over(connector, connection);
            for key in &spellings {
                let change = self.change(&prefix, key, &record)?;
                if let Some(code) = self.delete_and_wait(change, &reach).await? {
                    return Ok(code);
                }
            }
            if self.drain {
                let gone = spellings.iter();
                let changes = gone.map(|key| self.change(&prefix, key, &record));
                let changes: Vec<_> = changes.collect::<Result<_>>()?;
                eprintln!(
                    "waypost: there is no key {}: nothing deleted; waiting for what runs on its behalf",
                    target.key
                );
                return self.go_on_draining(changes, &reach).await;
            }
            return Ok(nothing_deleted(&target.key));
        }
        for key in spellings {
            let Change {
                conditions,
                operations,
                ..
            } = self.change(&prefix, key, &record)?;
            let txn = Txn::new().when(conditions).and_then(operations);
            let written = connection.commit(txn).await;
            let written = written
                .map_err(|fault| not_made(fault.clone(), fault.leaves_in_doubt(), &prefix, key))?;
            if written.succeeded {
                super::print(&format!("revision {}\n", written.revision))?;
                return Ok(ExitCode::SUCCESS);
            }
        }
        Ok(nothing_deleted(&target.key))
    }

    fn change<'c>(&self, prefix: &'c str, key: &str, record: &ChangeRecord) -> Result<Change<'c>> {
        Ok(Change {
            prefix,
            conditions: vec![Compare::version(key, CompareOp::Greater, 0)],
            operations: vec![TxnOp::delete(key, None), record.write(prefix)?],
            question: Question {
                key: Some(key.into()),
                drain: self.drain,
            },
            timeout: self.waiting.timeout(),
        })
    }

    /// `None` if there is no such key.
    async fn delete_and_wait(&self, change: Change<'_>, reach: &Reach) -> Result<Option<ExitCode>> {
        let Some(barrier) = change.make(reach).await? else {
            return Ok(None);
        };
        super::print(&format!("revision {}\n", barrier.revision))?;
        let done = match self.drain {
            true => DRAINED,
            false => "gone from",
        };
        let lost_may = match &*self.upstream {
            "@settings" => "go by them".to_owned(),
            upstream => format!("use {upstream}"),
        };
        let subject = self.subject(&lost_may);
        waiting::wait(barrier, subject, done).await.map(Some)
    }

    /// The key is deleted already, perhaps by a drain whose time was over. Or it is a slip: then the upstream is in use
    /// by the key that was meant. Requests are counted by the key as it was stored, so each spelling is asked about.
    async fn go_on_draining(&self, gone: Vec<Change<'_>>, reach: &Reach) -> Result<ExitCode> {
        let lost_may = format!("use {}", self.upstream);
        let subject = self.subject(&lost_may);
        let mut report = Report::default();
        for change in gone {
            let key = change.question.key.clone().unwrap_or_default();
            let still = Change {
                conditions: vec![Compare::version(&*key, CompareOp::Equal, 0)],
                operations: Vec::new(),
                ..change
            };
            let barrier = still.make(reach).await?;
            let barrier =
                barrier.with_context(|| format!("{key} was put just now: it is in use"))?;
            report = barrier.wait().await?;
            if let Some(others) = report.others() {
                waiting::say(&format!("the upstream is in use by {others}"));
                return Ok(ExitCode::FAILURE);
            }
            if !report.problems(&subject).is_empty() {
                break;
            }
        }
        waiting::conclude(&report, &subject, DRAINED)
    }

    fn subject<'s>(&self, lost_may: &'s str) -> Subject<'s> {
        Subject {
            lost_may,
            stays: "the key stays deleted",
            expect: self.waiting.expect,
        }
    }
}

fn nothing_deleted(key: &str) -> ExitCode {
    eprintln!(
        "waypost: there is no key {key}: nothing deleted (`waypost routes` lists what is served)"
    );
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn parse(words: &[&str]) -> Result<Delete, clap::Error> {
        let command = Delete::augment_args(Command::new("delete").no_binary_name(true));
        Delete::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn a_host_and_an_upstream_are_needed() {
        Delete::augment_args(Command::new("delete")).debug_assert();
        assert!(parse(&["a", "b:80"]).is_ok());
        assert!(parse(&["a"]).is_err());
        let delete = parse(&["a", "b:80", "--drain", "--timeout", "5s", "--expect", "2"]).unwrap();
        assert!(delete.drain && !delete.wait);
        assert_eq!(delete.waiting.timeout(), Duration::from_secs(5));
        assert_eq!(delete.waiting.expect, Some(2));
        assert!(parse(&["a", "b:80", "--force"]).is_err());
    }
}
