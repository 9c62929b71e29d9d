//! `waypost history`: what changed at which revision, as far as etcd remembers.

use std::{
    collections::HashMap,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{difference, plain, scope::Scope};
use crate::{
    config::etcd::EtcdArgs,
    fleet::change::ChangeRecord,
    route::Revision,
    source::{
        Change, Entry,
        etcd::{Connection, Connector, PastChange, fault::Fault},
    },
};

/// How far we look back unless told otherwise: etcd goes through all that its other users wrote, too.
const LOOK_BACK: Revision = 100_000;

/// Show what changed at which revision, and who did it
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost history blog.example.com
  waypost history blog.example.com/api              one path, and what lies below
  waypost history --since 1 --json | jq .           everything, one JSON object a revision

The oldest comes first: + a new key, - one that was removed, ~ another value, = the same value written anew.
etcd remembers what was changed since it was last compacted; how long that is, is set at etcd (--auto-compaction-*).
Who and when are known of changes by `waypost`, as it declared them itself; of others, such as by etcdctl, only what.
`waypost rollback --to REVISION` puts back what was in force after a revision.")]
pub struct History {
    /// Only this host, `*.SUFFIX` or `*`, or a path of it and what lies below
    #[arg(value_name = "HOST[/PATH]")]
    pub route: Option<String>,
    /// The revision to begin at [default: 100000 before the newest]
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    pub since: Option<Revision>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// What happened at one revision.
#[derive(Serialize)]
struct Event<'e> {
    revision: Revision,
    #[serde(flatten)]
    record: Option<ChangeRecord>,
    changes: Vec<KeyChange<'e>>,
}

#[derive(Serialize)]
struct KeyChange<'e> {
    kind: Kind,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    #[serde(skip)]
    past: &'e PastChange,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Added,
    Changed,
    Removed,
}

impl History {
    /// Prints revision after revision as etcd sends them, so that any number fits.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the arguments, that etcd doesn't answer, or that compaction was faster.
    pub async fn run(self) -> Result<ExitCode> {
        let (config, prefix) = self.etcd.resolve()?;
        let scope = Scope::parse(&prefix, self.route.as_deref())?;
        let connection = Connector::new(config)?.answering(&prefix).await?;
        let from = match self.since {
            Some(since) => since,
            None => (connection.revision(&prefix).await? - LOOK_BACK).max(1),
        };
        let past = connection.past(&prefix, from).await;
        let mut past = past.map_err(|fault| explain(fault, from))?;
        let mut records = Records::of(&connection, &prefix);
        let mut out = io::stdout();
        let mut is_empty = true;
        let mut is_noted = false;
        loop {
            let changes = past.next().await;
            let changes = changes.map_err(|fault| explain(fault, from))?;
            if !is_noted {
                self.note(past.first(), from);
                is_noted = true;
            }
            let Some(mut changes) = changes else { break };
            changes.retain(|past| scope.covers(past.change.key()));
            let events = events(&changes, &mut records).await?;
            let text: String = events.iter().map(|event| self.shown(event)).collect();
            out.write_all(text.as_bytes())?;
            is_empty &= events.is_empty();
        }
        out.flush()?;
        if is_empty {
            eprintln!("no change of {}", scope.name());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// On standard error, what is not shown.
    fn note(&self, first: Revision, from: Revision) {
        if first > from {
            eprintln!(
                "older changes are compacted away: etcd's history begins at revision {first}"
            );
        } else if self.since.is_none() && from > 1 {
            eprintln!(
                "changes before revision {from} are not shown; --since 1 goes back as far as etcd does"
            );
        }
    }

    fn shown(&self, event: &Event<'_>) -> String {
        if self.json {
            // Texts and numbers alone: nothing that JSON can't hold.
            return serde_json::to_string(event).unwrap_or_default() + "\n";
        }
        let who = match &event.record {
            Some(ChangeRecord { by, at, command }) => [at, by, command]
                .map(|text| plain(text.as_bytes()))
                .join("  "),
            None => "not by waypost".to_owned(),
        };
        let mut text = format!("revision {}  {who}\n", event.revision);
        for change in &event.changes {
            text += &format!("  {}\n", change.line());
        }
        text
    }
}

/// Who did it, read where it is needed.
struct Records<'c> {
    connection: &'c Connection,
    key: String,
    /// Without the right to read them, nobody is named.
    are_readable: bool,
}

impl<'c> Records<'c> {
    fn of(connection: &'c Connection, prefix: &str) -> Self {
        Self {
            connection,
            key: ChangeRecord::key(prefix),
            are_readable: true,
        }
    }

