//! A real Waypost process on ports of its own, killed with its owner; its log is shown when a test fails.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Child, time::timeout};

pub use super::command::{
    BINARY, DEADLINE, Ended, Lines, command, ended, eventually, program, signal, waypost, within,
};

/// A running `waypost serve`.
pub struct Waypost {
    child: Child,
    lines: Lines,
    output: Lines,
    admin: SocketAddr,
    addresses: Vec<SocketAddr>,
    hosts: Option<TempDir>,
}

/// What `waypost serve` is told.
#[derive(Default)]
pub struct Builder {
    listeners: Vec<String>,
    etcd: Option<String>,
    hosts: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// The soft and the hard limit on open files.
    open_files: Option<(usize, usize)>,
}

impl Builder {
    /// One more listener; without any there is `http://127.0.0.1:0`.
    pub fn listen(mut self, url: &str) -> Self {
        self.listeners.push(url.to_owned());
        self
    }

    /// Routes from these etcd endpoints, instead of a hosts directory of its own.
    pub fn etcd(mut self, endpoints: &[String]) -> Self {
        self.etcd = Some(endpoints.join(","));
        self
    }

    /// Routes from this directory, instead of one that is made for it.
    pub fn hosts_dir(mut self, directory: &Path) -> Self {
        self.hosts = Some(directory.to_owned());
        self
    }

    /// Another flag and its value.
    pub fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.arguments.extend([name.to_owned(), value.to_string()]);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With these limits on open files, the soft one and the hard one.
    pub fn open_files(mut self, soft: usize, hard: usize) -> Self {
        self.open_files = Some((soft, hard));
        self
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(self) -> Waypost {
        let waypost = self.spawn().await;
        waypost.until_ready().await;
        waypost
    }

    /// Starts it, and waits until its ports are open.
    pub async fn spawn(self) -> Waypost {
        let count = self.listeners.len().max(1);
        let (mut child, hosts) = self.run();
        let lines = Lines::of(
            child
                .stderr
                .take()
                .and_then(|pipe| pipe.into_owned_fd().ok()),
        );
        let output = Lines::of(
            child
                .stdout
                .take()
                .and_then(|pipe| pipe.into_owned_fd().ok()),
        );
        let opened = |lines: &[String]| {
            let admin = addresses_in(lines, "serving the admin API")
                .first()
                .copied()?;
            let listeners = addresses_in(lines, " listening ");
            (listeners.len() == count).then_some((admin, listeners))
        };
        let found = lines.find(opened).await;
        let Some((admin, addresses)) = found else {
            panic!("waypost opened no ports:\n{}", lines.text());
        };
        Waypost {
            child,
            lines,
            output,
            admin,
            addresses,
            hosts,
        }
    }

    /// Runs it to its end, which is to come by itself: for what must not start.
    pub async fn run_to_end(self) -> Ended {
        let (child, _hosts) = self.run();
        ended(child).await
    }

    fn run(mut self) -> (Child, Option<TempDir>) {
        let mut hosts = None;
        let mut arguments = vec!["serve".to_owned()];
        let mut default = |name: &str, value: &str| {
            if !self.arguments.iter().any(|argument| argument == name) {
                arguments.extend([name.to_owned(), value.to_owned()]);
            }
        };
        default("--admin", "127.0.0.1:0");
        default("--workers", "2");
        if self.listeners.is_empty() {
            self.listeners.push("http://127.0.0.1:0".to_owned());
        }
        for listener in &self.listeners {
            arguments.extend(["--listen".to_owned(), listener.clone()]);
        }
        match (self.etcd, self.hosts) {
            (Some(endpoints), _) => arguments.extend(["--etcd".to_owned(), endpoints]),
            (None, given) => {
                let directory = given.unwrap_or_else(|| {
                    let made = tempfile::tempdir().expect("a temporary directory");
                    hosts.insert(made).path().to_owned()
                });
                arguments.extend(["--hosts-dir".to_owned(), directory.display().to_string()]);
            }
        }
        arguments.extend(self.arguments);
        let mut command = match self.open_files {
            None => command(&arguments),
            Some((soft, hard)) => {
                let run = format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$0\" \"$@\"");
                let shell = ["-c".to_owned(), run, BINARY.to_owned()];
                program("sh", &[&shell, &arguments[..]].concat())
            }
        };
        command.envs(self.environment);
        (command.spawn().expect("the binary runs"), hosts)
    }
}

impl Waypost {
    /// On one plain listener, with two workers and an empty hosts directory, unless told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The first listener.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Every listener, in the order they were given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The admin API.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The hosts directory that was made for it.
    pub fn hosts(&self) -> &Path {
        self.hosts
            .as_ref()
            .expect("routes come from a directory of its own")
            .path()
    }

