//! `waypost version`.

use std::process::ExitCode;

/// Print the version
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost version")]
pub struct Version {}

impl Version {
    /// Prints it.
    ///
    /// # Errors
    ///
    /// None.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        println!("waypost {}", env!("CARGO_PKG_VERSION"));
        Ok(ExitCode::SUCCESS)
    }
}
