//! One connection that sends much has its turns, and others theirs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::support::{
    h2_origin::{END_HEADERS, END_STREAM, Frames, HEADERS, PING},
    h2_raw,
    http::Wire,
    origin::Origin,
    waypost::Waypost,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_full_of_fields_leaves_others_their_turn() {
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let origin = Origin::named("ok").await;
    waypost.put("good.test", &origin, "").await;
    let request = "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n";
    let mut good = Wire::connect(waypost.address()).await;
    assert_eq!(good.ask(request).await.status(), 200);

    // Crumbs of a cookie (RFC 9113 section 8.2.3), each of a byte or two: 800,000 of them.
    let mut block = b"\x82\x86\x84\x41\x06a.test".to_vec();
    block.extend(b"\x0f\x11\x01a".repeat(80));
    let mut all = Vec::new();
    for number in 0..10_000 {
        let flags = END_HEADERS | END_STREAM;
        all.extend(Frames::bytes(HEADERS, flags, 2 * number + 1, &block));
    }
    all.extend(Frames::bytes(PING, 0, 0, b"the last"));
    let frames = h2_raw::connect(waypost.address()).await;
    let (reading, mut writing) = frames.0.split();
    let is_read = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let _ = writing.write_all(&all).await;
        writing
    });
    let answers = tokio::spawn({
        let is_read = is_read.clone();
        async move {
            let pong = Frames(reading).take_kind(PING).await;
            is_read.store(true, Relaxed);
            pong.expect("all of it is read").payload
        }
    });
    let mut answered = 0;
    while !is_read.load(Relaxed) {
        assert_eq!(good.ask(request).await.status(), 200);
        answered += 1;
    }
    assert_eq!(answers.await.unwrap(), b"the last");
    drop(sending);
    // 3.4 MB are over two hundred turns. In one go, as far as the runtime lets it, they were four or five.
    assert!(answered > 30, "{answered} answers meanwhile");
}
