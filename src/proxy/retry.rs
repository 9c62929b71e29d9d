//! Whether a failed attempt may be followed by another: never when the upstream could have acted on a request that
//! must not be repeated, and only after what the route's settings name.

use std::{io::ErrorKind, time::Duration};

use http::{Method, StatusCode};

use crate::{
    route::settings::RetryOn,
    upstream::{dial::DialError, http1::ExchangeError},
};

/// A connection from a pool that ends within this time of being taken, before a byte of an answer, had been closed by
/// then: the word of it was on its way. One that ends later ended at work.
pub const STALE_WITHIN: Duration = Duration::from_secs(1);

/// An attempt that did not lead to an answer the client should get.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'e> {
    /// The upstream refused the connection, or cannot be reached: nothing left, and nobody waited.
    Refused,
    /// No connection, or no stream on one, after a wait: nothing left.
    Dial,
    /// HTTP/2: the upstream ends the connection, and says that it did nothing about the request; or it never left.
    GoneAway {
        /// The body can be sent from its beginning.
        body_repeatable: bool,
    },
    /// HTTP/2: the upstream says that it did nothing about the request, and takes others on the same connection.
    RefusedStream {
        /// The body can be sent from its beginning.
        body_repeatable: bool,
    },
    /// A connection, and no response head.
    Exchange {
        /// What happened.
        error: &'e ExchangeError,
        /// Bytes the kernel took from us (HTTP/2: that it may have taken).
        written: u64,
        /// The body can be sent from its beginning.
        body_repeatable: bool,
        /// The connection came from a pool, and ended within [`STALE_WITHIN`] and without a byte of an answer.
        is_stale: bool,
    },
    /// A response of this status.
    Response {
        /// The status.
        status: StatusCode,
        /// The body can be sent from its beginning.
        body_repeatable: bool,
    },
}

/// Why a request goes out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection, as it was refused.
    Refused,
    /// No connection, though the upstream was given its time.
    Connect,
    /// A pooled connection that the upstream had closed, or closed just then.
    Stale,
    /// An HTTP/2 connection that the upstream ended without having looked at the request.
    GoneAway,
    /// The upstream refused the stream, as one does that has its hands full.
    RefusedStream,
    /// A connection that ended before the response.
    Reset,
    /// 502 from the upstream.
    BadGateway,
    /// 503 from the upstream.
    Unavailable,
    /// 504 from the upstream, or no response in time.
    GatewayTimeout,
    /// Nothing was tried: this upstream can't be asked for what the client wants.
    Unsuited,
}

impl Cause {
    /// Whether a retry after it counts against the budget.
    pub fn is_charged(self) -> bool {
        !matches!(
            self,
            Self::Refused | Self::Stale | Self::GoneAway | Self::Unsuited
        )
    }

    /// Whether it counts against `attempts` too.
    pub fn costs_an_attempt(self) -> bool {
        self.is_charged() && self != Self::RefusedStream
    }

    /// As `retries` and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused | Self::Connect => "connect",
            Self::Stale => "stale",
            Self::GoneAway => "goaway",
            Self::RefusedStream => "refused_stream",
            Self::Reset => "reset",
            Self::BadGateway => "502",
            Self::Unavailable => "503",
            Self::GatewayTimeout => "504",
            Self::Unsuited => "unsuited",
        }
    }
}

