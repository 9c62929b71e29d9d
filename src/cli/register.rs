//! `waypost register`: an upstream for as long as its service runs.

mod probe;
mod service;

use std::{ffi::OsString, io, pin::pin, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use http::uri::PathAndQuery;
use tokio::time::{self, Instant};
use tracing::{info, warn};

use self::{
    probe::Probe,
    service::{Event, Service, code_of_failed_start},
};
use super::target::Target;
use crate::{
    config::{LogFormat, etcd::EtcdArgs, values},
    fleet::{
        barrier::Barrier,
        reach::Reach,
        registration::{Keeper, Leased, Registration, Withdrawal},
        tally::Subject,
    },
    route::value::UpstreamOptions,
    source::etcd::Connector,
    telemetry::logging,
    upstream::Address,
};

/// How long etcd may take to take the key away. After that it goes with its lease.
const REMOVAL_TIME: Duration = Duration::from_secs(5);

/// Shorter, and the loss of one member would cost the lease.
const SHORTEST_TTL: Duration = Duration::from_secs(5);

/// Add an upstream for as long as its service runs
///
/// The key is bound to a lease that is kept alive: if this process or its machine dies, the upstream goes. With a
/// command, the upstream comes when the command's port answers, and goes before the command is stopped or when it ends.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost register blog.example.com 10.0.0.7:4000 -- ./blog --port 4000
  waypost register blog.example.com/api 10.0.0.7:8000 --health-path /healthz -- ./api
  waypost register blog.example.com 10.0.0.7:4000

SIGTERM, SIGINT and SIGQUIT take the upstream away, wait until no instance has a request running there, and are then
passed on to the command; a second one kills it.
SIGHUP, SIGUSR1 and SIGUSR2 are passed on. Exits with the command's code (128 and the number, if a signal ended it;
127 and 126 if it can't be run), or without a command with 0 once the upstream is gone and drained.
While etcd doesn't answer it keeps trying: a service starts without it.")]
pub struct Register {
    /// The host, `*.SUFFIX` or `*`, and the path prefix that the route is for
    #[arg(value_name = "HOST[/PATH]")]
    route: String,
    /// `ip:port`, `[ipv6]:port`, `name:port` or `unix:%2Fpath`, as the instances reach it
    #[arg(value_name = "UPSTREAM")]
    upstream: String,
    /// Options of the upstream [default: none]
    #[arg(value_name = "JSON")]
    json: Option<String>,
    /// The command to run, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// How long the upstream stays when this process is killed or cut off
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = ttl)]
    ttl: Duration,
    /// Add the upstream when this path answers 2xx or 3xx, rather than when its port takes connections
    #[arg(long, value_name = "PATH", value_parser = probe::path)]
    health_path: Option<PathAndQuery>,
    /// How long requests may run on after the upstream was removed, before the signal is passed on; 0: not waited for
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    drain_timeout: Duration,
    /// Ask this address whether the service answers [default: UPSTREAM]
    #[arg(long, value_name = "ADDRESS")]
    probe: Option<Address>,
    /// What is logged on standard error: error, warn, info, debug, trace, or a filter such as info,waypost=debug
    #[arg(
        long,
        env = "WAYPOST_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = logging::parse_filter
    )]
    log: String,
    /// How the log looks
    #[arg(
        long,
        env = "WAYPOST_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        value_enum
    )]
    log_format: LogFormat,
    /// How etcd is reached
    #[command(flatten)]
    etcd: EtcdArgs,
}

impl Register {
    /// Runs until the command ends or a signal comes.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the arguments; nothing is run and nothing written then.
    pub async fn run(self) -> Result<ExitCode> {
        let (config, prefix) = self.etcd.resolve()?;
        let leased = self.leased(prefix)?;
        let probe = self.probe(&leased)?;
        let reach = Reach::new(Connector::new(config)?);
        logging::start(&self.log, self.log_format);

        let mut service = match Service::start(&self.command) {
            Ok(service) => service,
            Err(error) => return not_started(error),
        };
        let answers = async {
            if let Some(probe) = &probe {
                probe.until_it_answers().await;
            }
        };
        let event = tokio::select! {
            event = service.next() => Some(event),
            () = answers => None,
        };
        if let Some(event) = event {
            return Ok(ExitCode::from(stop(service, event).await.unwrap_or(0)));
        }
        let keeper = Registration::new(reach, leased).start();
        let event = service.next().await;
        let drain = Some(self.drain_timeout).filter(|time| !time.is_zero());
        end(service, keeper, event, drain).await
    }

