//! The versions before those that can't be used, where nobody here knew them: at the first read of an instance that has
//! nothing on disk, so that it serves what the others of its fleet do.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::{
    fault::Fault,
    reading::{Content, PageRequest},
    transport::Transport,
};
use crate::{
    route::entry::{self, BadEntry},
    source::Entry,
};

/// Of how many keys they are looked for; a prefix full of bad keys is nobody's last good state.
const MOST: usize = 300;
/// How many versions back.
const DEPTH: usize = 8;
/// How many are asked for at one time.
const AT_ONCE: usize = 8;
/// How long the first table may wait for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// The last good version of each of `entries` whose value can't be used, as far as etcd remembers and answers in time.
/// A key that was deleted in between has none.
pub(super) async fn find(
    connection: &impl Transport,
    prefix: &[u8],
    entries: &[Entry],
) -> Vec<Entry> {
    let Ok(prefix) = std::str::from_utf8(prefix) else {
        return Vec::new();
    };
    let bad = (entries.iter()).filter(|entry| is_bad_value(prefix, entry));
    let mut bad = bad.take(MOST).collect::<Vec<_>>().into_iter();
    let end = Instant::now() + PATIENCE;
    let (mut searches, mut good) = (FuturesUnordered::new(), Vec::new());
    loop {
        while searches.len() < AT_ONCE
            && let Some(bad) = bad.next()
        {
            searches.push(search(connection, prefix, bad));
        }
        match timeout_at(end, searches.next()).await {
            Ok(Some(Ok(version))) => good.extend(version),
            Ok(Some(Err(fault))) => debug!(%fault, "a key's last good version could not be read"),
            Ok(None) => break,
            Err(_) => {
                debug!("not every key's last good version was read in time");
                break;
            }
        }
    }
    good
}

async fn search(
    connection: &impl Transport,
    prefix: &str,
    bad: &Entry,
) -> Result<Option<Entry>, Fault> {
    let behind = [&bad.key[..], b"\0"].concat();
    let mut later = bad.mod_revision;
    for _ in 0..DEPTH {
        // 0 would mean the newest.
        if later <= 1 {
            break;
        }
        let request = PageRequest {
            start: bad.key.to_vec(),
            limit: 1,
            revision: Some(later - 1),
            content: Content::Entries,
        };
        let page = match connection.page(request, &behind).await {
            // As far as etcd remembers.
            Err(Fault::Compacted) => return Ok(None),
            page => page?,
        };
        let Some(version) = page.entries.into_iter().next() else {
            return Ok(None);
        };
        if !is_bad_value(prefix, &version) {
            return Ok(Some(version));
        }
        later = version.mod_revision.min(later - 1);
    }
    Ok(None)
}

/// Whether the key is right and only its value is not.
fn is_bad_value(prefix: &str, entry: &Entry) -> bool {
    let said = entry::parse(prefix, &entry.key, &entry.value);
    matches!(said, Err(BadEntry::Value(_)))
}
