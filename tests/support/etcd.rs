//! A real etcd cluster on free ports: started in a second, killed with its owner.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use etcd_client::{Client, CompactionOptions, ConnectOptions, Txn, TxnOp};
use tempfile::TempDir;
use waypost::config::EtcdConfig;

use super::{command::eventually, process::Process, waypost::get};

const START_TIME: Duration = Duration::from_secs(20);
/// Ports are found free and then handed over, so another process may take one in between.
const STARTS: usize = 5;

/// One to three etcd members. Dropping it kills them and removes their data.
pub struct EtcdCluster {
    members: Vec<Member>,
    client: Client,
    directory: TempDir,
}

/// How a cluster differs from a plain one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// PEM files that clients must be certified by.
    pub tls: Option<Tls>,
    /// More flags for every member.
    pub flags: Vec<String>,
    /// Where the members run, if not all on the loopback of the test.
    pub places: Vec<Place>,
}

/// Where a member runs.
#[derive(Clone, Debug)]
pub struct Place {
    pub address: Ipv4Addr,
    /// What stands before the command.
    pub entering: Vec<String>,
}

/// The certificates of a cluster that speaks TLS, and of its clients.
#[derive(Clone, Debug)]
pub struct Tls {
    pub ca: PathBuf,
    pub server_certificate: PathBuf,
    pub server_key: PathBuf,
    pub client_certificate: PathBuf,
    pub client_key: PathBuf,
}

struct Member {
    /// The program first.
    arguments: Vec<String>,
    endpoint: String,
    log: PathBuf,
    process: Option<Process>,
}

impl EtcdCluster {
    /// A plain cluster of this many members, ready for use.
    pub async fn start(members: usize) -> Self {
        Self::start_with(members, Options::default()).await
    }

    pub async fn start_with(members: usize, options: Options) -> Self {
        for _ in 1..STARTS {
            if let Ok(cluster) = Self::try_start(members, &options).await {
                return cluster;
            }
        }
        match Self::try_start(members, &options).await {
            Ok(cluster) => cluster,
            Err(error) => panic!("etcd did not start {STARTS} times: {error}"),
        }
    }

    async fn try_start(count: usize, options: &Options) -> Result<Self, String> {
        // In memory, so that fsync costs nothing whichever version this is.
        let directory = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a temporary directory");
        let mut members = lay_out(count, options, directory.path());
        for member in &mut members {
            member.start();
        }
        let endpoints: Vec<_> = members
            .iter()
            .map(|member| member.endpoint.clone())
            .collect();
        let client = Client::connect(&endpoints, Some(connect_options(options)))
            .await
            .map_err(|error| error.to_string())?;
        let cluster = Self {
            members,
            client,
            directory,
        };
        for member in 0..count {
            cluster.answers(member, options).await?;
        }
        Ok(cluster)
    }

    async fn answers(&self, member: usize, options: &Options) -> Result<(), String> {
        let member = &self.members[member];
        let deadline = Instant::now() + START_TIME;
        loop {
            let asked = async {
                let mut client =
                    Client::connect([&member.endpoint], Some(connect_options(options))).await?;
                client.get("ready", None).await
            };
            match tokio::time::timeout(Duration::from_secs(1), asked).await {
                Ok(Ok(_)) => return Ok(()),
                _ if member.process.as_ref().is_none_or(Process::is_over) => {
                    return Err(format!(
                        "{} ended: {}",
                        member.endpoint,
                        member.last_words()
                    ));
                }
                _ if Instant::now() > deadline => {
                    return Err(format!(
                        "{} is silent: {}",
                        member.endpoint,
                        member.last_words()
                    ));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The members' URLs.
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.endpoint.clone())
            .collect()
    }

    /// To reach every member, without TLS or user.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: self.endpoints(),
            ca: None,
            client_certificate: None,
            user: None,
        }
    }

    /// A client of these members alone.
    pub async fn client_of(&self, members: &[usize]) -> Client {
        let endpoints = members.iter().map(|&member| &self.members[member].endpoint);
        Client::connect(endpoints.collect::<Vec<_>>(), None)
            .await
            .expect("a client")
    }

    /// A client of all members that are up.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Writes as this user from now on, with fresh tokens whenever one runs out.
    pub async fn log_in(&mut self, user: &str, password: &str) {
        let login = ConnectOptions::new()
            .with_user(user, password)
            .with_auto_token_refresh(true);
        let client = Client::connect(self.endpoints(), Some(login)).await;
        self.client = client.expect("the user is known");
    }

