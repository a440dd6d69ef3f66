//! Every wait and every size has an end.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use nissa::HttpConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PATIENCE, ask, get, serve};

/// Reads to the end, whether the other side closes or resets.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("never closed").ok();
    bytes
}

#[tokio::test]
async fn a_client_that_dawdles_over_its_headers_is_dropped() {
    let config = HttpConfig { header_timeout: Duration::from_millis(60), ..HttpConfig::default() };
    serve(config, |server| async move {
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        slow.write_all(b"GET /livez HTTP/1.1\r\nhost: loc").await.unwrap();
        let answer = String::from_utf8(rest(&mut slow).await).unwrap();
        assert!(!answer.contains("200 OK"), "{answer}");
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        rest(&mut silent).await;
        assert_eq!(get(server.address, "/livez").await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn beyond_its_bound_a_connection_waits_and_is_then_served() {
    let config = HttpConfig {
        connections_max: NonZeroUsize::MIN,
        header_timeout: Duration::from_millis(200),
        ..HttpConfig::default()
    };
    serve(config, |server| async move {
        let _holds_the_place = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(get(server.address, "/livez").await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    serve(HttpConfig::default(), |server| async move {
        let large = ask(server.address, "POST", "/livez", &[("content-length", "5000")]).await;
        assert_eq!(large.status, 413);
        let long = "x".repeat(20_000);
        let answer = ask(server.address, "GET", "/livez", &[("x-long", &long)]).await;
        assert_eq!(answer.status, 431);
        let mut garbage = TcpStream::connect(server.address).await.unwrap();
        garbage.write_all(b"\x16\x03\x01\x02\x00 not http at all\r\n\r\n").await.unwrap();
        rest(&mut garbage).await;
        assert_eq!(get(server.address, "/livez").await.status, 200);
    })
    .await;
}

/// Everything that comes back for these bytes, until the other side closes.
async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    String::from_utf8(rest(&mut stream).await).unwrap()
}

#[tokio::test]
async fn a_body_whose_length_is_not_told_is_refused_unread() {
    let config = HttpConfig { header_timeout: Duration::from_millis(500), ..HttpConfig::default() };
    serve(config, |server| async move {
        let head = "POST /v1/workers/x/restart HTTP/1.1\r\nhost: localhost\r\n";
        // No chunk ever comes, and none is waited for.
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
        let answer = raw(server.address, chunked.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.contains("\"reason\":\"body\""), "{answer}");
        // Two answers to one request would be a smuggled one.
        let both = format!(
            "{head}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
        );
        let answer = raw(server.address, both.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(!answer.contains("200 OK"), "{answer}");
        let lengths = format!("{head}content-length: 4\r\ncontent-length: 5\r\n\r\nabcd");
        let answer = raw(server.address, lengths.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(server.requests.is_empty(), "nothing of it reached the supervisor");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_never_comes_is_not_waited_for() {
    let config = HttpConfig { header_timeout: Duration::from_millis(200), ..HttpConfig::default() };
    serve(config, |server| async move {
        let asked = b"POST /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4000\r\n\r\nx";
        let answer = raw(server.address, asked).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "answered, then closed: {answer}");
        assert_eq!(get(server.address, "/livez").await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_kept_open_and_idle_is_closed() {
    let config = HttpConfig { header_timeout: Duration::from_millis(100), ..HttpConfig::default() };
    serve(config, |server| async move {
        let answer = raw(server.address, b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(answer.contains("200 OK"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_crowd_of_silent_connections_only_delays_an_honest_one() {
    let config = HttpConfig {
        connections_max: NonZeroUsize::MIN.saturating_add(7),
        header_timeout: Duration::from_millis(100),
        ..HttpConfig::default()
    };
    serve(config, |server| async move {
        let mut crowd = Vec::new();
        for _ in 0..40 {
            crowd.push(TcpStream::connect(server.address).await.unwrap());
        }
        assert_eq!(get(server.address, "/livez").await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_frees_the_port() {
    let mut address = None;
    let seen = &mut address;
    serve(HttpConfig::default(), |server| async move {
        let mut idle = TcpStream::connect(server.address).await.unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut buffer = [0_u8; 16];
        idle.read_exact(&mut buffer).await.unwrap();
        *seen = Some(server.address);
    })
    .await;
    std::net::TcpListener::bind(address.unwrap()).unwrap();
}
