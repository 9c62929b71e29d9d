//! `"balance": "hash"`: a key stays at its upstream, at every worker, connection, instance and restart.

use std::collections::BTreeMap;

use crate::support::{
    load::Client,
    origin::Refusing,
    sample::Sample,
    waypost::{Waypost, eventually},
};

const HOST: &str = "a.test";
const BY_USER: &str = r#"{"balance": "hash", "hash_on": "header:X-User"}"#;

#[tokio::test]
async fn a_key_has_one_upstream_and_a_change_moves_no_more_than_it_must() {
    let (waypost, mut samples) = five(BY_USER).await;
    let before = owners(&waypost).await;
    let owned: usize = tally(&before).values().sum();
    assert_eq!((tally(&before).len(), owned), (5, USERS), "{before:?}");
    assert_eq!(owners(&waypost).await, before, "another connection");
    let other = Waypost::builder().hosts_dir(waypost.hosts()).start().await;
    assert_eq!(owners(&other).await, before, "another instance");

    let new = Sample::start().await;
    waypost.put(HOST, &new, "").await;
    let after = owners(&waypost).await;
    let moved: Vec<_> = (0..USERS)
        .filter(|&user| before[user] != after[user])
        .collect();
    assert!(moved.iter().all(|&user| after[user] == new.to_string()));
    // A sixth of 300; the ring's unevenness and the sample's own make some 8 of standard deviation.
    assert!((20..=90).contains(&moved.len()), "{} moved", moved.len());

    let gone = samples.remove(2);
    waypost.delete(HOST, &gone).await;
    let last = owners(&waypost).await;
    for user in 0..USERS {
        let may_move = after[user] == gone.to_string();
        assert_eq!(last[user] != after[user], may_move, "user {user}");
    }
}

