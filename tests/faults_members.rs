//! Members of etcd that die, stop or lag, under a Waypost that serves: no request is lost, and changes arrive again.

use std::time::{Duration, Instant};

use crate::support::{
    etcd::EtcdCluster,
    link::Link,
    rig::{HOST, Rig},
    soak,
    waypost::{Waypost, within},
};

/// As FAULTS.md has it, for a change made after the members were disturbed.
const PROMPT: Duration = Duration::from_secs(5);
/// For a silent member to be left for another.
const TAKEOVER: Duration = Duration::from_secs(20);
/// For a lost etcd to be found again: the longest back-off, and what a busy machine adds.
const RETURN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_killed_and_back_loses_no_request() {
    let mut rig = Rig::of(3).await;
    rig.etcd.kill_all();
    rig.until_stale(PROMPT).await;
    let outage = soak::seconds(4, 75);
    within(outage * 2, "the outage is long", async || {
        let status = rig.waypost.api("/api/status").await;
        assert_eq!(
            (&status["ready"], &status["connected"]),
            (&true.into(), &false.into())
        );
        status["stale_seconds"].as_f64() > Some(outage.as_secs_f64())
    })
    .await;
    let stale = rig
        .waypost
        .metric("waypost_source_stale_seconds", &[])
        .await;
    assert!(stale > outage.as_secs_f64(), "{stale}");
    assert_eq!(
        rig.waypost.metric("waypost_source_connected", &[]).await,
        0.0
    );
    rig.etcd.restart_together(&[0, 1, 2]).await;
    rig.change(RETURN).await;
    rig.until_fresh(PROMPT).await;
    let log = rig.waypost.log();
    assert_eq!(log.count("no connection to etcd"), 1, "told once");
    assert_eq!(rig.reads(), 1, "resumed, not read anew");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_loses_no_request_and_the_next_change_is_prompt() {
    let mut rig = Rig::of(3).await;
    let mut took = Vec::new();
    for _ in 0..soak::rounds(3, 20) {
        let leader = rig.etcd.leader().await;
        rig.etcd.kill(leader);
        took.push(rig.change(RETURN).await);
        rig.etcd.restart(leader).await;
    }
    assert_prompt(took);
    assert_eq!(rig.reads(), 1);
    rig.finish().await;
}

/// As an upgrade of etcd goes: every member ends in good order and comes back before the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_request_and_the_next_change_is_prompt() {
    let mut rig = Rig::of(3).await;
    let mut took = Vec::new();
    for _ in 0..soak::rounds(1, 10) {
        for member in 0..3 {
            rig.etcd.stop(member).await;
            took.push(rig.change(RETURN).await);
            rig.etcd.restart(member).await;
            took.push(rig.change(RETURN).await);
        }
    }
    assert_prompt(took);
    assert_eq!(rig.reads(), 1);
    rig.finish().await;
}

/// Most changes are; an election on a busy machine may take longer than one call waits (3 s), and then the next member
/// is asked.
fn assert_prompt(mut took: Vec<Duration>) {
    took.sort_unstable();
    assert!(took[took.len() / 2] < PROMPT, "{took:?}");
}

/// Its sockets stay open and say nothing, whatever is written meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_member_is_left_and_memory_stays_bounded() {
    let rig = Rig::of(3).await;
    let paused = rig.member().await;
    let (before, _) = rig.waypost.memory();
    rig.etcd.pause(paused);
    let others: Vec<_> = (0..3).filter(|member| *member != paused).collect();
    let mut client = rig.etcd.client_of(&others).await;
    for round in 0..500 {
        let key = format!("/hosts/large-{}.test/10.0.0.1:80", round % 10);
        // An election may be under way, if it was the leader.
        within(RETURN, "a large value is written", async || {
            client
                .put(key.clone(), vec![b'x'; 60_000], None)
                .await
                .is_ok()
        })
        .await;
    }
    rig.change(TAKEOVER).await;
    assert_ne!(rig.member().await, paused);
    let (_, most) = rig.waypost.memory();
    assert!(most < before + (128 << 20), "{before} bytes, then {most}");
    rig.etcd.resume(paused);
    assert_eq!(rig.reads(), 1);
    rig.finish().await;
}

/// The waits double from 100 ms, and jitter takes up to half of each away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_gone_is_tried_less_and_less_often() {
    let etcd = EtcdCluster::start(1).await;
    let link = Link::to(&etcd.endpoints()[0]).await;
    let rig = Rig::over(etcd, Waypost::builder().etcd(&[link.url()])).await;
    let before = link.tries();
    link.cut();
    let cut = Instant::now();
    // Two try: the watch, and the instance's registration, which may wait 5 s at most.
    let (tries, least) = match soak::is_soak() {
        false => (10, Duration::from_millis(50) * (1 + 2 + 4 + 8 + 16)),
        true => (24, Duration::from_secs(15)),
    };
    within(Duration::from_secs(120), "it tries again", async || {
        link.tries() >= before + tries
    })
    .await;
    assert!(cut.elapsed() >= least, "{:?} < {least:?}", cut.elapsed());
    link.mend(&rig.etcd.endpoints()[0]);
    rig.change(RETURN).await;
    rig.until_status(HOST, 200, PROMPT).await;
    rig.finish().await;
}
