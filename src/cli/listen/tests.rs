//! Against listeners of its own.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_tungstenite::accept_hdr_async;

use super::*;
use crate::event::CloseCause;

#[test]
fn a_url_gets_its_scheme_and_path() {
    for (given, used) in [
        ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080/ws/notifications"),
        ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/ws/notifications"),
        ("https://app.example", "wss://app.example/ws/notifications"),
        ("wss://app.example/push", "wss://app.example/push/ws/notifications"),
        ("wss://app.example/ws/notifications", "wss://app.example/ws/notifications"),
        ("ws://h/ws/notifications?since=u~1-0", "ws://h/ws/notifications?since=u~1-0"),
        (DEFAULT_URL, DEFAULT_URL),
    ] {
        assert_eq!(endpoint(given).unwrap().as_str(), used);
    }
    for bad in ["", "127.0.0.1:8080", "ftp://h", "ws://"] {
        assert!(endpoint(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_token_goes_into_the_header_and_nowhere_else() {
    let request = request(DEFAULT_URL, "a.b.c").unwrap();
    assert_eq!(request.headers()["authorization"], "Bearer a.b.c");
    assert!(!format!("{request:?}").contains("a.b.c"));
    assert!(super::request(DEFAULT_URL, "a\nb").is_err());
}

#[test]
fn only_events_are_counted() {
    for (frame, expected) in [
        (r#"{"type":"ping"}"#, Kind::Ping),
        (r#"{"type":"belfry.welcome","user":"a"}"#, Kind::Own),
        (r#"{"type":"certificate_processed","data":{"type":"ping"}}"#, Kind::Event),
        (r#"{"b":1,"a":1.0}"#, Kind::Event),
        (r#"{"type":7}"#, Kind::Event),
    ] {
        assert_eq!(kind(frame), expected, "{frame}");
    }
}

#[test]
fn every_close_of_this_version_has_a_meaning() {
    for cause in CloseCause::ALL.into_iter().filter(|cause| *cause != CloseCause::Gone) {
        assert_ne!(meaning(cause.code()), meaning(3999), "{cause:?}");
    }
}

#[test]
fn only_the_normal_close_is_a_success() {
    let close = |code: u16, reason: &'static str| {
        ended(Some(&CloseFrame { code: code.into(), reason: reason.into() }))
    };
    assert!(close(1000, "normal").is_ok());
    let told = close(1008, "unauthorized").unwrap_err().to_string();
    assert!(told.starts_with("closed by the server: 1008 unauthorized: the credential"));
    assert!(ended(None).is_err());
}

/// Accepts one upgrade with the token `t.o.k`, says `frames`, and returns what came back until
/// the client closed.
#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
async fn serve(listener: TcpListener, frames: Vec<Message>) -> Vec<Message> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut bearer = None;
    let look = |request: &Request, response| {
        bearer = request.headers().get("authorization").cloned();
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, look).await.unwrap();
    assert_eq!(bearer.unwrap(), "Bearer t.o.k");
    for frame in frames {
        socket.send(frame).await.unwrap();
    }
    let mut came = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        came.push(message);
    }
    came
}

async fn run(frames: Vec<Message>, count: u64) -> (Result<(), Failure>, Vec<String>, Vec<Message>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = endpoint(&format!("ws://{}", listener.local_addr().unwrap())).unwrap().to_string();
    let server = tokio::spawn(serve(listener, frames));
    let mut printed = Vec::new();
    let ended = listen(&url, "t.o.k", None, NonZero::new(count), |frame| {
        printed.push(frame.to_owned());
        Ok(())
    })
    .await;
    (ended, printed, server.await.unwrap())
}

#[tokio::test]
async fn frames_are_printed_as_they_came_until_the_count_is_reached() {
    let said = [
        r#"{"type":"belfry.welcome","user":"alice"}"#,
        r#"{"type":"x",  "data":{"b":1,"a":1.0}}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"y","data":null}"#,
        r#"{"type":"z","data":"one too many"}"#,
    ];
    let mut frames: Vec<_> = said.into_iter().map(Message::text).collect();
    frames.insert(3, Message::Ping("hello".into()));
    let (ended, printed, came) = run(frames, 2).await;
    ended.unwrap();
    assert_eq!(printed, said[..4]);
    assert!(came.contains(&Message::text(r#"{"type":"pong"}"#)), "{came:?}");
    assert!(came.contains(&Message::Pong("hello".into())), "{came:?}");
    let Some(Message::Close(Some(close))) = came.last() else { panic!("{came:?}") };
    assert_eq!(close.code, CloseCode::Normal);
}

#[tokio::test]
async fn a_close_by_the_server_is_told() {
    let reason = CloseFrame { code: 4401.into(), reason: "token_expired".into() };
    let (ended, _, _) = run(vec![Message::Close(Some(reason))], 1).await;
    let told = ended.unwrap_err().to_string();
    assert!(told.starts_with("closed by the server: 4401 token_expired: the token"), "{told}");
}

#[tokio::test]
async fn a_refused_upgrade_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = endpoint(&format!("ws://{}", listener.local_addr().unwrap())).unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\n\
                      content-length: 25\r\n\r\n{\"title\":\"Redis is away\"}";
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let told = listen(&url, "t.o.k", None, None, |_| Ok(())).await.unwrap_err().to_string();
    server.await.unwrap();
    assert_eq!(
        told,
        "the upgrade was refused: 503 Service Unavailable: Redis is away\n  try again in 2 s"
    );
}

#[tokio::test]
async fn nobody_there_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws/notifications", listener.local_addr().unwrap());
    drop(listener);
    let told = listen(&url, "t.o.k", None, None, |_| Ok(())).await.unwrap_err().to_string();
    assert!(told.contains("is `belfry serve` running?"), "{told}");
}
