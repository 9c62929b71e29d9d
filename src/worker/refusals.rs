//! Connections that are closed before a request could come, for a reason an operator should know: counted, each of
//! them, and logged as long as they are few.

use std::{cell::Cell, io, net::SocketAddr, time::Duration};

use tracing::{debug, warn};

use super::proxy_protocol;
use crate::{
    proxy::Proxy,
    sweep::{Sweep, Tick},
};

/// Who may connect may do so very often: a worker says one in this time.
const LULL: Duration = Duration::from_secs(5);

/// Why a connection is refused.
#[derive(Debug)]
pub enum Refusal {
    /// The listener wants a PROXY header, and this peer may not send one.
    Peer,
    /// It wants one, and there is none.
    Header(proxy_protocol::Error),
    /// It wants a certificate, and there is none that somebody vouches for.
    Certificate(io::Error),
}

impl Refusal {
    /// As the metric has it.
    fn reason(&self) -> &'static str {
        match self {
            Self::Peer => "untrusted_peer",
            Self::Header(_) => "proxy_header",
            Self::Certificate(_) => "client_certificate",
        }
    }
}

/// What a worker has said of them.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Not before this tick again.
    next: Cell<Tick>,
    unsaid: Cell<u64>,
}

impl Refusals {
    /// Counts a refusal, and logs it if the last line is a while ago.
    pub fn note(&self, proxy: &Proxy, peer: SocketAddr, refusal: &Refusal) {
        let refused = &proxy.metrics.data_plane.refused;
        refused.with_label_values(&[refusal.reason()]).inc();
        // Whoever scans the internet does so; there is nothing here to be mended.
        if let Refusal::Certificate(error) = refusal {
            return debug!(client = %peer, %error, "connection refused");
        }
        let Some(unsaid) = self.turn(proxy.sweep.now()) else {
            return;
        };
        match refusal {
            Refusal::Certificate(_) => {}
            Refusal::Peer => warn!(
                %peer,
                unsaid,
                "connection refused: the listener has proxy_protocol=true, and the peer is not in --trusted-proxies"
            ),
            Refusal::Header(error) => warn!(
                %peer,
                unsaid,
                "connection refused: the listener has proxy_protocol=true, and of the peer's first bytes {error}"
            ),
        }
    }

    /// Whether a line is in order now, and how many refusals there were since the last one.
    fn turn(&self, now: Tick) -> Option<u64> {
        if now < self.next.get() {
            self.unsaid.set(self.unsaid.get() + 1);
            return None;
        }
        self.next.set(now.saturating_add(Sweep::ticks(LULL)));
        Some(self.unsaid.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_one_line_is_said_now_and_then_with_how_many_there_were() {
        let refusals = Refusals::default();
        let later = Sweep::ticks(LULL);
        assert_eq!(refusals.turn(0), Some(0));
        for _ in 0..3 {
            assert_eq!(refusals.turn(later - 1), None);
        }
        assert_eq!(refusals.turn(later), Some(3));
        assert_eq!(refusals.turn(later + 1), None);
        assert_eq!(refusals.turn(3 * later), Some(1));
    }
}
