//! Every client with every upstream: HTTP/1.1 and HTTP/2 in front of and behind one Waypost, with one set of words for
//! what is asked, what arrives, what is answered and what is seen.

mod clients;
mod origins;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{sync::Semaphore, time::timeout};

use self::{
    clients::{http1_body, http1_head, open_h2},
    origins::{over_h2, over_http1},
};
use super::{
    h2_client::{H2Client, collect},
    h2_origin::H2Origin,
    http::{Message, Wire},
    origin::Origin,
    waypost::{Builder, DEADLINE, Waypost, eventually},
};

/// What is spoken on one side of Waypost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    H2,
}

pub use self::clients::Opened;
use Speaks::{H2, Http1};

pub type Fields = Vec<(String, String)>;

/// Fields as they are written in tests.
pub fn fields(fields: &[(&str, &str)]) -> Fields {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    fields.iter().map(owned).collect()
}

/// The values of the fields of this name.
pub fn values<'f>(fields: &'f Fields, name: &str) -> Vec<&'f str> {
    let named = fields.iter().filter(|(other, _)| other == name);
    named.map(|(_, value)| value.as_str()).collect()
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Asks {
    pub method: &'static str,
    pub path: &'static str,
    pub fields: Fields,
    pub body: Body,
}

/// The body of a request.
#[derive(Clone, Debug)]
pub enum Body {
    None,
    /// Of a length that is announced.
    Length(Bytes),
    /// Of none, with these trailers: chunked, over HTTP/1.1.
    Unknown(Bytes, Fields),
}

/// A request as it reached its upstream, or a response as it reached its client.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `METHOD TARGET`, or a status.
    pub line: String,
    pub host: String,
    /// Without `Host`; names in lower case.
    pub fields: Fields,
    pub body: Bytes,
    pub trailers: Fields,
    /// Whether all of the body came.
    pub whole: bool,
}

impl Seen {
    pub fn all(&self, name: &str) -> Vec<&str> {
        values(&self.fields, name)
    }
}

/// What the upstreams answer.
#[derive(Clone, Debug, Default)]
pub struct Says {
    pub fields: Vec<(&'static str, &'static str)>,
    /// What `Content-Length` says; none for a body that ends by framing.
    pub length: Option<usize>,
    pub pieces: Vec<Bytes>,
    pub trailers: Vec<(&'static str, &'static str)>,
    pub ends: Ends,
    /// Before the request's body was read.
    pub early: bool,
    /// Each piece of the body takes a permit, and so does the end.
    pub gate: Option<Arc<Semaphore>>,
}

/// How an upstream's answer ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ends {
    #[default]
    Whole,
    /// In the middle of the body.
    Cut,
    /// Before it began.
    HangsUp,
    /// When the other side has had enough.
    Never,
}

/// One Waypost with an upstream of each kind, which answer alike.
pub struct Pairs {
    pub waypost: Waypost,
    seen: Arc<Log>,
    _origins: (Origin, H2Origin),
}

#[derive(Default)]
struct Log {
    requests: Mutex<Vec<Seen>>,
    cancelled: AtomicUsize,
}

/// One combination of client and upstream.
pub struct Pair<'p> {
    pub front: Speaks,
    pub upstream: Speaks,
    pairs: &'p Pairs,
}

impl fmt::Debug for Pair<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in front of {:?}", self.front, self.upstream)
    }
}

impl Pairs {
    /// With these settings of the routes.
    pub async fn new(settings: &str, says: Says) -> Self {
        Self::of(Waypost::builder(), settings, says).await
    }

    pub async fn of(waypost: Builder, settings: &str, says: Says) -> Self {
        let seen = Arc::<Log>::default();
        let one = Origin::run({
            let (seen, says) = (seen.clone(), says.clone());
            move |served| over_http1(served, says.clone(), seen.clone())
        });
        let two = H2Origin::each({
            let seen = seen.clone();
            move |exchange| over_h2(exchange, says.clone(), seen.clone())
        });
        let origins = (one.await, two.await);
        let waypost = waypost.start().await;
        waypost.put("one.test", &origins.0, "").await;
        let options = r#"{"protocol": "h2"}"#;
        waypost.put("two.test", &origins.1, options).await;
        for host in ["one.test", "two.test"] {
            waypost.put(host, "@settings", settings).await;
        }
        Self {
            waypost,
            seen,
            _origins: origins,
        }
    }