    /// Writes `HOST[/PATH]/UPSTREAM` at once, as a rename does, and waits until it is applied or rejected.
    pub async fn put(&self, route: &str, upstream: impl ToString, value: &str) {
        let file = self.hosts().join(route).join(upstream.to_string());
        if fs::read(&file).is_ok_and(|old| old == value.as_bytes()) {
            return;
        }
        let key = format!("/hosts/{route}/{}", upstream.to_string());
        let before = self.version(&key).await;
        write(&file, value);
        let what = format!("{key} is applied");
        eventually(&what, async || self.version(&key).await > before).await;
    }

    /// Removes `HOST[/PATH]/UPSTREAM`, and waits until that is applied.
    pub async fn delete(&self, route: &str, upstream: impl ToString) {
        let file = self.hosts().join(route).join(upstream.to_string());
        fs::remove_file(file).expect("the key's file");
        let key = format!("/hosts/{route}/{}", upstream.to_string());
        let what = format!("{key} is gone");
        eventually(&what, async || self.version(&key).await.is_none()).await;
    }

    /// Waits until this revision is applied.
    pub async fn reached(&self, revision: i64) {
        let path = format!("/api/wait?revision={revision}&timeout=15s");
        let (status, body) = self.admin_get(&path).await;
        assert_eq!(status, 200, "{body}");
    }

    pub async fn until_ready(&self) {
        eventually("it is ready", async || {
            self.admin_get("/readyz").await.0 == 200
        })
        .await;
    }

    /// GET from the admin API: status and body.
    pub async fn admin_get(&self, path: &str) -> (u16, String) {
        match get(self.admin, path).await {
            Ok(answer) => answer,
            Err(error) => panic!("GET {path} from the admin API: {error}"),
        }
    }

    /// GET from the admin API of what must be JSON.
    pub async fn api(&self, path: &str) -> Value {
        let (status, body) = self.admin_get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// The sum of the series of this name that have these labels; 0 when there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (_, text) = self.admin_get("/metrics").await;
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (named, rest) = series.split_once('{').unwrap_or((series, ""));
            let has =
                |(label, value): &(&str, &str)| rest.contains(&format!("{label}=\"{value}\""));
            (named == name && labels.iter().all(has)).then(|| value.parse::<f64>().expect(line))
        });
        series.sum()
    }

    /// What it logged.
    pub fn log(&self) -> &Lines {
        &self.lines
    }

    /// What it printed on standard output, such as the access log.
    pub fn output(&self) -> &Lines {
        &self.output
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// The bytes of memory it has, and the most that it ever had.
    pub fn memory(&self) -> (usize, usize) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("it runs");
        let of = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let kibibytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            kibibytes.map_or_else(|| panic!("{name}: {status}"), |kib: usize| kib << 10)
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Waits until it ended: the exit code, `None` after a signal it did not take.
    pub async fn wait_exit(&mut self) -> Option<i32> {
        match timeout(DEADLINE, self.child.wait()).await {
            Ok(status) => status.expect("a child of ours").code(),
            Err(_) => panic!("waypost did not end:\n{}", self.lines.text()),
        }
    }

    /// The revision of a key, in force or rejected.
    async fn version(&self, key: &str) -> Option<i64> {
        let host = key.split('/').nth(2).expect("a key has a host");
        let page = self
            .api(&format!("/api/routes?host={host}&limit=10000"))
            .await;
        let rejected = self.api("/api/rejected").await;
        let routes = page["routes"].as_array().expect("routes");
        let members = routes
            .iter()
            .flat_map(|route| route["members"].as_array().expect("members"));
        let members = members.map(|member| (&member["key"], &member["mod_revision"]));
        let settings = (routes.iter()).map(|r| (&r["settings_key"], &r["settings_mod_revision"]));
        let rejected = rejected["rejected"].as_array().expect("rejected keys");
        let rejected = rejected
            .iter()
            .map(|key| (&key["key"], &key["mod_revision"]));
        let all = members.chain(settings).chain(rejected);
        all.filter(|(name, _)| *name == key)
            .filter_map(|(_, revision)| revision.as_i64())
            .max()
    }
}

impl Drop for Waypost {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- log of waypost {}\n{}---",
                self.address(),
                self.lines.text()
            );
        }
        let _ = self.child.start_kill();
    }
}

/// Writes a file by rename, with the directories above it.
pub fn write(file: &Path, text: &str) {
    let directory = file.parent().expect("a file has a directory");
    fs::create_dir_all(directory).expect("a directory");
    // Hidden files are no keys.
    let mut draft = tempfile::Builder::new()
        .prefix(".draft")
        .tempfile_in(directory)
        .expect("a file");
    std::io::Write::write_all(&mut draft, text.as_bytes()).expect("written");
    draft.persist(file).expect("renamed");
}

/// GET on a connection of its own: status and body.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let exchange = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", address.to_string())
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    };
    timeout(2 * DEADLINE, exchange)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// Of the lines with this text, what stands behind `address=`.
fn addresses_in(lines: &[String], text: &str) -> Vec<SocketAddr> {
    let lines = lines.iter().filter(|line| line.contains(text));
    let address = |line: &String| {
        line.split("address=")
            .nth(1)?
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    lines.filter_map(address).collect()
}
