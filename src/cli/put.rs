//! `waypost put`: adds an upstream to a route, or changes it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use etcd_client::{Txn, TxnOp};

use super::{
    target::{Target, typed},
    waiting::{self, WaitArgs},
};
use crate::{
    barrier::Question,
    config::etcd::EtcdArgs,
    fleet::{
        barrier::Change,
        change::{ChangeRecord, not_made},
        reach::Reach,
        tally::Subject,
    },
    source::etcd::Connector,
};

/// Add an upstream to a route, change it, or set the route's settings
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost put blog.example.com 10.0.0.7:4000
  waypost put blog.example.com/api 10.0.0.8:4000 '{\"weight\": 5}'
  waypost put '*.example.com' '[2001:db8::7]:4000'
  waypost put blog.example.com @settings '{\"balance\": \"random\"}'
  waypost put blog.example.com 10.0.0.8:4000 --wait --expect 3

What `serve` would reject (`waypost check` says the same of keys that are there) is refused, and nothing is written;
--force writes it all the same, for an instance of a later version to take. Only the key itself is looked at: `check`
finds what is wrong among keys, such as settings of a route that has no upstream (yet).
With --wait it ends when every registered instance serves the change; it exits 1 if one rejects it, vanishes, or has not
got there at --timeout, and the key stays as it was put.
It is the same as `etcdctl put /hosts/HOST[/PATH]/UPSTREAM JSON`, with a check before and a record of who did it.")]
pub struct Put {
    /// The host, `*.SUFFIX` or `*`, and the path prefix that the route is for
    #[arg(value_name = "HOST[/PATH]")]
    pub route: String,
    /// `ip:port`, `[ipv6]:port`, `name:port`, `unix:%2Fpath`, or `@settings`
    #[arg(value_name = "UPSTREAM")]
    pub upstream: String,
    /// Options of the upstream, or the settings [default: none]
    #[arg(value_name = "JSON")]
    pub json: Option<String>,
    /// Write also what `serve` rejects
    #[arg(long)]
    pub force: bool,
    /// Wait until every instance serves it
    #[arg(long)]
    pub wait: bool,
    /// For how long, and for how many
    #[command(flatten)]
    pub waiting: WaitArgs,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

impl Put {
    /// Writes the key and prints the revision.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the arguments, or that etcd doesn't answer, and whether anything is written.
    pub async fn run(self) -> Result<ExitCode> {
        self.waiting.check(self.wait, "--wait", &self.etcd)?;
        let (config, prefix) = self.etcd.resolve()?;
        let key = self.key(&prefix)?;

        let json = self.json.unwrap_or_default();
        let mut command = ["waypost put", &self.route, &self.upstream, &json].join(" ");
        command.truncate(command.trim_end().len());
        if self.force {
            command += " --force";
        }
        let record = ChangeRecord::of(command);
        let connector = Connector::new(config)?;
        let connection = connector.answering(&prefix).await;
        let connection = connection.context("nothing is written")?;
        let operations = vec![TxnOp::put(key.as_str(), json, None), record.write(&prefix)?];
        if self.wait {
            let change = Change {
                prefix: &prefix,
                conditions: Vec::new(),
                operations,
                question: Question {
                    key: Some(key.into()),
                    drain: false,
                },
                timeout: self.waiting.timeout(),
            };
            let reach = Reach::over(connector, connection);
            return put_and_wait(change, &reach, self.waiting.expect).await;
        }
        let written = connection.commit(Txn::new().and_then(operations)).await;
        let written = written
            .map_err(|fault| not_made(fault.clone(), fault.leaves_in_doubt(), &prefix, &key))?;
        super::print(&format!("revision {}\n", written.revision))?;
        Ok(ExitCode::SUCCESS)
    }

    /// The key to write; what is wrong with it or its value is an error, or with --force a warning.
    fn key(&self, prefix: &str) -> Result<String> {
        let (key, verdict) = match Target::parse(prefix, &self.route, &self.upstream) {
            Ok(target) => {
                let verdict = target.check_value(self.json.as_deref());
                (target.key, verdict)
            }
            Err(reason) => (typed(prefix, &self.route, &self.upstream)?, Err(reason)),
        };
        match verdict {
            Err(reason) if self.force => {
                eprintln!("waypost: {reason:#}; written all the same, as --force says");
            }
            verdict => verdict?,
        }
        Ok(key)
    }
}

async fn put_and_wait(
    change: Change<'_>,
    reach: &Reach,
    expect: Option<usize>,
) -> Result<ExitCode> {
    let made = change.make(reach).await?;
    let barrier = made.context("the key was not put, though nothing was in the way")?;
    super::print(&format!("revision {}\n", barrier.revision))?;
    let subject = Subject {
        lost_may: "route without it",
        stays: "the key stays put",
        expect,
    };
    waiting::wait(barrier, subject, "served by").await
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn parse(words: &[&str]) -> Result<Put, clap::Error> {
        let command = Put::augment_args(Command::new("put").no_binary_name(true));
        Put::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn arguments_and_flags_of_etcd_are_taken() {
        Put::augment_args(Command::new("put")).debug_assert();
        let words = [
            "a/b",
            "[::1]:80",
            "{}",
            "--etcd",
            "x:1,y:2",
            "--prefix=p",
            "--etcd=z:3",
        ];
        let put = parse(&words).unwrap();
        assert_eq!(
            (&*put.route, &*put.upstream, put.json.as_deref()),
            ("a/b", "[::1]:80", Some("{}"))
        );
        assert_eq!(put.etcd.etcd, ["x:1", "y:2", "z:3"]);
        assert_eq!(put.etcd.prefix.as_deref(), Some("p"));
    }

    #[test]
    fn force_stops_short_of_the_fleets_own_keys() {
        for (words, expected) in [
            (&["A", "[::0001]:80"][..], Some("/hosts/a/[::1]:80")),
            (&["A/x/", "b", "--force"], Some("/hosts/A/x/b")),
            (&["a", "b:80", "five", "--force"], Some("/hosts/a/b:80")),
            (&["a", "@settings", "{\"x\": 1}"], None),
            (
                &["a", "@settings", "{\"x\": 1}", "--force"],
                Some("/hosts/a/@settings"),
            ),
            (&["@waypost", "pulse", "--force"], None),
            (&["a", "b/c:80", "--force"], None),
            (&["", "b:80", "--force"], None),
        ] {
            let key = parse(words).unwrap().key("/hosts/").ok();
            assert_eq!(key.as_deref(), expected, "{words:?}");
        }
    }

    #[test]
    fn what_is_not_there_yet_is_not_accepted() {
        assert!(parse(&["a", "b:80", "--drain"]).is_err());
        assert!(parse(&["a"]).is_err());
    }
}
