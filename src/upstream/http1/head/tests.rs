//! How response heads are read.

use super::*;

fn head(text: &str) -> Result<Option<ResponseHead>, MalformedHead> {
    parse(&mut BytesMut::from(text), &Method::GET)
}

#[test]
fn framing_follows_rfc_9112() {
    for (text, framing, reusable) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Framing::Length(5),
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            Framing::Length(5),
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            Framing::Length(5),
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
            Framing::Chunked,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            Framing::Chunked,
            false,
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", Framing::Close, false),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            Framing::Length(5),
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
            Framing::Length(5),
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
            Framing::Length(5),
            true,
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            Framing::Length(0),
            true,
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
            Framing::Length(0),
            false,
        ),
        (
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            Framing::Length(0),
            false,
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
            Framing::Length(0),
            true,
        ),
    ] {
        let head = head(text).expect(text).expect(text);
        assert_eq!((head.framing, head.reusable), (framing, reusable), "{text}");
    }
}

#[test]
fn lies_about_length_are_refused() {
    for (text, error) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            MalformedHead::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            MalformedHead::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            MalformedHead::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
            MalformedHead::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            MalformedHead::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
            MalformedHead::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            MalformedHead::Coding,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            MalformedHead::Coding,
        ),
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            MalformedHead::Coding,
        ),
        (
            "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
            MalformedHead::Syntax,
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", MalformedHead::Syntax),
    ] {
        assert_eq!(head(text).expect_err(text), error, "{text}");
    }
}

#[test]
fn hop_by_hop_fields_stay_behind() {
    let head = head(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5, max=9\r\n\
         Proxy-Connection: x\r\nTE: x\r\nUpgrade: h2c\r\nX-Kept: 1\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
    )
    .expect("well-formed")
    .expect("complete");
    // Only the order of values under one name means something (RFC 9110 section 5.3).
    let mut names: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    names.sort_by_key(|(name, _)| *name);
    assert_eq!(
        names,
        [("set-cookie", "a"), ("set-cookie", "b"), ("x-kept", "1")]
    );
    assert_eq!(head.keep_alive, Some(Duration::from_secs(5)));
    assert_eq!(head.upgrade, None, "Connection does not name Upgrade");
}

#[test]
fn a_head_in_pieces_waits_and_a_bomb_does_not() {
    let mut buffer = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Le");
    assert!(
        parse(&mut buffer, &Method::GET)
            .expect("so far so good")
            .is_none()
    );
    buffer.extend_from_slice(b"ngth: 1\r\n\r\nXnext");
    assert!(
        parse(&mut buffer, &Method::GET)
            .expect("well-formed")
            .is_some()
    );
    assert_eq!(&buffer[..], b"Xnext");

    let mut bomb = BytesMut::from("HTTP/1.1 200 OK\r\nX: ");
    bomb.extend_from_slice(&vec![b'a'; MAX_HEAD]);
    assert_eq!(
        parse(&mut bomb, &Method::GET).expect_err("too large"),
        MalformedHead::TooLarge
    );
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}\r\n",
        "a: b\r\n".repeat(MAX_FIELDS + 1)
    );
    assert_eq!(
        super::tests::head(&many).expect_err("too many"),
        MalformedHead::TooLarge
    );
}

#[test]
fn the_length_of_a_head_reply_is_relayed_and_not_obeyed() {
    let mut buffer = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let head = parse(&mut buffer, &Method::HEAD)
        .expect("well-formed")
        .expect("complete");
    assert_eq!(
        (head.framing, head.headers[CONTENT_LENGTH].as_bytes()),
        (Framing::Length(0), &b"5"[..])
    );
}
