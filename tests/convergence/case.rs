//! One random history below a prefix of its own, and a source that follows it.

use std::time::Duration;

use etcd_client::{PutOptions, TxnOp};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use waypost::{
    config::EtcdConfig,
    live::{Live, Status},
    source::{Entry, Update, etcd::Etcd},
};

use super::{
    store::Store,
    view::{Keys, View},
};
use crate::support::link::Link;

const STEPS: usize = 12;
/// Until what was written last is told.
const SETTLED: Duration = Duration::from_secs(30);

/// Below the prefix of a case: what routes are made of, what is no route, and the prefix itself.
const KEYS: [&[u8]; 11] = [
    b"",
    b"a.x/10.0.0.1:80",
    b"a.x/10.0.0.2:80",
    b"A.x/10.0.0.1:80",
    b"a.x/api/10.0.0.1:80",
    b"a.x/@settings",
    b"b.x/10.0.0.1:80",
    b"*/[::1]:80",
    b"a.x//nonsense",
    b"\xff\xfe/10.0.0.1:80",
    b"@waypost/tunnels/x",
];
/// Written first and left alone: a key that is as it was vouches for the history, however much was compacted away.
const KEPT: &str = "kept.x/10.0.0.1:80";
/// Written last, to wait for.
const LAST: &str = "last.x/10.0.0.1:80";

/// What is written, what is told, and what befalls both.
pub struct Case {
    random: StdRng,
    prefix: String,
    store: Store,
    link: Link,
    source: JoinHandle<()>,
    updates: mpsc::Receiver<Update>,
    pub view: View,
    /// How often what was told was held against a read.
    pub compared: usize,
    lease: Option<i64>,
    /// Of the last write.
    written: i64,
    started: Instant,
    pub trace: Vec<String>,
}

impl Case {
    pub async fn start(seed: u64, store: Store) -> Self {
        let prefix = format!("/{seed}/hosts/");
        let written = store
            .txn(vec![TxnOp::put(format!("{prefix}{KEPT}"), "", None)])
            .await;
        let link = Link::to(&store.endpoint().await).await;
        let (source, updates) = follow(source(&prefix, &link));
        Self {
            random: StdRng::seed_from_u64(seed),
            prefix,
            store,
            link,
            source,
            updates,
            view: View::default(),
            compared: 0,
            lease: None,
            written,
            started: Instant::now(),
            trace: Vec::new(),
        }
    }

