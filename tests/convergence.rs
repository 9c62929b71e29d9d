//! Random histories against real etcd: whatever was written, compacted, cut off and started anew meanwhile, what the
//! source tells comes to what a fresh read of the keys shows. Thousands more, over a model of etcd in which far more goes
//! wrong, are in `src/source/etcd/tests`.

mod case;
mod store;
mod view;

use std::{cell::Cell, env, ops::Range, sync::Arc};

use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet},
};

use self::{case::Case, store::Store};
use crate::support::soak;

/// Plays one case alone: `WAYPOST_SEED=7`.
const SEED: &str = "WAYPOST_SEED";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_of_one_etcd_converge() {
    let store = Store::start().await;
    play(&store, 0..soak::rounds(300, 3_000) as u64, 24).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_converge_while_etcd_is_restarted() {
    let store = Store::start().await;
    let restarts = Cell::new(0);
    tokio::select! {
        () = store.restart_again_and_again(&restarts) => {}
        () = play(&store, 0..soak::rounds(24, 240) as u64, 8) => {}
    }
    let restarts = restarts.get();
    eprintln!("{restarts} restarts");
    assert!(restarts > 0);
}

/// So many cases at a time.
async fn play(store: &Store, seeds: Range<u64>, side_by_side: usize) {
    let seeds = match env::var(SEED) {
        Ok(seed) => {
            let seed = seed.parse().expect("a number");
            seed..seed + 1
        }
        Err(_) => seeds,
    };
    let permits = Arc::new(Semaphore::new(side_by_side));
    let mut cases = JoinSet::new();
    let local = LocalSet::new();
    for seed in seeds {
        let (store, permits) = (store.clone(), permits.clone());
        let case = async move {
            let _permit = permits.acquire().await.expect("it is never closed");
            let mut case = Case::start(seed, store).await;
            match case.play().await {
                Ok(()) => Ok((case.view.rereads, case.compared)),
                Err(wrong) => {
                    let trace = case.trace.join("\n");
                    Err(format!("{SEED}={seed} plays it again:\n{trace}\n{wrong}"))
                }
            }
        };
        cases.spawn_local_on(case, &local);
    }
    let count = cases.len();
    let (mut rereads, mut compared) = (0, 0);
    local
        .run_until(async {
            while let Some(played) = cases.join_next().await {
                match played {
                    Ok(Ok((more_rereads, more_compared))) => {
                        rereads += more_rereads;
                        compared += more_compared;
                    }
                    Ok(Err(wrong)) => panic!("{wrong}"),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
        })
        .await;
    eprintln!("{count} cases: {rereads} times read anew, {compared} times compared");
    // What never happens is not tested.
    assert!(count == 1 || 4 * rereads > count, "{rereads} in {count}");
    assert!(compared > count, "{compared} in {count}");
}