    /// All four.
    pub fn all(&self) -> impl Iterator<Item = Pair<'_>> {
        let pairs = [(Http1, Http1), (Http1, H2), (H2, Http1), (H2, H2)];
        pairs.into_iter().map(|(front, upstream)| Pair {
            front,
            upstream,
            pairs: self,
        })
    }
}

impl Pair<'_> {
    /// The host whose requests reach this upstream.
    pub fn host(&self) -> &'static str {
        match self.upstream {
            Http1 => "one.test",
            H2 => "two.test",
        }
    }

    /// Asks, on a connection of its own, and waits for all of the answer.
    pub async fn ask(&self, asks: &Asks) -> Seen {
        let asking = async {
            match self.front {
                Http1 => {
                    let mut wire = Wire::connect(self.pairs.waypost.address()).await;
                    let (mut reading, mut writing) = {
                        wire.send(http1_head(asks, self.host())).await;
                        wire.split()
                    };
                    let body = http1_body(&asks.body);
                    let sending = async {
                        // Who is answered early need not be read to the end.
                        let _ = tokio::io::AsyncWriteExt::write_all(&mut writing, &body).await;
                    };
                    let (answer, ()) = tokio::join!(reading.try_response(asks.method), sending);
                    answer.map(|answer| of_message(&answer)).unwrap_or_default()
                }
                H2 => {
                    let client = H2Client::connect(self.pairs.waypost.address()).await;
                    let (response, _stream) = open_h2(&client, asks, self.host()).await;
                    let Ok(answer) = collect(response).await else {
                        return Seen::default();
                    };
                    Seen {
                        line: answer.status().to_string(),
                        fields: of_map(answer.head.headers()),
                        body: answer.body,
                        trailers: of_map(&answer.trailers),
                        whole: true,
                        ..Seen::default()
                    }
                }
            }
        };
        let seen = timeout(DEADLINE, asking).await;
        seen.unwrap_or_else(|_| panic!("{self:?}: {asks:?} has no end"))
    }

    /// Asks, a body included, and leaves it to the caller to read the answer.
    pub async fn open(&self, asks: &Asks) -> Opened {
        let address = self.pairs.waypost.address();
        match self.front {
            Http1 => {
                let mut wire = Wire::connect(address).await;
                let request = [http1_head(asks, self.host()), http1_body(&asks.body)].concat();
                wire.send(request).await;
                Opened::Http1(wire)
            }
            H2 => {
                let client = H2Client::connect(address).await;
                let (response, _stream) = open_h2(&client, asks, self.host()).await;
                Opened::H2(Box::pin(response), None)
            }
        }
    }

    /// The latest request of any upstream.
    pub fn latest(&self) -> Seen {
        let requests = self.pairs.seen.requests.lock().unwrap();
        requests.last().cloned().expect("it was asked")
    }

    /// How many requests came in all.
    pub fn asked(&self) -> usize {
        self.pairs.seen.requests.lock().unwrap().len()
    }

    /// Waits until so many requests were given up by the other side.
    pub async fn cancelled(&self, count: usize) {
        let cancelled = || self.pairs.seen.cancelled.load(Ordering::SeqCst);
        eventually("the request upstream is cancelled", async || {
            cancelled() >= count
        })
        .await;
    }
}

fn to_map(fields: &Fields) -> HeaderMap {
    let parsed = |(name, value): &(String, String)| {
        let name: HeaderName = name.parse().unwrap();
        (name, HeaderValue::try_from(value).unwrap())
    };
    fields.iter().map(parsed).collect()
}

fn of_map(map: &HeaderMap) -> Fields {
    let fields = map.iter();
    let owned = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.to_string(), value.to_str().expect("text").to_owned())
    };
    fields.map(owned).collect()
}

fn of_message(message: &Message) -> Seen {
    let lower = |fields: &Fields| -> Fields {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (name.to_lowercase(), value.clone()))
            .collect()
    };
    let mut words = message.head.line.split(' ');
    let line = match words.next() {
        Some("HTTP/1.1") => words.next().unwrap_or_default().to_owned(),
        method => format!(
            "{} {}",
            method.unwrap_or_default(),
            words.next().unwrap_or_default()
        ),
    };
    let mut fields = lower(&message.head.fields);
    fields.retain(|(name, _)| name != "host");
    Seen {
        line,
        host: message.head.all("host").join(" and "),
        fields,
        body: message.body.clone().into(),
        trailers: lower(&message.trailers),
        whole: message.whole,
    }
}
