use super::*;

/// Shows `bytes` in pieces; what hyper is to see of them, and where it paused. What a pause holds back is shown again.
fn seen(bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let (mut strict, mut seen, mut pauses) = (StrictFraming::new(1000), Vec::new(), Vec::new());
    let mut ends = pieces.to_vec();
    ends.push(bytes.len());
    let mut at = 0;
    for end in ends {
        while at < end {
            let piece = &bytes[at..end];
            match strict.check(piece) {
                Verdict::Pass => {
                    seen.extend_from_slice(piece);
                    at = end;
                }
                Verdict::Pause(count) => {
                    seen.extend_from_slice(&piece[..count]);
                    at += count;
                    pauses.push(at);
                }
                Verdict::Refuse(count, spoils) => {
                    seen.extend_from_slice(&piece[..count]);
                    seen.extend_from_slice(spoils);
                    return (seen, pauses);
                }
            }
        }
    }
    (seen, pauses)
}

/// Streams of requests. Where one is refused there is a bar.
const STREAMS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\n\r\nGET / HTTP/1.1\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Type: x\r\nX: y\r\n\r\n\n\n\nGET / HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n3 ;a=\"b\"\r\n\n\r\n\r\n00;\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nUpgrade-Insecure-Requests: 1\r\nReferer: x\r\nTE: x\r\ntraceparent: x\r\n\r\n",
    "GET / HTTP/1.1|\n",
    "GET / HTTP/1.1\r\n\r\nPRI * HTTP/2.0\r|\n\r\nSM\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a|\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n|\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\r|\n",
    "GET / HTTP/1.1\r\n\r\n\r\n\r\n\r\n\r\n\r|\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1|\nx\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: 1|\n\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n|\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;|\0\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r|\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: x\r|\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r|\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r|\n\r\n",
];

#[test]
fn what_passes_is_the_same_whatever_the_pieces() {
    for stream in STREAMS {
        let passes = stream.find('|');
        let bytes = &*stream.replace('|', "").into_bytes();
        let (whole, pauses) = seen(bytes, &[]);
        assert_eq!(pauses, [0; 0], "{stream:?}");
        match passes {
            None => assert_eq!(whole, bytes, "{stream:?}"),
            Some(count) => {
                assert_eq!(whole[..count], bytes[..count], "{stream:?}");
                assert_ne!(whole[count..], bytes[count..], "{stream:?}");
            }
        }
        let bytewise: Vec<usize> = (1..bytes.len()).collect();
        assert_eq!(seen(bytes, &bytewise).0, whole, "{stream:?}");
        for first in 1..bytes.len() {
            for second in (first..bytes.len()).step_by(5) {
                let split = seen(bytes, &[first, second]).0;
                assert_eq!(split, whole, "{stream:?} at {first} and {second}");
            }
        }
    }
}

#[test]
fn behind_a_request_for_an_upgrade_it_waits() {
    let upgrade = "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: y\r\n\r\n";
    let stream =
        format!("GET / HTTP/1.1\r\n\r\n{upgrade}GET / HTTP/1.1\r\n\r\n{upgrade}\r\n\r\n\0");
    let end = 18 + upgrade.len();
    let pauses = [end, 2 * end];
    let bytes = stream.as_bytes();
    assert_eq!(seen(bytes, &[]), (bytes.to_vec(), pauses.to_vec()));
    for at in 1..bytes.len() {
        assert_eq!(
            seen(bytes, &[at]),
            (bytes.to_vec(), pauses.to_vec()),
            "{at}"
        );
    }
    // With a body it is no upgrade.
    let body = upgrade.replace("X: y", "Content-Length: 1");
    assert_eq!(seen(format!("{body}\nGET").as_bytes(), &[]).1, [0; 0]);
}

#[test]
fn a_line_that_is_longer_than_what_is_kept_is_judged_by_its_start_and_end() {
    let long = "x".repeat(300);
    for (field, passes) in [
        (format!("X: {long}\r\n"), true),
        (format!("X: {long}\n"), false),
        (format!("Content-Length:{}3\r\n", " ".repeat(300)), false),
        (
            format!("Transfer-Encoding:{}chunked\r\n", " ".repeat(300)),
            false,
        ),
    ] {
        let stream = format!("GET / HTTP/1.1\r\n{field}\r\n");
        for step in [1, 7, 1000] {
            let ends: Vec<usize> = (step..stream.len()).step_by(step).collect();
            let whole = seen(stream.as_bytes(), &ends).0 == stream.as_bytes();
            assert_eq!(whole, passes, "{field:?} by {step}");
        }
    }
}

#[test]
fn a_long_target_is_known_however_it_comes() {
    let request = |path: usize| format!("GET /{} HTTP/1.1\r\nX: y\r\n\r\n", "a".repeat(path));
    let follows = "GET /aaaaaaaaaa";
    for (path, is_long) in [(900, false), (1100, true), (70_000, true)] {
        let stream = format!("{}{}{follows}", request(10), request(path));
        for step in [1, 7, 500, 1000, 100_000] {
            let mut strict = StrictFraming::new(1000);
            for piece in stream.as_bytes().chunks(step) {
                assert_eq!(strict.check(piece), Verdict::Pass);
            }
            assert_eq!(strict.has_long_target(), is_long, "{path} by {step}");
        }
    }
    let mut strict = StrictFraming::new(1000);
    strict.check(&request(1100).into_bytes()[..1050]);
    assert!(strict.has_long_target(), "no end yet");
}
