//! `waypost check`: the parser of `serve` over a configuration and the keys of a source, without serving them.

mod dump;

use std::{
    fmt::{Display, Write as _},
    fs,
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::FromArgMatches;

use crate::{
    config::{EtcdArgs, EtcdConfig, ServeArgs, SourceConfig, Usage, etcd::normalise_prefix},
    source::{Entry, directory::Directory, etcd, publish},
};

/// Print every problem in a configuration and its keys
///
/// Keys are read from --hosts-dir or --file, else from where --config says, else from etcd, and go through the very
/// parser of `serve`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost check                                     the keys in etcd
  waypost check --hosts-dir ./hosts                 a directory, as in a repository's tests
  waypost check --config /etc/waypost.toml          the file, and the keys where it says they are
  etcdctl get --prefix /hosts/ | waypost check --file -
  etcdctl get --prefix /hosts/ -w json > keys.json; waypost check --file keys.json

Exit codes: 0 all is well, 1 problems or nothing could be read, 2 usage.")]
pub struct Check {
    /// TOML file of `serve`, to be checked too
    #[arg(long, env = "WAYPOST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of hosts: DIR/blog.example.com/127.0.0.1:4000
    #[arg(long, env = "WAYPOST_HOSTS_DIR", value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
    /// What `etcdctl get --prefix` printed, plain or with `-w json`; - for standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// What there is to check.
enum Source {
    File(PathBuf),
    Directory(PathBuf),
    Etcd(EtcdConfig),
}

impl Check {
    /// Prints each problem as `key: reason` and then how many there are.
    ///
    /// # Errors
    ///
    /// Says why the configuration is not valid, or the keys could not be read.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (source, prefix) = self.resolve()?;
        let (entries, unreadable) = match source {
            Source::Etcd(config) => (etcd::read_all(&config, &prefix).await?.0, Vec::new()),
            Source::Directory(dir) => Directory::open(dir, &prefix)?.read()?,
            Source::File(file) => {
                let text = read(&file).with_context(|| format!("--file {}", file.display()))?;
                let entries = dump::parse(&text, &prefix)
                    .with_context(|| format!("--file {}", file.display()))?;
                (entries, Vec::new())
            }
        };
        Ok(report(&prefix, &entries, &unreadable)?)
    }

    fn resolve(self) -> anyhow::Result<(Source, String)> {
        let configured = self
            .config
            .as_ref()
            .map(|_| self.configured())
            .transpose()?;
        let source = match (self.file, self.hosts_dir) {
            (Some(_), Some(_)) => {
                return Err(Usage::error(
                    "--file and --hosts-dir are both given: keys are read from one of them",
                ));
            }
            (Some(file), None) => Some(Source::File(file)),
            (None, Some(dir)) => Some(Source::Directory(dir)),
            (None, None) => None,
        };
        match (source, configured) {
            (Some(source), Some((_, prefix))) => Ok((source, prefix)),
            (Some(source), None) => {
                let prefix = self.etcd.prefix.as_deref().unwrap_or("/hosts/");
                Ok((source, normalise_prefix(prefix)?))
            }
            (None, Some(configured)) => Ok(configured),
            (None, None) => {
                let (config, prefix) = self.etcd.resolve()?;
                Ok((Source::Etcd(config), prefix))
            }
        }
    }

    /// What `serve --config` would take its routes from; the flags given here beat the file.
    fn configured(&self) -> anyhow::Result<(Source, String)> {
        let mut words = vec!["waypost".into(), "serve".into()];
        if let Some(config) = &self.config {
            words.extend(["--config".into(), config.clone().into_os_string()]);
        }
        let matches = super::parse(words)?;
        let matches = matches
            .subcommand_matches("serve")
            .context("serve is not a command")?;
        let mut args = ServeArgs::from_arg_matches(matches)?.with_file(matches)?;
        args.etcd = self.etcd.clone().merge(args.etcd);
        let config = args.resolve()?;
        let source = match config.source {
            SourceConfig::Etcd(etcd) => Source::Etcd(etcd),
            SourceConfig::Directory(dir) => Source::Directory(dir),
        };
        Ok((source, config.prefix))
    }
}

fn read(file: &PathBuf) -> io::Result<Vec<u8>> {
    if file.as_os_str() != "-" {
        return fs::read(file);
    }
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    Ok(text)
}

fn report(prefix: &str, entries: &[Entry], unreadable: &[String]) -> std::io::Result<ExitCode> {
    let rejected = publish::check(prefix, entries);
    let mut text = String::new();
    for problem in unreadable {
        let _ = writeln!(text, "{problem}");
    }
    for rejected in &rejected {
        let _ = writeln!(text, "{}: {}", rejected.key, rejected.reason);
    }
    let keys = count(entries.len(), "key");
    let problems = rejected.len() + unreadable.len();
    let summary = match problems {
        0 => "no problems".to_owned(),
        problems => count(problems, "problem"),
    };
    let _ = writeln!(text, "{keys} checked, {summary}");
    super::print(&text)?;
    Ok(match problems {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn count(number: usize, noun: impl Display) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Check {
        Check {
            config: None,
            hosts_dir: None,
            file: None,
            etcd: EtcdArgs::default(),
        }
    }

    #[tokio::test]
    async fn every_source_is_judged_alike() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name);
        for (host, value) in [("good", "{\"weight\": 2}"), ("bad", "{\"weight\": -2}")] {
            let host_dir = at(host).join("a.example");
            fs::create_dir_all(&host_dir).expect("a directory");
            fs::write(host_dir.join("10.0.0.1:80"), value).expect("a file");
            let dump = format!("/hosts/a.example/10.0.0.1:80\n{value}\n");
            fs::write(at(&format!("{host}.txt")), dump).expect("a file");
        }
        for (name, expected) in [("good", ExitCode::SUCCESS), ("bad", ExitCode::FAILURE)] {
            let by_directory = Check {
                hosts_dir: Some(at(name)),
                ..check()
            };
            let by_file = Check {
                file: Some(at(&format!("{name}.txt"))),
                ..check()
            };
            for check in [by_directory, by_file] {
                assert_eq!(check.run().await.expect(name), expected, "{name}");
            }
        }
    }

    #[tokio::test]
    async fn a_configuration_says_where_the_keys_are() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let hosts = dir.path().join("hosts");
        fs::create_dir(&hosts).expect("a directory");
        let config = dir.path().join("waypost.toml");
        let with_config = |text: String| {
            fs::write(&config, text).expect("a file");
            Check {
                config: Some(config.clone()),
                ..check()
            }
        };
        let good = with_config(format!("hosts-dir = {hosts:?}\n"));
        assert_eq!(good.run().await.expect("valid"), ExitCode::SUCCESS);
        let bad = with_config("hosts_dri = \"x\"\n".to_owned());
        let error = format!("{:#}", bad.run().await.expect_err("not valid"));
        assert!(error.contains("waypost.toml"), "{error}");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_named() {
        let missing = |path: &str| Some(PathBuf::from(path));
        for (check, expected) in [
            (
                Check {
                    file: missing("/no/such.txt"),
                    ..check()
                },
                "/no/such.txt",
            ),
            (
                Check {
                    hosts_dir: missing("/no/such"),
                    ..check()
                },
                "/no/such",
            ),
            (
                Check {
                    file: missing("/a"),
                    hosts_dir: missing("/b"),
                    ..check()
                },
                "--file and --hosts-dir",
            ),
        ] {
            let error = format!("{:#}", check.run().await.expect_err(expected));
            assert!(error.contains(expected), "{error}");
        }
    }
}
