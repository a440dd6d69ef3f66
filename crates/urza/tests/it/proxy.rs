//! A proxy that breaks what passes through it. Runs on a thread of its own and ends with its handle.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A thread with a runtime of its own, which ends with this.
pub struct Running {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) -> Self {
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

pub fn listen() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
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
    passed: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    _server: Running,
}

impl Proxy {
    pub fn start(target: SocketAddr) -> Self {
        let (listener, address) = listen();
        let faults = Arc::new(Mutex::new(VecDeque::<Fault>::new()));
        let queue = Arc::clone(&faults);
        let (passed, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (bytes, opened) = (Arc::clone(&passed), Arc::clone(&connections));
        let server = Running::start(move || async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fault = queue.lock().unwrap().pop_front().unwrap_or(Fault::None);
                opened.fetch_add(1, Ordering::SeqCst);
                open.spawn(pass(stream, target, fault, Arc::clone(&bytes)));
            }
        });
        Self { address, faults, passed, connections, _server: server }
    }

    /// Queues faults for the connections to come. A connection that a client keeps has had its own.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// Bytes of answers that clients were sent.
    #[allow(dead_code, reason = "not every test that has a proxy counts")]
    pub fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }

    /// Connections that clients have made.
    #[allow(dead_code, reason = "not every test that has a proxy counts")]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn pass(mut client: TcpStream, target: SocketAddr, fault: Fault, bytes: Arc<AtomicUsize>) {
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
                    bytes.fetch_add(at - passed, Ordering::SeqCst);
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
            bytes.fetch_add(count, Ordering::SeqCst);
        }
    };
    tokio::select! { () = up => {}, () = down => {} }
}
