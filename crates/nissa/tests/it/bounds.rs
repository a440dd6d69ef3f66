//! Every wait and every size has an end.

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
