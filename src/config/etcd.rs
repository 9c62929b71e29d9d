//! How to reach etcd: shared by `serve` and by the commands that write keys.
//!
//! [`EtcdArgs`] is what was typed, [`EtcdConfig`] what it means. Files are only named here; whoever connects reads them.

mod args;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use http::Uri;

pub use self::args::EtcdArgs;
use super::{CertificateFiles, Usage};

/// `--etcd*`.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// URLs of the members, `http://` or `https://`; at least one.
    pub endpoints: Vec<String>,
    /// `--etcd-ca`: PEM file of authorities.
    pub ca: Option<PathBuf>,
    /// `--etcd-cert` and `--etcd-key`.
    pub client_certificate: Option<CertificateFiles>,
    /// `--etcd-user` (`name` or, from `ETCDCTL_USER`, `name:password`) and where its password is.
    pub user: Option<EtcdUser>,
}

/// Who we are to etcd.
#[derive(Clone, Debug)]
pub struct EtcdUser {
    /// The user's name.
    pub name: String,
    /// The password, or the file that is read again at every login.
    pub password: Password,
}

/// A password or where to find it. `Debug` hides the text.
#[derive(Clone)]
pub enum Password {
    /// `--etcd-password-file`, read at every login, so that it can be rotated.
    File(PathBuf),
    /// From the environment, or from a pipe, which gives it once.
    Text(String),
}

impl Password {
    /// The password in the text of a file: all but the end of its last line.
    pub fn of_file(text: &str) -> String {
        text.trim_end_matches(['\r', '\n']).to_owned()
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(hidden)"),
        }
    }
}

/// The prefix with one `/` at either end: `hosts` becomes `/hosts/`.
///
/// # Errors
///
/// [`Usage`]: an empty prefix, `/`, one with an empty segment, and one where fleets keep their own keys.
pub fn normalise_prefix(prefix: &str) -> Result<String> {
    let segments = prefix.trim_matches('/');
    if segments.is_empty() {
        return Err(Usage::error(&format!(
            "--prefix {prefix:?} would take every key of the cluster for a route: name a prefix, such as /hosts/"
        )));
    }
    if segments.contains("//") {
        return Err(Usage::error(&format!(
            "--prefix {prefix:?} has an empty segment: write single slashes, as in /hosts/"
        )));
    }
    // Below `/waypost<prefix>` and `<prefix>@waypost/` each fleet keeps its own keys.
    let mut names = segments.split('/');
    if segments.starts_with("waypost/")
        || segments == "waypost"
        || names.any(|name| name == "@waypost")
    {
        return Err(Usage::error(&format!(
            "--prefix {prefix:?} lies where fleets keep their own keys, /waypost/ and PREFIX/@waypost/: name another prefix, such as /hosts/"
        )));
    }
    Ok(format!("/{segments}/"))
}

/// Whether this endpoint speaks TLS.
pub fn is_https(endpoint: &str) -> bool {
    endpoint.starts_with("https://")
}

fn normalise_endpoint(url: &str) -> Result<String> {
    ensure!(
        !url.is_empty(),
        "an empty URL: write http://HOST:PORT, or leave out the comma"
    );
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let uri: Uri = url.parse().context("not a URL: write http://HOST:PORT")?;
    let scheme = uri.scheme_str().unwrap_or_default();
    ensure!(
        matches!(scheme, "http" | "https"),
        "neither http:// nor https://: write http://HOST:PORT or https://HOST:PORT"
    );
    let authority = uri
        .authority()
        .context("no host: write http://HOST:PORT")?
        .as_str();
    ensure!(
        !authority.contains('@'),
        "a user in the URL: name it with --etcd-user and --etcd-password-file"
    );
    ensure!(
        uri.host().is_some_and(|host| !host.is_empty()),
        "no host: write http://HOST:PORT"
    );
    // `Uri` lets a port pass that isn't one.
    let after_host = authority.rsplit(']').next().unwrap_or_default();
    ensure!(
        !after_host.contains(':') || uri.port_u16().is_some(),
        "the port is not a number from 1 to 65535"
    );
    ensure!(
        matches!(uri.path(), "" | "/") && uri.query().is_none(),
        "a path: etcd is reached at http://HOST:PORT alone"
    );
    Ok(format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_start_and_end_in_one_slash() {
        for (given, expected) in [
            ("hosts", "/hosts/"),
            ("/hosts", "/hosts/"),
            ("hosts/", "/hosts/"),
            ("/hosts/", "/hosts/"),
            ("//hosts//", "/hosts/"),
            ("/a/b", "/a/b/"),
            ("/a/waypost", "/a/waypost/"),
            ("/wayposts/@way", "/wayposts/@way/"),
        ] {
            assert_eq!(normalise_prefix(given).unwrap(), expected, "{given}");
        }
        for bad in [
            "",
            "/",
            "//",
            "a//b",
            "waypost",
            "/waypost/hosts/",
            "@waypost",
            "/hosts/@waypost/",
            "/hosts/@waypost/barriers/",
        ] {
            let error = normalise_prefix(bad).unwrap_err().to_string();
            assert!(
                error.contains("--prefix") && error.contains("/hosts/"),
                "{error}"
            );
        }
    }
}
