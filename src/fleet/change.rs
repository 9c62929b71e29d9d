//! Who changed what: a record that every changing command writes in the transaction of its change, so that the
//! history can say more than etcd knows. Self-declared: a hint for colleagues, no proof.

use std::{fs, os::unix::fs::MetadataExt, time::SystemTime};

use etcd_client::TxnOp;
use serde::{Deserialize, Serialize};

use crate::source::etcd::fault::Fault;

/// The value of `/waypost<prefix>change`; each revision of that key describes the change made at that revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// `user@hostname`.
    pub by: String,
    /// RFC 3339, UTC, by the clock of the machine that changed it.
    pub at: String,
    /// The command that did it, without the flags that say how etcd is reached.
    pub command: String,
}

impl ChangeRecord {
    /// A record of this command, made by this user, now.
    pub fn of(command: String) -> Self {
        Self {
            by: format!("{}@{}", user(), hostname()),
            at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command,
        }
    }

    /// The key, for keys below `prefix` (normalised).
    pub fn key(prefix: &str) -> String {
        format!("/waypost{prefix}change")
    }

    /// What to add to the transaction of the change.
    pub fn write(&self, prefix: &str) -> anyhow::Result<TxnOp> {
        Ok(TxnOp::put(
            Self::key(prefix),
            serde_json::to_vec(self)?,
            None,
        ))
    }
}

/// What to say of a change of this key below `prefix` that ended with this fault; the fault stays in the chain.
pub fn not_made(fault: Fault, is_in_doubt: bool, prefix: &str, key: &str) -> anyhow::Error {
    let host = key.strip_prefix(prefix).unwrap_or(key).split('/').next();
    let host = host.unwrap_or_default();
    // As a shell takes it.
    let quote = if host.contains('*') { "'" } else { "" };
    let what = match is_in_doubt {
        true => format!(
            "whether it is written is not known; `waypost history {quote}{host}{quote}` tells, once etcd answers"
        ),
        false => "nothing is written".to_owned(),
    };
    anyhow::Error::new(fault).context(what)
}

/// Containers and cron set no `USER`; then the user database is asked for the name of our uid.
fn user() -> String {
    ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .or_else(|| {
            let uid = fs::metadata("/proc/self").ok()?.uid();
            let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
            Some(name_of(uid, &users).unwrap_or_else(|| format!("uid-{uid}")))
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

/// `name:password:uid:...` on each line.
fn name_of(uid: u32, users: &str) -> Option<String> {
    let uid = uid.to_string();
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

pub(super) fn hostname() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    kernel
        .map(|name| name.trim().to_owned())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_has_a_name() {
        let users = "root:x:0:0::/root:/bin/sh\nbroken\napp:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(1000, users).as_deref(), Some("app"));
        assert_eq!(name_of(7, users), None);
    }

    #[test]
    fn what_is_not_known_is_said_and_where_to_look() {
        let text = |is_in_doubt, key| {
            let fault = Fault::Silent("no answer".to_owned());
            format!("{:#}", not_made(fault, is_in_doubt, "/hosts/", key))
        };
        assert_eq!(
            text(false, "/hosts/a/b:80"),
            "nothing is written: no answer"
        );
        for (key, command) in [
            ("/hosts/a/api/b:80", "`waypost history a`"),
            ("/hosts/*.a/b:80", "`waypost history '*.a'`"),
        ] {
            let text = text(true, key);
            assert!(text.starts_with("whether it is written is not known; "));
            assert!(text.contains(command), "{text}");
        }
    }

    #[test]
    fn a_record_says_who_when_and_what() {
        let record = ChangeRecord::of("waypost put a 10.0.0.7:80".to_owned());
        assert_eq!(
            record.by.split('@').filter(|part| !part.is_empty()).count(),
            2
        );
        assert!(
            humantime::parse_rfc3339(&record.at).is_ok(),
            "{}",
            record.at
        );
        assert_eq!(ChangeRecord::key("/hosts/"), "/waypost/hosts/change");
    }
}
