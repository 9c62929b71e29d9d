//! What was restored waits for what changed since.

use std::{future, sync::atomic::Ordering, time::UNIX_EPOCH};

use tokio::time::{Instant, sleep};

use super::*;
use crate::source::snapshot::Stored;

/// With `a` and `b` at revision 7 on disk.
fn restoring(alone: impl Future<Output = ()> + Send + 'static) -> Bench {
    let stored = Stored {
        cluster_id: 1,
        revision: 7,
        confirmed: UNIX_EPOCH,
        entries: ["a/10.0.0.1:80", "b/10.0.0.1:80"]
            .map(|key| entry(key, "", 5))
            .to_vec(),
        kept: Vec::new(),
    };
    Bench::of(|publisher| publisher.restoring(stored, alone))
}

impl Bench {
    /// What this update leaves applied, when everybody has done what is to be done at once.
    async fn told(&self, update: Update) -> Option<Revision> {
        self.updates.send(update).await.expect("it runs");
        sleep(Duration::from_millis(1)).await;
        *self.live.applied.borrow()
    }

    fn is_vouched(&self) -> bool {
        !self.live.is_unvouched.load(Ordering::Relaxed)
    }
}

fn delete(key: &str, revision: Revision) -> Update {
    Update::Changes {
        changes: vec![Change::Delete {
            key: full(key),
            mod_revision: revision,
        }],
        revision,
    }
}

#[tokio::test(start_paused = true)]
async fn one_swap_shows_what_was_restored_and_all_that_etcd_had_when_it_was_asked() {
    let bench = restoring(future::pending());
    let vouched = |through| Update::Vouched { through };
    assert_eq!(bench.told(vouched(10)).await, None);
    assert_eq!(bench.told(delete("a/10.0.0.1:80", 8)).await, None);
    assert_eq!(bench.hosts(), 0);
    // The connection was lost, and etcd went on meanwhile.
    assert_eq!(bench.told(vouched(12)).await, None);
    assert_eq!(
        bench.told(Update::Progress { revision: 10 }).await,
        Some(10)
    );
    assert_eq!(bench.hosts(), 1);
    assert!(bench.is_vouched());
    assert_eq!(bench.metrics.control_plane.table_swaps.get(), 1);

    let bench = restoring(future::pending());
    assert_eq!(bench.told(vouched(7)).await, Some(7));
    assert!(bench.is_vouched());

    let bench = restoring(future::pending());
    bench.another(3, &[("c/10.0.0.1:80", "", 3)]).await;
    assert_eq!((bench.hosts(), bench.held().len()), (3, 2));
    assert!(bench.is_vouched());
}

#[tokio::test(start_paused = true)]
async fn it_is_served_alone_where_nobody_can_be_reached_or_nothing_comes() {
    let bench = restoring(future::ready(()));
    sleep(Duration::from_millis(1)).await;
    assert_eq!((*bench.live.applied.borrow(), bench.hosts()), (Some(7), 2));
    assert!(!bench.is_vouched());
    assert_eq!(bench.told(Update::Vouched { through: 9 }).await, Some(7));
    assert!(bench.is_vouched());

    let bench = restoring(future::pending());
    let begun = Instant::now();
    assert_eq!(bench.told(Update::Vouched { through: 9 }).await, None);
    let mut applied = bench.live.applied.subscribe();
    applied.wait_for(Option::is_some).await.expect("it runs");
    assert_eq!(begun.elapsed(), restore::PATIENCE);
    assert_eq!(bench.hosts(), 2);
}

/// Who accepts is told what is in force.
#[tokio::test(start_paused = true)]
async fn nothing_is_accepted_before_it_is_served() {
    let bench = restoring(future::pending());
    let begun = Instant::now();
    assert_eq!(bench.acceptance.accept().await, Some(0));
    assert_eq!(begun.elapsed(), restore::PATIENCE);
}