    /// A directory for more files, removed with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Puts a key; the revision.
    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> i64 {
        self.txn([TxnOp::put(key, value, None)]).await
    }

    /// Deletes a key; the revision.
    pub async fn delete(&self, key: &str) -> i64 {
        self.txn([TxnOp::delete(key, None)]).await
    }

    /// Commits these operations as one; the revision. Repeated while members are away, as a person would.
    pub async fn txn(&self, operations: impl Into<Vec<TxnOp>>) -> i64 {
        let operations = operations.into();
        let deadline = Instant::now() + START_TIME;
        loop {
            let mut client = self.client();
            let txn = client.txn(Txn::new().and_then(operations.clone()));
            match tokio::time::timeout(Duration::from_secs(3), txn).await {
                Ok(Ok(answer)) => return answer.header().expect("a header").revision(),
                error if Instant::now() > deadline => panic!("etcd takes no writes: {error:?}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Forgets what was before this revision. Repeated while members are away.
    pub async fn compact(&self, revision: i64) {
        let deadline = Instant::now() + START_TIME;
        loop {
            let options = CompactionOptions::new().with_physical();
            match self.client().compact(revision, Some(options)).await {
                Ok(_) => return,
                // By a try whose answer was lost.
                Err(error) if error.to_string().contains("has been compacted") => return,
                Err(error) if Instant::now() > deadline => panic!("no compaction: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Ends a member without warning, and waits until it is gone.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process = None;
    }

    /// Asks a member to end, and waits until it did.
    pub async fn stop(&mut self, member: usize) {
        if let Some(process) = self.members[member].process.take() {
            process.signal("TERM");
            eventually("the member ended", async || process.is_over()).await;
        }
    }

    /// Ends every member without warning.
    pub fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill(member));
    }

    /// Starts these killed members together, as some can't answer alone, and waits until they do.
    pub async fn restart_together(&mut self, members: &[usize]) {
        for &member in members {
            self.members[member].start();
        }
        for &member in members {
            if let Err(error) = self.answers(member, &Options::default()).await {
                panic!("etcd did not come back: {error}");
            }
        }
    }

    /// Starts a killed member on its old ports and data, and waits until it answers.
    pub async fn restart(&mut self, member: usize) {
        self.restart_as(member, &Options::default()).await;
    }

    /// As [`Self::restart`], asking it with these credentials.
    pub async fn restart_as(&mut self, member: usize, options: &Options) {
        self.members[member].start();
        if let Err(error) = self.answers(member, options).await {
            panic!("etcd did not come back: {error}");
        }
    }

    /// Kills every member and throws the data away: the next start begins at revision 1, with the same cluster_id.
    pub fn wipe(&mut self) {
        self.kill_all();
        for index in 0..self.members.len() {
            let data = self.directory.path().join(format!("m{index}"));
            std::fs::remove_dir_all(data).expect("the member's data");
        }
    }

    /// Saves all there is now to a file.
    pub async fn back_up(&self, name: &str) -> PathBuf {
        let file = self.directory().join(name);
        let mut parts = self.client().snapshot().await.expect("a backup");
        let mut whole = Vec::new();
        while let Some(part) = parts.message().await.expect("more of it") {
            whole.extend_from_slice(part.blob());
        }
        std::fs::write(&file, whole).expect("a file");
        file
    }

    /// Kills every member and puts back what the file has. To be started with [`Self::restart_together`].
    pub fn restore(&mut self, backup: &Path) {
        self.wipe();
        for (index, member) in self.members.iter().enumerate() {
            let kept = [
                "--name=",
                "--initial-cluster=",
                "--initial-advertise-peer-urls=",
            ];
            let kept = (member.arguments.iter())
                .filter(|argument| kept.iter().any(|kept| argument.starts_with(kept)));
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["snapshot", "restore"])
                .arg(backup)
                .args(kept)
                .arg("--data-dir")
                .arg(self.directory().join(format!("m{index}")))
                .output()
                .expect("etcdctl: see scripts/test");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "restoring: {said}");
        }
    }

    /// Stops a member's clock: its sockets stay open and nothing answers.
    pub fn pause(&self, member: usize) {
        let Some(process) = &self.members[member].process else {
            return;
        };
        process.signal("STOP");
        // Its threads stop one by one, and one that goes on may still answer.
        while !process.is_stopped() {
            std::thread::yield_now();
        }
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self, member: usize) {
        if let Some(process) = &self.members[member].process {
            process.signal("CONT");
        }
    }

    /// Writes until the quota is used up, which is to be small: from now on nothing is taken but deletions.
    pub async fn fill(&self) {
        let mut client = self.client();
        let refusal = loop {
            let put = client.put("/elsewhere", vec![b'x'; 400_000], None).await;
            if let Err(error) = put {
                break error.to_string();
            }
        };
        assert!(refusal.contains("database space exceeded"), "{refusal}");
    }

    /// How many calls of this gRPC method the first member has answered.
    pub async fn calls(&self, method: &str) -> f64 {
        let address = self.members[0].endpoint.trim_start_matches("http://");
        let address = address.parse().expect("an address");
        let (_, text) = get(address, "/metrics").await.expect("its metrics");
        let method = format!("grpc_method=\"{method}\"");
        let series = (text.lines()).filter(|line| {
            line.starts_with("grpc_server_handled_total{") && line.contains(&method)
        });
        let counts = series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        counts.sum()
    }

    /// The index of the leader.
    pub async fn leader(&self) -> usize {
        for index in 0..self.members.len() {
            let mut client = Client::connect([&self.members[index].endpoint], None)
                .await
                .expect("a client");
            let status = client.status().await.expect("the member's status");
            let own = status.header().expect("a header").member_id();
            if status.leader() == own {
                return index;
            }
        }
        panic!("no member leads");
    }
}

/// The flags of every member, on ports that are free now.
fn lay_out(count: usize, options: &Options, directory: &Path) -> Vec<Member> {
    let ports = free_ports(2 * count);
    let (peers, clients) = ports.split_at(count);
    let place = |index: usize| {
        let place = options.places.get(index);
        place.map_or(Ipv4Addr::LOCALHOST, |place| place.address)
    };
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let cluster: Vec<_> = (peers.iter().enumerate())
        .map(|(index, port)| format!("m{index}=http://{}:{port}", place(index)))
        .collect();
    // One member needs nobody's vote; of three, a busy machine must not depose the leader.
    let (heartbeat, election) = if count == 1 { (10, 100) } else { (100, 1000) };
    let member = |index: usize| {
        let endpoint = format!("{scheme}://{}:{}", place(index), clients[index]);
        let peer = format!("http://{}:{}", place(index), peers[index]);
        let mut arguments = options
            .places
            .get(index)
            .map_or_else(Vec::new, |place| place.entering.clone());
        arguments.extend([
            "etcd".to_owned(),
            format!("--name=m{index}"),
            format!(
                "--data-dir={}",
                directory.join(format!("m{index}")).display()
            ),
            format!("--listen-client-urls={endpoint}"),
            format!("--advertise-client-urls={endpoint}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", cluster.join(",")),
            format!("--heartbeat-interval={heartbeat}"),
            format!("--election-timeout={election}"),
            "--log-level=warn".to_owned(),
        ]);
        if let Some(tls) = &options.tls {
            arguments.push(format!("--cert-file={}", tls.server_certificate.display()));
            arguments.push(format!("--key-file={}", tls.server_key.display()));
            arguments.push(format!("--trusted-ca-file={}", tls.ca.display()));
            arguments.push("--client-cert-auth".to_owned());
        }
        arguments.extend(options.flags.iter().cloned());
        Member {
            arguments,
            endpoint,
            log: directory.join(format!("m{index}.log")),
            process: None,
        }
    };
    (0..count).map(member).collect()
}

/// Held all at once, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    (listeners.iter())
        .map(|listener| listener.local_addr().expect("its address").port())
        .collect()
}

fn connect_options(options: &Options) -> ConnectOptions {
    let connect = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
    let Some(tls) = &options.tls else {
        return connect;
    };
    let read = |path: &Path| std::fs::read(path).expect("a PEM file");
    connect.with_tls(
        etcd_client::TlsOptions::new()
            .ca_certificate(etcd_client::Certificate::from_pem(read(&tls.ca)))
            .identity(etcd_client::Identity::from_pem(
                read(&tls.client_certificate),
                read(&tls.client_key),
            )),
    )
}

impl Member {
    fn start(&mut self) {
        self.process = Some(Process::start(
            &self.arguments[0],
            &self.arguments[1..],
            &self.log,
        ));
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }
}
