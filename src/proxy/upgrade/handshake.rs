//! How a WebSocket is asked for and granted: HTTP/1.1 has an upgrade with a key and its proof (RFC 6455 section 4),
//! HTTP/2 an extended CONNECT without (RFC 8441 section 5). Each side of ours may speak either.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use h2::ext::Protocol;
use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
    request::Parts,
};

use crate::proxy::headers;

/// What every proof is made with (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A client's wish for a WebSocket.
#[derive(Clone, Debug)]
pub enum Handshake {
    /// Over HTTP/1.1: its key, if it is a handshake as it should be. An upstream of HTTP/1.1 gets it as it is, and says
    /// what is missing; one of HTTP/2 could not, and gets none without a key.
    Upgrade(Option<HeaderValue>),
    /// Over HTTP/2: a key of ours, for upstreams of HTTP/1.1.
    Connect(Box<str>),
}

impl Handshake {
    /// What this request, which has no body, asks for; `None` if for no WebSocket. Other upgrades are not passed on.
    pub fn of(request: &Parts) -> Option<Self> {
        match request.version {
            Version::HTTP_2 => {
                // Whoever accepted the stream has looked at what it is for.
                request.extensions.get::<Protocol>()?;
                let key: [u8; 16] = rand::random();
                Some(Self::Connect(STANDARD.encode(key).into()))
            }
            Version::HTTP_11 if asks_to_upgrade(request) => {
                Some(Self::Upgrade(key_of(&request.headers)))
            }
            _ => None,
        }
    }

    /// Whether the client awaits 200 and not 101.
    pub fn is_connect(&self) -> bool {
        matches!(self, Self::Connect(_))
    }

    /// Whether it has all that a server must ask for (RFC 6455 section 4.2.1).
    pub fn is_complete(&self) -> bool {
        !matches!(self, Self::Upgrade(None))
    }

    /// The proof that goes with the key; `None` if there is no key.
    pub fn proof(&self) -> Option<HeaderValue> {
        let key = match self {
            Self::Upgrade(key) => key.as_ref()?.as_bytes(),
            Self::Connect(key) => key.as_bytes(),
        };
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
        HeaderValue::try_from(STANDARD.encode(hash)).ok()
    }

    /// Whether an upstream of HTTP/1.1 that switched has proved that it meant to. Where the key is the client's own, so
    /// is the check.
    pub fn is_proved_by(&self, fields: &HeaderMap) -> bool {
        match self {
            Self::Upgrade(_) => true,
            Self::Connect(_) => fields.get(SEC_WEBSOCKET_ACCEPT) == self.proof().as_ref(),
        }
    }
}

/// RFC 6455 section 4.1.
fn asks_to_upgrade(request: &Parts) -> bool {
    request.headers.contains_key(UPGRADE)
        && request.method == Method::GET
        && headers::connection_has(&request.headers, b"upgrade")
        && request
            .headers
            .get(UPGRADE)
            .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The one key, 16 bytes in base64, of a handshake in the one version there is (RFC 6455 section 4.2.1).
fn key_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let only = |name| {
        let mut all = headers.get_all(name).iter();
        all.next().filter(|_| all.next().is_none())
    };
    only(SEC_WEBSOCKET_VERSION).filter(|version| *version == "13")?;
    let key = only(SEC_WEBSOCKET_KEY)?;
    let decoded = STANDARD.decode(key).ok()?;
    (decoded.len() == 16).then(|| key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_rfc() {
        // RFC 6455 section 1.3.
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        for handshake in [
            Handshake::Upgrade(Some(HeaderValue::from_static(key))),
            Handshake::Connect(key.into()),
        ] {
            let proof = handshake.proof().expect("it has a key");
            assert_eq!(proof, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        }
    }

    #[test]
    fn only_a_key_of_ours_is_checked_here() {
        let mut fields = HeaderMap::new();
        let (ours, theirs) = (Handshake::Connect("x".into()), Handshake::Upgrade(None));
        assert!(!ours.is_proved_by(&fields) && theirs.is_proved_by(&fields));
        fields.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("nonsense"));
        assert!(!ours.is_proved_by(&fields));
        fields.insert(SEC_WEBSOCKET_ACCEPT, ours.proof().expect("it has a key"));
        assert!(ours.is_proved_by(&fields));
    }
}
