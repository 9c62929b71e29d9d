//! Network namespaces of the test's own: a hub for the test, Waypost and the upstreams, and behind it nodes on links
//! whose packets the test can have dropped. Everything goes with the processes that hold the namespaces open.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::AsFd,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use super::{command::DEADLINE, process::Process};

/// The nodes, seen from the hub.
pub struct Network {
    nodes: Vec<Node>,
    _hub: Namespace,
    _directory: TempDir,
}

/// One namespace behind the hub.
pub struct Node {
    namespace: Namespace,
    pub address: Ipv4Addr,
}

/// Whose packets are dropped, both ways.
#[derive(Clone, Copy, Debug)]
pub enum Between {
    /// The hub and this node.
    Hub(usize),
    /// This node and every other one.
    Others(usize),
}

struct Namespace {
    path: PathBuf,
    keeper: Process,
}

/// Runs a test in a hub with so many nodes. Without root no namespace can be made: then it says so and runs nothing.
pub fn in_network(nodes: usize, test: impl AsyncFnOnce(Network) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces and nftables need root");
        return;
    }
    // A thread of its own, since it stays in the namespace.
    let thread = thread::spawn(move || {
        let network = Network::lay(nodes);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(test(network));
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

impl Network {
    fn lay(nodes: usize) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let hub = Namespace::make(&directory.path().join("hub"));
        hub.enter();
        run("ip", "link set lo up");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("packets are passed on");
        let nodes = (0..nodes).map(|index| Node::behind(index, directory.path()));
        let nodes = nodes.collect();
        run("nft", "add table inet faults");
        for hook in ["input", "output", "forward"] {
            let chain =
                format!("add chain inet faults {hook}s {{ type filter hook {hook} priority 0; }}");
            run("nft", &chain);
        }
        Self {
            nodes,
            _hub: hub,
            _directory: directory,
        }
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// From now on these packets vanish, without a word to either side.
    pub fn drop_packets(&self, between: Between) {
        let (Between::Hub(node) | Between::Others(node)) = between;
        let address = self.nodes[node].address;
        let (there, back) = match between {
            Between::Hub(_) => ("outputs", "inputs"),
            Between::Others(_) => ("forwards", "forwards"),
        };
        run(
            "nft",
            &format!("add rule inet faults {there} ip daddr {address} drop"),
        );
        run(
            "nft",
            &format!("add rule inet faults {back} ip saddr {address} drop"),
        );
    }

    /// Every packet arrives again.
    pub fn mend(&self) {
        run("nft", "flush table inet faults");
    }
}

impl Node {
    fn behind(index: usize, directory: &Path) -> Self {
        let namespace = Namespace::make(&directory.join(format!("node{index}")));
        let (link, keeper) = (format!("node{index}"), namespace.keeper.id());
        let (hub, address) = (
            Ipv4Addr::new(10, 99, index as u8, 1),
            Ipv4Addr::new(10, 99, index as u8, 2),
        );
        run(
            "ip",
            &format!("link add {link} type veth peer name hub netns {keeper}"),
        );
        run("ip", &format!("address add {hub}/30 dev {link}"));
        run("ip", &format!("link set {link} up"));
        for setting in [
            "link set lo up".to_owned(),
            format!("address add {address}/30 dev hub"),
            "link set hub up".to_owned(),
            format!("route add default via {hub}"),
        ] {
            let [program, prefix] = &namespace.entering();
            run(program, &format!("{prefix} ip {setting}"));
        }
        Self { namespace, address }
    }

    /// What to put before a command so that it runs there.
    pub fn entering(&self) -> [String; 2] {
        self.namespace.entering()
    }
}

impl Namespace {
    fn make(log: &Path) -> Self {
        let sleep = ["--net", "sleep", "infinity"].map(str::to_owned);
        let keeper = Process::start("unshare", &sleep, log);
        let path = PathBuf::from(format!("/proc/{}/ns/net", keeper.id()));
        let ours = fs::read_link("/proc/thread-self/ns/net").expect("we are somewhere");
        let begun = Instant::now();
        while fs::read_link(&path).ok().is_none_or(|made| made == ours) {
            assert!(
                begun.elapsed() < DEADLINE && !keeper.is_over(),
                "no namespace"
            );
            thread::yield_now();
        }
        Self { path, keeper }
    }

    /// Moves this thread there, and with it what it starts.
    fn enter(&self) {
        let namespace = File::open(&self.path).expect("its keeper runs");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
    }

    fn entering(&self) -> [String; 2] {
        [
            "nsenter".to_owned(),
            format!("--net={}", self.path.display()),
        ]
    }
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error} (see scripts/test)"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
}
