//! Where messages begin and end, as bytes on the wire: whatever a client sends is refused, or reaches the upstream as one
//! canonical request, and nobody ever gets the answer to another's request (RFC 9112; FAULTS "Clients" 2 to 5 and 15).

mod http2;
mod recorder;
mod requests;

use std::net::SocketAddr;

use http2::{AFTER, BROKEN, Came, Frames, Goes, PASSED, REFUSED};
use recorder::{Arrived, Recorder};
use requests::{Case, Fate, Then, all, get};

use crate::support::{
    http::{End, Message, Wire},
    waypost::Waypost,
};

/// How a case is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// At once.
    Whole,
    /// Byte by byte.
    Bytewise,
    /// With another request behind it.
    Followed,
    /// Behind another request.
    Preceded,
}

#[tokio::test]
async fn requests_are_refused_or_arrive_as_one_canonical_request() {
    let bench = Bench::start().await;
    let cases = all();
    assert!(cases.len() > 300, "{}", cases.len());
    let mut faults = Vec::new();
    for case in &cases {
        for sent in [Sent::Whole, Sent::Bytewise, Sent::Followed, Sent::Preceded] {
            let played = bench.play(case, sent).await;
            faults.extend(played.err().map(|fault| {
                let bytes = String::from_utf8_lossy(&case.bytes);
                format!("{bytes:?}, {sent:?}: {fault}")
            }));
        }
    }
    assert!(
        faults.is_empty(),
        "{}:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[tokio::test]
async fn requests_of_http2_are_refused_or_arrive_as_one_canonical_request() {
    let bench = Bench::start().await;
    let mut faults = Vec::new();
    for case in PASSED.iter().chain(REFUSED).chain(BROKEN) {
        let played = bench.play_http2(case).await;
        faults.extend(played.err().map(|fault| format!("{case:?}: {fault}")));
    }
    assert!(
        faults.is_empty(),
        "{}:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// One worker, and one upstream for every host: what is sent to it comes over one connection as long as none breaks.
struct Bench {
    origin: Recorder,
    waypost: Waypost,
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

fn arrived(path: &str) -> Arrived {
    Arrived {
        line: format!("GET {path} HTTP/1.1"),
        ..get()
    }
}

impl Bench {
    async fn start() -> Self {
        let origin = Recorder::start().await;
        let waypost = Waypost::builder().flag("--workers", 1).start().await;
        waypost.put("*", &origin, "").await;
        Self { origin, waypost }
    }

    /// Plays one case; what is wrong with what came of it.
    async fn play(&self, case: &Case, sent: Sent) -> Result<(), String> {
        let connections = self.origin.connections();
        let mut expected = Vec::new();
        let mut client = Wire::connect(self.waypost.address()).await;
        let before = if sent == Sent::Preceded {
            &*request("/before")
        } else {
            ""
        };
        let after = if sent == Sent::Followed {
            &*request("/after")
        } else {
            ""
        };
        let bytes = [before.as_bytes(), &case.bytes, after.as_bytes()].concat();
        let step = if sent == Sent::Bytewise {
            1
        } else {
            bytes.len()
        };
        for piece in bytes.chunks(step) {
            client.send(piece).await;
        }
        if sent == Sent::Preceded {
            own(client.try_response("GET").await, "/before")?;
            expected.push(arrived("/before"));
        }
        match &case.fate {
            Fate::Refused(status) => refused(client, *status).await?,
            Fate::Broken(partial) => {
                broken(client).await?;
                expected.push(partial.clone());
            }
            Fate::Passed(passed, then) => {
                let path = passed.line.split(' ').nth(1).unwrap_or_default();
                own(client.try_response("GET").await, path)?;
                expected.push(passed.clone());
                if *then == Then::Closed {
                    nothing_more(client).await?;
                } else {
                    if sent != Sent::Followed {
                        client.send(request("/after")).await;
                    }
                    own(client.try_response("GET").await, "/after")?;
                    expected.push(arrived("/after"));
                }
            }
        }
        own(fresh(self.waypost.address()).await, "/fresh")?;
        expected.push(arrived("/fresh"));
        let seen = self.origin.take();
        if seen != expected {
            return Err(format!(
                "the origin was to get {expected:?}, and got {seen:?}"
            ));
        }
        let is_broken = matches!(case.fate, Fate::Broken(_));
        if is_broken {
            self.origin.only_latest_open().await;
        }
        match self.origin.connections() - connections {
            new if new == usize::from(is_broken || connections == 0) => Ok(()),
            new => Err(format!("{new} new connections to the origin")),
        }
    }
}

impl Bench {
    /// Plays one case; what is wrong with what came of it.
    async fn play_http2(&self, case: &http2::Case) -> Result<(), String> {
        let mut client = Frames::open(&self.waypost).await;
        let came = client.play(case).await;
        let is_answered = came == Came::Answered("/case".to_owned());
        if is_answered != (case.goes() == Goes::On) {
            return Err(format!("{came:?}"));
        }
        let mut expected = Vec::new();
        if is_answered {
            expected.push(case.arrived());
        }
        // What is wrong with one stream is the end of that one, and of the connection only if it was no HTTP/2.
        if came != Came::Ended {
            let after = client.play(&AFTER).await;
            if after != Came::Answered("/after".to_owned()) {
                return Err(format!("then {after:?}"));
            }
            expected.push(arrived("/after"));
        }
        own(fresh(self.waypost.address()).await, "/fresh")?;
        expected.push(arrived("/fresh"));
        // What broke on its way was never a request.
        let mut seen = self.origin.take();
        let early = case.goes() == Goes::Perhaps;
        seen.retain(|seen| seen.whole && !(early && seen.line == case.arrived().line));
        if seen != expected {
            return Err(format!(
                "the origin was to get {expected:?}, and got {seen:?}"
            ));
        }
        Ok(())
    }
}

async fn fresh(address: SocketAddr) -> Result<Message, End> {
    let mut client = Wire::connect(address).await;
    client.send(request("/fresh")).await;
    client.try_response("GET").await
}

/// The answer is the one to the request for this path.
fn own(answer: Result<Message, End>, path: &str) -> Result<(), String> {
    match answer {
        Ok(answer) if answer.status() == 200 && answer.text() == path => Ok(()),
        other => Err(format!("no answer for {path}, but {other:?}")),
    }
}

/// Our own refusal, and the end behind it.
async fn refused(mut client: Wire, status: u16) -> Result<(), String> {
    match client.try_response("GET").await {
        Ok(answer) if answer.status() == status && answer.error().starts_with("http_request_") => {}
        other => return Err(format!("to be refused with {status}, but {other:?}")),
    }
    nothing_more(client).await
}

/// A refusal or none, and the end.
async fn broken(mut client: Wire) -> Result<(), String> {
    match client.try_response("GET").await {
        Err(_) => Ok(()),
        Ok(answer) if answer.status() == 400 => nothing_more(client).await,
        other => Err(format!("to be cut off, but {other:?}")),
    }
}

async fn nothing_more(mut client: Wire) -> Result<(), String> {
    match client.take_rest().await {
        (rest, End::Fin) if rest.is_empty() => Ok(()),
        (rest, end) => Err(format!(
            "{:?} and {end:?} at the end",
            String::from_utf8_lossy(&rest)
        )),
    }
}
