//! A server under test and a client that shares no code with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nissa::{
    Board, BoardSink, ControlRequest, Health, Http, HttpConfig, IngestConfig, Metrics, Now,
    ProcessPhase, ReloadPort, ReloadRequest, WorkerControl,
};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a test holds of a running server.
pub struct Server {
    pub address: SocketAddr,
    pub health: watch::Sender<Health>,
    pub board: BoardSink,
    pub requests: mpsc::Receiver<ControlRequest>,
    pub reloads: mpsc::Receiver<ReloadRequest>,
    pub stop: CancellationToken,
}

/// A running, ready service without workers.
pub fn healthy() -> Health {
    Health {
        ready: true,
        reasons: Vec::new(),
        phase: ProcessPhase::Running,
        ..Health::booting("1.2.3", "embedded")
    }
}

/// Runs a server while `test` talks to it, then stops it and demands a clean end.
pub async fn serve<F: Future<Output = ()>>(config: HttpConfig, test: impl FnOnce(Server) -> F) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    serve_on(listener, config, None, test).await;
}

/// The same on a listener, and with a library whose kernels are handed out.
pub async fn serve_on<F: Future<Output = ()>>(
    listener: std::net::TcpListener,
    config: HttpConfig,
    library: Option<urza::Library>,
    test: impl FnOnce(Server) -> F,
) {
    let address = listener.local_addr().unwrap();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (board, board_source) = nissa::channel(&IngestConfig::default());
    let (health, health_source) = watch::channel(healthy());
    let (control, requests) = WorkerControl::channel();
    let (reload, reloads) = ReloadPort::channel();
    let stop = CancellationToken::new();
    let http = Http {
        listener,
        config: Arc::new(config),
        health: health_source,
        board: board_source,
        bus: watch::channel(None).1,
        kernels: watch::channel(library).1,
        registry: Arc::new(registry),
        logs: nissa::LogTail::default(),
        control,
        reload,
        metrics,
        heartbeat: oona::Heartbeat::detached(),
    };
    let server = Server { address, health, board, requests, reloads, stop: stop.clone() };
    let tested = async {
        test(server).await;
        stop.cancel();
    };
    let (ended, ()) = timeout(PATIENCE, async { tokio::join!(http.run(stop.clone()), tested) })
        .await
        .expect("the test or the server's drain takes too long");
    ended.unwrap();
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends one request on a connection of its own and reads to the end.
pub async fn ask(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request += &format!("host: {to}\r\n");
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    parse(&String::from_utf8(bytes).unwrap())
}

pub async fn get(to: SocketAddr, path: &str) -> Answer {
    ask(to, "GET", path, &[]).await
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Answer { status, headers, body: body.to_owned() }
}

/// Reads until `marker` shows up, and returns everything read so far.
pub async fn read_until(stream: &mut TcpStream, read: &mut String, marker: &str) {
    let mut buffer = [0_u8; 4096];
    timeout(PATIENCE, async {
        while !read.contains(marker) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the stream ended without {marker}: {read}");
            read.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{marker} never came: {read}"));
}

/// A board to fill by hand.
pub fn board() -> Board {
    Board::new(Now::read(), &IngestConfig::default())
}
