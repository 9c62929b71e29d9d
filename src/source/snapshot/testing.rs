//! What the tests of this folder write and expect to read.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::{Frame, Stored, Version, Versions};
use crate::{route::Revision, source::Entry};

/// A few keys of all kinds, as of this revision.
pub fn frame(revision: Revision) -> Frame {
    let version = |value: &'static [u8], mod_revision, lease| Version {
        value: Bytes::from_static(value),
        mod_revision,
        lease,
    };
    let key = Bytes::from_static;
    Frame {
        entries: Versions::from_iter([
            (key(b"/hosts/a/10.0.0.1:80"), version(b"", 3, 0)),
            (
                key(b"/hosts/b/10.0.0.1:80"),
                version(b"{\"weight\": -1}", 6, 0),
            ),
            (key(b"/hosts/\xff\x00/x"), version(b"\xfe", 4, -5)),
        ]),
        kept: Versions::from_iter([
            (
                key(b"/hosts/b/10.0.0.1:80"),
                version(b"{\"weight\": 1}", 5, 9),
            ),
            (key(b"/hosts/gone/10.0.0.1:80"), version(b"", 2, 0)),
        ]),
        pulse: Some(version(b"1 2", revision, 0)),
        version: u64::try_from(revision).expect("a revision is no less than 0"),
        cluster_id: u64::MAX - 1,
        revision,
        confirmed: UNIX_EPOCH + Duration::from_millis(1_234_567_890_123),
    }
}

/// What is read of a file of this frame.
pub fn stored_of(frame: &Frame) -> Stored {
    let entries = |versions: &Versions| {
        let entry = |(key, version): (&Bytes, &Version)| Entry {
            key: key.clone(),
            value: version.value.clone(),
            mod_revision: version.mod_revision,
            lease: version.lease,
        };
        versions.iter().map(entry).collect::<Vec<_>>()
    };
    let pulse = frame.pulse.iter().map(|version| Entry {
        key: Bytes::from_static(b"/hosts/@waypost/pulse"),
        value: version.value.clone(),
        mod_revision: version.mod_revision,
        lease: version.lease,
    });
    Stored {
        cluster_id: frame.cluster_id,
        revision: frame.revision,
        confirmed: frame.confirmed,
        entries: entries(&frame.entries).into_iter().chain(pulse).collect(),
        kept: entries(&frame.kept),
    }
}
