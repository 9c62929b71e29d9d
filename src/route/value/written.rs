//! Options of an upstream as they are written: JSON in, final types out.

use std::{fmt, num::NonZeroU32, sync::Arc};

use serde::{Deserialize, Deserializer, de};

use super::{BadValue, UpstreamOptions};
use crate::{
    route::{
        Role,
        json::optional_object,
        settings::{Count, IdleSpan, Span, Word, Words},
    },
    upstream::{ClientFiles, PoolOptions, Protocol, ProxyProtocol, TlsOptions},
};

const MAX_WEIGHT: u32 = 65_535;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    #[serde(default)]
    weight: Option<Count<0, MAX_WEIGHT>>,
    #[serde(default)]
    tls: Option<WrittenTls>,
    #[serde(default)]
    protocol: Option<Word<Protocol>>,
    #[serde(default, deserialize_with = "optional_object")]
    pool: Option<WrittenPool>,
    #[serde(default)]
    proxy_protocol: Option<Word<ProxyProtocol>>,
    #[serde(default)]
    backup: Option<bool>,
    #[serde(default)]
    drain: Option<bool>,
    #[serde(default)]
    max_requests: Option<Count<1, { u32::MAX }>>,
}

impl Written {
    pub(super) fn finish(self) -> Result<UpstreamOptions, BadValue> {
        let protocol = self.protocol.map(|protocol| protocol.0).unwrap_or_default();
        let proxy_protocol = self.proxy_protocol.map(|version| version.0);
        if proxy_protocol.is_some() && protocol == Protocol::H2 {
            return Err(BadValue::field(
                "proxy_protocol",
                "it tells of one client, and with \"protocol\": \"h2\" many share a connection; leave one of the two out",
            ));
        }
        Ok(UpstreamOptions {
            weight: self.weight.map_or(1, |weight| weight.0),
            role: match (self.drain, self.backup) {
                (Some(true), _) => Role::Draining,
                (_, Some(true)) => Role::Backup,
                _ => Role::Serving,
            },
            max_requests: self.max_requests.and_then(|most| NonZeroU32::new(most.0)),
            tls: match self.tls {
                None | Some(WrittenTls::Switch(false)) => None,
                Some(WrittenTls::Switch(true)) => Some(Arc::default()),
                Some(WrittenTls::Options(options)) => Some(Arc::new(options.finish()?)),
            },
            protocol,
            pool: self.pool.and_then(WrittenPool::finish),
            proxy_protocol,
        })
    }
}

impl Words for Protocol {
    const WORDS: &'static str = r#""http1" or "h2""#;
}

impl Words for ProxyProtocol {
    const WORDS: &'static str = r#""v1" or "v2""#;
}

enum WrittenTls {
    Switch(bool),
    Options(WrittenTlsOptions),
}

impl<'de> Deserialize<'de> for WrittenTls {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(TlsVisitor)
    }
}

struct TlsVisitor;

impl<'de> de::Visitor<'de> for TlsVisitor {
    type Value = WrittenTls;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"true, false, or an object of "sni", "ca", "insecure", "cert" and "key""#)
    }

    fn visit_bool<E>(self, switch: bool) -> Result<WrittenTls, E> {
        Ok(WrittenTls::Switch(switch))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<WrittenTls, A::Error> {
        let map = de::value::MapAccessDeserializer::new(map);
        WrittenTlsOptions::deserialize(map).map(WrittenTls::Options)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTlsOptions {
    #[serde(default)]
    sni: Option<Box<str>>,
    #[serde(default)]
    ca: Option<Box<str>>,
    #[serde(default)]
    insecure: Option<bool>,
    #[serde(default)]
    cert: Option<Box<str>>,
    #[serde(default)]
    key: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPool {
    #[serde(default)]
    idle_timeout: Option<IdleSpan>,
    #[serde(default)]
    max_idle: Option<Count<0, { u16::MAX as u32 }>>,
    #[serde(default)]
    lifetime: Option<Span>,
}

impl WrittenTlsOptions {
    fn finish(self) -> Result<TlsOptions, BadValue> {
        if let Some(sni) = &self.sni
            && rustls::pki_types::ServerName::try_from(&**sni).is_err()
        {
            return Err(BadValue::field(
                "tls.sni",
                format_args!("{sni:?} is no host name"),
            ));
        }
        for (field, path) in [
            ("tls.ca", &self.ca),
            ("tls.cert", &self.cert),
            ("tls.key", &self.key),
        ] {
            if path.as_deref() == Some("") {
                return Err(BadValue::field(field, "expected the path of a PEM file"));
            }
        }
        let client = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some(ClientFiles { cert, key }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(BadValue::field(
                    "tls.cert",
                    "it needs its \"key\" beside it",
                ));
            }
            (None, Some(_)) => {
                return Err(BadValue::field(
                    "tls.key",
                    "it needs its \"cert\" beside it",
                ));
            }
        };
        Ok(TlsOptions {
            sni: self.sni,
            ca: self.ca,
            insecure: self.insecure.unwrap_or(false),
            client,
        })
    }
}

impl WrittenPool {
    /// `None` if that is the defaults: then it is the same upstream as without.
    fn finish(self) -> Option<Arc<PoolOptions>> {
        let default = PoolOptions::default();
        let options = PoolOptions {
            idle_timeout: self
                .idle_timeout
                .map_or(default.idle_timeout, |span| span.0),
            max_idle: self
                .max_idle
                .and_then(|most| u16::try_from(most.0).ok())
                .unwrap_or(default.max_idle),
            lifetime: self.lifetime.map(|span| span.0),
        };
        (options != default).then(|| Arc::new(options))
    }
}
