//! Origins that misbehave: what they do to a connection as a small script, and every point of an exchange as one.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use super::{
    http::Message,
    origin::{Origin, Served},
};

/// One thing that an origin does to a connection.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reads a client's hello, and leaves the TLS handshake at that.
    Hello,
    /// Shakes hands, if it speaks TLS. Nothing else comes of what follows if that fails.
    Secure,
    /// Reads a request's head and remembers it.
    Head,
    /// Reads a whole request and remembers it.
    Request,
    /// Reads this much of a body.
    Some(usize),
    /// Says this, well-formed or not.
    Say(Vec<u8>),
    /// Says this again and again, until nobody takes more of it, or it was [`FLOOD`] bytes.
    Flood(Vec<u8>),
    /// Ends the connection in order; over TLS without a word of goodbye.
    Close,
    /// Ends the connection by a reset.
    Reset,
    /// Is silent from now on, until the other side ends the connection.
    Stall,
    /// Reads one request after the other, and answers none.
    Listen,
}

/// No flood is larger.
pub const FLOOD: usize = 64 << 20;

/// Where in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Accepted, and not a byte read.
    Accept,
    /// Its hello read, and not answered.
    Handshake,
    /// The handshake over, and no request read.
    BeforeRequest,
    /// A request's head read, and nothing of its body.
    RequestHead,
    /// A part of a body read.
    Upload,
    /// All of a request read.
    BeforeHead,
    /// After an interim response.
    AfterInterim,
    /// In the status line.
    StatusLine,
    /// In a field of the head.
    InHead,
    /// Behind a head that announces a body.
    AfterHead,
    /// In a body of announced length.
    InBody,
    /// In a body that ends with the connection.
    InEndless,
    /// In a chunk-size line.
    ChunkHeader,
    /// In a chunk.
    InChunk,
    /// Behind a chunk.
    BeforeLastChunk,
    /// In the trailer section.
    Trailers,
    /// Behind a whole response, at once.
    AfterResponse,
}

/// What it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Close,
    Reset,
    Stall,
    Flood(&'static str),
    Say(&'static str),
}

const LENGTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

impl Point {
    /// What leads there.
    fn steps(self) -> Vec<Step> {
        let said = |text: String| vec![Step::Secure, Step::Request, Step::Say(text.into())];
        match self {
            Self::Accept => Vec::new(),
            Self::Handshake => vec![Step::Hello],
            Self::BeforeRequest => vec![Step::Secure],
            Self::RequestHead => vec![Step::Secure, Step::Head],
            Self::Upload => vec![Step::Secure, Step::Head, Step::Some(1000)],
            Self::BeforeHead => vec![Step::Secure, Step::Request],
            Self::AfterInterim => said("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".into()),
            Self::StatusLine => said("HTTP/1.1 20".into()),
            Self::InHead => said("HTTP/1.1 200 OK\r\ncontent-le".into()),
            Self::AfterHead => said(LENGTH.into()),
            Self::InBody => said(format!("{LENGTH}hello")),
            Self::InEndless => said("HTTP/1.1 200 OK\r\n\r\nhello".into()),
            Self::ChunkHeader => said(format!("{CHUNKED}5\r\nhello\r\n5")),
            Self::InChunk => said(format!("{CHUNKED}5\r\nhello\r\n5\r\nwor")),
            Self::BeforeLastChunk => said(format!("{CHUNKED}5\r\nhello\r\n5\r\nworld\r\n")),
            Self::Trailers => said(format!("{CHUNKED}5\r\nhello\r\n5\r\nworld\r\n0\r\nx-s")),
            Self::AfterResponse => said(format!("{LENGTH}helloworld")),
        }
    }

    /// The script that goes there and does this. It keeps the connection open where the act leaves it so, to see
    /// whether another request comes over it.
    pub fn script(self, act: Act) -> Vec<Step> {
        let mut steps = self.steps();
        match act {
            Act::Close => steps.push(Step::Close),
            Act::Reset => steps.push(Step::Reset),
            Act::Stall => steps.push(Step::Stall),
            Act::Flood(piece) => {
                say(&mut steps, piece);
                steps.extend([Step::Flood(piece.into()), Step::Listen]);
            }
            Act::Say(text) => {
                say(&mut steps, text);
                steps.push(Step::Listen);
            }
        }
        steps
    }
}

/// In one breath with what was said before, so that both arrive together.
fn say(steps: &mut Vec<Step>, text: &str) {
    match steps.last_mut() {
        Some(Step::Say(said)) => said.extend_from_slice(text.as_bytes()),
        _ => steps.push(Step::Say(text.into())),
    }
}

/// An origin that plays `script` on each of its connections, over TLS if it has a configuration for that.
pub async fn misbehaving(script: Vec<Step>, tls: Option<Arc<ServerConfig>>) -> Origin {
    let script: Arc<[Step]> = script.into();
    let acceptor = tls.map(TlsAcceptor::from);
    Origin::run(move |served| play(served, script.clone(), acceptor.clone())).await
}

async fn play(mut served: Served, script: Arc<[Step]>, acceptor: Option<TlsAcceptor>) {
    for step in script.iter() {
        let goes_on = match step {
            Step::Hello => served.wire.fill().await.is_ok(),
            Step::Secure => match &acceptor {
                Some(acceptor) => served.secure(acceptor).await,
                None => true,
            },
            Step::Head => match served.wire.head().await {
                Ok(head) => {
                    served.note(Message {
                        head,
                        ..Message::default()
                    });
                    true
                }
                Err(_) => false,
            },
            Step::Request => served.request().await.is_some(),
            Step::Some(count) => served.wire.take(*count).await.is_ok(),
            // Who is not listened to any more still looks at what comes.
            Step::Say(text) => {
                served.send(text).await;
                true
            }
            Step::Flood(piece) => {
                flood(&mut served, piece).await;
                true
            }
            Step::Close => false,
            Step::Reset => {
                served.wire.reset();
                false
            }
            Step::Stall => {
                served.wire.take_rest().await;
                false
            }
            Step::Listen => {
                while served.request().await.is_some() {}
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

async fn flood(served: &mut Served, piece: &[u8]) {
    let piece = piece.repeat((64 * 1024 / piece.len()).max(1));
    let mut left = FLOOD / piece.len();
    while left > 0 && served.send(&piece).await {
        left -= 1;
    }
}
