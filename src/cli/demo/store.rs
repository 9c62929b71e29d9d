//! Where the demo keeps its routes: an etcd of its own, or a directory.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use etcd_client::{Txn, TxnOp};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time,
};

use crate::{
    config::{EtcdConfig, SourceConfig},
    source::etcd::Connector,
};

const PREFIX: &str = "/hosts/";

/// How long etcd may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where routes are; taken away when dropped.
pub(super) struct Store {
    /// Before the directory, so that it is killed before its data goes.
    etcd: Option<Etcd>,
    /// Etcd's data, or the routes themselves.
    directory: TempDir,
}

struct Etcd {
    url: String,
    /// Killed when dropped.
    process: Child,
}

impl Store {
    /// An etcd if there is one on the PATH, unless `only_directory`; else a directory.
    pub(super) async fn start(only_directory: bool) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("waypost-demo-")
            .tempdir()
            .context("could not make a temporary directory")?;
        fs::create_dir(directory.path().join("hosts"))?;
        let etcd = match only_directory {
            true => None,
            false => match Etcd::start(directory.path()).await {
                Ok(etcd) => etcd,
                Err(error) => {
                    eprintln!(
                        "waypost: there is an etcd, but it did not start ({error:#}); a directory does instead"
                    );
                    None
                }
            },
        };
        Ok(Self { etcd, directory })
    }

    /// Kills etcd and waits for its end, so that its data can go.
    pub(super) async fn stop(mut self) {
        if let Some(etcd) = &mut self.etcd {
            let _ = etcd.process.kill().await;
        }
        if let Err(error) = self.directory.close() {
            eprintln!("waypost: could not remove the temporary directory: {error}");
        }
    }

    /// Adds an upstream to a host.
    pub(super) async fn put(&self, host: &str, upstream: SocketAddr) -> anyhow::Result<()> {
        match &self.etcd {
            Some(etcd) => {
                let key = format!("{PREFIX}{host}/{upstream}");
                let connection = Connector::new(config(&etcd.url))?.answering(PREFIX).await?;
                let put = Txn::new().and_then([TxnOp::put(key, "", None)]);
                connection.commit(put).await?;
            }
            None => {
                let directory = self.hosts().join(host);
                fs::create_dir_all(&directory)?;
                File::create(directory.join(upstream.to_string()))?;
            }
        }
        Ok(())
    }

    /// The hosts directory; empty when routes are in etcd.
    pub(super) fn hosts(&self) -> PathBuf {
        self.directory.path().join("hosts")
    }

    /// For the configuration of `serve`.
    pub(super) fn source(&self) -> SourceConfig {
        match &self.etcd {
            Some(etcd) => SourceConfig::Etcd(config(&etcd.url)),
            None => SourceConfig::Directory(self.hosts()),
        }
    }

    /// For people.
    pub(super) fn description(&self) -> String {
        match &self.etcd {
            Some(etcd) => format!("an etcd of the demo's own at {}", etcd.url),
            None => format!("the directory {}", self.hosts().display()),
        }
    }

    /// The command that adds an upstream.
    pub(super) fn add_line(&self, host: &str, upstream: SocketAddr) -> String {
        match &self.etcd {
            Some(etcd) => format!("{} put {PREFIX}{host}/{upstream} ''", etcdctl(etcd)),
            None => format!("touch {}", self.file(host, &upstream.to_string())),
        }
    }

    /// The command that removes one.
    pub(super) fn remove_line(&self, host: &str, upstream: SocketAddr) -> String {
        match &self.etcd {
            Some(etcd) => format!("{} del {PREFIX}{host}/{upstream}", etcdctl(etcd)),
            None => format!("rm {}", self.file(host, &upstream.to_string())),
        }
    }

    /// The command that writes the settings of a route.
    pub(super) fn settings_line(&self, host: &str, json: &str) -> String {
        match &self.etcd {
            Some(etcd) => format!("{} put {PREFIX}{host}/@settings '{json}'", etcdctl(etcd)),
            None => format!("echo '{json}' > {}", self.file(host, "@settings")),
        }
    }

    fn file(&self, host: &str, name: &str) -> String {
        self.hosts().join(host).join(name).display().to_string()
    }
}

impl Etcd {
    /// `None` when there is no `etcd` on the PATH.
    async fn start(directory: &Path) -> anyhow::Result<Option<Self>> {
        let [client, peer] = free_ports()?.map(|port| format!("http://127.0.0.1:{port}"));
        let log = File::create(directory.join("etcd.log"))?;
        let spawned = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.join("etcd"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its own group: Ctrl-C is for the demo, which ends etcd last.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let process = match spawned {
            Ok(process) => process,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut etcd = Self {
            url: client,
            process,
        };
        etcd.answers().await?;
        Ok(Some(etcd))
    }

    async fn answers(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Err(anyhow!("it ended with {status}"));
            }
            let connection = Connector::new(config(&self.url))?;
            let Err(error) = connection.answering(PREFIX).await else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn etcdctl(etcd: &Etcd) -> String {
    format!("etcdctl --endpoints={}", etcd.url)
}

fn config(url: &str) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![url.to_owned()],
        ca: None,
        client_certificate: None,
        user: None,
    }
}

/// Held at the same time, so that they differ; then given up for etcd to take.
fn free_ports() -> io::Result<[u16; 2]> {
    let [one, other] = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    Ok([one?.local_addr()?.port(), other?.local_addr()?.port()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::etcd::read_all;

    #[tokio::test]
    async fn a_directory_holds_the_routes_and_the_printed_lines_change_them() {
        let store = Store::start(true).await.unwrap();
        let [first, spare] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        store.put("a.test", first).await.unwrap();
        for line in [
            store.add_line("a.test", spare),
            store.remove_line("a.test", first),
            store.settings_line("a.test", "{}"),
        ] {
            let status = Command::new("sh").args(["-c", &line]).status().await;
            assert!(status.unwrap().success(), "{line}");
        }
        let host = store.hosts().join("a.test");
        let names = fs::read_dir(&host).unwrap();
        let mut names: Vec<_> = names.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["127.0.0.1:2", "@settings"]);

        store.stop().await;
        assert!(!host.exists());
    }

    #[tokio::test]
    async fn an_etcd_of_its_own_is_started_and_taken_away() {
        let store = Store::start(false).await.unwrap();
        let upstream = SocketAddr::from(([127, 0, 0, 1], 1));
        store.put("a.test", upstream).await.unwrap();
        let SourceConfig::Etcd(etcd) = store.source() else {
            panic!("the tests need an etcd on the PATH")
        };
        let (entries, _) = read_all(&etcd, PREFIX).await.unwrap();
        assert_eq!(entries[0].key, "/hosts/a.test/127.0.0.1:1");
        assert!(
            store
                .add_line("b.test", upstream)
                .contains(&etcd.endpoints[0])
        );

        let directory = store.hosts();
        store.stop().await;
        assert!(!directory.exists());
        assert!(read_all(&etcd, PREFIX).await.is_err());
    }
}
