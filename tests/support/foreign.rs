//! Foreign clients and servers: programs in Python, of tests/foreign, on packages that `scripts/python` installs.

use std::{env, path::PathBuf};

use tokio::{process::Child, time::timeout};

use super::command::{BINARY, DEADLINE, Ended, Lines, program};

/// A server that runs until it is dropped. Printed, it is its address.
pub struct Server {
    _child: Child,
    output: Lines,
    errors: Lines,
    port: u16,
}

impl Server {
    /// Starts this program, whose first line is `port` and the port that it listens on.
    pub async fn start(name: &str, arguments: &[&str]) -> Self {
        let mut child = python(name, arguments).spawn().expect("it runs");
        let output = Lines::of(child.stdout.take().and_then(|o| o.into_owned_fd().ok()));
        let errors = Lines::of(child.stderr.take().and_then(|o| o.into_owned_fd().ok()));
        let port = |lines: &[String]| lines.first()?.strip_prefix("port ")?.parse().ok();
        let Some(port) = output.find(port).await else {
            panic!("{name} does not listen:\n{}", errors.text());
        };
        Self {
            _child: child,
            output,
            errors,
            port,
        }
    }

    /// Waits for the first line with this text that it prints.
    pub async fn says(&self, text: &str) -> String {
        let of = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        match self.output.find(of).await {
            Some(line) => line,
            None => panic!(
                "no line has {text:?}:\n{}{}",
                self.output.text(),
                self.errors.text()
            ),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "127.0.0.1:{}", self.port)
    }
}

/// Runs this program to its end, which is to be good; what it printed.
pub async fn run(name: &str, arguments: &[&str]) -> String {
    let output = python(name, arguments).output();
    // It does much in one run.
    let output = timeout(4 * DEADLINE, output)
        .await
        .expect("it ends in time");
    let output = output.expect("it runs");
    let ended = Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert_eq!(
        ended.code,
        Some(0),
        "{name} {arguments:?}:\n{}{}",
        ended.stdout,
        ended.stderr
    );
    ended.stdout
}

fn python(name: &str, arguments: &[&str]) -> tokio::process::Command {
    // Beside the profile's directory, which has the binary.
    let made = || {
        PathBuf::from(BINARY)
            .parent()?
            .parent()?
            .join("python/bin/python")
            .into()
    };
    let python: Option<PathBuf> =
        env::var_os("WAYPOST_PYTHON").map_or_else(made, |set| Some(set.into()));
    let python = python.expect("the binary is in a directory of a directory");
    assert!(
        python.exists(),
        "{}: no such file. These tests need Python with some packages: scripts/python makes it, scripts/test runs that",
        python.display()
    );
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/foreign")
        .join(name);
    let script = script.to_str().expect("a path of ours");
    // Unbuffered, so that lines are told as they are printed.
    let all = ["-u", script]
        .iter()
        .chain(arguments)
        .copied()
        .collect::<Vec<_>>();
    program(python.to_str().expect("a path of ours"), &all)
}
