//! Other proxies in front of Waypost or behind it, such as HAProxy, each on an address of its own.

use std::{fs, net::SocketAddr, time::Instant};

use rand::RngExt;
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

use super::{process::Process, waypost::DEADLINE};

/// A running neighbour; it ends with its owner.
pub struct Neighbour {
    address: SocketAddr,
    _process: Process,
    _dir: TempDir,
}

impl Neighbour {
    /// HAProxy with this configuration, in which `LISTEN` is where it is to listen.
    pub async fn haproxy(config: &str) -> Self {
        let config = format!(
            "global\n  maxconn 200\ndefaults\n  timeout connect 15s\n  timeout client 60s\n  timeout server 60s\n{config}\n"
        );
        Self::start("haproxy", &config, &["-db", "-f", "CONFIG"]).await
    }

    /// nginx with this server, in which `LISTEN` is where it is to listen.
    pub async fn nginx(server: &str) -> Self {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("  {kind}_temp_path DIR/{kind};\n"))
            .concat();
        // One process, which ends with us.
        let config = format!(
            "daemon off;\nmaster_process off;\npid DIR/pid;\nerror_log stderr warn;\nevents {{}}\n\
             http {{\n  access_log off;\n{temporary}  server {{\n{server}\n  }}\n}}\n"
        );
        let arguments = ["-p", "DIR", "-e", "stderr", "-c", "CONFIG"];
        Self::start("nginx", &config, &arguments).await
    }

    async fn start(program: &str, config: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // Loopback has 16 million addresses: whoever else looks for a free port looks elsewhere.
        let [a, b, c] = [0; 3].map(|_: u8| rand::rng().random_range(1..255));
        let address = SocketAddr::from(([127, a, b, c], 8080));
        let file = dir.path().join("config");
        let place = |text: &str| {
            text.replace("LISTEN", &address.to_string())
                .replace("DIR", dir.path().to_str().expect("a path of ours"))
                .replace("CONFIG", file.to_str().expect("a path of ours"))
        };
        fs::write(&file, place(config)).expect("a file");
        let log = dir.path().join("log");
        let arguments: Vec<_> = arguments.iter().map(|text| place(text)).collect();
        let process = Process::start(program, &arguments, &log);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(address).await.is_err() {
            let is_well = !process.is_over() && Instant::now() < deadline;
            assert!(is_well, "{program} does not listen:\n{}", said());
            sleep(std::time::Duration::from_millis(5)).await;
        }
        Self {
            address,
            _process: process,
            _dir: dir,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
