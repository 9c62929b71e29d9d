//! `waypost delete`: takes an upstream off a route.

use std::process::ExitCode;

use anyhow::Result;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::target::Target;
use crate::{config::etcd::EtcdArgs, fleet::change::ChangeRecord, source::etcd::Connector};

/// Take an upstream off a route, or the route's settings
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost delete blog.example.com 10.0.0.7:4000
  waypost delete blog.example.com/api 10.0.0.8:4000
  waypost delete blog.example.com @settings

Requests that run are finished. Exits 1 if there is no such key.")]
pub struct Delete {
    /// The host, `*.SUFFIX` or `*`, and the path prefix that the route is for
    #[arg(value_name = "HOST[/PATH]")]
    pub route: String,
    /// The upstream as `put` was given it, or `@settings`
    #[arg(value_name = "UPSTREAM")]
    pub upstream: String,
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
        let (config, prefix) = self.etcd.resolve()?;
        let target = Target::parse(&prefix, &self.route, &self.upstream)?;
        let record = ChangeRecord::of(format!("waypost delete {} {}", self.route, self.upstream));
        let connection = Connector::new(config)?.answering(&prefix).await?;

        let mut spellings = vec![&target.key];
        if target.typed != target.key {
            spellings.push(&target.typed);
        }
        for key in spellings {
            let txn = Txn::new()
                .when([Compare::version(key.as_str(), CompareOp::Greater, 0)])
                .and_then([TxnOp::delete(key.as_str(), None), record.write(&prefix)?]);
            let written = connection.commit(txn).await?;
            if written.succeeded {
                super::print(&format!("revision {}\n", written.revision))?;
                return Ok(ExitCode::SUCCESS);
            }
        }
        eprintln!(
            "there is no key {}: nothing deleted (`waypost routes` lists what is served)",
            target.key
        );
        Ok(ExitCode::FAILURE)
    }
}

#[cfg(test)]
mod tests {
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
        assert!(parse(&["a", "b:80", "--drain"]).is_err());
    }
}
