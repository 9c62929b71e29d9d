//! What can go wrong between us and etcd, sorted by where it leads.

use std::error::Error as _;

/// Why a call or a watch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No connection, no leader, or any error we know nothing better for: another endpoint, after a back-off.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time. As `Unreachable`, but a smaller page may get through.
    #[error("{0}")]
    Silent(String),
    /// etcd doesn't accept who we are, or ended the watch without saying more: log in afresh once, then as
    /// `Unreachable`.
    #[error("{0}")]
    Refused(String),
    /// The revision asked for is compacted away: read everything anew.
    #[error("the revision is compacted")]
    Compacted,
    /// The revision asked for does not exist yet: this is not the history we know.
    #[error("the revision is still to come")]
    FutureRevision,
    /// The answer is larger than we decode: ask for a smaller page.
    #[error("the answer is too large")]
    TooLarge,
    /// The publisher is gone, so there is nobody to tell.
    #[error("the publisher is gone")]
    Unwanted,
}

/// What etcd says of a transaction that may be committed yet: it was cut off from the others, or is ending.
const UNDECIDED: [&str; 4] = ["timed out", "leader changed", "stopped", "cancelled"];

/// Of a status's message; etcd's codes are less telling than its words.
const CREDENTIALS: [&str; 9] = [
    "auth token",
    "permission denied",
    "auth store is old",
    "auth: revision in header is old",
    "authentication failed",
    "authentication is not enabled",
    "user name is empty",
    "user name not found",
    "password is empty",
];

impl Fault {
    /// Sorts an error by its words.
    pub(super) fn from_message(message: &str) -> Self {
        if message.contains("has been compacted") {
            Self::Compacted
        } else if message.contains("is a future revision") {
            Self::FutureRevision
        } else if message.contains("message length too large") {
            Self::TooLarge
        } else if CREDENTIALS.iter().any(|words| message.contains(words)) {
            Self::Refused(message.to_owned())
        } else {
            Self::Unreachable(message.to_owned())
        }
    }

    /// Whether the lease that was named is gone.
    pub fn is_lost_lease(&self) -> bool {
        matches!(self, Self::Unreachable(message) if message.contains("requested lease not found"))
    }

    /// Whether etcd was asked and said no: another member says the same.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Unreachable(message) => message.contains("database space exceeded"),
            _ => false,
        }
    }

    /// Whether a transaction that ended so may have been committed all the same: etcd did not say no.
    pub fn leaves_in_doubt(&self) -> bool {
        match self {
            Self::Silent(_) | Self::TooLarge => true,
            Self::Unreachable(message) => {
                let is_answer = message.starts_with("etcdserver: ");
                !is_answer || UNDECIDED.iter().any(|words| message.contains(words))
            }
            Self::Refused(_) | Self::Compacted | Self::FutureRevision | Self::Unwanted => false,
        }
    }

    /// Whether etcd knows us and doesn't let us do that: no fresh login helps.
    pub(super) fn is_want_of_rights(&self) -> bool {
        matches!(self, Self::Refused(message) if message.contains("permission denied"))
    }

    /// Whether etcd has authentication switched off and wants no login.
    pub(super) fn wants_no_login(&self) -> bool {
        matches!(self, Self::Refused(message) if message.contains("authentication is not enabled"))
    }
}

impl From<etcd_client::Error> for Fault {
    fn from(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = error else {
            return Self::from_message(&error.to_string());
        };
        let mut message = status.message().to_owned();
        // A status made from a transport error says "transport error" and keeps the reason at the end of its sources.
        let mut source = status.source();
        let mut deepest = None;
        while let Some(error) = source {
            deepest = Some(error.to_string());
            source = error.source();
        }
        if let Some(reason) = deepest.filter(|reason| !message.contains(reason.as_str())) {
            message = format!("{message}: {reason}");
        }
        Self::from_message(&message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sorted_by_where_they_lead() {
        let refused = |message: &str| Fault::Refused(message.to_owned());
        let unreachable = |message: &str| Fault::Unreachable(message.to_owned());
        for (message, expected) in [
            (
                "etcdserver: mvcc: required revision has been compacted",
                Fault::Compacted,
            ),
            (
                "etcdserver: mvcc: required revision is a future revision",
                Fault::FutureRevision,
            ),
            (
                "Error, decoded message length too large: found 5 bytes",
                Fault::TooLarge,
            ),
            (
                "etcdserver: invalid auth token",
                refused("etcdserver: invalid auth token"),
            ),
            (
                "etcdserver: permission denied",
                refused("etcdserver: permission denied"),
            ),
            (
                "etcdserver: revision of auth store is old",
                refused("etcdserver: revision of auth store is old"),
            ),
            (
                "etcdserver: no leader",
                unreachable("etcdserver: no leader"),
            ),
        ] {
            assert_eq!(Fault::from_message(message), expected);
        }
    }

    #[test]
    fn a_transaction_is_not_made_only_if_etcd_says_so() {
        for (message, expected) in [
            ("etcdserver: mvcc: database space exceeded", false),
            ("etcdserver: permission denied", false),
            ("etcdserver: request is too large", false),
            ("etcdserver: no leader", false),
            ("etcdserver: request timed out", true),
            (
                "etcdserver: request timed out, possibly due to previous leader failure",
                true,
            ),
            ("etcdserver: server stopped", true),
            ("transport error: connection reset by peer", true),
            (
                "h2 protocol error: error reading a body from connection",
                true,
            ),
            (
                "Error, decoded message length too large: found 5 bytes",
                true,
            ),
        ] {
            let fault = Fault::from_message(message);
            assert_eq!(fault.leaves_in_doubt(), expected, "{message}");
        }
        assert!(Fault::Silent("no answer".to_owned()).leaves_in_doubt());
    }
}
