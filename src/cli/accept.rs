//! `waypost accept`: applies the deletions that instances hold after etcd's history changed.

use std::process::ExitCode;

use anyhow::bail;

use super::admin_client::{fetch_json, post_json};

/// How many keys `--list` asks for.
const LISTED: usize = 10_000;

/// Apply the deletions that an instance holds since etcd was wiped or restored
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost accept --list
  waypost accept
  waypost accept --admin 10.0.0.5:9900,10.0.0.6:9900

When etcd lost keys rather than had them deleted (it was wiped, restored from a backup, or another cluster answers),
instances go on serving them: /readyz, /api/status and waypost_held_deletes say how many. Put a key again and it is no
longer held. `accept` is for when they are really to go.")]
pub struct Accept {
    /// Print the keys, change nothing
    #[arg(long)]
    list: bool,
    /// Admin address of an instance; repeat it or separate with commas
    #[arg(
        long,
        env = "WAYPOST_ADMIN",
        value_name = "ADDR",
        value_delimiter = ',',
        default_value = "127.0.0.1:9900"
    )]
    admin: Vec<String>,
}

impl Accept {
    /// One instance after the other, whatever becomes of the others.
    ///
    /// # Errors
    ///
    /// Names the instances that could not be asked, and why.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut failures = Vec::new();
        for admin in &self.admin {
            let done = match self.list {
                true => list(admin).await,
                false => accept(admin).await,
            };
            match done {
                Ok(text) => super::print(&text)?,
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        if !failures.is_empty() {
            bail!("{}", failures.join("; "));
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn accept(admin: &str) -> anyhow::Result<String> {
    let answer = post_json(admin, "/api/accept").await?;
    Ok(format!(
        "{admin}: {} held deletions applied\n",
        answer["accepted"]
    ))
}

async fn list(admin: &str) -> anyhow::Result<String> {
    let path = format!("/api/held?limit={LISTED}");
    let answer = fetch_json(admin, &path).await?;
    let keys = answer["held"].as_array().into_iter().flatten();
    let mut text = format!("{admin}: {} deletions held\n", answer["total"]);
    for key in keys.filter_map(|key| key.as_str()) {
        text.push_str(&format!("  {}\n", key.escape_debug()));
    }
    if answer["total"]
        .as_u64()
        .is_some_and(|total| total > LISTED as u64)
    {
        text.push_str("  ...\n");
    }
    Ok(text)
}
