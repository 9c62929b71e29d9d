//! Follows an etcd cluster as the publisher would, and keeps what it heard.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use waypost::{
    config::EtcdConfig,
    live::{Live, Status},
    source::{Change, Update, etcd::Etcd},
};

/// No wait in a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(15);
pub const PREFIX: &str = "/hosts/";

/// A running source and the keys that it has told so far.
pub struct Follower {
    pub live: Arc<Live>,
    pub keys: BTreeMap<String, Vec<u8>>,
    updates: mpsc::Receiver<Update>,
    task: JoinHandle<()>,
}

impl Follower {
    pub fn of(config: EtcdConfig) -> Self {
        Self::following(Etcd::new(config, PREFIX.to_owned()).expect("a usable configuration"))
    }

    pub fn following(source: Etcd) -> Self {
        Self::with_room(source, 16)
    }

    /// The source waits while this many updates are untaken. With room for one a test sees the status of each update:
    /// the source sets it once it has sent one, and gets no further before that is taken.
    pub fn with_room(source: Etcd, room: usize) -> Self {
        let live = Live::new(Status::before("etcd", ""));
        let (sender, updates) = mpsc::channel(room);
        Self {
            task: tokio::spawn(source.run(live.clone(), sender)),
            live,
            keys: BTreeMap::new(),
            updates,
        }
    }

    /// The next update, taken into `keys`.
    pub async fn next(&mut self) -> Update {
        let update = match timeout(DEADLINE, self.updates.recv()).await {
            Ok(Some(update)) => update,
            Ok(None) => panic!("the source ended"),
            Err(_) => panic!("no update within {DEADLINE:?}: {:?}", self.status()),
        };
        match &update {
            Update::Snapshot { entries, .. } => {
                self.keys = (entries.iter())
                    .map(|entry| (text(&entry.key), entry.value.to_vec()))
                    .collect();
            }
            Update::Changes { changes, .. } => changes.iter().for_each(|change| match change {
                Change::Put(entry) => {
                    self.keys.insert(text(&entry.key), entry.value.to_vec());
                }
                Change::Delete { key, .. } => {
                    self.keys.remove(&text(key));
                }
            }),
            Update::Progress { .. } | Update::Vouched { .. } => {}
        }
        update
    }

    /// The next update must be a snapshot; its revision.
    pub async fn snapshot(&mut self) -> i64 {
        match self.next().await {
            Update::Snapshot { revision, .. } => revision,
            update => panic!("expected a snapshot: {update:?}"),
        }
    }

    /// The next update must be changes: each as `+key` or `-key`, and the revision.
    pub async fn changes(&mut self) -> (Vec<String>, i64) {
        let Update::Changes { changes, revision } = self.next().await else {
            panic!("expected changes");
        };
        let names = changes.iter().map(|change| match change {
            Change::Put(entry) => format!("+{}", text(&entry.key)),
            Change::Delete { key, .. } => format!("-{}", text(key)),
        });
        (names.collect(), revision)
    }

    /// Takes updates in until the keys are these.
    pub async fn until_keys(&mut self, expected: &[&str]) {
        while !self
            .keys
            .keys()
            .map(String::as_str)
            .eq(expected.iter().copied())
        {
            self.next().await;
        }
    }

    /// Waits for a status.
    pub async fn until_status(&self, wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut statuses = self.live.status.subscribe();
        let found = timeout(DEADLINE, statuses.wait_for(wanted)).await;
        match found {
            Ok(status) => status
                .expect("the status lives as long as its reader")
                .clone(),
            Err(_) => panic!("not within {DEADLINE:?}: {:?}", self.status()),
        }
    }

    pub async fn until_connected(&self) {
        self.until_status(|status| status.connected).await;
    }

    pub async fn until_disconnected(&self) -> Status {
        self.until_status(|status| !status.connected && status.error.is_some())
            .await
    }

    /// Stops listening; the source must end by itself.
    pub async fn hang_up(mut self) {
        self.updates.close();
        let ended = timeout(DEADLINE, &mut self.task).await;
        assert!(matches!(ended, Ok(Ok(()))), "the source goes on: {ended:?}");
    }

    fn status(&self) -> Status {
        self.live.status.borrow().clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
