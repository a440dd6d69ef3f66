//! A real S3 server on real HTTP, and a proxy that breaks what passes through it. Each runs on a thread
//! of its own and ends with its handle.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use urza::store::{BucketAccess, BucketConfig, BucketUrl};

pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret-of-the-bucket";

/// A thread with a runtime of its own, which ends with this.
struct Running {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                tokio::select! { () = work() => {}, () = stopped.cancelled() => {} }
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A bucket on a directory, spoken to through a proxy.
pub struct S3 {
    pub proxy: Proxy,
    pub root: TempDir,
    _server: Running,
}

impl S3 {
    pub const BUCKET: &str = "kernels";

    pub fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(Self::BUCKET)).unwrap();
        let (listener, address) = listen();
        let files = s3s_fs::FileSystem::new(root.path()).unwrap();
        let server = Running::start(move || async move {
            let mut service = S3ServiceBuilder::new(files);
            service.set_auth(SimpleAuth::from_single(KEY, SECRET));
            let service = service.build();
            let listener = TcpListener::from_std(listener).unwrap();
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                open.spawn(async move {
                    let serving = hyper::server::conn::http1::Builder::new();
                    let _ = serving.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { proxy: Proxy::start(address), root, _server: server }
    }

    /// What a library with the right key is told, with short waits.
    pub fn config(&self) -> BucketConfig {
        let access = BucketAccess {
            endpoint: Some(format!("http://{}", self.proxy.address)),
            key_id: Some(KEY.to_owned()),
            secret_key: Some(SECRET.to_owned()),
            ..BucketAccess::default()
        };
        let url = BucketUrl::parse("s3://kernels/team/a").unwrap();
        BucketConfig {
            backoff: std::time::Duration::from_millis(10),
            idle_timeout: std::time::Duration::from_secs(2),
            ..BucketConfig::new(url, access)
        }
    }

    /// Where the server keeps an object.
    pub fn object(&self, name: &str) -> PathBuf {
        self.root.path().join(Self::BUCKET).join("team/a").join(name)
    }
}

/// What becomes of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing; also when no more faults are queued.
    None,
    /// It ends after this many bytes of answers.
    CutAfter(usize),
    /// The first request is answered by an error of the server.
    Error500,
    /// The first request is never answered.
    Silent,
    /// This byte of the answers is another one.
    Garble(usize),
}

/// Passes connections on, one fault each.
pub struct Proxy {
    pub address: SocketAddr,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    _server: Running,
}

impl Proxy {
    pub fn start(target: SocketAddr) -> Self {
        let (listener, address) = listen();
        let faults = Arc::new(Mutex::new(VecDeque::<Fault>::new()));
        let queue = Arc::clone(&faults);
        let server = Running::start(move || async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fault = queue.lock().unwrap().pop_front().unwrap_or(Fault::None);
                open.spawn(pass(stream, target, fault));
            }
        });
        Self { address, faults, _server: server }
    }

    /// Queues faults for the connections to come. A connection that a client keeps has had its own.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// How many of the queued faults have not met a connection.
    pub fn left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }
}

async fn pass(mut client: TcpStream, target: SocketAddr, fault: Fault) {
    match fault {
        Fault::Error500 => {
            let mut head = [0; 16 * 1024];
            let _ = client.read(&mut head).await;
            let answer = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = client.write_all(answer).await;
            return;
        }
        Fault::Silent => return std::future::pending().await,
        Fault::None | Fault::CutAfter(_) | Fault::Garble(_) => {}
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
        std::future::pending::<()>().await
    };
    let down = async {
        let mut passed = 0;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let Ok(count @ 1..) = from_server.read(&mut buffer).await else { return };
            let mut piece = buffer[..count].to_vec();
            match fault {
                Fault::CutAfter(at) if at < passed + count => {
                    let _ = to_client.write_all(&piece[..at - passed]).await;
                    return;
                }
                Fault::Garble(at) if (passed..passed + count).contains(&at) => {
                    piece[at - passed] ^= 1;
                }
                _ => {}
            }
            if to_client.write_all(&piece).await.is_err() {
                return;
            }
            passed += count;
        }
    };
    tokio::select! { () = up => {}, () = down => {} }
}
