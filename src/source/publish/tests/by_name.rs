//! Upstreams by name: a member for each address.

use super::*;

#[tokio::test]
async fn a_name_becomes_one_member_per_address() {
    let mut bench = Bench::start();
    bench.snapshot(1, &[("z.example/10.0.0.9:80", "", 1)]).await;
    bench
        .put("a.example/app.internal:80", "{\"weight\": 3}", 2)
        .await;
    bench.put("a.example/10.0.0.1:80", "", 3).await;
    let Some(Question::Watch(name)) = bench.questions.recv().await else {
        panic!("the name is asked for");
    };
    let route = bench.route("a.example", "/").expect("served");
    assert!(matches!(
        route.members[1].upstream.identity.endpoint,
        Endpoint::Unresolved(..)
    ));
    assert_eq!(
        [pick(&route, &[]), pick(&route, &[])],
        [Some(0); 2],
        "an unresolved member waits"
    );
    assert_eq!(pick(&route, &[0]), Some(1), "unless there is no other");

    let mut tables = bench.live.applied.subscribe();
    let addresses = vec![
        "10.1.0.1".parse().expect("an address"),
        "10.1.0.2".parse().expect("an address"),
    ];
    bench
        .answers
        .send(Answer {
            name: name.clone(),
            addresses,
            fallbacks: Vec::new(),
        })
        .expect("it listens");
    tables.changed().await.expect("it runs");
    assert_eq!(
        bench.upstreams("a.example"),
        ["10.0.0.1:80", "10.1.0.1:80", "10.1.0.2:80"]
    );
    let route = bench.route("a.example", "/").expect("served");
    assert!(route.members[1..].iter().all(|member| member.weight == 3));

    bench.delete("a.example/app.internal:80", 4).await;
    assert_eq!(bench.upstreams("a.example"), ["10.0.0.1:80"]);
    let Some(Question::Forget(forgotten)) = bench.questions.recv().await else {
        panic!("the name is let go of");
    };
    assert_eq!(forgotten, name);
}

#[tokio::test]
async fn a_name_that_moves_to_another_route_keeps_its_addresses() {
    let mut bench = Bench::start();
    let move_to = |from: &str, to: &str, revision| Update::Changes {
        changes: vec![
            Change::Delete {
                key: full(&format!("{from}/app.internal:80")),
                mod_revision: revision,
            },
            Change::Put(entry(&format!("{to}/app.internal:80"), "", revision)),
        ],
        revision,
    };
    bench.snapshot(1, &[]).await;
    bench.put("a.example/app.internal:80", "", 2).await;
    let mut tables = bench.live.applied.subscribe();
    bench
        .answers
        .send(Answer {
            name: "app.internal".into(),
            addresses: vec!["10.1.0.1".parse().expect("an address")],
            fallbacks: Vec::new(),
        })
        .expect("it listens");
    tables.changed().await.expect("it runs");
    assert_eq!(bench.upstreams("a.example"), ["10.1.0.1:80"]);
    // Often, because drafts are built in no order.
    for revision in (3..40).step_by(2) {
        bench
            .apply(move_to("a.example", "b.example", revision), revision)
            .await;
        assert_eq!(bench.upstreams("b.example"), ["10.1.0.1:80"]);
        let next = revision + 1;
        bench
            .apply(move_to("b.example", "a.example", next), next)
            .await;
        assert_eq!(bench.upstreams("a.example"), ["10.1.0.1:80"]);
    }
    assert!(matches!(
        bench.questions.recv().await,
        Some(Question::Watch(_))
    ));
    assert!(bench.questions.try_recv().is_err(), "asked for once");
}

#[tokio::test]
async fn the_first_table_waits_for_its_names() {
    let mut bench = Bench::start();
    let mut questions = std::mem::replace(&mut bench.questions, mpsc::unbounded_channel().1);
    let answer = Answer {
        name: "app.internal".into(),
        addresses: vec!["10.1.0.1".parse().expect("an address")],
        fallbacks: Vec::new(),
    };
    let first = bench.snapshot(1, &[("a.example/app.internal:80", "", 1)]);
    let answers = bench.answers.clone();
    let replies = async {
        questions.recv().await.expect("the name is asked for");
        answers.send(answer).expect("it listens");
    };
    tokio::join!(first, replies);
    let table = bench.live.table.load();
    let route = table.find("a.example", "/").expect("served");
    assert_eq!(&*route.members[0].upstream.name, "10.1.0.1:80");
}