/// Why the request may and should go out again after this; `None`: it may not, or nobody asked for it.
pub fn cause(method: &Method, attempt: Attempt<'_>, on: &RetryOn) -> Option<Cause> {
    match attempt {
        Attempt::Refused => on.connect.then_some(Cause::Refused),
        Attempt::Dial => on.connect.then_some(Cause::Connect),
        // As of a connection that is closed while it lies idle: nobody has to ask.
        Attempt::GoneAway { body_repeatable } => body_repeatable.then_some(Cause::GoneAway),
        Attempt::RefusedStream { body_repeatable } => {
            (body_repeatable && on.reset).then_some(Cause::RefusedStream)
        }
        Attempt::Exchange {
            error: ExchangeError::Terminated(_) | ExchangeError::Reset(_),
            written,
            body_repeatable,
            is_stale,
        } => {
            let is_safe = body_repeatable && (written == 0 || is_idempotent(method));
            // That a connection is closed while it lies idle is no failure of the upstream's: nobody has to ask.
            match is_stale {
                true => is_safe.then_some(Cause::Stale),
                false => (is_safe && on.reset).then_some(Cause::Reset),
            }
        }
        Attempt::Exchange {
            error: ExchangeError::Timeout,
            body_repeatable,
            ..
        } => {
            let is_safe = body_repeatable && is_idempotent(method);
            (is_safe && on.gateway_timeout).then_some(Cause::GatewayTimeout)
        }
        // It answered something that is no response, or the client is at fault.
        Attempt::Exchange { .. } => None,
        Attempt::Response {
            status,
            body_repeatable,
        } => {
            let cause = match status {
                StatusCode::BAD_GATEWAY if on.bad_gateway => Cause::BadGateway,
                StatusCode::SERVICE_UNAVAILABLE if on.unavailable => Cause::Unavailable,
                StatusCode::GATEWAY_TIMEOUT if on.gateway_timeout => Cause::GatewayTimeout,
                _ => return None,
            };
            (body_repeatable && is_idempotent(method)).then_some(cause)
        }
    }
}

/// What a failed dial was.
pub fn of_dial(error: &DialError) -> Attempt<'static> {
    match error {
        DialError::Unresolved | DialError::Denied | DialError::Own | DialError::TlsOptions(_) => {
            Attempt::Refused
        }
        // The kernel gave up on it.
        DialError::Connect(error) if error.kind() == ErrorKind::TimedOut => Attempt::Dial,
        DialError::Connect(_) => Attempt::Refused,
        DialError::Header(_)
        | DialError::Handshake(_)
        | DialError::NoHttp2
        | DialError::Http2(_) => Attempt::Dial,
    }
}

