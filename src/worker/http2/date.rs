//! The `Date` of responses, written once a second.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;

thread_local! {
    static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The last second of the year 9999: a date has four digits for its year.
const LAST: u64 = 253_402_300_799;

/// The time of day, as RFC 9110 section 5.6.7 writes it; the nearest that can be written, however wrong the clock is.
pub(super) fn now() -> HeaderValue {
    at(SystemTime::now())
}

fn at(time: SystemTime) -> HeaderValue {
    let second = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
        .min(LAST);
    WRITTEN.with_borrow_mut(|(written, value)| {
        if *written != second || value.is_empty() {
            *written = second;
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            *value = HeaderValue::try_from(text).expect("a date is ASCII");
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clock_can_be_written() {
        let since = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let before = UNIX_EPOCH - Duration::from_secs(1);
        for (time, expected) in [
            (before, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (since(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT"),
            (since(LAST + 1), "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(at(time), expected);
        }
    }
}
