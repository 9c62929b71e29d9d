//! The etcd flags, and what they mean together with the `ETCDCTL_*` variables and the defaults.

use std::{io, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer};

use super::{
    super::{Usage, small_file},
    CertificateFiles, EtcdConfig, EtcdUser, Password, is_https, normalise_endpoint,
    normalise_prefix,
};

const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
const DEFAULT_PREFIX: &str = "/hosts/";

/// The etcd flags as typed, or as the TOML file has them (keys named like the flags). Nothing is defaulted before
/// [`EtcdArgs::resolve`], so that layers can be [merged](EtcdArgs::merge).
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EtcdArgs {
    /// An etcd member; repeat it or separate with commas [default: $ETCDCTL_ENDPOINTS, else http://127.0.0.1:2379]
    #[arg(
        long,
        env = "WAYPOST_ETCD",
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "etcd"
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub etcd: Vec<String>,
    /// PEM file of the authorities that etcd's certificates are checked against [default: $ETCDCTL_CACERT, else the
    /// system's]
    #[arg(
        long,
        env = "WAYPOST_ETCD_CA",
        value_name = "FILE",
        help_heading = "etcd"
    )]
    pub etcd_ca: Option<PathBuf>,
    /// PEM file of our own certificate for etcd [default: $ETCDCTL_CERT]
    #[arg(
        long,
        env = "WAYPOST_ETCD_CERT",
        value_name = "FILE",
        help_heading = "etcd"
    )]
    pub etcd_cert: Option<PathBuf>,
    /// PEM file of the key of --etcd-cert [default: $ETCDCTL_KEY]
    #[arg(
        long,
        env = "WAYPOST_ETCD_KEY",
        value_name = "FILE",
        help_heading = "etcd"
    )]
    pub etcd_key: Option<PathBuf>,
    /// Name of the etcd user to log in as [default: $ETCDCTL_USER, which may be name:password]
    #[arg(
        long,
        env = "WAYPOST_ETCD_USER",
        value_name = "NAME",
        help_heading = "etcd"
    )]
    pub etcd_user: Option<String>,
    /// File with the password of --etcd-user, read at every login [default: the password in $ETCDCTL_PASSWORD]
    #[arg(
        long,
        env = "WAYPOST_ETCD_PASSWORD_FILE",
        value_name = "FILE",
        help_heading = "etcd"
    )]
    pub etcd_password_file: Option<PathBuf>,
    /// The prefix that all keys are below [default: /hosts/]
    #[arg(
        long,
        env = "WAYPOST_PREFIX",
        value_name = "PREFIX",
        help_heading = "etcd"
    )]
    pub prefix: Option<String>,
}

impl EtcdArgs {
    /// Fills what is not given here from `lower`: flags over the file.
    pub fn merge(self, lower: Self) -> Self {
        Self {
            etcd: if self.etcd.is_empty() {
                lower.etcd
            } else {
                self.etcd
            },
            etcd_ca: self.etcd_ca.or(lower.etcd_ca),
            etcd_cert: self.etcd_cert.or(lower.etcd_cert),
            etcd_key: self.etcd_key.or(lower.etcd_key),
            etcd_user: self.etcd_user.or(lower.etcd_user),
            etcd_password_file: self.etcd_password_file.or(lower.etcd_password_file),
            prefix: self.prefix.or(lower.prefix),
        }
    }

    /// Whether anything but the prefix is given: with `--hosts-dir` that is a contradiction.
    pub fn names_a_cluster(&self) -> bool {
        !self.etcd.is_empty()
            || self.etcd_ca.is_some()
            || self.etcd_cert.is_some()
            || self.etcd_key.is_some()
            || self.etcd_user.is_some()
            || self.etcd_password_file.is_some()
    }

