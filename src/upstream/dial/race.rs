//! A name with addresses of both families: one is dialled with a head start, then both (RFC 8305, "Happy Eyeballs").

use std::{
    net::SocketAddr,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use super::{DialError, Dialler};
use crate::upstream::Upstream;

/// How long the preferred address is dialled alone, unless it fails before (RFC 8305 section 5 recommends it).
const HEAD_START: Duration = Duration::from_millis(250);

/// Where else an upstream can be dialled, and which of the two addresses it was reached at last.
#[derive(Debug)]
pub(in crate::upstream) struct Alternative {
    address: SocketAddr,
    /// It won the last race: the next one begins with it.
    is_preferred: AtomicBool,
}

impl Alternative {
    /// Here, and not preferred yet.
    pub(in crate::upstream) fn at(address: SocketAddr) -> Self {
        Self {
            address,
            is_preferred: AtomicBool::new(false),
        }
    }

    /// Where that is.
    pub(in crate::upstream) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Dialler {
    /// Connects to `address`, the upstream's own, or to its alternative if it has one.
    pub(super) async fn connect_either(
        &self,
        upstream: &Upstream,
        address: SocketAddr,
    ) -> Result<TcpStream, DialError> {
        let Some(alternative) = upstream.alternative.load_full() else {
            return self.connect_tcp(address).await;
        };
        let was_preferred = alternative.is_preferred.load(Ordering::Relaxed);
        let (first, second) = match was_preferred {
            false => (address, alternative.address),
            true => (alternative.address, address),
        };
        let (stream, reached) = race(self.connect_tcp(first), self.connect_tcp(second)).await?;
        if reached == Reached::Second {
            alternative
                .is_preferred
                .store(!was_preferred, Ordering::Relaxed);
        }
        Ok(stream)
    }

    async fn connect_tcp(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        self.deny.verdict(address)?;
        let stream = self
            .open(|| TcpStream::connect(address))
            .await
            .map_err(DialError::Connect)?;
        if self.deny.is_own(address, &stream) {
            return Err(DialError::Own);
        }
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        Ok(stream)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    First,
    Second,
}

/// What succeeds first, the second beginning when the first has failed or its head start is over. If both fail, the
/// error of the first, which is who was meant.
async fn race<T, E>(
    first: impl Future<Output = Result<T, E>>,
    second: impl Future<Output = Result<T, E>>,
) -> Result<(T, Reached), E> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let error = match timeout(HEAD_START, &mut first).await {
        Ok(Ok(value)) => return Ok((value, Reached::First)),
        Ok(Err(error)) => error,
        Err(_) => tokio::select! {
            biased;
            outcome = &mut first => match outcome {
                Ok(value) => return Ok((value, Reached::First)),
                Err(error) => error,
            },
            outcome = &mut second => match outcome {
                Ok(value) => return Ok((value, Reached::Second)),
                Err(_) => return first.await.map(|value| (value, Reached::First)),
            },
        },
    };
    match second.await {
        Ok(value) => Ok((value, Reached::Second)),
        Err(_) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        net::TcpListener,
        sync::Arc,
        time::Instant,
    };

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::upstream::{Endpoint, dial::Deny, testing, tls::UpstreamTls};

    async fn after<T>(milliseconds: u64, value: T) -> T {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        value
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_runs_only_when_the_first_fails_or_dawdles() {
        use Reached::{First, Second};
        // When it ends, in milliseconds, and how.
        type End<T> = (u64, Result<T, u8>);
        let cases: [(End<()>, End<()>, End<Reached>); 9] = [
            ((0, Ok(())), (0, Ok(())), (0, Ok(First))),
            ((249, Ok(())), (0, Ok(())), (249, Ok(First))),
            ((300, Ok(())), (10, Ok(())), (260, Ok(Second))),
            ((300, Ok(())), (100, Ok(())), (300, Ok(First))),
            ((0, Err(1)), (10, Ok(())), (10, Ok(Second))),
            ((300, Err(1)), (100, Ok(())), (350, Ok(Second))),
            ((300, Ok(())), (0, Err(2)), (300, Ok(First))),
            ((0, Err(1)), (10, Err(2)), (10, Err(1))),
            ((300, Err(1)), (0, Err(2)), (300, Err(1))),
        ];
        for (first, second, expected) in cases {
            let begun = tokio::time::Instant::now();
            let raced = race(after(first.0, first.1), after(second.0, second.1)).await;
            let took = begun.elapsed().as_millis() as u64;
            // Of tokio's timers, which are a millisecond late.
            let late = took.saturating_sub(expected.0);
            assert!(late <= 2, "{first:?}, {second:?}: {took} ms");
            let raced = raced.map(|((), reached)| reached);
            assert_eq!(raced, expected.1, "{first:?}, {second:?}");
        }
        let raced = race(pending::<Result<(), ()>>(), ready(Ok(()))).await;
        assert_eq!(raced, Ok(((), Second)));
    }

    /// A port that is free with both families: [::1] listens there, and 127.0.0.1 is bound.
    fn port_of_both() -> (TcpListener, Socket, u16) {
        loop {
            let v6 = TcpListener::bind("[::1]:0").unwrap();
            let port = v6.local_addr().unwrap().port();
            let v4 = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            if v4.bind(&address.into()).is_ok() {
                return (v6, v4, port);
            }
        }
    }

    fn upstream(port: u16) -> Arc<Upstream> {
        let upstream = testing::alone(&testing::plain(Endpoint::Tcp {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            name: Some("app.test".into()),
        }));
        upstream.fall_back_to(Some(format!("[::1]:{port}").parse().unwrap()));
        upstream
    }

    fn dialler(denied: &[&str]) -> Dialler {
        let networks = denied.iter().map(|network| network.parse().unwrap());
        let deny = Deny::new(networks.collect(), Vec::new());
        Dialler::new(Arc::new(deny), Arc::new(UpstreamTls::new()))
    }

    /// Whether IPv6 was reached, and how long that took.
    async fn dial(dialler: &Dialler, upstream: &Upstream) -> (Option<bool>, Duration) {
        let Endpoint::Tcp { address, .. } = upstream.identity.endpoint else {
            panic!("an address");
        };
        let begun = Instant::now();
        let dialled = timeout(
            Duration::from_secs(10),
            dialler.connect_either(upstream, address),
        );
        let stream = dialled.await.expect("it ends").ok();
        let is_v6 = stream.map(|stream| stream.peer_addr().unwrap().is_ipv6());
        (is_v6, begun.elapsed())
    }

    #[tokio::test]
    async fn a_family_that_refuses_is_passed_over_at_once_and_not_tried_first_again() {
        let (v6, v4, port) = port_of_both();
        let (dialler, upstream) = (dialler(&[]), upstream(port));
        let (is_v6, took) = dial(&dialler, &upstream).await;
        assert_eq!(is_v6, Some(true));
        assert!(took < HEAD_START, "{took:?}");
        // Now both work: it stays where it was.
        v4.listen(16).unwrap();
        assert_eq!(dial(&dialler, &upstream).await.0, Some(true));
        // And changes over when that refuses.
        drop(v6);
        assert_eq!(dial(&dialler, &upstream).await.0, Some(false));
        upstream.fall_back_to(None);
        assert_eq!(dial(&dialler, &upstream).await.0, Some(false));
    }

    #[tokio::test]
    async fn a_family_that_is_silent_costs_the_head_start_once() {
        let (_v6, v4, port) = port_of_both();
        // Its queue holds two, and then packets are dropped.
        v4.listen(1).unwrap();
        let full = SocketAddr::from(([127, 0, 0, 1], port));
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) =
            timeout(Duration::from_millis(50), TcpStream::connect(full)).await
        {
            queued.push(stream);
        }
        let (dialler, upstream) = (dialler(&[]), upstream(port));
        let (is_v6, took) = dial(&dialler, &upstream).await;
        assert_eq!(is_v6, Some(true));
        assert!(HEAD_START <= took && took < HEAD_START * 3, "{took:?}");
        let (is_v6, took) = dial(&dialler, &upstream).await;
        assert_eq!(is_v6, Some(true));
        assert!(took < HEAD_START, "remembered, and yet {took:?}");
    }

    #[tokio::test]
    async fn what_is_denied_is_dialled_by_neither_way() {
        let (_v6, v4, port) = port_of_both();
        v4.listen(16).unwrap();
        for (denied, expected) in [
            (&["127.0.0.0/8"][..], Some(true)),
            (&["::1/128"], Some(false)),
            (&["127.0.0.0/8", "::1/128"], None),
        ] {
            let (is_v6, _) = dial(&dialler(denied), &upstream(port)).await;
            assert_eq!(is_v6, expected, "{denied:?}");
        }
    }
}
