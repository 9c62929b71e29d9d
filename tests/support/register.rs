//! A running `waypost register`, and a service for it to run.

use std::{
    fs,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    thread,
};

use tempfile::TempDir;
use tokio::{
    process::{Child, ChildStdin},
    time::timeout,
};

use super::command::{DEADLINE, Lines, command, signal};

/// A running `waypost register`; killed with its owner, and so is the [`Service`] that it runs.
pub struct Register {
    child: Child,
    log: Lines,
    output: Lines,
    /// The service ends when it does.
    _stdin: Option<ChildStdin>,
}

impl Register {
    /// At these etcd endpoints, with these arguments behind `register`.
    pub fn start(etcd: &[String], arguments: &[&str]) -> Self {
        let etcd = etcd.join(",");
        let mut child = command(&[&["register", "--etcd", &etcd], arguments].concat())
            .stdin(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let stderr = child
            .stderr
            .take()
            .and_then(|pipe| pipe.into_owned_fd().ok());
        let stdout = child
            .stdout
            .take()
            .and_then(|pipe| pipe.into_owned_fd().ok());
        Self {
            log: Lines::of(stderr),
            output: Lines::of(stdout),
            _stdin: child.stdin.take(),
            child,
        }
    }

    /// What it logged.
    pub fn log(&self) -> &Lines {
        &self.log
    }

    /// What its command printed.
    pub fn output(&self) -> &Lines {
        &self.output
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Waits until it ended: the exit code.
    pub async fn wait_exit(&mut self) -> Option<i32> {
        match timeout(2 * DEADLINE, self.child.wait()).await {
            Ok(status) => status.expect("a child of ours").code(),
            Err(_) => panic!("register did not end"),
        }
    }
}

impl Drop for Register {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of register\n{}---", self.log.text());
        }
    }
}

/// A command for `register` to run: see service.py.
pub struct Service {
    address: String,
    port: u16,
    directory: TempDir,
}

impl Service {
    /// Not running yet, at an address that nobody else uses: no other process has this id, and all of 127.0.0.0/8
    /// is this machine.
    pub fn new() -> Self {
        static PORT: AtomicU16 = AtomicU16::new(4000);
        let [_, a, b, c] = std::process::id().to_be_bytes();
        Self {
            address: format!("127.{a}.{b}.{c}"),
            port: PORT.fetch_add(1, Ordering::Relaxed),
            directory: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// One that listens, is healthy and ends as soon as it may.
    pub fn willing() -> Self {
        let service = Self::new();
        for name in ["listen", "healthy", "end"] {
            service.may(name);
        }
        service
    }

    /// `ip:port`.
    pub fn upstream(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// The command.
    pub fn command(&self) -> Vec<String> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/service.py");
        let directory = self.directory.path();
        vec![
            "python3".to_owned(),
            script.display().to_string(),
            self.address.clone(),
            self.port.to_string(),
            directory.display().to_string(),
        ]
    }

    /// Lets it `listen`, be `healthy`, `release` what it holds, or `end`.
    pub fn may(&self, name: &str) {
        fs::write(self.directory.path().join(name), "").expect("a file");
    }

    /// Registers it for `a.test`, with more arguments before the command.
    pub fn register(&self, etcd: &[String], arguments: &[&str]) -> Register {
        let (upstream, command) = (self.upstream(), self.command());
        let mut all = vec!["a.test", &upstream];
        all.extend(arguments);
        all.push("--");
        all.extend(command.iter().map(String::as_str));
        Register::start(etcd, &all)
    }
}