    /// All the steps; what was wrong.
    pub async fn play(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step().await?;
            let pause = *[0, 0, 1, 5, 20, 100]
                .choose(&mut self.random)
                .expect("items");
            if self.random.random_bool(0.5) {
                self.pass(Duration::from_millis(pause)).await?;
            } else {
                // The receiver is slow.
                sleep(Duration::from_millis(pause)).await;
            }
        }
        self.settle().await
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.random.random_range(0..100) {
            0..40 => self.commit().await,
            40..48 => self.end_lease().await,
            48..56 => self.compact().await,
            56..64 => self.cut(),
            64..70 => self.mend().await,
            70..78 => self.compact_a_deletion_while_away().await,
            78..82 => self.hold_and_release().await,
            82..87 => self.restart(false).await?,
            87..92 => self.restart(true).await?,
            _ => self.settle().await?,
        }
        Ok(())
    }

    /// A transaction over one to four keys, none of them twice.
    async fn commit(&mut self) {
        let count = self.random.random_range(1..=4);
        let keys: Vec<&[u8]> = KEYS.sample(&mut self.random, count).copied().collect();
        let mut operations = Vec::new();
        for key in keys {
            let key = [self.prefix.as_bytes(), key].concat();
            if self.random.random_bool(0.4) {
                operations.push(TxnOp::delete(key, None));
                continue;
            }
            let mut options = PutOptions::new();
            if self.random.random_bool(0.2) {
                options = options.with_lease(self.lease().await);
            }
            let weight = self.random.random_range(0..5);
            let value = format!(r#"{{"weight": {weight}}}"#);
            operations.push(TxnOp::put(key, value, Some(options)));
        }
        self.write(operations).await;
    }

    async fn lease(&mut self) -> i64 {
        match self.lease {
            Some(lease) => lease,
            None => *self.lease.insert(self.store.grant().await),
        }
    }

    async fn end_lease(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.store.revoke(lease).await;
            self.tell("the lease ends");
        }
    }

    async fn compact(&mut self) {
        self.store.compact(self.written).await;
        self.tell("compact");
    }

    fn cut(&mut self) {
        self.link.cut();
        self.tell("cut");
    }

    async fn mend(&mut self) {
        self.link.mend(&self.store.endpoint().await);
        self.tell("mend");
    }

    /// The deletion can be seen neither in a read at its revision nor by a watch that begins there.
    async fn compact_a_deletion_while_away(&mut self) {
        self.cut();
        self.commit().await;
        let key = *KEYS.choose(&mut self.random).expect("items");
        let key = [self.prefix.as_bytes(), key].concat();
        self.write(vec![TxnOp::delete(key, None)]).await;
        self.compact().await;
        self.mend().await;
    }

    async fn hold_and_release(&mut self) {
        self.link.hold();
        self.commit().await;
        let held = self.random.random_range(0..50);
        sleep(Duration::from_millis(held)).await;
        self.link.release();
        self.tell("held and released");
    }

    /// A new source, which knows nothing or, as from a snapshot file, all that was told.
    async fn restart(&mut self, is_resumed: bool) -> Result<(), String> {
        self.source.abort();
        let mut source = source(&self.prefix, &self.link);
        if is_resumed && let Some(cluster_id) = self.view.cluster_id {
            let entries: Vec<Entry> = self.view.keys.values().cloned().collect();
            source = source.resuming(cluster_id, self.view.revision, &entries);
        } else {
            let rereads = self.view.rereads;
            self.view = View {
                rereads,
                ..View::default()
            };
        }
        (self.source, self.updates) = follow(source);
        self.tell(&format!("a new source from {}", self.view.revision));
        Ok(())
    }

    /// Nothing is in the way any more: what was told comes to what there is.
    async fn settle(&mut self) -> Result<(), String> {
        self.mend().await;
        let last = format!("{}{LAST}", self.prefix);
        self.write(vec![TxnOp::put(last, "", None)]).await;
        self.tell("settle");
        let deadline = Instant::now() + SETTLED;
        while self.view.revision < self.written {
            match timeout_at(deadline, self.updates.recv()).await {
                Ok(update) => self.take(update).await?,
                Err(_) => {
                    let (told, written) = (self.view.revision, self.written);
                    return Err(format!("told {told} of {written} within {SETTLED:?}"));
                }
            }
        }
        let keys = self.store.read(&self.prefix, 0).await.expect("the newest");
        self.compare(&keys)
    }

    /// Takes in what is told meanwhile.
    async fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        while let Ok(update) = timeout_at(until, self.updates.recv()).await {
            self.take(update).await?;
        }
        Ok(())
    }

    async fn take(&mut self, update: Option<Update>) -> Result<(), String> {
        self.view.take(update.ok_or("the source ended")?)?;
        // And what is in between is what there was, unless that is compacted away already.
        if self.random.random_bool(0.3)
            && let Some(keys) = self.store.read(&self.prefix, self.view.revision).await
        {
            return self.compare(&keys);
        }
        Ok(())
    }

    fn compare(&mut self, keys: &Keys) -> Result<(), String> {
        self.compared += 1;
        if self.view.keys == *keys {
            return Ok(());
        }
        let (revision, told) = (self.view.revision, &self.view.keys);
        Err(format!(
            "at {revision} told\n{told:#?}\nbut there is\n{keys:#?}"
        ))
    }

    async fn write(&mut self, operations: Vec<TxnOp>) {
        let count = operations.len();
        self.written = self.store.txn(operations).await;
        self.tell(&format!("{count} operations"));
    }

    fn tell(&mut self, what: &str) {
        let at = self.started.elapsed().as_secs_f64();
        let (written, told) = (self.written, self.view.revision);
        self.trace.push(format!(
            "{at:7.3} s, {written} written, {told} told: {what}"
        ));
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        self.source.abort();
    }
}

fn source(prefix: &str, link: &Link) -> Etcd {
    let config = EtcdConfig {
        endpoints: vec![link.url()],
        ca: None,
        client_certificate: None,
        user: None,
    };
    Etcd::new(config, prefix.to_owned()).expect("a usable configuration")
}

fn follow(source: Etcd) -> (JoinHandle<()>, mpsc::Receiver<Update>) {
    let live = Live::new(Status::before("etcd", ""));
    // Small, so that the source often has to wait.
    let (sender, updates) = mpsc::channel(2);
    (tokio::spawn(source.run(live, sender)), updates)
}
