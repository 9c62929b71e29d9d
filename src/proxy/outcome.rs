//! What becomes of an attempt, as far as it tells something about its upstream. Whatever a client did, and whatever is
//! lacking here (descriptors, ports, memory), is nobody's fault up there.

use std::time::Duration;

use http::StatusCode;

use super::record::RequestRecord;
use crate::{
    moment::Moment,
    upstream::{
        dial::DialError,
        ejection::Fault,
        http1::{ExchangeError, body::ResponseBodyError},
        http2::NoStream,
    },
};

impl RequestRecord {
    /// A response head came.
    pub(super) fn upstream_answered(&self, status: StatusCode, may_switch: bool) {
        match of_status(status, may_switch) {
            Some(fault) => self.upstream_failed(fault),
            None => self.look(|route, member, _| route.succeeded(member, Moment::now)),
        }
    }

    /// The body behind it came to its end.
    pub(super) fn upstream_finished(&self) {
        self.look(|route, member, _| route.members[member].ejection().came_whole());
    }

    /// The attempt, or the body of its answer, failed.
    pub(super) fn upstream_failed(&self, fault: Fault) {
        self.look(|route, member, ejections| {
            let term = route.failed(member, fault, ejections, Moment::now());
            let member = &route.members[member];
            if !matches!(fault, Fault::Status(_)) {
                member.upstream.metrics.failures.inc();
            }
            if let Some(term) = term {
                self.proxy.ejections.begin(&route.name, member, &term);
            }
        });
    }

    /// `timeouts.request`, which is so long, has passed: the fault of who had the request for half of it at least.
    pub(super) fn ran_out(&self, limit: Duration) {
        if self.with_upstream().is_some_and(|time| time >= limit / 2) {
            self.upstream_failed(Fault::Timeout);
        }
    }

    fn look(&self, see: impl FnOnce(&crate::route::Route, usize, u32)) {
        if let Some(place) = &self.place {
            self.proxy.in_flight.look(place, see);
        }
    }
}

/// 501 and 505 are about the request, whoever answers it.
fn of_status(status: StatusCode, may_switch: bool) -> Option<Fault> {
    match status {
        StatusCode::SWITCHING_PROTOCOLS if !may_switch => Some(Fault::Malformed),
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => None,
        status if status.is_server_error() => Some(Fault::Status(status.as_u16())),
        _ => None,
    }
}

pub(super) fn of_dial(error: &DialError) -> Option<Fault> {
    match error {
        // There is nobody yet to be at fault, and what its key's files lack is on this machine.
        DialError::Unresolved | DialError::TlsOptions(_) => None,
        DialError::Connect(_) => (!error.is_ours()).then_some(Fault::Connect),
        DialError::Denied | DialError::Own | DialError::Header(_) => Some(Fault::Connect),
        DialError::Handshake(_) => Some(Fault::Tls),
        DialError::NoHttp2 | DialError::Http2(_) => Some(Fault::Malformed),
    }
}

pub(super) fn of_no_stream(error: &NoStream) -> Option<Fault> {
    match error {
        NoStream::Dial(error) => of_dial(error),
        NoStream::Slow => Some(Fault::ConnectTimeout),
        // As many run there as it allows, and none has ended: it is slow, but not gone.
        NoStream::Full => None,
    }
}

pub(super) fn of_exchange(error: &ExchangeError) -> Option<Fault> {
    match error {
        ExchangeError::Terminated(_) | ExchangeError::Incomplete | ExchangeError::Reset(_) => {
            Some(Fault::Reset)
        }
        ExchangeError::Malformed(_) => Some(Fault::Malformed),
        ExchangeError::Timeout => Some(Fault::Timeout),
        // It says that it did nothing, as one does that is about to end, or has its hands full.
        ExchangeError::Refused => None,
        ExchangeError::Client(_) | ExchangeError::ClientTimeout => None,
    }
}

pub(super) fn of_body(error: ResponseBodyError) -> Fault {
    match error {
        ResponseBodyError::Truncated
        | ResponseBodyError::Malformed(_)
        | ResponseBodyError::Timeout => Fault::Cut,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;
    use crate::upstream::{request_body::RequestBodyError, tls::TlsError};

    #[test]
    fn statuses_count_by_what_they_are_about() {
        for (status, may_switch, expected) in [
            (200, false, None),
            (404, false, None),
            (429, false, None),
            (500, false, Some(Fault::Status(500))),
            (501, false, None),
            (502, false, Some(Fault::Status(502))),
            (503, false, Some(Fault::Status(503))),
            (504, false, Some(Fault::Status(504))),
            (505, false, None),
            (599, false, Some(Fault::Status(599))),
            (101, true, None),
            (101, false, Some(Fault::Malformed)),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(of_status(status, may_switch), expected, "{status}");
        }
    }

    #[test]
    fn what_is_lacking_here_and_what_clients_do_is_nobodys_fault() {
        let connect = |error| of_dial(&DialError::Connect(error));
        // From errno(3): EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS, ENOMEM.
        for code in [24, 23, 99, 105, 12] {
            assert_eq!(connect(Error::from_raw_os_error(code)), None, "{code}");
        }
        // ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ENOENT, EAGAIN.
        for code in [111, 110, 113, 101, 2, 11] {
            let fault = connect(Error::from_raw_os_error(code));
            assert_eq!(fault, Some(Fault::Connect), "{code}");
        }
        // Whatever the kernel says of it: it was connected.
        let header = DialError::Header(Error::from_raw_os_error(32));
        assert_eq!(of_dial(&header), Some(Fault::Connect));
        assert_eq!(of_dial(&DialError::Unresolved), None);
        let no_roots = TlsError::NoSystemRoots("none found".into());
        assert_eq!(of_dial(&DialError::TlsOptions(no_roots)), None);
        for error in [
            ExchangeError::Refused,
            ExchangeError::ClientTimeout,
            ExchangeError::Client(RequestBodyError::TooLarge),
            ExchangeError::Client(RequestBodyError::Broken),
        ] {
            assert_eq!(of_exchange(&error), None, "{error}");
        }
    }
}
