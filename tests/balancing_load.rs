//! Weights, and who is busy: the order of weighted turns, and least-request.

use crate::support::{load::Client, origin::Origin, sample::Sample, waypost::Waypost};

const HOST: &str = "a.test";

#[tokio::test]
async fn weighted_turns_are_interleaved_over_all_workers() {
    let waypost = Waypost::builder().flag("--workers", 3).start().await;
    let names = ["a", "b", "c"];
    let mut origins = Vec::new();
    for name in names {
        origins.push(Origin::named(name).await);
    }
    // Members are ordered by key, not by name.
    origins.sort_by_key(ToString::to_string);
    for (origin, weight) in origins.iter().zip([5, 1, 1]) {
        let value = format!(r#"{{"weight": {weight}}}"#);
        waypost.put(HOST, origin, &value).await;
    }
    let mut clients = Vec::new();
    for _ in 0..9 {
        clients.push(Client::connect(waypost.address()).await.unwrap());
    }
    let mut order = Vec::new();
    for turn in 0..28 {
        let client = &mut clients[turn % 9];
        order.push(client.get(HOST, "/").await.unwrap().into_body());
    }
    // nginx's order, from wherever the changes above left it.
    let heavy = |body: &String| order.iter().filter(|other| *other == body).count() == 20;
    let longest = order.split(|body| !heavy(body)).map(<[_]>::len).max();
    assert_eq!(longest, Some(4), "{order:?}");
    assert_eq!(order[..7], order[21..], "{order:?}");
}

#[tokio::test]
async fn least_request_leaves_alone_who_is_busy_with_requests_of_any_worker() {
    let waypost = Waypost::builder()
        .flag("--workers", 3)
        .flag("--balance", "least-request")
        .start()
        .await;
    let [slow, quick] = [Sample::start().await, Sample::start().await];
    waypost.put(HOST, &slow, "").await;
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let mut client = Client::connect(waypost.address()).await.unwrap();
        held.spawn(async move { client.get(HOST, "/hold").await.unwrap() });
    }
    slow.until_holding(12).await;
    waypost.put(HOST, &quick, "").await;
    for _ in 0..20 {
        let mut client = Client::connect(waypost.address()).await.unwrap();
        for _ in 0..10 {
            assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
        }
    }
    // One pick in 256 finds no second choice.
    assert!(quick.hits() >= 190, "{} of 200", quick.hits());

    // Done with them, it is as good as the other again.
    slow.release();
    while let Some(ended) = held.join_next().await {
        assert_eq!(ended.unwrap().status(), 200);
    }
    let before = slow.hits();
    let mut client = Client::connect(waypost.address()).await.unwrap();
    for _ in 0..200 {
        assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
    }
    // Mean 100, standard deviation 7.
    let more = slow.hits() - before;
    assert!((65..=135).contains(&more), "{more}");
}

#[tokio::test]
async fn least_request_of_the_idle_goes_by_weight() {
    let waypost = Waypost::builder().start().await;
    let [heavy, light] = [Sample::start().await, Sample::start().await];
    waypost.put(HOST, &heavy, r#"{"weight": 3}"#).await;
    waypost.put(HOST, &light, "").await;
    waypost
        .put(HOST, "@settings", r#"{"balance": "least-request"}"#)
        .await;
    let mut client = Client::connect(waypost.address()).await.unwrap();
    for _ in 0..400 {
        assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
    }
    // Mean 300, standard deviation 8.7.
    assert!((255..=345).contains(&heavy.hits()), "{}", heavy.hits());
}
