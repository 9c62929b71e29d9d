//! A key with its value: what both together say. The one parser behind `serve` and `check`.

use std::sync::Arc;

use super::{
    RouteId, Settings,
    key::{self, BadKey, Key},
    value::{BadValue, UpstreamOptions},
};
use crate::upstream::Address;

/// What a key and its value say.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// A route has this upstream.
    Upstream {
        /// Which route.
        route: RouteId,
        /// Where the upstream is.
        address: Address,
        /// How the route uses it.
        options: UpstreamOptions,
    },
    /// A route has these settings.
    Settings {
        /// Which route.
        route: RouteId,
        /// Its settings.
        settings: Arc<Settings>,
    },
    /// The fleet's own: nothing about routes.
    Fleet,
}

/// Why a key is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// The key itself.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// Its value.
    #[error(transparent)]
    Value(#[from] BadValue),
}

/// What `key` and `value` say below `prefix`.
///
/// # Errors
/// Says what is wrong and what to write instead.
pub fn parse(prefix: &str, key: &[u8], value: &[u8]) -> Result<Meaning, BadEntry> {
    Ok(meaning(key::parse(prefix, key)?, value)?)
}

/// The second half of [`parse`].
///
/// # Errors
/// Only about the value.
pub fn meaning(key: Key, value: &[u8]) -> Result<Meaning, BadValue> {
    Ok(match key {
        Key::Upstream { route, address } => {
            let options = UpstreamOptions::parse(value)?;
            if options.tls.is_some() && matches!(address, Address::Unix(_)) {
                return Err(BadValue::NotSupportedYet(
                    "\"tls\" over a socket file".to_owned(),
                ));
            }
            Meaning::Upstream {
                route,
                address,
                options,
            }
        }
        Key::Settings { route } => Meaning::Settings {
            route,
            settings: Arc::new(Settings::parse(value)?),
        },
        Key::Fleet => Meaning::Fleet,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_not_left_out_in_silence_where_a_socket_file_is_dialled() {
        let parse = |upstream: &str, value: &str| {
            let key = format!("/hosts/a.test/{upstream}");
            parse("/hosts/", key.as_bytes(), value.as_bytes())
        };
        let (tcp, unix, tls) = ("10.0.0.7:443", "unix:%2Frun%2Fapp.sock", r#"{"tls": true}"#);
        assert!(parse(tcp, tls).is_ok());
        assert!(parse(unix, r#"{"tls": false}"#).is_ok());
        let error = parse(unix, tls).expect_err("it is plain").to_string();
        assert!(error.contains("\"tls\" over a socket file"), "{error}");
    }
}
