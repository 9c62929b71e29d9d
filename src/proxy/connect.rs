//! A connection of its own for a request, and what is learnt of an upstream that gives none.

use std::{sync::Arc, time::Instant};

use super::{
    attempt::{Age, From},
    error::Failure,
    journey::Journey,
    outcome,
    record::RequestRecord,
    retry::{self, Attempt},
};
use crate::{
    sweep::Deadline,
    upstream::{
        Upstream,
        ejection::Fault,
        http1::Connection,
        pool::{Granted, Wants},
    },
};

impl Journey<'_> {
    /// An idle connection that may carry the request, if there is one.
    pub(super) fn pooled(&self, upstream: &Upstream) -> Option<Connection> {
        let pools = &self.proxy.pools;
        match upstream.identity.proxy_protocol {
            None => pools.take(upstream),
            Some(_) => pools.take_own(upstream, self.client.owner()?),
        }
    }

    /// A new connection, within `timeouts.connect`; or one that came free while its turn to dial was waited for.
    pub(super) async fn connect(
        &self,
        upstream: &Arc<Upstream>,
        from: From,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<(Connection, Age), (Failure, Attempt<'static>)> {
        let begun = Instant::now();
        let patience = self.route.settings.timeouts.connect;
        deadline.arm(patience);
        let speaks_for_one = upstream.identity.proxy_protocol.is_some();
        let wants = match from {
            From::Pool if !speaks_for_one => Wants::Any,
            From::Pool | From::Dial => Wants::New,
        };
        record.waits();
        let granted = deadline
            .limit(self.proxy.pools.grant(upstream, wants))
            .await;
        record.goes_on();
        let _place = match granted {
            Some(Granted::Dial(place)) => place,
            Some(Granted::Connection(connection)) => {
                deadline.disarm();
                return Ok((connection, Age::Pooled));
            }
            // It has not dialled: what those saw that did is theirs to tell.
            None => {
                deadline.disarm();
                return Err((Failure::no_turn(&upstream.name), Attempt::Dial));
            }
        };
        let dialling = self.proxy.dialler.dial(upstream, self.client.origin());
        let dialled = deadline.limit(dialling).await;
        deadline.disarm();
        match dialled {
            Some(Ok(connection)) => {
                self.proxy.pools.begin_life(upstream, &connection);
                if speaks_for_one {
                    connection.belongs_to(self.client.becomes_owner().clone());
                }
                record.connected(begun);
                Ok((connection, Age::Fresh))
            }
            Some(Err(error)) => {
                if let Some(fault) = outcome::of_dial(&error) {
                    record.upstream_failed(fault);
                }
                let failure = Failure::dial(&error, &upstream.name);
                Err((failure, retry::of_dial(&error)))
            }
            None => {
                // Its turn may have come too late.
                if record
                    .with_upstream()
                    .is_some_and(|time| time >= patience / 2)
                {
                    record.upstream_failed(Fault::ConnectTimeout);
                }
                Err((Failure::connect_timeout(&upstream.name), Attempt::Dial))
            }
        }
    }
}
