//! The binary that is tested, as a command: what it prints, and how it ends.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader},
    os::fd::OwnedFd,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

/// How long anything may take that is waited for here.
pub const DEADLINE: Duration = Duration::from_secs(15);

const PAUSE: Duration = Duration::from_millis(5);

/// The binary that is tested.
pub const BINARY: &str = env!("CARGO_BIN_EXE_waypost");

/// What a process printed so far, line by line.
#[derive(Clone)]
pub struct Lines(watch::Receiver<Vec<String>>);

/// How a process ended that was run to its end.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Lines {
    /// What comes out of this pipe, read by a thread of its own so that it never fills.
    pub fn of(pipe: Option<OwnedFd>) -> Self {
        let pipe = BufReader::new(File::from(pipe.expect("it is piped")));
        let (sender, receiver) = watch::channel(Vec::new());
        thread::spawn(move || {
            for line in pipe.lines().map_while(Result::ok) {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Self(receiver)
    }

    pub fn text(&self) -> String {
        self.all().iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// How many lines have this text.
    pub fn count(&self, text: &str) -> usize {
        (self.0.borrow().iter())
            .filter(|line| line.contains(text))
            .count()
    }

    /// Waits until the lines so far have what is looked for; `None` if they end, or time does, without it.
    pub async fn find<T>(&self, look: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let mut lines = self.0.clone();
        let found = lines.wait_for(|lines| look(lines).is_some());
        let found = timeout(DEADLINE, found).await.ok()?.ok()?;
        look(&found)
    }

    /// Waits for the first line with this text in it.
    pub async fn until(&self, text: &str) -> String {
        let of = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        match self.find(of).await {
            Some(line) => line,
            None => panic!("no line has {text:?}:\n{}", self.text()),
        }
    }
}

/// `waypost` with these arguments, run to its end.
pub async fn waypost(arguments: &[&str]) -> Ended {
    let child = command(arguments).spawn().expect("the binary runs");
    ended(child).await
}

/// `waypost` with these arguments: no variable of ours reaches it, its output is piped, and it dies with its owner.
pub fn command(arguments: &[impl AsRef<str>]) -> Command {
    program(BINARY, arguments)
}

/// The same for any program, such as one that runs `waypost`.
pub fn program(program: &str, arguments: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments.iter().map(AsRef::as_ref))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("WAYPOST_") || text.starts_with("ETCDCTL_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Looks until it is so.
pub async fn eventually(what: &str, is_so: impl AsyncFnMut() -> bool) {
    within(DEADLINE, what, is_so).await;
}

/// Looks until it is so, no longer than this.
pub async fn within(limit: Duration, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so().await {
        assert!(Instant::now() < deadline, "within {limit:?} not: {what}");
        sleep(PAUSE).await;
    }
}

/// Waits until it ended by itself.
pub async fn ended(child: Child) -> Ended {
    let output = timeout(DEADLINE, child.wait_with_output()).await;
    let output = output.expect("it ends in time").expect("its output");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Sends a signal, such as `TERM`.
pub fn signal(id: u32, name: &str) {
    let status = std::process::Command::new("kill")
        .args(["-s", name, &id.to_string()])
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "kill -s {name} {id}"
    );
}
