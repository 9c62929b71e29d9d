//! `waypost healthcheck`: for container engines, which want a command.

use std::{process::ExitCode, time::Duration};

use super::admin_client::{AdminArgs, fetch};

/// Ask an instance whether it lives, or is ready
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost healthcheck
  waypost healthcheck --ready --admin 127.0.0.1:9900

Exits 0 if so, else 1.")]
pub struct Healthcheck {
    /// Whether requests should be sent to it: routes were read, and it is not draining
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

impl Healthcheck {
    /// Prints what the instance says.
    ///
    /// # Errors
    ///
    /// When it doesn't answer.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let path = if self.ready { "/readyz" } else { "/livez" };
        let (status, body) = fetch(&self.admin.admin, path, Duration::from_secs(5)).await?;
        super::print(&String::from_utf8_lossy(&body))?;
        Ok(match status.is_success() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}
