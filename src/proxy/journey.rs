//! A request's way to an upstream: pick, dial, exchange, and once more where that is safe.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{StatusCode, request::Parts};

use super::{
    Proxy,
    affinity::{Affinity, Asker},
    answer::Answer,
    attempt::Failed,
    client::Client,
    discard::discard,
    error::Failure,
    forwarded::{Scheme, Sender},
    record::RequestRecord,
    setback::{NoPlace, Setback},
    stream::Stream,
    target::Target,
    tries::Tries,
    upgrade::Handshake,
};
use crate::{
    route::{
        Route, UpstreamTarget,
        pick::{Ask, Nobody},
    },
    upstream::request_body::RequestBody,
};

/// One request on its way to some upstream of its route.
pub struct Journey<'r> {
    pub proxy: &'r Rc<Proxy>,
    pub client: &'r Rc<Client>,
    pub request: &'r Parts,
    pub target: &'r Target<'r>,
    pub route: &'r Route,
    pub path: UpstreamTarget<'r>,
    pub sender: Sender,
    pub scheme: Scheme,
    /// It asks for a WebSocket.
    pub upgrade: Option<&'r Handshake>,
    /// The stream that it came on, over HTTP/2.
    pub stream: Option<&'r Stream>,
    /// What ties it to a member of the route; see [`Self::tied`].
    pub affinity: Affinity,
}

/// What of a request is left to send, and to whom it was sent in vain.
pub struct Trip {
    pub(super) body: RequestBody,
    pub(super) tries: Tries,
    /// What became of the attempt before.
    pub(super) setback: Option<Setback>,
    /// How long it may still wait for a place, once it has waited.
    pub(super) patience: Option<Duration>,
}

/// Why a journey ended without an answer.
pub enum Stop {
    /// Trying on would not be safe or of use.
    Failed(Failure),
    /// It may go on, but the table has changed: this route serves the request now.
    Rerouted(Box<(Arc<Route>, Trip)>),
}

impl Trip {
    /// Nothing was tried yet, and at most so many attempts beyond the first may be.
    pub fn new(body: RequestBody, extra: u32) -> Self {
        Self {
            body,
            tries: Tries::new(extra),
            setback: None,
            patience: None,
        }
    }
}

impl Journey<'_> {
    /// With the affinity that the request has in its route.
    pub fn tied(mut self) -> Self {
        self.affinity = Affinity::of(self.route, self.asker());
        self
    }

    /// Tries members until one answers, or trying on would not be safe or of use. No member is tried of a route that
    /// is not in the table any more: who takes a member out may count on that.
    pub async fn run(&self, mut trip: Trip, record: &mut RequestRecord) -> Result<Answer, Stop> {
        let deadline = self.proxy.sweep.deadline();
        loop {
            let (index, from) = match self.at_once(&trip, record) {
                Some(index) => (index, trip.tries.from()),
                // Boxed: most requests carry the room for it in vain.
                None => {
                    record.waits();
                    match Box::pin(self.place(&mut trip, record)).await {
                        Ok(place) => place,
                        Err(NoPlace::Failed(failure)) => return Err(Stop::Failed(failure)),
                        Err(NoPlace::Moved(route)) => return Err(self.reroute(route, trip)),
                    }
                }
            };
            let upstream = &self.route.members[index].upstream;
            record.send(index, upstream);
            let attempt = self.attempt(upstream, from, trip.body, &deadline, record);
            let (failed, again) = match attempt.await {
                Ok(answered) => match self.unwanted(&answered, index, &mut trip.tries) {
                    None => {
                        return Ok(Answer {
                            head: answered.head,
                            rest: answered.rest,
                            upstream: upstream.clone(),
                            deadline,
                            cookie: self.affinity.cookie(self.route, index, self.asker()),
                        });
                    }
                    Some((cause, again)) => {
                        let failed = Failed {
                            failure: Failure::discarded(answered.head.status, &upstream.name),
                            cause: Some(cause),
                            body: discard(self.proxy, upstream, answered),
                        };
                        (failed, Some(again))
                    }
                },
                Err(failed) => {
                    let again = |cause| self.again(cause, index, &mut trip.tries);
                    let again = failed.cause.and_then(again);
                    (failed, again)
                }
            };
            record.came_back();
            let Failed {
                failure,
                cause,
                body,
            } = failed;
            let (Some(cause), Some(again)) = (cause, again) else {
                return Err(Stop::Failed(failure));
            };
            trip.body = body;
            trip.body.rewind();
            trip.setback = Some(Setback {
                failure,
                cause,
                again,
                member: Some(index),
            });
        }
    }

    /// A place for the first attempt, if there is one without a wait.
    fn at_once(&self, trip: &Trip, record: &mut RequestRecord) -> Option<usize> {
        match trip.setback {
            Some(_) => None,
            None => self.claim(&trip.tries, record).ok(),
        }
    }

    fn asker(&self) -> Asker<'_> {
        Asker {
            request: self.request,
            path: self.target.path,
            claims: self.proxy.claims(self.client, &self.request.headers),
            scheme: self.scheme,
        }
    }

    pub(super) fn ask<'a>(&'a self, tried: &'a [usize]) -> Ask<'a> {
        Ask {
            tried,
            loads: self.proxy.loads.all(),
            key: self.affinity.key,
            sticks_to: self.affinity.member(),
            yields: true,
        }
    }

    pub(super) fn nobody(&self, why: Nobody) -> Failure {
        let problem = match why {
            Nobody::Without => "has no upstream that takes requests",
            Nobody::Out => "has no upstream that is not ejected or unhealthy",
            Nobody::Tried => "has no further upstream",
            Nobody::Full => "has no upstream with room for the request",
        };
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            format!("route {} {problem}", self.route.name),
        )
    }
}