    /// What these flags, the `ETCDCTL_*` variables and the defaults mean, in this order; and the prefix.
    ///
    /// # Errors
    ///
    /// Names the flag that is wrong and what to write instead.
    pub fn resolve(&self) -> Result<(EtcdConfig, String)> {
        let resolved =
            self.resolve_with(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        // All but a file that can't be read is a mistake on the command line.
        resolved.map_err(
            |error| match error.chain().any(|cause| cause.is::<io::Error>()) {
                true => error,
                false => Usage::error(&format!("{error:#}")),
            },
        )
    }

    fn resolve_with(&self, env: impl Fn(&str) -> Option<String>) -> Result<(EtcdConfig, String)> {
        let config = EtcdConfig {
            endpoints: self.resolve_endpoints(&env)?,
            ca: self
                .etcd_ca
                .clone()
                .or_else(|| env("ETCDCTL_CACERT").map(PathBuf::from)),
            client_certificate: self.resolve_certificate(&env)?,
            user: self.resolve_user(&env)?,
        };
        if let Some(plain) = config.endpoints.iter().find(|url| !is_https(url)) {
            for (flag, given) in [
                ("--etcd-ca", self.etcd_ca.is_some()),
                ("--etcd-cert", self.etcd_cert.is_some()),
            ] {
                ensure!(
                    !given,
                    "{flag} needs https:// URLs, but --etcd names {plain}: write https:// there, or leave {flag} out"
                );
            }
        }
        let prefix = normalise_prefix(self.prefix.as_deref().unwrap_or(DEFAULT_PREFIX))?;
        Ok((config, prefix))
    }

    fn resolve_endpoints(&self, env: &impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
        let (origin, given) = if !self.etcd.is_empty() {
            ("--etcd", self.etcd.clone())
        } else if let Some(list) = env("ETCDCTL_ENDPOINTS") {
            (
                "ETCDCTL_ENDPOINTS",
                list.split(',').map(str::to_owned).collect(),
            )
        } else {
            ("--etcd", vec![DEFAULT_ENDPOINT.to_owned()])
        };
        // A file has a list whose items may still be lists of their own.
        let mut endpoints: Vec<String> = Vec::new();
        for url in given.iter().flat_map(|url| url.split(',')) {
            let url =
                normalise_endpoint(url.trim()).with_context(|| format!("{origin} {url:?}"))?;
            if !endpoints.contains(&url) {
                endpoints.push(url);
            }
        }
        Ok(endpoints)
    }

    fn resolve_certificate(
        &self,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<CertificateFiles>> {
        let given = |flag: &Option<PathBuf>, variable| {
            flag.clone().or_else(|| env(variable).map(PathBuf::from))
        };
        match (
            given(&self.etcd_cert, "ETCDCTL_CERT"),
            given(&self.etcd_key, "ETCDCTL_KEY"),
        ) {
            (Some(certificate), Some(key)) => Ok(Some(CertificateFiles { certificate, key })),
            (Some(_), None) => bail!(
                "--etcd-cert needs its private key: name the file with --etcd-key (or ETCDCTL_KEY)"
            ),
            (None, Some(_)) => bail!(
                "--etcd-key needs its certificate: name the file with --etcd-cert (or ETCDCTL_CERT)"
            ),
            (None, None) => Ok(None),
        }
    }

    fn resolve_user(&self, env: &impl Fn(&str) -> Option<String>) -> Result<Option<EtcdUser>> {
        let (name, inline_password) = match &self.etcd_user {
            Some(name) => {
                // A password on the command line shows in `ps`, and in this process's own change records.
                ensure!(
                    !name.contains(':'),
                    "--etcd-user takes the name alone: put the password into a file and name it with --etcd-password-file"
                );
                (Some(name.clone()), None)
            }
            None => match env("ETCDCTL_USER") {
                Some(user) => match user.split_once(':') {
                    Some((name, password)) => (Some(name.to_owned()), Some(password.to_owned())),
                    None => (Some(user), None),
                },
                None => (None, None),
            },
        };
        let Some(name) = name else {
            ensure!(
                self.etcd_password_file.is_none(),
                "--etcd-password-file needs --etcd-user to say whose password it is"
            );
            return Ok(None);
        };
        ensure!(
            !name.is_empty(),
            "--etcd-user (or ETCDCTL_USER) has an empty name"
        );
        let password = if let Some(path) = &self.etcd_password_file {
            let in_file = || format!("--etcd-password-file {}", path.display());
            let file = small_file::read(path).with_context(in_file)?;
            match (file.is_pipe, file.text().with_context(in_file)?) {
                (false, _) => Password::File(path.clone()),
                (true, text) => Password::Text(Password::of_file(&text)),
            }
        } else if let Some(password) = inline_password.or_else(|| env("ETCDCTL_PASSWORD")) {
            Password::Text(password)
        } else {
            bail!(
                "--etcd-user {name} needs a password: name its file with --etcd-password-file, or set ETCDCTL_PASSWORD"
            );
        };
        Ok(Some(EtcdUser { name, password }))
    }
}

/// `etcd = "URL"` and `etcd = ["URL", "URL"]` both read well in a file.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a URL or a list of URLs")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(url) => vec![url],
        OneOrMany::Many(urls) => urls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(toml: &str, env: &[(&str, &str)]) -> Result<(EtcdConfig, String)> {
        let args: EtcdArgs = toml::from_str(toml).unwrap();
        args.resolve_with(|name| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn endpoints_come_from_the_flag_then_etcdctl_then_the_default() {
        for (toml, env, expected) in [
            ("", None, vec!["http://127.0.0.1:2379"]),
            (
                "",
                Some("a:1,https://b:2"),
                vec!["http://a:1", "https://b:2"],
            ),
            ("etcd = 'https://c:3/'", Some("a:1"), vec!["https://c:3"]),
            (
                "etcd = ['c:3,d:4', 'c:3']",
                None,
                vec!["http://c:3", "http://d:4"],
            ),
            ("etcd = '[::1]:2379'", None, vec!["http://[::1]:2379"]),
        ] {
            let env: Vec<_> = env
                .map(|list| ("ETCDCTL_ENDPOINTS", list))
                .into_iter()
                .collect();
            assert_eq!(resolve(toml, &env).unwrap().0.endpoints, expected, "{toml}");
        }
    }

    #[test]
    fn a_bad_flag_is_named_with_what_to_do() {
        for (toml, words) in [
            ("etcd = 'ftp://a:1'", ["--etcd", "https://"]),
            ("etcd = 'http://a:99999'", ["--etcd", "port"]),
            ("etcd = 'http://:1'", ["--etcd", "HOST"]),
            ("etcd = 'a:1,,b:2'", ["--etcd", "comma"]),
            ("etcd = 'http://a:1/v3'", ["--etcd", "path"]),
            ("etcd = 'http://u:p@a:1'", ["--etcd", "--etcd-user"]),
            ("etcd-cert = 'c.pem'", ["--etcd-cert", "--etcd-key"]),
            ("etcd-key = 'c.pem'", ["--etcd-key", "--etcd-cert"]),
            ("etcd-ca = 'c.pem'", ["--etcd-ca", "https://"]),
            ("etcd-user = 'a:b'", ["--etcd-user", "--etcd-password-file"]),
            ("etcd-user = 'a'", ["--etcd-user", "--etcd-password-file"]),
            (
                "etcd-password-file = 'p'",
                ["--etcd-password-file", "--etcd-user"],
            ),
            (
                "etcd-user = 'a'\netcd-password-file = '/nonexistent'",
                ["--etcd-password-file", "/nonexistent"],
            ),
        ] {
            let error = format!("{:#}", resolve(toml, &[]).unwrap_err());
            assert!(
                words.iter().all(|word| error.contains(word)),
                "{toml}: {error}"
            );
        }
    }

    #[test]
    fn etcdctl_user_may_carry_the_password() {
        for env in [
            &[("ETCDCTL_USER", "root:s3:cret")][..],
            &[("ETCDCTL_USER", "root"), ("ETCDCTL_PASSWORD", "s3:cret")],
        ] {
            let user = resolve("", env).unwrap().0.user.unwrap();
            assert_eq!(user.name, "root");
            assert!(matches!(&user.password, Password::Text(text) if text == "s3:cret"));
            assert!(!format!("{user:?}").contains("s3:cret"));
        }
    }

    #[test]
    fn a_password_comes_from_its_file_at_each_login_and_from_a_pipe_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "s3:cret\n").unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"s3:cret\n").unwrap();
        drop(writer);
        let pipe = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        for (path, is_text) in [(&*file.display().to_string(), false), (&*pipe, true)] {
            let toml = format!("etcd-user = 'a'\netcd-password-file = {path:?}");
            match resolve(&toml, &[]).unwrap().0.user.unwrap().password {
                Password::Text(text) => assert!(is_text && text == "s3:cret", "{path}"),
                Password::File(named) => assert!(!is_text && named == file, "{path}"),
            }
        }
        let toml = "etcd-user = 'a'\netcd-password-file = '/dev/zero'";
        let error = format!("{:#}", resolve(toml, &[]).unwrap_err());
        assert_eq!(
            error,
            "--etcd-password-file /dev/zero: it is neither a file nor a pipe"
        );
    }

    #[test]
    fn merge_prefers_the_upper_layer() {
        let upper: EtcdArgs = toml::from_str("etcd = 'a:1'").unwrap();
        let lower: EtcdArgs = toml::from_str("etcd = 'b:2'\nprefix = 'x'").unwrap();
        let merged = upper.merge(lower);
        assert_eq!(
            (merged.etcd, merged.prefix),
            (vec!["a:1".to_owned()], Some("x".to_owned()))
        );
    }
}