    fn leased(&self, prefix: String) -> Result<Leased> {
        ensure!(
            !self.upstream.starts_with('@'),
            "UPSTREAM {:?} is none: settings outlive a service, write them with `waypost put`",
            self.upstream
        );
        let target = Target::parse(&prefix, &self.route, &self.upstream)?;
        target.check_value(self.json.as_deref())?;
        let value = self.json.clone().unwrap_or_default();
        let command = ["waypost register", &self.route, &self.upstream, &value].join(" ");
        Ok(Leased {
            prefix,
            key: target.key,
            value,
            ttl: self.ttl,
            command: command.trim_end().to_owned(),
        })
    }

    /// Without a command nobody is waited for, unless it is asked for.
    fn probe(&self, leased: &Leased) -> Result<Option<Probe>> {
        if self.command.is_empty() && self.probe.is_none() && self.health_path.is_none() {
            return Ok(None);
        }
        let upstream = || {
            let name = leased.key.rsplit('/').next().unwrap_or_default();
            name.parse::<Address>()
                .with_context(|| self.upstream.clone())
        };
        let address = match &self.probe {
            Some(address) => address.clone(),
            None => upstream()?,
        };
        let Some(path) = &self.health_path else {
            return Ok(Some(Probe::of_port(address)));
        };
        let host = leased.key[leased.prefix.len()..].split('/').next();
        let host = match host.filter(|host| !host.contains('*')) {
            Some(host) => host.to_owned(),
            None => address.to_string(),
        };
        let options = UpstreamOptions::parse(leased.value.as_bytes())?;
        Probe::of_path(address, path.clone(), &host, options).map(Some)
    }
}

/// The upstream goes, then what runs there is finished, then the command goes.
async fn end(
    mut service: Service,
    keeper: Keeper,
    event: Event,
    drain: Option<Duration>,
) -> Result<ExitCode> {
    let mut last = event;
    // Where nothing answers any more, nothing is to be drained.
    let drain = drain.filter(|_| matches!(event, Event::Stop(_)));
    let deadline = Instant::now() + REMOVAL_TIME;
    let stopped = time::timeout_at(deadline, keeper.stop());
    let stopped = match settle(&mut service, &mut last, stopped).await {
        Ok(stopped) => stopped,
        Err(code) => return Ok(ExitCode::from(code)),
    };
    let registration = match stopped {
        Ok(Ok(registration)) => Some(registration),
        Ok(Err(error)) => {
            warn!("{error:#}: the upstream goes with its lease, and is not drained");
            None
        }
        Err(_) => silent(),
    };
    let removal = async {
        let withdrawal = registration.as_ref()?.withdraw(drain);
        match time::timeout_at(deadline, withdrawal).await {
            Ok(withdrawal) => Some(withdrawal),
            Err(_) => silent(),
        }
    };
    let removed = match settle(&mut service, &mut last, removal).await {
        Ok(removed) => removed,
        Err(code) => return Ok(ExitCode::from(code)),
    };
    let (mut is_done, barrier) = report(removed, drain);
    if let (Some(barrier), Event::Stop(_)) = (barrier, last) {
        tokio::select! {
            drained = drain_by(barrier) => is_done &= drained,
            next = service.next() => match next {
                Event::Ended(_) => last = next,
                Event::Stop(_) => return Ok(ExitCode::from(service.kill())),
            },
        }
    }
    let code = stop(service, last).await;
    Ok(ExitCode::from(code.unwrap_or(u8::from(!is_done))))
}

