//! How to reach etcd: shared by `serve` and by the commands that write keys.

use std::path::PathBuf;

use super::CertificateFiles;

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
    /// From the environment.
    Text(String),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(hidden)"),
        }
    }
}
