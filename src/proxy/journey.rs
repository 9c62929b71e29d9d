//! A request's way to an upstream: pick, dial, exchange, and once more where that is safe.

use std::{rc::Rc, sync::Arc, time::Instant};

use http::{StatusCode, Version, request::Parts};
use smallvec::SmallVec;

use super::{
    Proxy,
    answer::Answer,
    client::Client,
    error::Failure,
    forwarded::{Scheme, Sender},
    headers::{self, UpstreamHead},
    record::RequestRecord,
    retry::{self, Attempt},
    target::Target,
};
use crate::{
    route::{Member, Revision, Route},
    sweep::Deadline,
    upstream::{
        Upstream,
        http1::{Connection, ExchangeLimits, head::ResponseHead, upload::Upload},
        request_body::RequestBody,
    },
};

/// Attempts beyond the first that a request may cost, refused connects apart.
const EXTRA_ATTEMPTS: u32 = 1;
/// How many members a request tries while each refuses the connection.
const MAX_REFUSALS: usize = 8;

/// One request on its way to some upstream of its route.
pub struct Journey<'r> {
    pub proxy: &'r Rc<Proxy>,
    pub client: &'r Rc<Client>,
    pub request: &'r Parts,
    pub target: &'r Target<'r>,
    pub route: &'r Route,
    pub path: headers::Path<'r>,
    pub sender: Sender,
    pub scheme: Scheme,
    pub wants_upgrade: bool,
}

/// What of a request is left to send, and to whom it was sent in vain.
pub struct Trip {
    body: RequestBody,
    /// Members of the route, by index.
    tried: SmallVec<[usize; 4]>,
    /// Attempts it may still cost.
    extra: u32,
    /// What ended the attempt before.
    behind: Option<Behind>,
}

/// The attempt that failed when the table had changed.
struct Behind {
    failure: Failure,
    /// The member it went to, as the route has it now; `None` if it is out.
    member: Option<usize>,
    again: Again,
}

/// Why a journey ended without an answer.
pub enum Stop {
    /// Trying on would not be safe or of use.
    Failed(Failure),
    /// It may go on, but the table has changed: this route serves the request now.
    Rerouted(Box<(Arc<Route>, Trip)>),
}

impl Trip {
    /// Nothing was tried yet.
    pub fn new(body: RequestBody) -> Self {
        Self {
            body,
            tried: SmallVec::new(),
            extra: EXTRA_ATTEMPTS,
            behind: None,
        }
    }
}

