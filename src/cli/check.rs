//! `waypost check`: the parser of `serve` over a configuration and the keys of a source, without serving them; and
//! what is wrong among good keys.

mod dial;
mod dump;
mod findings;
mod slips;

use std::{
    fmt::{Display, Write as _},
    fs,
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::FromArgMatches;
use ipnet::IpNet;

use self::{
    dial::Trial,
    findings::{Finding, Routes},
};
use crate::{
    config::{
        EtcdArgs, EtcdConfig, NEVER_DIALLED, ServeArgs, SourceConfig, Usage,
        etcd::normalise_prefix, values,
    },
    source::{Entry, directory::Directory, etcd, publish},
    upstream::dial::Deny,
};

/// Print every problem in a configuration and its keys
///
/// Keys are read from --hosts-dir or --file, else from where --config says, else from etcd, and go through the very
/// parser of `serve`. Then good keys are looked at together: routes that have settings and no upstream, or none that
/// takes requests; keys that another one shadows, because it says the same in another spelling; and, of live etcd,
/// upstreams that don't answer a TCP connect from here (those that get no requests, weight 0 or drained, are not
/// asked; nor is any after a minute), and files of their TLS that can't be read here.
///
/// Notes are no problems: hosts that hide a wider one, so that some paths get 404; values that begin with {
/// and are no JSON object, so that they mean defaults; options that are without effect beside the others.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost check                                     the keys in etcd
  waypost check --hosts-dir ./hosts                 a directory, as in a repository's tests
  waypost check --config /etc/waypost.toml          the file, and the keys where it says they are
  waypost check --no-dial                           the keys in etcd, without a connect to upstreams
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
    /// Don't try whether the upstreams in etcd answer
    #[arg(long)]
    pub no_dial: bool,
    /// How long an upstream may take to accept a connection
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::duration)]
    pub connect_timeout: Duration,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// What there is to check.
struct Subject {
    source: Source,
    prefix: String,
    /// Networks that `serve` would not dial.
    deny: Vec<IpNet>,
}

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
        let (no_dial, connect_timeout) = (self.no_dial, self.connect_timeout);
        let Subject {
            source,
            prefix,
            deny,
        } = self.resolve()?;
        let trial = match &source {
            Source::Etcd(_) if !no_dial => Some(Trial {
                timeout: connect_timeout,
                deny: Deny::new(deny, Vec::new()),
            }),
            _ => None,
        };
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
        let routes = Routes::of(&prefix, &entries);
        let mut report = Report {
            problems: unreadable,
            notes: Vec::new(),
        };
        report.judge(&prefix, &entries, &routes);
        if let Some(trial) = trial {
            report.dial(&trial, &routes).await;
        }
        Ok(report.print(entries.len())?)
    }

    fn resolve(self) -> anyhow::Result<Subject> {
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
        if let Some(configured) = configured {
            let source = source.unwrap_or(configured.source);
            return Ok(Subject {
                source,
                ..configured
            });
        }
        let (source, prefix) = match source {
            Some(source) => {
                let prefix = self.etcd.prefix.as_deref().unwrap_or("/hosts/");
                (source, normalise_prefix(prefix)?)
            }
            None => {
                let (config, prefix) = self.etcd.resolve()?;
                (Source::Etcd(config), prefix)
            }
        };
        Ok(Subject {
            source,
            prefix,
            deny: NEVER_DIALLED
                .parse::<values::Networks>()
                .map_err(anyhow::Error::msg)?
                .0,
        })
    }

    /// What `serve --config` would take its routes from; the flags given here beat the file.
    fn configured(&self) -> anyhow::Result<Subject> {
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
        Ok(Subject {
            source,
            prefix: config.prefix,
            deny: config.upstream_deny,
        })
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

/// What is wrong, and what is only worth knowing.
struct Report {
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// What the keys alone tell.
    fn judge(&mut self, prefix: &str, entries: &[Entry], routes: &Routes<'_>) {
        for rejected in publish::check(prefix, entries) {
            let key = super::plain(rejected.key.as_bytes());
            self.problems.push(format!("{key}: {}", rejected.reason));
        }
        self.problems.extend(routes.problems().iter().map(line));
        self.notes.extend(routes.broken_objects().iter().map(line));
        self.notes
            .extend(slips::slips(prefix, entries).iter().map(line));
        self.notes.extend(routes.hidden().iter().map(line));
    }

    async fn dial(&mut self, trial: &Trial, routes: &Routes<'_>) {
        let tried = trial.of(&routes.in_use()).await;
        self.problems.extend(tried.silent.iter().map(line));
        let unusable = routes.unusable_files();
        self.problems.extend(unusable.iter().map(line));
        if tried.untried > 0 {
            let note = "addresses of upstreams were not tried: a minute is all they get";
            self.notes.push(format!("{} {note}", tried.untried));
        }
    }

    /// Each problem, each note, and how many there are.
    fn print(&self, keys: usize) -> io::Result<ExitCode> {
        let mut text = String::new();
        for problem in &self.problems {
            let _ = writeln!(text, "{problem}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let problems = match self.problems.len() {
            0 => "no problems".to_owned(),
            problems => count(problems, "problem"),
        };
        let notes = match self.notes.len() {
            0 => String::new(),
            notes => format!(", {}", count(notes, "note")),
        };
        let _ = writeln!(text, "{} checked, {problems}{notes}", count(keys, "key"));
        super::print(&text)?;
        Ok(match self.problems.len() {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

fn line(finding: &Finding) -> String {
    format!("{}: {}", finding.subject, finding.reason)
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
            no_dial: false,
            connect_timeout: Duration::from_secs(2),
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
