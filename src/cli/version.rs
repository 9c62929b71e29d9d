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
    /// When standard output takes nothing.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::print(concat!("waypost ", env!("CARGO_PKG_VERSION"), "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
