//! Origins that say more than they were asked for, at once or later: none of it is ever the answer to another request.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::support::{
    front::{Asks, Caller, Front},
    http::Message,
    origin::{Origin, Served},
    waypost::Waypost,
};

/// What comes behind a whole answer, and the method of the request before it.
const SURPLUS: &[(&str, &str)] = &[
    ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"),
    ("GET", "HTTP/1.1 200 OK\r\n\r\nevil, and no end of it"),
    ("GET", "HTTP/1.1 103 Early Hints\r\nlink: </evil>\r\n\r\n"),
    ("GET", "HTTP/1.1 100 Continue\r\n\r\n"),
    // As servers say to whoever is idle for long.
    (
        "GET",
        "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    ),
    ("GET", "\r\n"),
    ("GET", "x"),
    ("GET", "HTTP/1.1 200 OK\r\nx-part: of a head"),
    // The body of what has none.
    ("HEAD", "evil"),
    ("HEAD", "0\r\n\r\n"),
    ("POST", "0\r\nx-trailer: 1\r\n\r\n"),
];

/// When the surplus comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// In one piece with the answer.
    Together,
    /// Once the answer has arrived, and the connection lies idle.
    Later,
}

#[tokio::test]
async fn what_comes_behind_an_answer_is_nobody_elses() {
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let mut number = 0;
    for front in [Front::Http10, Front::Http11, Front::H2] {
        for when in [When::Together, When::Later] {
            for &(method, surplus) in SURPLUS {
                number += 1;
                let host = format!("{number}.test");
                let wordy = Wordy::start(when, surplus).await;
                waypost.put(&host, &wordy.origin, "").await;
                let case = format!("{front:?} {when:?} {method} {surplus:?}");
                let answer = if method == "HEAD" { "" } else { "/first" };
                let seen = ask(&waypost, front, method, &host, "/first").await;
                assert_eq!(seen, (Some(200), answer.to_owned()), "{case}");
                if when == When::Later {
                    wordy.goes_on.notify_one();
                    wordy.said.notified().await;
                }
                let seen = ask(&waypost, front, "GET", &host, "/second").await;
                assert_eq!(seen, (Some(200), "/second".to_owned()), "{case}");
                assert_eq!(wordy.origin.connections(), 2, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn what_comes_before_its_request_makes_no_answer_of_the_real_one() {
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    for front in [Front::Http10, Front::Http11, Front::H2] {
        let (goes_on, said) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let origin = Origin::run({
            let (goes_on, said) = (goes_on.clone(), said.clone());
            move |served| hastily(served, goes_on.clone(), said.clone())
        })
        .await;
        let host = format!("{front:?}.test").to_lowercase();
        waypost.put(&host, &origin, "").await;
        for (path, connections) in [("/first", 1), ("/second", 2), ("/third", 3)] {
            let seen = ask(&waypost, front, "GET", &host, path).await;
            assert_eq!(seen, (Some(200), "hasty".to_owned()), "{front:?} {path}");
            goes_on.notify_one();
            said.notified().await;
            assert_eq!(origin.connections(), connections, "{front:?} {path}");
        }
    }
}

/// An origin that says more on its first connection.
struct Wordy {
    origin: Origin,
    goes_on: Arc<Notify>,
    said: Arc<Notify>,
}

impl Wordy {
    async fn start(when: When, surplus: &'static str) -> Self {
        let (goes_on, said) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let origin = Origin::run({
            let (goes_on, said) = (goes_on.clone(), said.clone());
            move |served| wordily(served, when, surplus, goes_on.clone(), said.clone())
        })
        .await;
        Self {
            origin,
            goes_on,
            said,
        }
    }
}

async fn wordily(
    mut served: Served,
    when: When,
    surplus: &'static str,
    goes_on: Arc<Notify>,
    said: Arc<Notify>,
) {
    while let Some(request) = served.request().await {
        let answer = own_answer(&request);
        if served.connection > 1 {
            served.send(answer).await;
        } else if when == When::Together {
            served.send(answer + surplus).await;
        } else {
            served.send(answer).await;
            goes_on.notified().await;
            served.send(surplus).await;
            said.notify_one();
        }
    }
}

/// Answers before it is asked, and once more when that has arrived.
async fn hastily(mut served: Served, goes_on: Arc<Notify>, said: Arc<Notify>) {
    served
        .send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhasty")
        .await;
    while let Some(request) = served.request().await {
        goes_on.notified().await;
        served.send(own_answer(&request)).await;
        said.notify_one();
    }
}

fn own_answer(request: &Message) -> String {
    let mut words = request.head.line.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let body = if method == Some("HEAD") { "" } else { path };
    let length = path.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Asks over a connection of its own: the status and the body of the answer.
async fn ask(
    waypost: &Waypost,
    front: Front,
    method: &str,
    host: &str,
    path: &str,
) -> (Option<u16>, String) {
    let asks = Asks {
        method,
        host,
        path,
        body: None,
    };
    let seen = Caller::new(front, waypost.address()).await.ask(asks).await;
    (seen.status, seen.body)
}
