//! The flags of `serve`, as typed, from the environment or from a file; and what they mean together.

use std::{
    fs::File,
    net::SocketAddr,
    num::NonZero,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{FromArgMatches, builder::RangedU64ValueParser};

use super::{
    Config, EtcdArgs, ForwardedField, LimitArgs, ListenerConfig, LogFormat, SourceConfig, Usage,
    etcd, file, listener,
    values::{self, AccessLogChoice, Networks},
};
use crate::{route::settings::Balance, telemetry::logging};

/// `--upstream-deny`, unless it is given: link-local, where clouds keep their metadata.
pub const NEVER_DIALLED: &str = "169.254.0.0/16,fe80::/10";

/// The flags of `serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    /// TOML file with the names of these flags as keys; flags and environment beat it
    #[arg(long, env = "WAYPOST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to accept: http://0.0.0.0:3000, https://0.0.0.0:443?cert=FILE&key=FILE, &client_ca=FILE, &min_tls=1.3, &proxy_protocol=true; repeat it or separate with commas
    #[arg(
        long,
        env = "WAYPOST_LISTEN",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://0.0.0.0:3000",
        value_parser = listener::parse
    )]
    pub listen: Vec<ListenerConfig>,
    /// Directory of certificates NAME.crt with NAME.key, chosen by SNI for every https listener, reloaded on change
    #[arg(long, env = "WAYPOST_TLS_DIR", value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Routes from files instead of etcd: DIR/blog.example.com/127.0.0.1:4000
    #[arg(long, env = "WAYPOST_HOSTS_DIR", value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
    /// How etcd is reached.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// File for the last good routes, of this instance alone: lets a start succeed with etcd down
    #[arg(long, env = "WAYPOST_SNAPSHOT", value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
    /// How upstreams are picked for routes that don't say: round-robin, random, least-request or hash
    #[arg(
        long,
        env = "WAYPOST_BALANCE",
        value_name = "HOW",
        default_value = "round-robin",
        value_parser = values::balance
    )]
    pub balance: Balance,
    /// Data-plane threads, 1 to 1024 [default: one per core]
    #[arg(
        long,
        env = "WAYPOST_WORKERS",
        value_name = "N",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    pub workers: Option<usize>,
    /// Where the admin API, the metrics and the status page are
    #[arg(
        long,
        env = "WAYPOST_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9900",
        value_parser = values::address
    )]
    pub admin: SocketAddr,
    /// Networks whose X-Forwarded-* and PROXY headers are believed
    #[arg(
        long,
        env = "WAYPOST_TRUSTED_PROXIES",
        value_name = "CIDR,..",
        default_value = "none"
    )]
    pub trusted_proxies: Networks,
    /// The field Forwarded of RFC 7239: off, beside X-Forwarded-*, or instead of them, and then believed in their place
    #[arg(
        long,
        env = "WAYPOST_FORWARDED",
        value_name = "HOW",
        default_value = "off",
        value_enum
    )]
    pub forwarded: ForwardedField,
    /// Networks that are never dialled, whatever a key says; our own admin address is refused besides
    #[arg(
        long,
        env = "WAYPOST_UPSTREAM_DENY",
        value_name = "CIDR,..",
        default_value = NEVER_DIALLED
    )]
    pub upstream_deny: Networks,
    /// A line per request: off, json or combined; json:FILE for a file instead of standard output
    #[arg(
        long,
        env = "WAYPOST_ACCESS_LOG",
        value_name = "FORMAT[:FILE]",
        default_value = "off"
    )]
    pub access_log: AccessLogChoice,
    /// After SIGTERM: how long to go on accepting, not ready, so that whoever is in front can notice
    #[arg(
        long,
        env = "WAYPOST_DRAIN_DELAY",
        value_name = "TIME",
        default_value = "5s",
        value_parser = values::duration
    )]
    pub drain_delay: Duration,
    /// Then: how long running requests may take to finish, and WebSockets may live on; also those of a removed upstream
    #[arg(
        long,
        env = "WAYPOST_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "30s",
        value_parser = values::duration
    )]
    pub drain_timeout: Duration,
    /// What is logged on standard error: error, warn, info, debug, trace, or a filter such as info,waypost=debug
    #[arg(
        long,
        env = "WAYPOST_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = logging::parse_filter
    )]
    pub log: String,
    /// How the log looks
    #[arg(
        long,
        env = "WAYPOST_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        value_enum
    )]
    pub log_format: LogFormat,
    /// What clients may take.
    #[command(flatten)]
    pub limits: LimitArgs,
    #[arg(
        long,
        env = "WAYPOST_TUNNELS",
        hide = true,
        num_args = 0..=1,
        default_missing_value = "on",
        value_parser = values::not_yet
    )]
    tunnels: Option<String>,
    #[arg(long, env = "WAYPOST_TUNNEL_ADVERTISE", hide = true, value_parser = values::not_yet)]
    tunnel_advertise: Option<String>,
}