/// A part of the end, unless a second signal cuts all of it short: then the exit code.
async fn settle<T>(
    service: &mut Service,
    last: &mut Event,
    part: impl Future<Output = T>,
) -> Result<T, u8> {
    let mut part = pin!(part);
    loop {
        tokio::select! {
            done = &mut part => return Ok(done),
            next = service.next() => match (*last, next) {
                (Event::Stop(_), Event::Ended(_)) => *last = next,
                (Event::Ended(code), _) => return Err(code),
                (Event::Stop(_), Event::Stop(_)) => return Err(service.kill()),
            },
        }
    }
}

/// What is left to the lease, because etcd was asked and said nothing in time.
fn silent<T>() -> Option<T> {
    let seconds = REMOVAL_TIME.as_secs();
    warn!(
        "no answer of etcd within {seconds} s: the upstream goes with its lease, if it was added"
    );
    None
}

/// Whether the upstream is certainly done with, and else what waits for the instances.
fn report(removed: Option<Withdrawal<'_>>, drain: Option<Duration>) -> (bool, Option<Barrier<'_>>) {
    match removed {
        Some(Withdrawal::Deleted { revision, barrier }) => {
            info!(revision, "the upstream is removed");
            (drain.is_none() || barrier.is_some(), barrier)
        }
        Some(Withdrawal::Gone { barrier }) => {
            info!("the key was gone already");
            (drain.is_none() || barrier.is_some(), barrier)
        }
        Some(Withdrawal::Theirs) => {
            warn!(
                "somebody else has written the key: it is left as it is, and instances may go on using the upstream"
            );
            (drain.is_none(), None)
        }
        Some(Withdrawal::Never { error }) => {
            warn!(error, "etcd never let the upstream be added");
            (false, None)
        }
        None => (false, None),
    }
}

/// Whether every instance is done with it.
async fn drain_by(barrier: Barrier<'_>) -> bool {
    let report = match barrier.wait().await {
        Ok(report) => report,
        Err(error) => {
            warn!("not drained: {error:#}");
            return false;
        }
    };
    if let Some(others) = report.others() {
        warn!("the same upstream stays in use by {others}");
    }
    let problems = report.problems(&Subject {
        lost_may: "use the upstream",
        stays: "the upstream stays removed",
        expect: None,
    });
    for problem in &problems {
        warn!("not drained: {problem}");
    }
    if problems.is_empty() {
        info!(instances = report.instances, "drained");
    }
    problems.is_empty()
}

/// Passes the signal on to the command and waits for its end: its exit code, if there is one.
async fn stop(mut service: Service, event: Event) -> Option<u8> {
    let signal = match event {
        Event::Ended(code) => return Some(code),
        Event::Stop(_) if !service.runs() => return None,
        Event::Stop(signal) => signal,
    };
    service.send(signal);
    Some(match service.next().await {
        Event::Ended(code) => code,
        Event::Stop(_) => service.kill(),
    })
}

fn not_started(error: anyhow::Error) -> Result<ExitCode> {
    match error.downcast_ref::<io::Error>() {
        Some(cause) => {
            eprintln!("waypost: {error:#}");
            Ok(ExitCode::from(code_of_failed_start(cause)))
        }
        None => Err(error),
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = values::duration(text)?;
    if ttl < SHORTEST_TTL || ttl.subsec_nanos() != 0 {
        return Err(
            "whole seconds, and at least 5s: one lost answer must not cost the lease".into(),
        );
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal;

    use super::*;

    /// An etcd that fails us in a way that nobody thought of must not leave the command without its signal.
    #[tokio::test]
    async fn the_command_is_stopped_even_if_the_registration_failed() {
        let command = ["sleep", "60"].map(OsString::from);
        let service = Service::start(&command).unwrap();
        let event = Event::Stop(Signal::TERM);
        let code = end(service, Keeper::failing(), event, Some(SHORTEST_TTL)).await;
        assert_eq!(code.unwrap(), ExitCode::from(143), "ended by SIGTERM");
    }
}