#[tokio::test]
async fn keys_of_an_upstream_that_refuses_go_to_others_and_stay_there() {
    let (waypost, _samples) = five(BY_USER).await;
    let before = owners(&waypost).await;
    let refusing = Refusing::new();
    waypost.put(HOST, &refusing, r#"{"weight": 2}"#).await;
    // Nobody gets an error, and whoever is not at the one that refuses doesn't notice.
    assert_eq!(owners(&waypost).await, before);
}

#[tokio::test]
async fn keys_stay_at_their_backup_behind_a_single_upstream() {
    let (waypost, samples) = five(BY_USER).await;
    for sample in &samples {
        waypost.put(HOST, sample, r#"{"backup": true}"#).await;
    }
    let refusing = Refusing::new();
    waypost.put(HOST, &refusing, "").await;
    let before = owners(&waypost).await;
    assert_eq!(tally(&before).len(), 5, "{before:?}");
    assert_eq!(owners(&waypost).await, before);
}

#[tokio::test]
async fn what_is_hashed_is_what_the_settings_say() {
    let plain = Waypost::builder().start().await;
    let behind_proxy = Waypost::builder()
        .hosts_dir(plain.hosts())
        .flag("--trusted-proxies", "127.0.0.0/8")
        .start()
        .await;
    let mut samples = Vec::new();
    for _ in 0..8 {
        samples.push(Sample::start().await);
    }
    // What names the key, a request with key N, and one with the same key that is told otherwise.
    type Fields = Vec<(&'static str, String)>;
    type Ask = fn(usize) -> (String, Fields);
    let cases: [(&str, &Waypost, Ask, Ask); 4] = [
        (
            "header:x-user",
            &plain,
            |n| ("/".into(), vec![("x-user", n.to_string())]),
            |n| ("/other?x".into(), vec![("X-User", n.to_string())]),
        ),
        (
            "cookie:id",
            &plain,
            |n| ("/".into(), vec![("cookie", format!("id={n}"))]),
            |n| {
                (
                    "/".into(),
                    vec![("cookie", format!("other={}; id={n}", n + 1))],
                )
            },
        ),
        (
            "path",
            &plain,
            |n| (format!("/item{n}"), vec![]),
            |n| (format!("//x/../%69tem{n}?{n}"), vec![]),
        ),
        (
            "client-ip",
            &behind_proxy,
            |n| {
                (
                    "/".into(),
                    vec![("x-forwarded-for", format!("192.0.2.{n}"))],
                )
            },
            |n| {
                let forwarded = format!("198.51.100.1, 192.0.2.{n}:99, 127.0.0.9");
                ("/".into(), vec![("x-forwarded-for", forwarded)])
            },
        ),
    ];
    for (number, (hash_on, waypost, ask, ask_alike)) in cases.into_iter().enumerate() {
        let host = format!("{number}.test");
        for sample in &samples {
            plain.put(&host, sample, "").await;
        }
        let settings = format!(r#"{{"balance": "hash", "hash_on": "{hash_on}"}}"#);
        plain.put(&host, "@settings", &settings).await;
        let is_applied = async || {
            let routes = behind_proxy.api(&format!("/api/routes?host={host}")).await;
            routes["routes"][0]["balance"] == "hash"
        };
        eventually("both have the route", is_applied).await;
        let mut client = Client::connect(waypost.address()).await.unwrap();
        let mut seen = BTreeMap::new();
        for key in 0..40 {
            let mut bodies = Vec::new();
            for (path, fields) in [ask(key), ask_alike(key), ask(key)] {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| (*name, &**value))
                    .collect();
                let answer = client.ask_with("GET", &host, &path, &fields).await.unwrap();
                bodies.push(answer.into_body());
            }
            assert!(
                bodies.iter().all(|body| *body == bodies[0]),
                "{hash_on} {key}: {bodies:?}"
            );
            *seen.entry(bodies.remove(0)).or_insert(0) += 1;
        }
        assert!(seen.len() > 4, "{hash_on}: {seen:?}");
    }
}

#[tokio::test]
async fn a_client_is_its_address_without_the_port_and_nothing_it_claims() {
    let (waypost, _samples) = five(r#"{"balance": "hash"}"#).await;
    let mut seen = BTreeMap::new();
    for last in 1..=30 {
        let from = [127, 0, 0, last].into();
        let mut bodies = Vec::new();
        for claim in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            let mut client = Client::connect_from(from, waypost.address()).await.unwrap();
            let fields = [("x-forwarded-for", claim)];
            let answer = client.ask_with("GET", HOST, "/", &fields).await.unwrap();
            bodies.push(answer.into_body());
        }
        assert!(
            bodies.iter().all(|body| *body == bodies[0]),
            "{from}: {bodies:?}"
        );
        *seen.entry(bodies.remove(0)).or_insert(0) += 1;
    }
    assert!(seen.len() > 2, "{seen:?}");
}

#[tokio::test]
async fn requests_without_a_key_go_to_all() {
    let (waypost, samples) = five(BY_USER).await;
    let mut client = Client::connect(waypost.address()).await.unwrap();
    for _ in 0..250 {
        assert_eq!(client.get(HOST, "/").await.unwrap().status(), 200);
    }
    // Mean 50, standard deviation 6.3.
    let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
    assert!(hits.iter().all(|hits| (18..=82).contains(hits)), "{hits:?}");
}

#[tokio::test]
async fn one_hot_key_does_not_bury_its_upstream() {
    let (waypost, samples) = five(BY_USER).await;
    let mut clients = tokio::task::JoinSet::new();
    for count in 1..=40 {
        let mut client = Client::connect(waypost.address()).await.unwrap();
        clients.spawn(async move {
            let fields = [("x-user", "hot")];
            client
                .ask_with("GET", HOST, "/hold", &fields)
                .await
                .unwrap();
        });
        eventually("it is held", async || {
            samples.iter().map(Sample::hits).sum::<usize>() == count
        })
        .await;
    }
    // 1.25 of 40 / 5, and 8 in any case.
    let hits: Vec<_> = samples.iter().map(Sample::hits).collect();
    assert_eq!(hits.iter().max(), Some(&10), "{hits:?}");
    for sample in &samples {
        sample.release();
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

const USERS: usize = 300;

async fn five(settings: &str) -> (Waypost, Vec<Sample>) {
    let waypost = Waypost::builder().flag("--workers", 2).start().await;
    let mut samples = Vec::new();
    for _ in 0..5 {
        let sample = Sample::start().await;
        waypost.put(HOST, &sample, "").await;
        samples.push(sample);
    }
    waypost.put(HOST, "@settings", settings).await;
    (waypost, samples)
}

/// Who answers each user.
async fn owners(waypost: &Waypost) -> Vec<String> {
    let mut client = Client::connect(waypost.address()).await.unwrap();
    let mut owners = Vec::new();
    for user in 0..USERS {
        let user = user.to_string();
        let answer = client
            .ask_with("GET", HOST, "/", &[("x-user", &user)])
            .await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200, "{user}");
        owners.push(answer.into_body());
    }
    owners
}

fn tally(owners: &[String]) -> BTreeMap<&str, usize> {
    let mut tally = BTreeMap::new();
    for owner in owners {
        *tally.entry(owner.as_str()).or_default() += 1;
    }
    tally
}
