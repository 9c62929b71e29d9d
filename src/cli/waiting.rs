//! What the commands that wait for the fleet share: their flags, and what they say at the end.

use std::{env, process::ExitCode, time::Duration};

use anyhow::Result;

use crate::{
    config::{Usage, etcd::EtcdArgs, values},
    fleet::{
        barrier::Barrier,
        tally::{Report, Subject, instances},
    },
};

/// How long is waited unless a flag says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The flags of a command that waits for the fleet.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct WaitArgs {
    /// How long to wait; what was changed stays so [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Fail if fewer instances are registered
    #[arg(long, value_name = "N")]
    pub expect: Option<usize>,
}

impl WaitArgs {
    /// How long to wait.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT)
    }

    /// Whether these flags fit a command that waits if `waits`, which `flags` ask for.
    pub(super) fn check(&self, waits: bool, flags: &str, etcd: &EtcdArgs) -> Result<()> {
        if !waits && (self.timeout.is_some() || self.expect.is_some()) {
            return Err(Usage::error(&format!(
                "--timeout and --expect are about waiting: add {flags}"
            )));
        }
        let names_directory = env::var_os("WAYPOST_HOSTS_DIR").is_some_and(|dir| !dir.is_empty());
        if waits && names_directory && !etcd.names_a_cluster() {
            return Err(Usage::error(
                "WAYPOST_HOSTS_DIR is set: with a hosts directory there is no fleet to wait for; ask each instance with `waypost wait REVISION --admin ADDR`, or name the cluster with --etcd",
            ));
        }
        Ok(())
    }
}

/// Waits for every instance, says how it ended, and makes that an exit code; `done` is what they have done then.
pub(super) async fn wait(
    barrier: Barrier<'_>,
    subject: Subject<'_>,
    done: &str,
) -> Result<ExitCode> {
    let report = barrier.wait().await?;
    if let Some(others) = report.others() {
        say(&format!(
            "warning: the same upstream stays in use by {others}"
        ));
    }
    conclude(&report, &subject, done)
}

/// Says how it ended, and makes that an exit code.
pub(super) fn conclude(report: &Report, subject: &Subject<'_>, done: &str) -> Result<ExitCode> {
    let problems = report.problems(subject);
    for problem in &problems {
        say(problem);
    }
    if !problems.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    super::print(&format!("{done} {}\n", instances(report.instances)))?;
    Ok(ExitCode::SUCCESS)
}

/// As one line without control characters: instances have a say in it, whose rights are less than an operator's.
pub(super) fn say(line: &str) {
    eprintln!("waypost: {}", super::plain(line.as_bytes()));
}