/// RFC 9110 section 9.2.2. An `Idempotency-Key` makes no POST idempotent: only the application knows whether it does.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;
    use crate::route::settings::Retries;

    const ALL: RetryOn = RetryOn {
        connect: true,
        reset: true,
        bad_gateway: true,
        unavailable: true,
        gateway_timeout: true,
    };
    fn exchange(error: &ExchangeError, written: u64, body_repeatable: bool) -> Attempt<'_> {
        Attempt::Exchange {
            error,
            written,
            body_repeatable,
            is_stale: false,
        }
    }

    fn stale(error: &ExchangeError) -> Attempt<'_> {
        Attempt::Exchange {
            error,
            written: 1,
            body_repeatable: true,
            is_stale: true,
        }
    }

    fn response(status: u16) -> Attempt<'static> {
        Attempt::Response {
            status: StatusCode::from_u16(status).unwrap(),
            body_repeatable: true,
        }
    }

    #[test]
    fn nothing_that_may_have_been_acted_on_is_sent_twice() {
        let (terminated, timeout, incomplete) = (
            ExchangeError::Terminated(None),
            ExchangeError::Timeout,
            ExchangeError::Incomplete,
        );
        let reset = ExchangeError::Reset(h2::Reason::INTERNAL_ERROR);
        let spent = |status| Attempt::Response {
            status,
            body_repeatable: false,
        };
        for (method, attempt, expected) in [
            (Method::POST, Attempt::Refused, Some(Cause::Refused)),
            (Method::POST, Attempt::Dial, Some(Cause::Connect)),
            (
                Method::POST,
                exchange(&terminated, 0, true),
                Some(Cause::Reset),
            ),
            (Method::POST, exchange(&terminated, 1, true), None),
            (Method::POST, stale(&terminated), None),
            (
                Method::POST,
                Attempt::GoneAway {
                    body_repeatable: true,
                },
                Some(Cause::GoneAway),
            ),
            (
                Method::POST,
                Attempt::RefusedStream {
                    body_repeatable: true,
                },
                Some(Cause::RefusedStream),
            ),
            (
                Method::PUT,
                Attempt::GoneAway {
                    body_repeatable: false,
                },
                None,
            ),
            (
                Method::PUT,
                Attempt::RefusedStream {
                    body_repeatable: false,
                },
                None,
            ),
            (Method::POST, exchange(&reset, 1, true), None),
            (Method::GET, exchange(&reset, 1, true), Some(Cause::Reset)),
            (Method::PATCH, exchange(&terminated, 1, true), None),
            (
                Method::GET,
                exchange(&terminated, 100, true),
                Some(Cause::Reset),
            ),
            (
                Method::PUT,
                exchange(&terminated, 100, true),
                Some(Cause::Reset),
            ),
            (Method::PUT, exchange(&terminated, 100, false), None),
            (Method::GET, stale(&terminated), Some(Cause::Stale)),
            (
                Method::GET,
                exchange(&timeout, 100, true),
                Some(Cause::GatewayTimeout),
            ),
            (Method::POST, exchange(&timeout, 100, true), None),
            (Method::PUT, exchange(&timeout, 100, false), None),
            (Method::GET, exchange(&incomplete, 100, true), None),
            (Method::GET, response(503), Some(Cause::Unavailable)),
            (Method::POST, response(503), None),
            (Method::PUT, spent(StatusCode::SERVICE_UNAVAILABLE), None),
        ] {
            assert_eq!(
                cause(&method, attempt, &ALL),
                expected,
                "{method} {attempt:?}"
            );
        }
    }

    #[test]
    fn only_what_the_settings_name_is_tried_again() {
        let (terminated, timeout) = (ExchangeError::Terminated(None), ExchangeError::Timeout);
        let default = Retries::default().on;
        for (attempt, by_default, if_all) in [
            (Attempt::Refused, true, Cause::Refused),
            (Attempt::Dial, true, Cause::Connect),
            (
                Attempt::RefusedStream {
                    body_repeatable: true,
                },
                true,
                Cause::RefusedStream,
            ),
            (exchange(&terminated, 1, true), true, Cause::Reset),
            (exchange(&timeout, 1, true), false, Cause::GatewayTimeout),
            (response(502), false, Cause::BadGateway),
            (response(503), false, Cause::Unavailable),
            (response(504), false, Cause::GatewayTimeout),
        ] {
            let cause = |on| cause(&Method::GET, attempt, on);
            assert_eq!(cause(&ALL), Some(if_all), "{attempt:?}");
            assert_eq!(cause(&default).is_some(), by_default, "{attempt:?}");
            assert_eq!(cause(&RetryOn::NOTHING), None, "{attempt:?}");
        }
        for status in [200, 404, 500, 501, 505] {
            assert_eq!(
                cause(&Method::GET, response(status), &ALL),
                None,
                "{status}"
            );
        }
        // Whatever the settings say: the upstream did nothing wrong.
        assert_eq!(
            cause(&Method::GET, stale(&terminated), &RetryOn::NOTHING),
            Some(Cause::Stale)
        );
    }

    #[test]
    fn what_was_refused_costs_nothing_and_what_took_its_time_does() {
        // ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ENOENT, EMFILE.
        for code in [111, 113, 101, 2, 24] {
            let error = DialError::Connect(Error::from_raw_os_error(code));
            assert!(matches!(of_dial(&error), Attempt::Refused), "{code}");
        }
        assert!(matches!(of_dial(&DialError::Unresolved), Attempt::Refused));
        let ended = || Error::from(ErrorKind::UnexpectedEof);
        for error in [
            DialError::Connect(Error::from(ErrorKind::TimedOut)),
            DialError::Header(ended()),
            DialError::Handshake(ended()),
            DialError::Http2(ended()),
            DialError::NoHttp2,
        ] {
            assert!(matches!(of_dial(&error), Attempt::Dial), "{error}");
        }
        for (cause, is_charged, costs_an_attempt) in [
            (Cause::Refused, false, false),
            (Cause::Stale, false, false),
            (Cause::GoneAway, false, false),
            (Cause::Unsuited, false, false),
            (Cause::RefusedStream, true, false),
            (Cause::Connect, true, true),
            (Cause::Reset, true, true),
            (Cause::Unavailable, true, true),
        ] {
            assert_eq!(cause.is_charged(), is_charged, "{cause:?}");
            assert_eq!(cause.costs_an_attempt(), costs_an_attempt, "{cause:?}");
        }
    }
}
