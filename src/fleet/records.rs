//! What instances write about themselves, as JSON. Fields of later versions are ignored.

use std::{fmt, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::change::hostname;

/// The value of `/waypost<prefix>instances/<id>`: who is there, for people and for commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceRecord {
    /// What it goes by; unique for each process.
    pub id: Arc<str>,
    /// The name of its machine.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// When it started: RFC 3339, UTC.
    pub started: String,
    /// Its version.
    pub version: String,
    /// Where it accepts requests.
    pub listen: Vec<SocketAddr>,
    /// Where its admin API is.
    pub admin: Option<SocketAddr>,
}

/// The value of `/waypost<prefix>acks/<barrier>/<id>`: how far an instance is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Acknowledgement {
    /// All that was asked for is so.
    pub done: bool,
    /// Requests that still run on behalf of the key.
    pub requests: usize,
    /// Why the key is not in force as written, or the barrier can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// Other keys by which the instance uses the same upstream: the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// How many of those there are in all; versions that name every one they count leave it out.
    #[serde(skip_serializing_if = "is_zero")]
    pub also_total: usize,
}

/// What all keys of instances begin with.
pub fn instances(prefix: &str) -> String {
    format!("/waypost{prefix}instances/")
}

/// What all keys of answers to a barrier begin with.
pub fn acknowledgements(prefix: &str, barrier: &str) -> String {
    format!("/waypost{prefix}acks/{barrier}/")
}

impl InstanceRecord {
    /// A record of this process, under a name of its own.
    pub fn of_this_process(listen: Vec<SocketAddr>, admin: SocketAddr) -> Self {
        let host = hostname();
        Self {
            id: format!("{}-{:08x}", plain(&host), rand::random::<u32>()).into(),
            host,
            pid: std::process::id(),
            started: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen,
            admin: Some(admin),
        }
    }
}

impl fmt::Display for InstanceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance {}", self.id)?;
        match self.listen.first() {
            Some(address) => write!(f, " (pid {} on {}, {address})", self.pid, self.host),
            None => Ok(()),
        }
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// As part of a key: a host name may hold anything.
fn plain(host: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let plain: String = host.chars().filter(is_plain).take(40).collect();
    match plain.is_empty() {
        true => "instance".to_owned(),
        false => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_a_key() {
        for (host, expected) in [
            ("web-1.example", "web-1.example"),
            ("a/b c\n", "abc"),
            ("\u{1f600}", "instance"),
            (&"x".repeat(60), &"x".repeat(40)),
        ] {
            assert_eq!(plain(host), expected);
        }
    }

    #[test]
    fn records_of_other_versions_are_read() {
        let record: InstanceRecord = serde_json::from_str(r#"{"id": "a", "zone": "b"}"#).unwrap();
        assert_eq!(record.to_string(), "instance a");
        let record = InstanceRecord::of_this_process(
            vec![([127, 0, 0, 1], 80).into()],
            ([127, 0, 0, 1], 99).into(),
        );
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(
            serde_json::from_str::<InstanceRecord>(&json).unwrap(),
            record
        );
        let answer: Acknowledgement = serde_json::from_str("{}").unwrap();
        assert!(!answer.done);
    }
}
