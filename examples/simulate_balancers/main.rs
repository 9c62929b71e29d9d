//! Simulates the balancers and prints what a user would get from each, as the tables of docs/balancing.md; with
//! `--plot FILE`, writes its plot. `scripts/simulate-balancers` puts both in place.

mod chance;
mod plot;
mod policy;
mod report;
mod world;

use std::{env, fs, io, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(()),
        ["--plot", file] => fs::write(file, plot::svg()),
        _ => Err(io::Error::other("usage: simulate_balancers [--plot FILE]")),
    };
    match outcome {
        Ok(()) => {
            print!("{}", report::tables());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
