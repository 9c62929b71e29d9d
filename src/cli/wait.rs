//! `waypost wait`: until every named instance serves a revision.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use http::StatusCode;
use tokio::{task::JoinSet, time};

use super::admin_client::fetch;
use crate::{config::values, route::Revision};

/// One request waits this long, so that an instance that is replaced meanwhile is found.
const ROUND: Duration = Duration::from_secs(5);

/// Wait until every named instance serves a revision
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost wait 1234
  waypost wait 1234 --admin 10.0.0.5:9900,10.0.0.6:9900 --timeout 10s

`waypost put` and `waypost delete` print the revision they made. With a hosts directory, revisions count the changes
that this instance has seen; /api/status shows where it is.
Exits 1 if an instance has not reached it in time, and says which.")]
pub struct Wait {
    /// The etcd revision to reach
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    revision: Revision,
    /// Admin address of an instance to wait for; repeat it or separate with commas
    #[arg(
        long,
        env = "WAYPOST_ADMIN",
        value_name = "ADDR",
        value_delimiter = ',',
        default_value = "127.0.0.1:9900"
    )]
    admin: Vec<String>,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
}

impl Wait {
    /// Waits for all of them at once.
    ///
    /// # Errors
    ///
    /// Names the instances that have not reached the revision in time, and why.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let deadline = Instant::now() + self.timeout;
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
