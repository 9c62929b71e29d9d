//! `waypost serve`: runs the load balancer until a signal ends it.

use std::process::ExitCode;

use anyhow::Context;
use clap::ArgMatches;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    config::ServeArgs,
    server::{End, Server, Signal},
    telemetry::logging,
};

/// Run the load balancer
///
/// Every flag has an environment twin, WAYPOST_ and its name, and a key of its name in the TOML file --config; a flag
/// beats the environment, the environment beats the file, the file beats the default.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost serve --etcd http://10.0.0.1:2379,http://10.0.0.2:2379
  waypost serve --etcd http://10.0.0.1:2379 --snapshot /var/lib/waypost/snapshot
  waypost serve --hosts-dir ./hosts --listen http://127.0.0.1:8080
  waypost serve --listen http://0.0.0.0:80 --listen 'https://0.0.0.0:443?cert=a.crt&key=a.key'
  waypost serve --config /etc/waypost.toml --access-log json

Signals: SIGTERM drains (not ready at once, accepting for --drain-delay, then finishing what runs), SIGINT drains
without the delay, a second of either ends at once, SIGHUP reads the certificates again.
Exit codes: 0 done, 1 could not start or cut off running requests, 2 usage.")]
pub struct Serve {
    #[command(flatten)]
    args: ServeArgs,
}

impl Serve {
    /// Runs until a signal; `matches` is what `self` was parsed from.
    ///
    /// # Errors
    ///
    /// Names the flag, the file or the address that is in the way of starting.
    pub fn run(self, matches: Option<&ArgMatches>) -> anyhow::Result<ExitCode> {
        let args = match matches {
            Some(matches) => self.args.with_file(matches)?,
            None => self.args,
        };
        let config = args.resolve()?;
        logging::start(&config.log, config.log_format);
        // Two threads, so that the admin API answers while the other decodes a million keys.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("control")
            .enable_all()
            .build()?;
        let end = runtime.block_on(async {
            let signals = signals(Signal::Reload)?;
            let server = Server::start(config).await?;
            anyhow::Ok(server.run(signals).await)
        });
        // Whatever is still blocked, as in a look-up of a name, has nobody waiting for it.
        runtime.shutdown_background();
        Ok(match end? {
            End::Finished => ExitCode::SUCCESS,
            End::Cut => ExitCode::FAILURE,
        })
    }
}

/// The process's signals, as they come; SIGHUP means what `hangup` says.
pub(super) fn signals(hangup: Signal) -> anyhow::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(8);
    for (kind, meaning) in [
        (SignalKind::terminate(), Signal::Terminate),
        (SignalKind::interrupt(), Signal::Interrupt),
        (SignalKind::hangup(), hangup),
    ] {
        let mut stream = signal(kind).context("could not listen for signals")?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(meaning).await.is_ok() {}
        });
    }
    Ok(receiver)
}
