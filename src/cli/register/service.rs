//! The command behind an upstream, if `register` runs one, and the signals that we get for it.

use std::{ffi::OsString, io, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait,
};
use tokio::{
    signal::unix::{self, SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

/// The signals that mean something here, by name.
const SIGNALS: [(Signal, &str); 6] = [
    (Signal::TERM, "SIGTERM"),
    (Signal::INT, "SIGINT"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::HUP, "SIGHUP"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::USR2, "SIGUSR2"),
];

/// What is registered: a command of ours, or something that others run.
pub(super) struct Service {
    signals: mpsc::Receiver<Signal>,
    child: Option<Child>,
}

/// What ends a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The command ended by itself, with this exit code.
    Ended(u8),
    /// We are to stop it by this signal.
    Stop(Signal),
}

impl Service {
    /// Listens for signals, and runs the command if there is one.
    ///
    /// # Errors
    ///
    /// The [`io::Error`] of a command that can't be run is in the chain.
    pub(super) fn start(command: &[OsString]) -> Result<Self> {
        let signals = listen()?;
        let child = match command.split_first() {
            Some((program, arguments)) => Some(Child::spawn(program, arguments)?),
            None => None,
        };
        Ok(Self { signals, child })
    }

    /// Waits for the end. Signals that don't mean one are passed on to the command meanwhile.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let signal = match &mut self.child {
                Some(child) => tokio::select! {
                    code = child.ended() => {
                        self.child = None;
                        return Event::Ended(code);
                    }
                    signal = self.signals.recv() => signal,
                },
                None => self.signals.recv().await,
            };
            match signal {
                Some(signal @ (Signal::TERM | Signal::INT | Signal::QUIT)) => {
                    return Event::Stop(signal);
                }
                // The terminal is gone; a command would rather read its configuration again.
                Some(Signal::HUP) if self.child.is_none() => return Event::Stop(Signal::HUP),
                Some(signal) => self.send(signal),
                None => return Event::Stop(Signal::TERM),
            }
        }
    }

    /// Whether a command runs.
    pub(super) fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Passes a signal on to the command.
    pub(super) fn send(&self, signal: Signal) {
        if let Some(child) = &self.child {
            child.send(signal);
        }
    }

    /// Kills the command and all that it started; the exit code of what was killed.
    pub(super) fn kill(&self) -> u8 {
        let Some(child) = &self.child else {
            return 1;
        };
        warn!("a second signal: killing the command");
        let _ = kill_process_group(child.pid, Signal::KILL);
        code_of_signal(Signal::KILL.as_raw())
    }
}

/// By the shell's convention.
fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or_default().saturating_add(128)
}

/// How a shell would report that a command can't be run.
pub(super) fn code_of_failed_start(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    }
}

fn listen() -> Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(8);
    for (meant, name) in SIGNALS {
        let mut stream = signal(SignalKind::from_raw(meant.as_raw()))
            .with_context(|| format!("could not listen for {name}"))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(meant).await.is_ok() {}
        });
    }
    Ok(receiver)
}

/// A process that we started. Only we wait for it, so its id stays its own until [`Child::ended`] says so.
struct Child {
    pid: Pid,
    /// SIGCHLD.
    changes: unix::Signal,
}

impl Child {
    /// In a process group of its own: what is typed at a terminal is for us, who remove the upstream before we pass
    /// it on.
    fn spawn(program: &OsString, arguments: &[OsString]) -> Result<Self> {
        let changes = signal(SignalKind::child()).context("could not listen for SIGCHLD")?;
        let child = Command::new(program)
            .args(arguments)
            .process_group(0)
            .spawn()
            .with_context(|| format!("could not run {}", program.display()))?;
        let pid = Pid::from_child(&child);
        info!(command = %program.display(), pid = pid.as_raw_pid(), "started");
        Ok(Self { pid, changes })
    }

    fn send(&self, signal: Signal) {
        if let Err(error) = kill_process(self.pid, signal) {
            warn!(%error, ?signal, "the command could not be sent a signal");
        }
    }

    /// Its exit code, once it has ended: its own, or 128 and the number of the signal. May be dropped and asked
    /// again until then.
    async fn ended(&mut self) -> u8 {
        loop {
            // As process 1 of a container we are given every orphan, and they too must be waited for.
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if let (true, Some(code)) = (pid == self.pid, code(status)) {
                    info!(code, "the command ended");
                    return code;
                }
            }
            self.changes.recv().await;
        }
    }
}

/// `None` for a process that was merely stopped.
fn code(status: WaitStatus) -> Option<u8> {
    match status.terminating_signal() {
        Some(signal) => Some(code_of_signal(signal)),
        None => status
            .exit_status()
            .and_then(|code| u8::try_from(code).ok()),
    }
}
