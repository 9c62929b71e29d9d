//! Who gets how many of the requests, over all workers and connections together.

use crate::support::{load::Client, sample::Sample, waypost::Waypost};

#[tokio::test]
async fn round_robin_is_exact_over_all_workers_and_connections() {
    let waypost = Waypost::builder().flag("--workers", 3).start().await;
    let samples = three_samples().await;
    for sample in &samples {
        waypost.put("a.test", sample, "").await;
    }
    // Each connection is of some worker.
    let mut clients = Vec::new();
    for _ in 0..24 {
        clients.push(Client::connect(waypost.address()).await.unwrap());
    }
    for round in 1..=100 {
        let client = &mut clients[round * 7 % 24];
        assert_eq!(client.get("a.test", "/").await.unwrap().status(), 200);
        let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(most - least <= 1, "after {round}: {hits:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_robin_is_exact_under_concurrent_load() {
    let waypost = Waypost::builder().flag("--workers", 3).start().await;
    let samples = three_samples().await;
    for sample in &samples {
        waypost.put("a.test", sample, "").await;
    }
    let (address, mut tasks) = (waypost.address(), tokio::task::JoinSet::new());
    for _ in 0..12 {
        tasks.spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            for _ in 0..25 {
                assert_eq!(client.get("a.test", "/").await.unwrap().status(), 200);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
    assert_eq!(hits, [100, 100, 100]);
}

#[tokio::test]
async fn random_is_roughly_uniform_and_weights_count() {
    let waypost = Waypost::builder().flag("--balance", "random").start().await;
    let samples = three_samples().await;
    for sample in &samples {
        waypost.put("a.test", sample, "").await;
    }
    let (mut client, mut last, mut repeats) = (
        Client::connect(waypost.address()).await.unwrap(),
        String::new(),
        0,
    );
    for _ in 0..600 {
        let body = client.get("a.test", "/").await.unwrap().into_body();
        repeats += usize::from(body == last);
        last = body;
    }
    // Mean 200, standard deviation 11.5.
    let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
    assert!(
        hits.iter().all(|hits| (130..=270).contains(hits)),
        "{hits:?}"
    );
    assert!(
        (130..=270).contains(&repeats),
        "{repeats} repeats: that is no chance"
    );

    waypost.put("b.test", &samples[0], r#"{"weight": 3}"#).await;
    waypost.put("b.test", &samples[1], "").await;
    waypost
        .put("b.test", "@settings", r#"{"balance": "round-robin"}"#)
        .await;
    let before: Vec<_> = samples.iter().map(Sample::hits).collect();
    for _ in 0..40 {
        client.get("b.test", "/").await.unwrap();
    }
    let more: Vec<_> = samples
        .iter()
        .zip(before)
        .map(|(s, before)| s.hits() - before)
        .collect();
    assert_eq!(more, [30, 10, 0]);
}

async fn three_samples() -> Vec<Sample> {
    vec![
        Sample::start().await,
        Sample::start().await,
        Sample::start().await,
    ]
}
