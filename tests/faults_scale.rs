//! Many changes and many keys, under a Waypost that serves: memory and waits stay bounded, and nothing is missing.

use std::time::{Duration, Instant};

use etcd_client::TxnOp;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::support::{
    etcd::{EtcdCluster, Options},
    load::{Client, ask},
    rig::{HOST, Rig, key},
    sample::Sample,
    soak,
    waypost::{Waypost, within},
};

const LIMIT: Duration = Duration::from_secs(30);

/// etcd goes on writing while it reads nothing. What queued up is then applied in few swaps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_was_not_read_is_caught_up_in_bounded_memory() {
    let rig = Rig::of(1).await;
    let (before, _) = rig.waypost.memory();
    let swaps = async || rig.waypost.metric("waypost_table_swaps_total", &[]).await;
    let swaps_before = swaps().await;
    rig.waypost.signal("STOP");
    let mut last = 0;
    let revisions = soak::rounds(1_500, 2_000);
    for index in 0..revisions {
        let key = key(&format!("slow-{}.test", index % 20), &rig.samples[0]);
        last = rig.etcd.put(&key, vec![b'x'; 60_000]).await;
    }
    rig.waypost.signal("CONT");
    // etcd looks through all that is left before each thousand of them.
    within(4 * LIMIT, "all of it is applied", async || {
        let status = rig.waypost.api("/api/status").await;
        status["applied_revision"].as_i64() >= Some(last)
    })
    .await;
    let swaps = swaps().await - swaps_before;
    assert!(
        swaps < revisions as f64 / 4.0,
        "{swaps} swaps for {revisions} revisions"
    );
    let (_, most) = rig.waypost.memory();
    assert!(most < before + (96 << 20), "{before} bytes, then {most}");
    assert_eq!(rig.reads(), 1, "nothing was read anew");
    rig.until_status("slow-19.test", 200, LIMIT).await;
    rig.finish().await;
}

/// Ten thousand keys a second: requests don't wait for them, and the last is served soon after it is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_transactions_of_a_hundred_changes_a_second_hold_no_request_up() {
    let rig = Rig::of(1).await;
    let quiet = slow_percent(&rig, Duration::from_secs(1)).await;
    let time = soak::seconds(3, 60);
    let writing = async {
        let mut ticks = interval(Duration::from_millis(10));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (begun, mut last, mut count) = (Instant::now(), 0, 0);
        while begun.elapsed() < time {
            ticks.tick().await;
            let value = format!(r#"{{"weight": {}}}"#, count % 100 + 1);
            let put = |index| {
                TxnOp::put(
                    key(&format!("h{index}.test"), &rig.samples[0]),
                    &*value,
                    None,
                )
            };
            last = rig.etcd.txn((0..100).map(put).collect::<Vec<_>>()).await;
            count += 1;
        }
        (last, count)
    };
    let ((last, count), busy) = tokio::join!(writing, slow_percent(&rig, time));
    assert!(count > 20, "{count} transactions in {time:?}");
    rig.waypost.reached(last).await;
    // What a busy machine does to it is not the point.
    assert!(
        busy < 10 * quiet + Duration::from_millis(200),
        "{quiet:?}, then {busy:?}"
    );
    let page = rig.waypost.api("/api/routes?limit=1000").await;
    let weights = page["routes"].as_array().expect("routes").iter();
    let weights = weights.filter(|route| route["host"] != HOST);
    let weights: Vec<_> = weights
        .map(|route| &route["members"][0]["weight"])
        .collect();
    assert_eq!(
        weights,
        vec![&serde_json::json!((count - 1) % 100 + 1); 100]
    );
    rig.finish().await;
}

/// What one request in a hundred exceeds.
async fn slow_percent(rig: &Rig, time: Duration) -> Duration {
    let mut client = Client::connect(rig.waypost.address())
        .await
        .expect("a connection");
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let asked = Instant::now();
        let answer = client.get(HOST, "/").await.expect("an answer");
        times.push(asked.elapsed());
        assert_eq!(answer.status(), 200);
        sleep(Duration::from_millis(2)).await;
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_hosts_are_served_soon_after_the_start() {
    let flags = [
        "--max-txn-ops=10000",
        "--max-request-bytes=8000000",
        "--quota-backend-bytes=4000000000",
    ];
    let options = Options {
        flags: flags.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    let (sample, batches) = (Sample::start().await, soak::rounds(6, 200));
    for batch in 0..batches {
        let put = |index| TxnOp::put(key(&format!("h{batch}-{index}.test"), &sample), "", None);
        etcd.txn((0..5_000).map(put).collect::<Vec<_>>()).await;
    }
    let begun = Instant::now();
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).spawn().await;
    let last = format!("h{}-4999.test", batches - 1);
    // An unoptimised build needs several times what a released one does.
    within(
        soak::seconds(30, 120),
        "the last host is served",
        async || {
            let status = ask(waypost.address(), &last, "/").await.status().as_u16();
            // Never 404: nobody knows the routes before they are all read.
            assert!([200, 503].contains(&status), "{status}");
            status == 200
        },
    )
    .await;
    let status = waypost.api("/api/status").await;
    assert_eq!(status["hosts"], 5_000 * batches, "{status}");
    eprintln!(
        "{} hosts were served after {:?}",
        5_000 * batches,
        begun.elapsed()
    );
}