    /// Those of the changes that `waypost` made, of all these.
    async fn at(&mut self, revisions: &[Revision]) -> Result<HashMap<Revision, ChangeRecord>> {
        if !self.are_readable {
            return Ok(HashMap::new());
        }
        let found = match self.connection.versions(&self.key, revisions).await {
            // Nothing is lost by it but who did what is nearly forgotten.
            Err(Fault::Compacted) => Vec::new(),
            Err(Fault::Refused(reason)) => {
                eprintln!("who made a change is not shown: {}: {reason}", self.key);
                self.are_readable = false;
                Vec::new()
            }
            found => found.context("reading who made the changes")?,
        };
        let record = |(&revision, found): (&Revision, Option<Entry>)| {
            let entry = found.filter(|entry| entry.mod_revision == revision)?;
            let record = serde_json::from_slice(&entry.value).ok()?;
            Some((revision, record))
        };
        Ok(revisions.iter().zip(found).filter_map(record).collect())
    }
}

/// The changes by revision, each with who made it.
async fn events<'e>(
    changes: &'e [PastChange],
    records: &mut Records<'_>,
) -> Result<Vec<Event<'e>>> {
    let groups: Vec<_> = changes
        .chunk_by(|a, b| a.change.mod_revision() == b.change.mod_revision())
        .collect();
    let revisions: Vec<_> = (groups.iter())
        .filter_map(|group| group.first())
        .map(|past| past.change.mod_revision())
        .collect();
    let mut records = records.at(&revisions).await?;
    let event = |(revision, group): (Revision, &'e [PastChange])| Event {
        revision,
        record: records.remove(&revision),
        changes: group.iter().map(KeyChange::of).collect(),
    };
    Ok(revisions.into_iter().zip(groups).map(event).collect())
}

impl<'e> KeyChange<'e> {
    fn of(past: &'e PastChange) -> Self {
        let text = |entry: &Entry| String::from_utf8_lossy(&entry.value).into_owned();
        let (kind, after) = match &past.change {
            Change::Put(entry) if past.is_new => (Kind::Added, Some(entry)),
            Change::Put(entry) => (Kind::Changed, Some(entry)),
            Change::Delete { .. } => (Kind::Removed, None),
        };
        let lease = after
            .or(past.before.as_ref())
            .map_or(0, |entry| entry.lease);
        Self {
            kind,
            key: String::from_utf8_lossy(past.change.key()).into_owned(),
            before: past.before.as_ref().map(text),
            after: after.map(text),
            lease: (lease != 0).then(|| format!("{lease:x}")),
            past,
        }
    }

    fn line(&self) -> String {
        let key = self.past.change.key();
        let before = self.past.before.as_ref();
        match (&self.past.change, self.kind) {
            // What it was is compacted away.
            (Change::Put(entry), Kind::Changed) if before.is_none() => {
                let value = difference::shown(&entry.value);
                format!("~ {} (unknown) -> {value}", plain(key))
            }
            (Change::Put(entry), _) => difference::line(key, before, Some(entry)),
            (Change::Delete { .. }, _) => difference::line(key, before, None),
        }
    }
}

fn explain(fault: Fault, from: Revision) -> anyhow::Error {
    match fault {
        Fault::FutureRevision => anyhow::anyhow!("--since: revision {from} is still to come"),
        Fault::Compacted => anyhow::anyhow!(
            "etcd was compacted while its history was read: what is missing here is gone, so ask again"
        ),
        fault => anyhow::Error::new(fault).context("reading etcd's history"),
    }
}
