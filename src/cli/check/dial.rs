//! Whether upstreams answer: one TCP connect each, many at a time, within bounds.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::findings::Finding;
use crate::{
    cli::plain,
    source::resolve::Names,
    upstream::{Address, dial::Deny},
};

/// How many are tried at one time.
const MOST_AT_ONCE: usize = 128;
/// For all of them together; what was not tried by then is told.
const ALL_TIME: Duration = Duration::from_secs(60);
/// For the names among them.
const NAMES_TIME: Duration = Duration::from_secs(15);

/// How upstreams are tried.
pub(super) struct Trial {
    /// For one connect.
    pub(super) timeout: Duration,
    /// What `serve` would not dial, and so we don't.
    pub(super) deny: Deny,
}

/// Upstreams by name, each with the keys that name it.
pub(super) type Upstreams<'e> = BTreeMap<String, (&'e Address, Vec<&'e [u8]>)>;

/// What came of it.
pub(super) struct Tried {
    /// The upstreams that don't answer, ordered by name.
    pub(super) silent: Vec<Finding>,
    /// How many there was no time for.
    pub(super) untried: usize,
}

enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Trial {
    /// Tries every address of every upstream.
    pub(super) async fn of(&self, upstreams: &Upstreams<'_>) -> Tried {
        let deadline = Instant::now() + ALL_TIME;
        let addresses = resolve(upstreams).await;
        self.of_resolved(upstreams, &addresses, deadline).await
    }

    async fn of_resolved(
        &self,
        upstreams: &Upstreams<'_>,
        addresses: &HashMap<String, Vec<IpAddr>>,
        deadline: Instant,
    ) -> Tried {
        let mut reasons: BTreeMap<&str, String> = BTreeMap::new();
        let mut targets = Vec::new();
        for (name, (address, _)) in upstreams {
            match address {
                Address::Ip(address) => targets.push((name.as_str(), Target::Tcp(*address))),
                Address::Unix(path) => targets.push((name.as_str(), Target::Unix(path.clone()))),
                Address::Name(host, port) => match addresses.get(&**host) {
                    Some(found) if !found.is_empty() => {
                        let target = |ip: &IpAddr| Target::Tcp(SocketAddr::new(*ip, *port));
                        targets.extend(found.iter().map(|ip| (name.as_str(), target(ip))));
                    }
                    Some(_) => {
                        reasons.insert(name, "no address was found for the name".to_owned());
                    }
                    None => {
                        let seconds = NAMES_TIME.as_secs();
                        let reason = format!("no name server answered for it within {seconds} s");
                        reasons.insert(name, reason);
                    }
                },
            }
        }
        let untried = self.try_all(targets, deadline, &mut reasons).await;
        let finding = |(name, reason): (&str, String)| Finding {
            subject: keys(&upstreams[name].1),
            reason: format!("the upstream does not answer: {reason}"),
        };
        Tried {
            silent: reasons.into_iter().map(finding).collect(),
            untried,
        }
    }

    /// Notes why each failed that does, and says how many were left when time was up.
    async fn try_all<'n>(
        &self,
        targets: Vec<(&'n str, Target)>,
        deadline: Instant,
        reasons: &mut BTreeMap<&'n str, String>,
    ) -> usize {
        let mut targets = targets.into_iter();
        let mut running = JoinSet::new();
        let mut named = HashMap::new();
        loop {
            while running.len() < MOST_AT_ONCE
                && let Some((name, target)) = targets.next()
            {
                if let Target::Tcp(address) = target
                    && let Err(error) = self.deny.verdict(address)
                {
                    reasons.insert(name, format!("{address}: {error}"));
                    continue;
                }
                let task = running.spawn(connect(target, self.timeout));
                named.insert(task.id(), name);
            }
            match timeout_at(deadline, running.join_next_with_id()).await {
                Ok(None) => return 0,
                Err(_) => return running.len() + targets.len(),
                Ok(Some(Ok((id, Err(reason))))) => {
                    reasons.extend(named.remove(&id).map(|name| (name, reason)));
                }
                Ok(Some(Ok((id, Ok(()))))) => {
                    named.remove(&id);
                }
                Ok(Some(Err(_))) => {}
            }
        }
    }
}

async fn connect(target: Target, patience: Duration) -> Result<(), String> {
    let (whom, connected) = match target {
        Target::Tcp(address) => {
            let connect = async { TcpStream::connect(address).await.map(drop) };
            (address.to_string(), timeout(patience, connect).await)
        }
        Target::Unix(path) => {
            let connect = async { UnixStream::connect(&path).await.map(drop) };
            let connected = timeout(patience, connect).await;
            let whom = plain(path.as_os_str().as_encoded_bytes());
            (format!("{whom} on this machine"), connected)
        }
    };
    let failed = |error: io::Error| format!("{whom}: {error}");
    match connected {
        Ok(connected) => connected.map_err(failed),
        Err(_) => Err(format!(
            "{whom}: no connection within {}",
            humantime::format_duration(patience)
        )),
    }
}

/// As `serve` resolves them; those that were not answered in time are missing.
async fn resolve(upstreams: &Upstreams<'_>) -> HashMap<String, Vec<IpAddr>> {
    let deadline = Instant::now() + NAMES_TIME;
    let mut names = Names::start();
    let mut asked = HashSet::new();
    for (address, _) in upstreams.values() {
        if let Address::Name(name, _) = address
            && asked.insert(name)
        {
            names.watch((**name).into());
        }
    }
    let mut addresses = HashMap::new();
    while addresses.len() < asked.len()
        && let Ok(answer) = timeout_at(deadline, names.answer()).await
    {
        addresses.insert(answer.name.to_string(), answer.addresses);
    }
    addresses
}

/// The first key, and how many more name the same upstream.
fn keys(keys: &[&[u8]]) -> String {
    let first = plain(keys.first().copied().unwrap_or_default());
    match keys.len() {
        0 | 1 => first,
        count => format!("{first} (and {} more)", count - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_without_an_answer_is_not_one_without_an_address() {
        let trial = Trial {
            timeout: Duration::from_secs(1),
            deny: Deny::new(Vec::new(), Vec::new()),
        };
        let names = ["answered", "silent"].map(|name| Address::Name(name.into(), 80));
        let mut upstreams = Upstreams::new();
        for name in &names {
            upstreams.insert(name.to_string(), (name, vec![b"/hosts/a/b"]));
        }
        let addresses = HashMap::from([("answered".to_owned(), Vec::new())]);
        let deadline = Instant::now() + ALL_TIME;
        let tried = trial.of_resolved(&upstreams, &addresses, deadline).await;
        let reasons: Vec<_> = tried
            .silent
            .iter()
            .map(|finding| &*finding.reason)
            .collect();
        assert_eq!(
            reasons,
            [
                "the upstream does not answer: no address was found for the name",
                "the upstream does not answer: no name server answered for it within 15 s",
            ]
        );
    }
}
