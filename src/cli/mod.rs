//! The command line: the clap tree, and one file per subcommand.

pub mod delete;
pub mod put;
mod target;

use std::process::ExitCode;

/// Parses the arguments, runs the command, and says how it ended: 0 done, 1 failed, 2 usage.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
