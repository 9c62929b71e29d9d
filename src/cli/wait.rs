//! `waypost wait`: until every instance, or every named one, serves a revision.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use http::StatusCode;
use tokio::{task::JoinSet, time};

use super::{
    admin_client::fetch,
    waiting::{self, WaitArgs},
};
use crate::{
    barrier::Question,
    config::{Usage, etcd::EtcdArgs},
    fleet::{
        barrier::{Change, has_come},
        reach::Reach,
        tally::Subject,
    },
    route::Revision,
    source::etcd::Connector,
};

/// One request waits this long, so that an instance that is replaced meanwhile is found.
const ROUND: Duration = Duration::from_secs(5);

/// Wait until every instance serves a revision
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost wait 1234
  waypost wait 1234 --admin 10.0.0.5:9900,10.0.0.6:9900 --timeout 10s

`waypost put` and `waypost delete` print the revision they made. Through etcd, every registered instance is waited for,
or with --admin just those that are named. With a hosts directory only the latter is possible, and revisions count the
changes that an instance has seen; /api/status shows where it is.
Exits 1 if an instance has not reached it in time, and says which.")]
pub struct Wait {
    /// The etcd revision to reach
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    revision: Revision,
    /// Ask this instance at its admin address, rather than all through etcd; repeat it or separate with commas
    // No environment twin: that names one instance, and would quietly stand for all.
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    admin: Vec<String>,
    /// For how long, and for how many
    #[command(flatten)]
    waiting: WaitArgs,
    /// How etcd is reached
    #[command(flatten)]
    etcd: EtcdArgs,
}

impl Wait {
    /// Waits for all of them at once.
    ///
    /// # Errors
    ///
    /// Names the instances that have not reached the revision in time, and why.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if self.admin.is_empty() {
            return self.through_etcd().await;
        }
        if self.waiting.expect.is_some() {
            return Err(Usage::error(
                "--expect is about all instances; --admin names the ones to wait for",
            ));
        }
        let deadline = Instant::now() + self.waiting.timeout();
        let mut waiting = JoinSet::new();
        for admin in self.admin {
            waiting.spawn(async move {
                let reached = reach(&admin, self.revision, deadline).await;
                reached.map_err(|error| format!("{error:#}"))
            });
        }
        let outcomes = waiting.join_all().await;
        let late: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        if !late.is_empty() {
            bail!("not every instance got there: {}", late.join("; "));
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn through_etcd(self) -> anyhow::Result<ExitCode> {
        self.waiting.check(true, "", &self.etcd)?;
        let deadline = Instant::now() + self.waiting.timeout();
        let (config, prefix) = self.etcd.resolve()?;
        let connector = Connector::new(config)?;
        let connection = connector.answering(&prefix).await?;
        let reach = Reach::over(connector, connection);
        has_come(&reach, &prefix, self.revision, deadline).await?;
        let change = Change {
            prefix: &prefix,
            conditions: Vec::new(),
            operations: Vec::new(),
            question: Question::default(),
            timeout: deadline.saturating_duration_since(Instant::now()),
        };
        let barrier = (change.make(&reach).await?)
            .context("the barrier was not written, though nothing was in the way")?;
        let subject = Subject {
            lost_may: "serve older routes",
            stays: "it may get there later",
            expect: self.waiting.expect,
        };
        waiting::wait(barrier, subject, "served by").await
    }
}

/// Asks again and again, also while the instance can't be reached: it may be starting.
async fn reach(admin: &str, revision: Revision, deadline: Instant) -> anyhow::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let round = left.min(ROUND);
        let path = format!(
            "/api/wait?revision={revision}&timeout={}ms",
            round.as_millis()
        );
        let error = match fetch(admin, &path, round + Duration::from_secs(2)).await {
            Ok((StatusCode::OK, _)) => return Ok(()),
            Ok((status, body)) => {
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                anyhow!(
                    "{admin}: {}",
                    body["error"].as_str().unwrap_or(status.as_str())
                )
            }
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        let pause = Duration::from_millis(100);
        time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}
