//! The `Date` of responses, written once a second.

use std::{
    cell::RefCell,
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;

thread_local! {
    static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The time of day, as RFC 9110 section 5.6.7 writes it.
pub(super) fn now() -> HeaderValue {
    let now = SystemTime::now();
    let second = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    WRITTEN.with_borrow_mut(|(written, value)| {
        if *written != second || value.is_empty() {
            *written = second;
            *value = HeaderValue::try_from(httpdate::fmt_http_date(now)).expect("a date is ASCII");
        }
        value.clone()
    })
}
