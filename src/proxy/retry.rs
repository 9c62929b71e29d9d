//! Whether a failed attempt may be made again: never when the upstream could have acted on a request that must not
//! be repeated.

use http::Method;

use crate::upstream::http1::ExchangeError;

/// A failed attempt.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'e> {
    /// No connection: nothing left.
    Dial,
    /// A connection, and no response head.
    Exchange {
        /// What happened.
        error: &'e ExchangeError,
        /// Bytes the kernel took from us.
        written: u64,
        /// None of the body was taken from the client yet.
        body_untouched: bool,
    },
}

/// Whether the request may go out again after this.
pub fn is_safe(method: &Method, attempt: Attempt<'_>) -> bool {
    match attempt {
        Attempt::Dial => true,
        Attempt::Exchange {
            error: ExchangeError::Terminated(_),
            written,
            body_untouched,
        } => body_untouched && (written == 0 || is_idempotent(method)),
        // It answered something, took too long over it, or the client is at fault.
        Attempt::Exchange { .. } => false,
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_may_have_been_acted_on_is_sent_twice() {
        let terminated = ExchangeError::Terminated(None);
        let exchange = |error, written, body_untouched| Attempt::Exchange {
            error,
            written,
            body_untouched,
        };
        for (method, attempt, safe) in [
            (Method::POST, Attempt::Dial, true),
            (Method::POST, exchange(&terminated, 0, true), true),
            (Method::POST, exchange(&terminated, 1, true), false),
            (Method::PATCH, exchange(&terminated, 1, true), false),
            (Method::GET, exchange(&terminated, 100, true), true),
            (Method::PUT, exchange(&terminated, 100, true), true),
            (Method::PUT, exchange(&terminated, 100, false), false),
            (
                Method::GET,
                exchange(&ExchangeError::Timeout, 100, true),
                false,
            ),
            (
                Method::GET,
                exchange(&ExchangeError::Incomplete, 100, true),
                false,
            ),
        ] {
            assert_eq!(is_safe(&method, attempt), safe, "{method} {attempt:?}");
        }
    }
}
