//! An answer that nobody gets, because the request goes out again: what is left of it is read, if that is little, so
//! that its connection serves on.

use std::{future::poll_fn, rc::Rc, sync::Arc, time::Duration};

use super::{
    Proxy,
    answer::Rest,
    attempt::{Answered, Sent},
};
use crate::upstream::{
    Upstream,
    http1::{
        Connection, StreamingBody,
        body::ResponseFrame,
        decoder::Decoder,
        head::{Framing, ResponseHead},
    },
    request_body::RequestBody,
};

/// The most that is read of the body of such an answer, in bytes; beyond it the connection is closed.
const MOST_READ: u64 = 64 * 1024;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Discards it; what the request's body was sent from is given back.
pub(super) fn discard(
    proxy: &Rc<Proxy>,
    upstream: &Arc<Upstream>,
    answered: Answered,
) -> RequestBody {
    match answered.rest {
        Rest::Http1 {
            connection,
            sent: Sent::All(body),
        } => {
            recycle(proxy, upstream, connection, &answered.head);
            body
        }
        Rest::Http1 {
            sent: Sent::Partly(upload),
            ..
        } => upload.into_parts().1,
        // Its stream is reset, which costs the connection nothing.
        Rest::Http2(exchange) => exchange.into_body(),
    }
}

fn recycle(
    proxy: &Rc<Proxy>,
    upstream: &Arc<Upstream>,
    connection: Connection,
    head: &ResponseHead,
) {
    let is_short = match head.framing {
        Framing::Length(length) => length <= MOST_READ,
        Framing::Chunked => true,
        Framing::Close => false,
    };
    if !head.reusable || !is_short {
        return;
    }
    let keep_alive = head.keep_alive;
    if connection.whole_body(head.framing).is_some() {
        return proxy.pools.put(upstream, connection, keep_alive);
    }
    let mut body = StreamingBody::new(
        connection,
        Decoder::new(head.framing),
        head.reusable,
        PATIENCE,
        proxy.sweep.deadline(),
        None,
    );
    let (proxy, upstream) = (proxy.clone(), upstream.clone());
    tokio::task::spawn_local(async move {
        let patience = proxy.sweep.deadline();
        patience.arm(PATIENCE);
        patience.limit(read_out(&mut body)).await;
        if let Some(connection) = body.reclaim() {
            proxy.pools.put(&upstream, connection, keep_alive);
        }
    });
}

async fn read_out(body: &mut StreamingBody) {
    let mut left = MOST_READ;
    while let Some(Ok(frame)) = poll_fn(|cx| body.poll_frame(cx)).await {
        let ResponseFrame::Data(data) = frame else {
            continue;
        };
        match left.checked_sub(data.len() as u64) {
            Some(less) => left = less,
            None => return,
        }
    }
}
