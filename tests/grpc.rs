//! gRPC through Waypost: clients and servers of two makes, every kind of call, and what a client is told when there is
//! no server.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request as HttpRequest, uri::PathAndQuery};
use tokio::sync::mpsc;
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::support::{
    command::DEADLINE,
    foreign,
    grpc::{Bytewise, EchoServer},
    h2_client::H2Client,
    origin::Refusing,
    tls::Authority,
    waypost::Waypost,
};

const H2: &str = r#"{"protocol": "h2"}"#;
const UNARY: PathAndQuery = PathAndQuery::from_static("/test.Echo/Unary");
const STREAM: PathAndQuery = PathAndQuery::from_static("/test.Echo/Stream");

/// A server of either make.
enum Server {
    Tonic(EchoServer),
    Foreign(foreign::Server),
}

impl Server {
    async fn until_waiting(&self, count: usize) {
        match self {
            Self::Tonic(server) => server.until_waiting(count).await,
            Self::Foreign(server) => {
                server.says(&format!("waiting {count}")).await;
            }
        }
    }

    async fn until_cancelled(&self, count: usize) {
        match self {
            Self::Tonic(server) => server.until_cancelled(count).await,
            Self::Foreign(server) => {
                server.says(&format!("cancelled {count}")).await;
            }
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tonic(server) => server.fmt(formatter),
            Self::Foreign(server) => server.fmt(formatter),
        }
    }
}

async fn client(waypost: &Waypost, host: &str) -> Grpc<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", waypost.address())).unwrap();
    let endpoint = endpoint.origin(format!("http://{host}").parse().unwrap());
    let channel = endpoint.connect().await.unwrap();
    Grpc::new(channel).max_decoding_message_size(usize::MAX)
}

async fn unary(
    client: &mut Grpc<Channel>,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, Status> {
    client.ready().await.unwrap();
    let answered = client.unary(request, UNARY, Bytewise);
    let answered = tokio::time::timeout(DEADLINE, answered).await;
    answered.expect("an answer in time")
}

/// A call both of whose sides speak as they like.
async fn talk(client: &mut Grpc<Channel>) -> (mpsc::UnboundedSender<Bytes>, Streaming<Bytes>) {
    let (say, said) = mpsc::unbounded_channel();
    let messages = stream::unfold(said, async |mut said| Some((said.recv().await?, said)));
    // A server may answer once it has heard something.
    say.send(Bytes::from("first")).unwrap();
    client.ready().await.unwrap();
    let answered = client
        .streaming(Request::new(messages), STREAM, Bytewise)
        .await;
    let mut heard = answered.unwrap().into_inner();
    assert_eq!(
        next(&mut heard).await.unwrap().as_deref(),
        Some(&b"first"[..])
    );
    (say, heard)
}

async fn next(heard: &mut Streaming<Bytes>) -> Result<Option<Bytes>, Status> {
    let next = tokio::time::timeout(DEADLINE, heard.message()).await;
    next.expect("a message in time")
}

#[tokio::test]
async fn calls_of_every_kind_pass_between_two_makes() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    let ca = authority.file().display().to_string();
    let [plain, tls] = waypost.addresses() else {
        panic!("two listeners");
    };
    let foreign = foreign::Server::start("grpc_server.py", &[]).await;
    for server in [
        Server::Tonic(EchoServer::start().await),
        Server::Foreign(foreign),
    ] {
        waypost.put("a.test", &server, H2).await;
        let mut client = client(&waypost, "a.test").await;
        calls(&mut client).await;
        ends(&mut client, &server).await;
        let plain = plain.port().to_string();
        let printed = foreign::run("grpc_client.py", &[&plain]).await;
        assert_eq!(printed.lines().count(), 4, "{printed}");
        server.until_cancelled(5).await;
        let tls = tls.port().to_string();
        foreign::run("grpc_client.py", &[&tls, &ca]).await;
        waypost.delete("a.test", &server).await;
    }
}

async fn calls(client: &mut Grpc<Channel>) {
    let mut request = Request::new(Bytes::from("hello"));
    let raw = MetadataValue::from_bytes(b"\0\xff\x01");
    request
        .metadata_mut()
        .insert("x-asked", "yes".parse().unwrap());
    request.metadata_mut().insert_bin("x-raw-bin", raw.clone());
    let answer = unary(client, request).await.unwrap();
    assert_eq!(answer.get_ref(), "hello");
    assert_eq!(answer.metadata().get("x-asked").unwrap(), "yes");
    assert_eq!(*answer.metadata().get_bin("x-raw-bin").unwrap(), raw);

    let large = Bytes::from(vec![7; 8 << 20]);
    let answer = unary(client, Request::new(large.clone())).await.unwrap();
    assert!(
        *answer.get_ref() == large,
        "{} bytes",
        answer.get_ref().len()
    );

    // Each is answered before the next is said.
    let (say, mut heard) = talk(client).await;
    for number in 0..20 {
        let message = Bytes::from(format!("message {number}"));
        say.send(message.clone()).unwrap();
        assert_eq!(next(&mut heard).await.unwrap(), Some(message));
    }
    say.send(Bytes::from("many")).unwrap();
    for number in 0..100 {
        let message = Bytes::from(format!("number {number}"));
        assert_eq!(next(&mut heard).await.unwrap(), Some(message));
    }
    drop(say);
    assert_eq!(next(&mut heard).await.unwrap(), None);
    assert!(heard.trailers().await.unwrap().is_some());
}

