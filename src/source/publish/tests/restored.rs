//! What is kept on disk, and what becomes of it at the next start.

use std::future;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::source::snapshot::{Stored, testing::stored_of};

const GOOD: &str = r#"{"weight": 2}"#;
const BAD: &str = r#"{"weight": "many"}"#;

/// A publisher whose frames somebody takes.
fn archiving(stored: Option<Stored>) -> (Bench, watch::Receiver<Option<Frame>>) {
    let (tell, frames) = watch::channel(None);
    let bench = Bench::of(|publisher| {
        let publisher = publisher.archiving(tell);
        match stored {
            Some(stored) => publisher.restoring(stored, future::ready(())),
            None => publisher,
        }
    });
    (bench, frames)
}

/// As the next start reads it.
fn stored(frames: &watch::Receiver<Option<Frame>>) -> Stored {
    stored_of(frames.borrow().as_ref().expect("a frame"))
}

fn keys(entries: &[Entry]) -> Vec<(String, Revision)> {
    let key = |entry: &Entry| {
        (
            String::from_utf8_lossy(&entry.key).into_owned(),
            entry.mod_revision,
        )
    };
    entries.iter().map(key).collect()
}

/// Everything that the next start must not change: weights by key, rejections, what is held.
type InForce = (
    Vec<(Arc<str>, u32, Revision)>,
    Vec<(String, bool)>,
    Vec<String>,
);

impl Bench {
    async fn reached(&self, revision: Revision) {
        let mut applied = self.live.applied.subscribe();
        let reached = applied.wait_for(|applied| *applied == Some(revision)).await;
        reached.expect("it runs");
    }

