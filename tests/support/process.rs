//! Processes that tests start and that don't outlive them.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

/// A process that cannot outlive us: its parent is a shell that kills it when our end of a pipe closes, which it does
/// however we end.
pub struct Process {
    guard: Child,
    guard_input: Option<ChildStdin>,
    id: u32,
}

impl Process {
    /// Starts it, with both outputs in `log`.
    pub fn start(program: &str, arguments: &[String], log: &Path) -> Self {
        let log = File::create(log).expect("a log file");
        let spawned = Command::new("sh")
            .args(["-c", GUARD, "sh", program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        let mut guard = spawned.expect("sh is everywhere");
        let mut id = String::new();
        let output = guard.stdout.take().expect("it is piped");
        BufReader::new(output)
            .read_line(&mut id)
            .expect("the guard's first line");
        let Ok(id) = id.trim().parse() else {
            panic!(
                "these tests need a real {program} on PATH: apt-get install etcd-server, or see scripts/test"
            );
        };
        Self {
            guard_input: guard.stdin.take(),
            guard,
            id,
        }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether it ended by itself.
    pub fn is_over(&self) -> bool {
        state(format!("/proc/{}/stat", self.id)).is_none_or(|state| state == 'Z')
    }

    /// Whether every thread of it is stopped.
    pub fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id));
        threads.is_ok_and(|threads| {
            (threads.flatten())
                .filter_map(|thread| state(thread.path().join("stat")))
                .all(|state| state == 'T')
        })
    }

    /// Sends it a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.id.to_string()])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "kill -s {name} {}",
            self.id
        );
    }
}

/// The state letter of a process or thread; `None` if it is gone.
fn state(stat: impl AsRef<Path>) -> Option<char> {
    let stat = std::fs::read_to_string(stat).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

const GUARD: &str = r#"
command -v "$1" >/dev/null || exit 127
"$@" >&2 &
echo $!
exec >&-
cat >/dev/null
kill -KILL $!
wait $!
"#;

impl Drop for Process {
    fn drop(&mut self) {
        self.guard_input.take();
        // It ends after the process it guards, whose ports are free then.
        let _ = self.guard.wait();
    }
}