async fn ends(client: &mut Grpc<Channel>, server: &Server) {
    let told = unary(client, Request::new(Bytes::from("fail"))).await;
    let told = told.unwrap_err();
    assert_eq!(
        (told.code(), told.message()),
        (Code::FailedPrecondition, "nein, 100 % grün")
    );
    let (say, mut heard) = talk(client).await;
    say.send(Bytes::from("fail")).unwrap();
    let told = next(&mut heard).await.unwrap_err();
    assert_eq!((told.code(), told.message()), (Code::DataLoss, "broken"));

    // By its own clock or the server's, whichever is first.
    let mut hurried = Request::new(Bytes::from("wait"));
    hurried.set_timeout(Duration::from_secs(1));
    let told = unary(client, hurried).await.unwrap_err();
    let codes = [Code::DeadlineExceeded, Code::Cancelled];
    assert!(codes.contains(&told.code()), "{told:?}");
    server.until_cancelled(1).await;

    // Given up on by the client: once before the head of the answer, once behind it.
    let mut other = client.clone();
    let waiting = unary(&mut other, Request::new(Bytes::from("wait")));
    tokio::select! {
        answer = waiting => panic!("{answer:?}"),
        () = server.until_waiting(2) => {}
    }
    server.until_cancelled(2).await;
    let (say, mut heard) = talk(client).await;
    say.send(Bytes::from("wait")).unwrap();
    let told = next(&mut heard).await.unwrap();
    assert_eq!(told.as_deref(), Some(&b"waiting"[..]));
    drop((say, heard));
    server.until_cancelled(3).await;
}

/// Whoever listens has nothing to say for long, and may then have something.
#[tokio::test]
async fn a_call_may_be_silent_for_longer_than_an_upload() {
    let waypost = Waypost::builder()
        .flag("--body-timeout", "200ms")
        .start()
        .await;
    let server = EchoServer::start().await;
    waypost.put("a.test", &server, H2).await;
    let mut client = client(&waypost, "a.test").await;
    let (say, mut heard) = talk(&mut client).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    say.send(Bytes::from("still here")).unwrap();
    let echo = next(&mut heard).await.unwrap();
    assert_eq!(echo.as_deref(), Some(&b"still here"[..]));
}

#[tokio::test]
async fn a_call_without_a_server_ends_with_a_status_that_says_so() {
    let waypost = Waypost::builder().start().await;
    let (refusing, unused) = (Refusing::new(), EchoServer::start().await);
    waypost.put("refusing.test", &refusing, H2).await;
    waypost
        .put("empty.test", &unused, r#"{"protocol": "h2", "weight": 0}"#)
        .await;
    waypost.put("slow.test", &unused, H2).await;
    let slow = r#"{"timeouts": {"response": "200ms"}}"#;
    waypost.put("slow.test", "@settings", slow).await;
    for (host, code, text) in [
        (
            "unknown.test",
            Code::Unimplemented,
            "404 Not Found: no route for host unknown.test",
        ),
        (
            "refusing.test",
            Code::Unavailable,
            "502 Bad Gateway: upstream",
        ),
        (
            "empty.test",
            Code::Unavailable,
            "503 Service Unavailable: route empty.test",
        ),
        (
            "slow.test",
            Code::Unavailable,
            "504 Gateway Timeout: upstream",
        ),
    ] {
        let mut client = client(&waypost, host).await;
        let told = unary(&mut client, Request::new(Bytes::from("wait"))).await;
        let told = told.unwrap_err();
        assert_eq!(told.code(), code, "{host}: {told:?}");
        assert!(told.message().starts_with(text), "{host}: {told:?}");
    }
    // The head itself: all in one, and for others as ever.
    let client = H2Client::connect(waypost.address()).await;
    for (kind, status, code) in [
        ("application/grpc", 200, Some("12")),
        ("application/grpc+proto", 200, Some("12")),
        ("application/grpc-web", 404, None),
        ("application/json", 404, None),
    ] {
        let request = HttpRequest::post("http://unknown.test/").header("content-type", kind);
        let answer = client.ask(request.body(()).unwrap()).await.unwrap();
        assert_eq!(
            (answer.status(), answer.field("grpc-status")),
            (status, code),
            "{kind}"
        );
        assert_eq!(answer.body.is_empty(), code.is_some());
        assert!(answer.trailers.is_empty());
        let explained = answer.field("proxy-status").unwrap();
        assert!(explained.starts_with("waypost; error=destination_not_found;"));
        let told = answer.field("content-type").unwrap();
        assert_eq!(told == "application/grpc", code.is_some());
    }
}