impl ServeArgs {
    /// Fills in what `--config` says and neither a flag nor the environment did. `matches` is what `self` was made of.
    ///
    /// # Errors
    ///
    /// Names the file and the line.
    pub fn with_file(mut self, matches: &clap::ArgMatches) -> anyhow::Result<Self> {
        let Some(path) = self.config.clone() else {
            return Ok(self);
        };
        for given in file::read(&path, matches)? {
            self.update_from_arg_matches(&given)?;
        }
        Ok(self)
    }

    /// What the flags mean together.
    ///
    /// # Errors
    ///
    /// [`Usage`] for flags that contradict each other; else a file or directory that can't be read, or two listeners
    /// alike.
    pub fn resolve(self) -> anyhow::Result<Config> {
        let (source, prefix) = match self.hosts_dir {
            Some(_) if self.etcd.names_a_cluster() => {
                return Err(Usage::error(
                    "--hosts-dir and --etcd are both given: routes come from one of them",
                ));
            }
            Some(_) if self.snapshot.is_some() => {
                return Err(Usage::error(
                    "--snapshot belongs to --etcd: with --hosts-dir the routes are on disk already",
                ));
            }
            Some(directory) => {
                ensure_directory("--hosts-dir", &directory)?;
                let prefix = self.etcd.prefix.as_deref().unwrap_or("/hosts/");
                let prefix = etcd::normalise_prefix(prefix)?;
                (SourceConfig::Directory(directory), prefix)
            }
            None => {
                let (etcd, prefix) = self.etcd.resolve()?;
                (SourceConfig::Etcd(etcd), prefix)
            }
        };
        check_listeners(&self.listen, self.tls_dir.is_some())?;
        check_proxy_protocol(&self.listen, &self.trusted_proxies)?;
        if let Some(directory) = &self.tls_dir {
            ensure_directory("--tls-dir", directory)?;
        }
        let cores = || thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Config {
            listeners: self.listen,
            tls_dir: self.tls_dir,
            source,
            prefix,
            snapshot: self.snapshot,
            balance: self.balance,
            workers: self.workers.unwrap_or_else(cores),
            admin: self.admin,
            trusted_proxies: self.trusted_proxies.0,
            limits: self.limits.resolve()?,
            forwarded: self.forwarded,
            upstream_deny: self.upstream_deny.0,
            access_log: self.access_log.0,
            drain_delay: self.drain_delay,
            drain_timeout: self.drain_timeout,
            log: self.log,
            log_format: self.log_format,
        })
    }
}

/// The defaults, whatever the environment says.
impl Default for ServeArgs {
    fn default() -> Self {
        let command = file::without_environment(file::command());
        let matches = command
            .try_get_matches_from(std::iter::empty::<&str>())
            .expect("every default is a literal that parses");
        Self::from_arg_matches(&matches).expect("no flag is required")
    }
}

fn check_listeners(listeners: &[ListenerConfig], tls_dir: bool) -> anyhow::Result<()> {
    for (index, listener) in listeners.iter().enumerate() {
        let address = listener.address;
        let alike = |other: &ListenerConfig| other.address == address;
        ensure!(
            // Each port 0 becomes a port of its own.
            address.port() == 0 || !listeners[..index].iter().any(alike),
            "--listen: {address} is given twice"
        );
        let Some(tls) = &listener.tls else { continue };
        if let Some(clients) = &tls.clients {
            openable(address, &clients.authorities)?;
        }
        match &tls.certificate {
            None if !tls_dir => {
                return Err(Usage::error(&format!(
                    "--listen https://{address} needs a certificate: add ?cert=FILE&key=FILE, or --tls-dir"
                )));
            }
            None => {}
            Some(files) => {
                openable(address, &files.certificate)?;
                openable(address, &files.key)?;
            }
        }
    }
    Ok(())
}

fn openable(listener: SocketAddr, path: &Path) -> anyhow::Result<()> {
    File::open(path).with_context(|| {
        format!(
            "--listen https://{listener}: could not open {}",
            path.display()
        )
    })?;
    Ok(())
}

/// A header that nobody may send would refuse every connection; one that anybody may send would lend any address.
fn check_proxy_protocol(listeners: &[ListenerConfig], trusted: &Networks) -> anyhow::Result<()> {
    let listener = listeners.iter().find(|listener| listener.proxy_protocol);
    match listener.filter(|_| trusted.0.is_empty()) {
        None => Ok(()),
        Some(listener) => Err(Usage::error(&format!(
            "--listen with proxy_protocol=true on {} needs --trusted-proxies: give it the networks of the load \
             balancers that connect there, such as --trusted-proxies 10.0.0.0/8",
            listener.address
        ))),
    }
}

fn ensure_directory(flag: &str, path: &Path) -> anyhow::Result<()> {
    let kind = std::fs::metadata(path)
        .with_context(|| format!("{flag}: could not read {}", path.display()))?;
    ensure!(
        kind.is_dir(),
        "{flag}: {} is not a directory",
        path.display()
    );
    Ok(())
}