impl Journey<'_> {
    /// Tries members until one answers, or trying on would not be safe or of use. No member is tried of a route that
    /// is not in the table any more: who takes a member out may count on that.
    pub async fn run(&self, trip: Trip, record: &mut RequestRecord) -> Result<Answer, Stop> {
        let proxy = self.proxy;
        let deadline = proxy.sweep.deadline();
        let Trip {
            mut body,
            mut tried,
            mut extra,
            behind,
        } = trip;
        let (mut index, mut from) = match behind {
            None => {
                let picked = self.route.pick(&tried);
                let index = picked.ok_or_else(|| Stop::Failed(self.nobody()))?;
                (index, From::Pool)
            }
            Some(Behind {
                failure,
                member,
                again,
            }) => {
                let next = self.next(again, member, &tried);
                let next = next.ok_or(Stop::Failed(failure))?;
                self.count_retry(record);
                next
            }
        };
        loop {
            let upstream = &self.route.members[index].upstream;
            record.send(index, upstream);
            let failed = match self.attempt(upstream, from, body, &deadline, record).await {
                Ok((head, connection, unsent)) => {
                    return Ok(Answer {
                        head,
                        connection,
                        upstream: upstream.clone(),
                        deadline,
                        unsent,
                        may_switch: self.wants_upgrade,
                    });
                }
                Err(failed) => failed,
            };
            upstream.metrics.failures.inc();
            if !failed.may_repeat {
                return Err(Stop::Failed(failed.failure));
            }
            let failure = failed.failure;
            body = failed.body;
            let again = match failed.at {
                // The upstream closed it as we took it: a fresh connection is as good as any, and costs no attempt.
                FailedAt::PooledConnection => Again::Same,
                FailedAt::Connecting if tried.len() + 1 < MAX_REFUSALS => Again::Other,
                FailedAt::FreshConnection if extra > 0 => {
                    extra -= 1;
                    Again::OtherOrSame
                }
                FailedAt::Connecting | FailedAt::FreshConnection => {
                    return Err(Stop::Failed(failure));
                }
            };
            if again != Again::Same {
                tried.push(index);
            }
            if let Some((revision, route)) = self.current_route() {
                let Some(route) = route else {
                    return Err(Stop::Failed(failure));
                };
                record.revision = revision;
                let behind = Behind {
                    failure,
                    member: same_member(&route, &self.route.members[index]),
                    again,
                };
                let trip = Trip {
                    body,
                    tried: same_upstreams(&route, self.route, &tried),
                    extra,
                    behind: Some(behind),
                };
                return Err(Stop::Rerouted(Box::new((route, trip))));
            }
            let next = self.next(again, Some(index), &tried);
            (index, from) = next.ok_or(Stop::Failed(failure))?;
            self.count_retry(record);
        }
    }

    /// Where the next attempt goes, after one at this member (`None`: it is out of the route).
    fn next(&self, again: Again, member: Option<usize>, tried: &[usize]) -> Option<(usize, From)> {
        let same = member.map(|index| (index, From::Dial));
        let other = || Some((self.route.pick(tried)?, From::Pool));
        match again {
            Again::Same => same.or_else(other),
            Again::Other => other(),
            Again::OtherOrSame => other().or(same),
        }
    }

    /// `None` while the table still has the route that we follow; else the revision of the table and what it has now.
    fn current_route(&self) -> Option<(Revision, Option<Arc<Route>>)> {
        let table = self.proxy.live.table.load();
        match table.find(&self.target.host, self.target.path) {
            Ok(route) if std::ptr::eq(&**route, self.route) => None,
            found => Some((table.revision, found.ok().cloned())),
        }
    }

    fn count_retry(&self, record: &mut RequestRecord) {
        record.retries += 1;
        self.proxy.metrics.data_plane.retries.inc();
    }

    /// One attempt at one upstream: the head of its answer, or what may be done about its absence.
    async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        from: From,
        body: RequestBody,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<(ResponseHead, Connection, Option<Upload>), Failed> {
        let proxy = self.proxy;
        let pooled = match from {
            From::Pool => proxy.pools.take(upstream),
            From::Dial => None,
        };
        let (connection, at) = match pooled {
            Some(connection) => (connection, FailedAt::PooledConnection),
            None => match self.dial(upstream, deadline, record).await {
                Ok(connection) => (connection, FailedAt::FreshConnection),
                Err(failure) => {
                    let may_repeat = retry::is_safe(&self.request.method, Attempt::Dial);
                    return Err(Failed {
                        failure,
                        may_repeat,
                        body,
                        at: FailedAt::Connecting,
                    });
                }
            },
        };

        upstream.metrics.requests.inc();
        let mut buffer = proxy.take_buffer();
        let framing = self.head(upstream, body.length()).write(&mut buffer);
        let mut upload = Upload::new(
            buffer,
            body,
            framing,
            headers::expects_continue(self.request),
        );
        let limits = ExchangeLimits {
            response: self.route.settings.timeouts.response,
            idle: self.route.settings.timeouts.idle,
            client_body: proxy.limits.body,
        };
        let relay = |head: &ResponseHead| {
            if self.request.version == Version::HTTP_11 {
                self.client
                    .send_interim(&headers::interim_head(head.status, &head.headers));
            }
        };
        match connection
            .exchange(&mut upload, &self.request.method, &limits, deadline, relay)
            .await
        {
            Ok(head) if upload.is_done() => {
                proxy.give_buffer(upload.into_parts().0);
                Ok((head, connection, None))
            }
            Ok(head) => Ok((head, connection, Some(upload))),
            Err(error) => {
                let attempt = Attempt::Exchange {
                    error: &error,
                    written: upload.written(),
                    body_untouched: upload.is_body_untouched(),
                };
                let may_repeat = retry::is_safe(&self.request.method, attempt);
                let (buffer, body) = upload.into_parts();
                proxy.give_buffer(buffer);
                Err(Failed {
                    failure: Failure::exchange(&error, &upstream.name),
                    may_repeat,
                    body,
                    at,
                })
            }
        }
    }

    fn nobody(&self) -> Failure {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            format!(
                "route {} has no upstream that takes requests",
                self.route.name
            ),
        )
    }

    async fn dial(
        &self,
        upstream: &Upstream,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<Connection, Failure> {
        let begun = Instant::now();
        deadline.arm(self.route.settings.timeouts.connect);
        // Boxed: a connect with its TLS handshake is large, and most requests carry the room for it in vain.
        let dial = Box::pin(self.proxy.dialler.dial(upstream));
        let dialled = deadline.limit(dial).await;
        deadline.disarm();
        match dialled {
            Some(Ok(connection)) => {
                record.connected(begun);
                Ok(connection)
            }
            Some(Err(error)) => Err(Failure::dial(&error, &upstream.name)),
            None => Err(Failure::connect_timeout(&upstream.name)),
        }
    }

    fn head<'u>(&'u self, upstream: &'u Upstream, length: Option<u64>) -> UpstreamHead<'u> {
        UpstreamHead {
            request: self.request,
            target: self.target,
            path: self.path,
            settings: &self.route.settings,
            upstream,
            client: &self.client.address_text,
            sender: self.sender,
            scheme: self.scheme,
            length,
            upgrade: self.wants_upgrade,
        }
    }
}

/// Where an attempt takes its connection from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// An idle one, if there is one.
    Pool,
    /// A new one: what broke a pooled connection broke its siblings too.
    Dial,
}

/// Whom the next attempt goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Same,
    Other,
    OtherOrSame,
}

/// Where a route has this member, as it was in an earlier version of the route.
fn same_member(route: &Route, member: &Member) -> Option<usize> {
    let is_same = |other: &Member| {
        other.key.key == member.key.key && Arc::ptr_eq(&other.upstream, &member.upstream)
    };
    route.members.iter().position(is_same)
}

/// The members of a route whose upstreams are those of `tried` members of an earlier version.
fn same_upstreams(route: &Route, earlier: &Route, tried: &[usize]) -> SmallVec<[usize; 4]> {
    let is_tried = |member: &Member| {
        let upstreams = tried.iter().map(|&index| &earlier.members[index].upstream);
        upstreams
            .into_iter()
            .any(|upstream| Arc::ptr_eq(upstream, &member.upstream))
    };
    let members = route.members.iter().enumerate();
    let tried = members.filter(|(_, member)| is_tried(member));
    tried.map(|(index, _)| index).collect()
}

/// An attempt without a response head.
struct Failed {
    failure: Failure,
    may_repeat: bool,
    body: RequestBody,
    at: FailedAt,
}

enum FailedAt {
    Connecting,
    PooledConnection,
    FreshConnection,
}
