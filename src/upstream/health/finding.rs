//! What one check found.

use std::fmt;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It took the connection, which was all that was asked.
    Connected,
    /// It answered with this status, which is good or isn't.
    Status(u16, bool),
    /// There was no answer, or none that could be understood, and why.
    Failed(Box<str>),
    /// We could not ask, for reasons of our own: that says nothing of the upstream.
    Unknown(Box<str>),
}

/// Longest reason that is kept, in bytes: there may be one for each of 100,000 upstreams.
const LONGEST_REASON: usize = 160;

impl Finding {
    /// No answer, for this reason.
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed(bounded(reason))
    }

    /// Not asked, for this reason.
    pub fn unknown(reason: impl fmt::Display) -> Self {
        Self::Unknown(bounded(reason))
    }

    /// Whether it speaks for the upstream or against it; `None`: neither.
    pub fn is_good(&self) -> Option<bool> {
        match self {
            Self::Connected => Some(true),
            Self::Status(_, is_good) => Some(*is_good),
            Self::Failed(_) => Some(false),
            Self::Unknown(_) => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("it takes connections"),
            Self::Status(status, _) => write!(f, "it answered {status}"),
            Self::Failed(reason) => f.write_str(reason),
            Self::Unknown(reason) => write!(f, "not checked: {reason}"),
        }
    }
}

fn bounded(reason: impl fmt::Display) -> Box<str> {
    let mut text = reason.to_string();
    if text.len() > LONGEST_REASON {
        text.truncate(text.floor_char_boundary(LONGEST_REASON - "...".len()));
        text.push_str("...");
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_kept_within_bounds() {
        for (reason, length) in [("refused", 7), (&*"x".repeat(500), 160)] {
            assert_eq!(Finding::failed(reason).to_string().len(), length);
        }
        let text = Finding::failed("ü".repeat(500)).to_string();
        assert!(
            text.len() <= LONGEST_REASON && text.ends_with("ü..."),
            "{text}"
        );
    }
}
