//! Upstreams that break off, fall silent, flood or lie at every point of an exchange: what the client sees of it, what
//! is tried again, and that nothing of a broken exchange reaches another.

mod rows;

use std::{fmt, sync::Arc, time::Duration};

use rustls::ServerConfig;
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use rows::{Again, All, BOTH, Idempotent, Never, PLAIN, TLS};

use crate::support::{
    front::{Asks, Caller, Front, Seen, Sees},
    http::{Message, timed},
    misbehaving::{
        Act,
        Point::{self, Upload},
        misbehaving,
    },
    origin::Origin,
    tls::Authority,
    waypost::{Waypost, write},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_exchange_is_told_as_such_and_touches_no_other() {
    let authority = Authority::new();
    let tls = authority.server(&["m.test"]).server_config(&[]);
    let good = Arc::new(echo().await);
    let hosts = tempfile::tempdir().unwrap();
    write(&hosts.path().join(format!("good.test/{good}")), "");
    let mut cases = Vec::new();
    let rows = |tls| BOTH.iter().chain(if tls { TLS } else { PLAIN });
    for front in [Front::Http10, Front::Http11, Front::H2] {
        for secure in [false, true] {
            for &(point, act, sees, again) in rows(secure) {
                let case = Case {
                    front,
                    point,
                    act,
                    sees,
                    again,
                    name: format!("{}.test", cases.len()),
                };
                let tls = secure.then_some(&tls);
                cases.push((case, tls.cloned()));
            }
        }
    }
    let mut staged = Vec::new();
    for (case, tls) in cases {
        staged.push(case.stage(&good, tls, hosts.path()).await);
    }
    let waypost = Waypost::builder()
        .hosts_dir(hosts.path())
        .flag("--workers", 1)
        .start()
        .await;
    let (before, _) = waypost.memory();
    let permits = Arc::new(Semaphore::new(64));
    let mut running = JoinSet::new();
    for staged in staged {
        let (address, permits, good) = (waypost.address(), permits.clone(), good.clone());
        running.spawn(async move {
            let _permit = permits.acquire_owned().await;
            staged.play(address, &good).await;
        });
    }
    let mut failures = Vec::new();
    while let Some(played) = running.join_next().await {
        failures.extend(played.err().map(|error| error.to_string()));
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let (_, most) = waypost.memory();
    assert!(most < before + (64 << 20), "{before} bytes grew to {most}");
}

/// One row of the tables, over one kind of client.
struct Case {
    front: Front,
    point: Point,
    act: Act,
    sees: Sees,
    again: Again,
    name: String,
}

/// A case with its origins: one that is alone on its route, and one that has a good one beside it.
struct Staged {
    case: Case,
    alone: Origin,
    beside: Origin,
}

impl Case {
    async fn stage(
        self,
        good: &Origin,
        tls: Option<Arc<ServerConfig>>,
        hosts: &std::path::Path,
    ) -> Staged {
        let script = self.point.script(self.act);
        let alone = misbehaving(script.clone(), tls.clone()).await;
        let beside = misbehaving(script, tls.clone()).await;
        let value = match tls {
            Some(_) => json!({"tls": {"insecure": true}}).to_string(),
            None => String::new(),
        };
        let settings = json!({"timeouts": {"connect": "2s", "response": "2s", "idle": "2s"}});
        for (prefix, origins) in [
            ("alone", vec![(&alone, &value)]),
            ("both", vec![(&beside, &value), (good, &String::new())]),
        ] {
            let route = hosts.join(format!("{prefix}.{}", self.name));
            write(&route.join("@settings"), &settings.to_string());
            for (origin, value) in origins {
                write(&route.join(origin.to_string()), value);
            }
        }
        Staged {
            case: self,
            alone,
            beside,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match self.act {
            Act::Say(text) => format!("Say({:?})", &text[..text.len().min(40)]),
            act => format!("{act:?}"),
        };
        write!(f, "{:?} {:?} {act}, {}", self.front, self.point, self.name)
    }
}

impl Staged {
    async fn play(self, address: std::net::SocketAddr, good: &Origin) {
        let mut caller = Caller::new(self.case.front, address).await;
        let methods: &[&str] = match self.case.point {
            Upload => &["POST"],
            _ => &["GET", "POST"],
        };
        for &method in methods {
            self.ask_the_one_alone(&mut caller, method).await;
        }
        for &method in methods {
            self.ask_both(&mut caller, method, good).await;
        }
    }

    /// Twice, with a good answer between and after: each is the one that was asked for.
    async fn ask_the_one_alone(&self, caller: &mut Caller, method: &str) {
        let case = &self.case;
        for n in 0..2 {
            let (seen, took) = timed(self.ask(caller, "alone", method, n)).await;
            self.assert_seen(&seen, method);
            assert!(took < Duration::from_secs(8), "{case} {method}: {took:?}");
            // Whoever ended it: nothing is left to be used again.
            self.alone.closed(self.alone.connections()).await;
            self.ask_good(caller).await;
        }
        let asked = self.alone.requests();
        assert!(
            asked.len() <= self.alone.connections(),
            "{case} {method}: a connection was used again after that"
        );
        assert_at_most_once(case, &asked);
    }

    async fn ask_both(&self, caller: &mut Caller, method: &str, good: &Origin) {
        let case = &self.case;
        if case.again == Never {
            return;
        }
        let mut elsewhere = 0;
        for n in 0..2 {
            let seen = self.ask(caller, "both", method, n).await;
            // A POST would be lost on a connection that is being closed: nothing is to be left of this one.
            self.beside.closed(self.beside.connections()).await;
            if seen.status == Some(200) {
                assert_eq!(seen.body, self.path("both", method, n), "{case}: {seen:?}");
                elsewhere += 1;
            } else {
                self.assert_seen(&seen, method);
            }
        }
        let least = match case.again {
            All => 2,
            _ if method == "GET" => 2,
            _ => 1,
        };
        let most = if case.again == Idempotent && method == "POST" {
            1
        } else {
            2
        };
        assert!(
            (least..=most).contains(&elsewhere),
            "{case} {method}: {elsewhere} of 2 went elsewhere"
        );
        assert!(self.beside.connections() > 0, "{case}: nobody went there");
        let mut asked = self.beside.requests();
        asked.extend(good.requests());
        assert_at_most_once(case, &asked);
    }

    async fn ask(&self, caller: &mut Caller, route: &str, method: &str, n: usize) -> Seen {
        let body = match (method, self.case.point) {
            ("GET", _) => None,
            (_, Upload) => Some(256 * 1024),
            _ => Some(5),
        };
        let asks = Asks {
            method,
            host: &format!("{route}.{}", self.case.name),
            path: &self.path(route, method, n),
            body,
        };
        caller.ask(asks).await
    }

    /// No other request has this path.
    fn path(&self, route: &str, method: &str, n: usize) -> String {
        format!("/{}/{route}/{method}/{n}", self.case.name)
    }

    async fn ask_good(&self, caller: &mut Caller) {
        let path = format!("/{}/good", self.case.name);
        let asks = Asks {
            method: "GET",
            host: "good.test",
            path: &path,
            body: None,
        };
        let seen = caller.ask(asks).await;
        assert_eq!(
            (seen.status, &seen.body),
            (Some(200), &path),
            "{}",
            self.case
        );
    }

    fn assert_seen(&self, seen: &Seen, method: &str) {
        let Case { sees, front, .. } = self.case;
        // The client is not to blame: its connection serves on, if all that it sent was taken.
        let is_kept = matches!(sees, Sees::Error(..)) && front == Front::Http11 && method == "GET";
        assert!(
            !(is_kept && seen.closed),
            "{} {method}: {seen:?}",
            self.case
        );
        assert!(
            sees.is(seen),
            "{} {method}: {sees:?} expected, {seen:?}",
            self.case
        );
    }
}

/// Tells each request's path.
async fn echo() -> Origin {
    Origin::run(async |mut served| {
        while let Some(request) = served.request().await {
            let path = request.head.line.split(' ').nth(1).unwrap_or_default();
            let length = path.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}");
            served.send(answer).await;
        }
    })
    .await
}

fn assert_at_most_once(case: &Case, requests: &[Message]) {
    let mut posts: Vec<_> = requests
        .iter()
        .map(|request| &request.head.line)
        .filter(|line| line.starts_with("POST"))
        .collect();
    posts.sort_unstable();
    let all = posts.len();
    posts.dedup();
    assert_eq!(posts.len(), all, "{case}: a POST was sent twice");
}