    fn in_force(&self) -> InForce {
        let table = self.live.table.load();
        let members = table.routes().flat_map(|route| route.members.iter());
        let member = |member: &crate::route::Member| {
            (
                member.key.key.clone(),
                member.weight,
                member.key.mod_revision,
            )
        };
        let mut members: Vec<_> = members.map(member).collect();
        members.sort();
        (members, self.rejected(), self.held())
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_force_though_etcd_says_otherwise_is_so_after_a_restart() {
    let (bench, frames) = archiving(None);
    let entries = [
        ("a/10.0.0.1:80", GOOD, 2),
        ("b/10.0.0.1:80", GOOD, 3),
        ("gone/10.0.0.1:80", "", 4),
        ("never/10.0.0.1:80", BAD, 5),
    ];
    bench.snapshot(9, &entries).await;
    bench.put("b/10.0.0.1:80", BAD, 10).await;
    let kept = stored(&frames);
    assert_eq!(keys(&kept.kept), [("/hosts/b/10.0.0.1:80".to_owned(), 3)]);
    assert_eq!((kept.revision, kept.cluster_id), (10, 1));

    let another = [
        ("a/10.0.0.1:80", GOOD, 2),
        ("b/10.0.0.1:80", BAD, 6),
        ("never/10.0.0.1:80", BAD, 5),
    ];
    bench.another(7, &another).await;
    let kept = stored(&frames);
    let name = |key: &str| format!("/hosts/{key}/10.0.0.1:80");
    assert_eq!(
        keys(&kept.entries),
        [(name("a"), 2), (name("b"), 6), (name("never"), 5)]
    );
    assert_eq!(keys(&kept.kept), [(name("b"), 3), (name("gone"), 4)]);
    assert_eq!((kept.revision, kept.cluster_id), (7, 2));

    let (next, frames) = archiving(Some(kept));
    next.reached(7).await;
    assert_eq!(next.in_force(), bench.in_force());
    assert_eq!(next.rejected(), [(name("b"), true), (name("never"), false)]);
    assert_eq!(next.held(), [name("gone")]);
    assert!(
        frames.borrow().is_none(),
        "what is on disk is not written as if it were news"
    );

    next.put("b/10.0.0.1:80", "", 11).await;
    assert_eq!(next.acceptance.accept().await, Some(1));
    assert_eq!(next.held(), Vec::<String>::new());
    let kept = stored(&frames);
    assert_eq!(
        keys(&kept.entries),
        [(name("a"), 2), (name("b"), 11), (name("never"), 5)]
    );
    assert_eq!(keys(&kept.kept), []);
}

#[tokio::test(start_paused = true)]
async fn the_fleets_keys_are_kept_and_the_pulse_apart_from_them() {
    let (bench, frames) = archiving(None);
    bench
        .snapshot(3, &[("a/10.0.0.1:80", "", 2), ("@waypost/pulse", "1", 3)])
        .await;
    let version = || frames.borrow().as_ref().expect("a frame").version;
    let before = version();
    bench.put("@waypost/pulse", "2", 4).await;
    assert_eq!((version(), stored(&frames).revision), (before, 4));
    let name = |key: &str| format!("/hosts/{key}");
    let [a, pulse] = [name("a/10.0.0.1:80"), name("@waypost/pulse")];
    let found = || keys(&stored(&frames).entries);
    assert_eq!(found(), [(a.clone(), 2), (pulse.clone(), 4)]);
    bench.put("@waypost/tunnels/a/b", "x", 5).await;
    assert!(version() > before);
    let tunnel = name("@waypost/tunnels/a/b");
    assert_eq!(found(), [(tunnel, 5), (a.clone(), 2), (pulse.clone(), 4)]);
    // A resumed stream repeats itself.
    let before = version();
    bench.put("@waypost/tunnels/a/b", "x", 5).await;
    bench.delete("@waypost/tunnels/a/b", 4).await;
    bench.delete("@waypost/pulse", 3).await;
    assert_eq!(version(), before);
    bench.delete("@waypost/tunnels/a/b", 6).await;
    assert_eq!(found(), [(a.clone(), 2), (pulse, 4)]);
    bench.delete("@waypost/pulse", 7).await;
    assert_eq!(found(), [(a, 2)]);
    bench.put("@waypost/pulse", "3", 8).await;
    bench.snapshot(9, &[("b/10.0.0.1:80", "", 8)]).await;
    assert_eq!(found(), [(name("b/10.0.0.1:80"), 8)]);
}

/// Whatever happened, the file has what etcd has, and whoever starts from it serves what was served.
#[tokio::test(start_paused = true)]
async fn after_any_history_a_restart_changes_nothing() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut bench, mut frames) = archiving(None);
        let mut etcd: std::collections::BTreeMap<String, (&str, Revision)> = Default::default();
        let mut revision = 1;
        for step in 0..60 {
            revision += 1;
            let key = format!("h{}/10.0.0.1:80", random.random_range(0..5));
            let value = ["", GOOD, BAD][random.random_range(0..3)];
            match random.random_range(0..10) {
                0..5 => {
                    etcd.insert(key.clone(), (value, revision));
                    bench.put(&key, value, revision).await;
                }
                5..=7 if etcd.remove(&key).is_some() => bench.delete(&key, revision).await,
                8 if step > 10 => {
                    etcd.remove(&key);
                    let entries: Vec<_> = (etcd.iter())
                        .map(|(key, (value, at))| (&**key, *value, *at))
                        .collect();
                    match random.random_bool(0.5) {
                        true => bench.another(revision, &entries).await,
                        false => bench.snapshot(revision, &entries).await,
                    }
                }
                9 if frames.borrow().is_some() => {
                    let before = bench.in_force();
                    let kept = stored(&frames);
                    revision = kept.revision;
                    (bench, frames) = archiving(Some(kept));
                    bench.reached(revision).await;
                    assert_eq!(bench.in_force(), before, "seed {seed}, step {step}");
                    // The source always says something before anything is written.
                    bench.put(&key, value, revision + 1).await;
                    revision += 1;
                    etcd.insert(key, (value, revision));
                }
                _ => continue,
            }
            let has: Vec<_> = (etcd.iter())
                .map(|(key, (_, at))| (format!("/hosts/{key}"), *at))
                .collect();
            assert_eq!(
                keys(&stored(&frames).entries),
                has,
                "seed {seed}, step {step}"
            );
        }
    }
}
