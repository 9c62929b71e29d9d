//! The access log of a real instance: a whole line for each request, with what happened to it.

use std::{collections::HashMap, fs, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    load::{Load, ask, get},
    sample::Sample,
    waypost::{Waypost, eventually},
};

#[tokio::test]
async fn json_lines_say_what_happened_to_each_request() {
    let (waypost, sample) = serving("json").await;
    waypost.put("refused.test", "127.0.0.1:1", "").await;
    waypost
        .put("empty.test", "127.0.0.1:1", r#"{"weight": 0}"#)
        .await;
    let address = waypost.address();
    let request = "POST /echo?x=1&y=%20 HTTP/1.1\r\nHost: A.test:80\r\nContent-Length: 5\r\n\
        User-Agent: a \"test\"\r\nReferer: http://b.test/\r\nConnection: close\r\n\r\nhello";
    let text = raw(address, request).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert_eq!(ask(address, "nobody.test", "/none").await.status(), 404);
    assert_eq!(ask(address, "refused.test", "/refused").await.status(), 502);
    assert_eq!(ask(address, "empty.test", "/empty").await.status(), 503);
    let mut left = TcpStream::connect(address).await.unwrap();
    left.write_all(b"GET /hold HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    sample.until_holding(1).await;
    drop(left);
    sample.until_holding(0).await;
    let mut aborted = TcpStream::connect(address).await.unwrap();
    aborted
        .write_all(b"GET /stream HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    let mut first = Vec::new();
    while !first.ends_with(b"part\n\r\n") {
        assert_ne!(aborted.read_buf(&mut first).await.unwrap(), 0);
    }
    drop(aborted);
    sample.until_holding(0).await;
    sample.release();
    let streamed = get(address, "a.test", "/stream?whole").await.unwrap();
    assert_eq!(streamed.body(), "part\npart\n");

    let lines = lines_of(&waypost, 7).await;
    let line = &lines["/echo?x=1&y=%20"];
    for (field, expected) in [
        ("method", "POST".into()),
        ("host", "a.test".into()),
        ("status", 200.into()),
        ("reason", Value::Null),
        ("route", "a.test".into()),
        ("upstream", sample.to_string().into()),
        ("request_bytes", 5.into()),
        ("response_bytes", sample.to_string().len().into()),
        ("retries", 0.into()),
        ("tls", false.into()),
        ("user_agent", "a \"test\"".into()),
        ("referer", "http://b.test/".into()),
    ] {
        assert_eq!(line[field], expected, "{field} in {line}");
    }
    assert!(line["version"].as_str().unwrap().contains("1.1"), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    assert!(
        line["client"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );
    assert!(
        line["duration_ms"].as_f64() >= line["first_byte_ms"].as_f64(),
        "{line}"
    );
    assert!(
        line["connect_ms"].is_number() && line["revision"].as_i64() > Some(0),
        "{line}"
    );

    for (target, status, upstream) in [
        ("/none", 404, Value::Null),
        ("/refused", 502, "127.0.0.1:1".into()),
        ("/empty", 503, Value::Null),
    ] {
        let line = &lines[target];
        assert_eq!(
            (&line["status"], &line["upstream"]),
            (&status.into(), &upstream),
            "{line}"
        );
        assert!(line["reason"].is_string(), "{line}");
    }
    assert_eq!(lines["/none"]["route"], Value::Null);
    assert_eq!(lines["/refused"]["route"], "refused.test");
    assert_eq!(
        lines["/hold"]["status"], 499,
        "the client left before the head"
    );
    let aborted = &lines["/stream"];
    assert_eq!(
        (&aborted["status"], &aborted["response_bytes"]),
        (&200.into(), &5.into())
    );
    assert_eq!(aborted["reason"], "client_left", "{aborted}");
    let whole = &lines["/stream?whole"];
    assert_eq!(
        (&whole["response_bytes"], &whole["reason"]),
        (&10.into(), &Value::Null)
    );
}

#[tokio::test]
async fn combined_lines_are_those_every_tool_reads() {
    let (waypost, sample) = serving("combined").await;
    let request = "GET /a?b=%22c HTTP/1.1\r\nHost: a.test\r\nUser-Agent: say \"x\"\r\nConnection: close\r\n\r\n";
    raw(waypost.address(), request).await;
    let line = waypost.output().until("/a?b=").await;
    let length = sample.to_string().len();
    let (client, rest) = line.split_once(" - - [").expect("the client first");
    let (time, rest) = rest.split_once("] ").expect("the time in brackets");
    assert_eq!(client, "127.0.0.1");
    assert!(time.len() == 26 && time.ends_with("+0000"), "{time}");
    let expected = format!(r#""GET /a?b=%22c HTTP/1.1" 200 {length} "-" "say \x22x\x22""#);
    assert_eq!(rest, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_the_file_has_a_whole_line_for_every_request() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    fs::write(&file, "{\"earlier\": true}\n").unwrap();
    let (mut waypost, sample) = serving(&format!("json:{}", file.display())).await;
    let load = Load::start(&[waypost.address()], &["a.test"]);
    load.more(1000).await;
    let tally = load.finish().await;
    waypost.signal("INT");
    assert_eq!(waypost.wait_exit().await, Some(0));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("{\"earlier\": true}\n") && text.ends_with('\n'));
    let lines: Vec<Value> = text
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    // Stopping the load aborted the last requests.
    let good = lines
        .iter()
        .filter(|line| line["reason"].is_null() && line["status"] == 200);
    let (good, all) = (good.count(), lines.len());
    assert!(
        all >= tally.good && all <= sample.hits() + 6,
        "{all} lines, {tally:?}"
    );
    assert!(
        good >= tally.good && good <= tally.good + 6,
        "{good} good, {tally:?}"
    );
    assert!(waypost.output().all().is_empty());
}

#[tokio::test]
async fn requests_cut_at_the_end_have_their_lines() {
    let builder = Waypost::builder()
        .flag("--access-log", "json")
        .flag("--drain-timeout", "0");
    let (mut waypost, sample) = tokio::join!(builder.start(), Sample::start());
    waypost.put("a.test", &sample, "").await;
    let address = waypost.address();
    let held = tokio::spawn(async move { get(address, "a.test", "/hold").await });
    sample.until_holding(1).await;
    waypost.signal("INT");
    assert_eq!(waypost.wait_exit().await, Some(1));
    assert!(held.await.unwrap().is_err());
    let lines = lines_of(&waypost, 1).await;
    assert_eq!(lines["/hold"]["reason"], "shut_down");
}

/// An instance with this log, and an upstream for `a.test`.
async fn serving(log: &str) -> (Waypost, Sample) {
    let builder = Waypost::builder().flag("--access-log", log);
    let (waypost, sample) = tokio::join!(builder.start(), Sample::start());
    waypost.put("a.test", &sample, "").await;
    (waypost, sample)
}

/// The lines on standard output by target, once there are so many.
async fn lines_of(waypost: &Waypost, count: usize) -> HashMap<String, Value> {
    let parsed = || {
        let lines = waypost.output().all();
        let lines = lines.iter().map(|line| {
            let value: Value = serde_json::from_str(line).expect(line);
            (
                value["target"].as_str().expect("a target").to_owned(),
                value,
            )
        });
        lines.collect::<HashMap<_, _>>()
    };
    eventually("every line is there", async || {
        waypost.output().all().len() >= count
    })
    .await;
    parsed()
}

async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}
