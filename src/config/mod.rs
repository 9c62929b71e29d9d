//! What `serve` runs with: flags, environment and file merged and parsed into final types.

mod args;
pub mod etcd;
mod file;
mod limits;
pub mod listener;
pub mod small_file;
pub mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http::HeaderName;
use ipnet::IpNet;

pub use self::{
    args::{NEVER_DIALLED, ServeArgs},
    etcd::{EtcdArgs, EtcdConfig, EtcdUser, Password},
    limits::{ClientLimits, ConnectionLimits, Http2Limits, LimitArgs, PerClient},
};
use crate::route::settings::Balance;

/// The whole configuration of one instance.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--listen`, in the order given.
    pub listeners: Vec<ListenerConfig>,
    /// `--tls-dir`: certificates chosen by SNI, for every https listener.
    pub tls_dir: Option<PathBuf>,
    /// `--etcd` and its companions, or `--hosts-dir`.
    pub source: SourceConfig,
    /// `--prefix`; always starts and ends in `/`.
    pub prefix: String,
    /// `--snapshot`: the last good routes on disk; only of etcd.
    pub snapshot: Option<PathBuf>,
    /// `--balance`: for routes that don't say.
    pub balance: Balance,
    /// `--workers`: data-plane threads.
    pub workers: usize,
    /// `--admin`.
    pub admin: SocketAddr,
    /// `--trusted-proxies`: whose `X-Forwarded-*` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What each client may take.
    pub limits: ClientLimits,
    /// `--forwarded`.
    pub forwarded: ForwardedField,
    /// `--upstream-deny`: never dialled; the admin address is refused besides.
    pub upstream_deny: Vec<IpNet>,
    /// `--access-log`; `None` for off.
    pub access_log: Option<AccessLogConfig>,
    /// `--drain-delay`.
    pub drain_delay: Duration,
    /// `--drain-timeout`.
    pub drain_timeout: Duration,
    /// `--log`: a tracing filter.
    pub log: String,
    /// `--log-format`.
    pub log_format: LogFormat,
}

/// One `--listen URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where to accept.
    pub address: SocketAddr,
    /// `https`: serve TLS.
    pub tls: Option<ListenerTls>,
    /// `proxy_protocol=true`: each connection begins with a PROXY header, of one of `--trusted-proxies`.
    pub proxy_protocol: bool,
}

/// The TLS part of a listener. With neither pair, certificates come from `--tls-dir` alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTls {
    /// `cert=` and `key=`: PEM files; used when no name of `--tls-dir` fits.
    pub certificate: Option<CertificateFiles>,
    /// `client_ca=`: clients are asked for a certificate.
    pub clients: Option<ClientCertificates>,
    /// `min_tls=`.
    pub least_version: TlsVersion,
}

/// What an https listener asks its clients for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// `client_ca=`: a PEM file of the authorities that may vouch for them.
    pub authorities: PathBuf,
    /// `client_auth=`.
    pub demand: ClientAuth,
    /// `client_cert_header=` and `client_cert_format=`: where upstreams are told of the certificate.
    pub header: Option<CertificateHeader>,
}

/// Whether a client may come without a certificate. A certificate that nobody vouches for is refused by both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// It may not.
    #[default]
    Required,
    /// It may.
    Optional,
}

/// A field that tells upstreams of the client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateHeader {
    /// Its name.
    pub name: HeaderName,
    /// How the certificate is written.
    pub format: CertificateFormat,
}

/// How a certificate is written into a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateFormat {
    /// As a byte sequence: the DER in base64, between colons (RFC 9440 section 2.2).
    #[default]
    Rfc9440,
    /// As PEM, percent-encoded: what nginx's `$ssl_client_escaped_cert` has.
    Pem,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// A certificate chain and its private key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where routes come from.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// An etcd cluster.
    Etcd(EtcdConfig),
    /// `--hosts-dir`.
    Directory(PathBuf),
}

/// `--access-log FORMAT[:PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// How a line looks.
    pub format: AccessLogFormat,
    /// Where it goes; standard output when absent.
    pub path: Option<PathBuf>,
}

/// How an access log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object a line.
    Json,
    /// The NCSA combined format.
    Combined,
}

/// Flags that contradict each other: exit code 2 rather than 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

impl Usage {
    /// As the error of a command.
    pub fn error(message: &str) -> anyhow::Error {
        Self(message.to_owned()).into()
    }
}

/// `--forwarded`: whether upstreams are told of the client by RFC 7239 too, and which of both is believed of trusted
/// proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ForwardedField {
    /// By `X-Forwarded-*` alone, which are believed.
    #[default]
    Off,
    /// By both; `X-Forwarded-*` are believed.
    Beside,
    /// By `Forwarded` alone, which is believed.
    Instead,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests;
