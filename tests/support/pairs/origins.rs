//! How the upstreams answer.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;

use super::{
    Ends, Log, Says, Seen,
    clients::{chunk, last_chunk},
    fields, of_map, of_message,
};
use crate::support::{
    h2_origin::{self, Exchange},
    http::Message,
    origin,
};

pub(super) async fn over_http1(mut served: origin::Served, says: Says, seen: Arc<Log>) {
    loop {
        let request = match says.early {
            false => served.request().await,
            true => served.wire.head().await.ok().map(|head| Message {
                head,
                ..Message::default()
            }),
        };
        let Some(request) = request else {
            return;
        };
        seen.requests.lock().unwrap().push(of_message(&request));
        if says.ends == Ends::HangsUp {
            return;
        }
        let mut head = "HTTP/1.1 200 OK\r\n".to_owned();
        for (name, value) in &says.fields {
            head += &format!("{name}: {value}\r\n");
        }
        head += &match says.length {
            Some(length) => format!("Content-Length: {length}\r\n\r\n"),
            None => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        };
        served.send(head).await;
        for piece in &says.pieces {
            pass(&says).await;
            let piece = match says.length {
                Some(_) => piece.to_vec(),
                None => chunk(piece),
            };
            served.send(piece).await;
        }
        pass(&says).await;
        match says.ends {
            Ends::Whole if says.length.is_none() => {
                served.send(last_chunk(&fields(&says.trailers))).await;
            }
            Ends::Whole => {}
            Ends::Never => {
                served.wire.take_rest().await;
                seen.cancelled.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Ends::Cut | Ends::HangsUp => return,
        }
    }
}

pub(super) async fn over_h2(mut exchange: Exchange, says: Says, seen: Arc<Log>) {
    let (body, trailers) = match says.early {
        false => exchange.read().await,
        true => Default::default(),
    };
    let head = &exchange.asked.head;
    let target = head.uri.path_and_query().map_or("", |path| path.as_str());
    let host = head
        .uri
        .authority()
        .map_or("", |authority| authority.as_str());
    seen.requests.lock().unwrap().push(Seen {
        line: format!("{} {target}", head.method),
        host: host.to_owned(),
        fields: of_map(&head.headers),
        body,
        trailers: of_map(&trailers),
        whole: true,
    });
    if says.ends == Ends::HangsUp {
        exchange.respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return;
    }
    let length = says.length.map(|length| length.to_string());
    let length = length
        .as_ref()
        .map(|length| ("content-length", length.as_str()));
    let fields: Vec<_> = says.fields.iter().copied().chain(length).collect();
    let mut stream = exchange.head(200, &fields, false);
    for piece in &says.pieces {
        pass(&says).await;
        let _ = stream.send_data(piece.clone(), false);
    }
    pass(&says).await;
    match says.ends {
        Ends::Whole if says.trailers.is_empty() => {
            let _ = stream.send_data(Bytes::new(), true);
        }
        Ends::Whole => {
            let _ = stream.send_trailers(h2_origin::trailers(&says.trailers));
        }
        Ends::Never => {
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            seen.cancelled.fetch_add(1, Ordering::SeqCst);
        }
        Ends::Cut | Ends::HangsUp => stream.send_reset(h2::Reason::INTERNAL_ERROR),
    }
}

async fn pass(says: &Says) {
    if let Some(gate) = &says.gate {
        gate.acquire().await.expect("it is never closed").forget();
    }
}
