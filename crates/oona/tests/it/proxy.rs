//! A loopback TCP proxy between client and server whose faults can be switched while it runs.
//!
//! A fault counts from the moment it is switched on, for connections that are open and for those
//! that come. Healing it lets new connections through; those that a fault has silenced stay silent,
//! as behind a middlebox that forgot them. What is random comes from a seed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes moved in one step.
const CHUNK: usize = 16 * 1024;

/// What the proxy does to what passes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Everything passes.
    None,
    /// Open connections are closed, new ones refused: accepted and reset at once, since a listening
    /// socket cannot refuse by choice.
    Refuse,
    /// Connections stand, but nothing passes any more, in neither direction.
    HalfOpen,
    /// Every chunk waits that long, and up to `jitter` longer.
    Delay { fixed: Duration, jitter: Duration },
    /// The server's answers come `bytes` at a time, one piece per `interval`.
    Drip { bytes: usize, interval: Duration },
    /// After that many more bytes of answers on one connection it is reset, in mid-reply. New
    /// connections are treated the same.
    ResetAfter { bytes: usize },
}

/// A running proxy; its connections end with it.
pub struct Proxy {
    port: u16,
    fault: watch::Sender<(u64, Fault)>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Shared {
    accepted: AtomicU64,
    /// Cancelled and replaced to close every open connection.
    cut: Mutex<CancellationToken>,
}

impl Proxy {
    /// Stands before that port of 127.0.0.1. Its seed is printed, hence shown when the test fails;
    /// `OONA_TEST_SEED` repeats it.
    #[expect(clippy::disallowed_methods, reason = "a server of the test's own")]
    pub async fn before(server: u16) -> Self {
        let asked = std::env::var("OONA_TEST_SEED").ok();
        let seed = asked.map_or_else(rand::random, |seed| seed.parse().unwrap());
        println!("proxy before port {server}, OONA_TEST_SEED={seed}");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fault, watched) = watch::channel((0, Fault::None));
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let serve = serve(listener, server, seed, watched, Arc::clone(&shared), stop.clone());
        tokio::spawn(serve);
        Self { port, fault, shared, stop }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Switches a fault on, in place of the one before.
    pub fn set(&self, fault: Fault) {
        self.fault.send_modify(|(number, now)| (*number, *now) = (*number + 1, fault));
        if fault == Fault::Refuse {
            self.cut();
        }
    }

    pub fn heal(&self) {
        self.set(Fault::None);
    }

    /// Closes every open connection now.
    pub fn cut(&self) {
        let mut cut = self.shared.cut.lock().unwrap();
        std::mem::replace(&mut *cut, CancellationToken::new()).cancel();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut();
    }
}

async fn serve(
    listener: TcpListener,
    server: u16,
    seed: u64,
    fault: watch::Receiver<(u64, Fault)>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let client = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        if fault.borrow().1 == Fault::Refuse {
            reset(&client);
            continue;
        }
        let cut = shared.cut.lock().unwrap().clone();
        let dice = StdRng::seed_from_u64(seed ^ number);
        connections.spawn(connection(client, server, fault.clone(), dice, cut));
    }
}

/// Closing it then sends RST instead of FIN.
fn reset(stream: &TcpStream) {
    stream.set_zero_linger().unwrap();
}

async fn connection(
    client: TcpStream,
    server: u16,
    fault: watch::Receiver<(u64, Fault)>,
    mut dice: StdRng,
    cut: CancellationToken,
) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return reset(&client);
    };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    reset(&client);
    let (client, server) = (client.into_split(), server.into_split());
    let other = StdRng::seed_from_u64(dice.random());
    let up = Way { from: client.0, to: server.1, answers: false, fault: fault.clone(), dice };
    let down = Way { from: server.0, to: client.1, answers: true, fault, dice: other };
    tokio::select! {
        () = cut.cancelled() => {}
        () = up.run() => {}
        () = down.run() => {}
    }
}

/// One direction of one connection.
struct Way {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    /// From the server to the client.
    answers: bool,
    fault: watch::Receiver<(u64, Fault)>,
    dice: StdRng,
}

impl Way {
    /// Until either end closes, or a fault ends it.
    async fn run(mut self) {
        let mut buffer = vec![0; CHUNK];
        // Answer bytes that passed under the fault of that number.
        let (mut number, mut passed) = (0, 0);
        loop {
            let Ok(bytes @ 1..) = self.from.read(&mut buffer).await else { return };
            let (now, fault) = *self.fault.borrow();
            if now != number {
                (number, passed) = (now, 0);
            }
            let chunk = &buffer[..bytes];
            let written = match fault {
                Fault::None => self.to.write_all(chunk).await,
                Fault::Refuse => return,
                // What was swallowed is gone, so this connection never speaks again.
                Fault::HalfOpen => return std::future::pending().await,
                Fault::Delay { fixed, jitter } => {
                    let jitter = jitter.mul_f64(self.dice.random());
                    tokio::time::sleep(fixed + jitter).await;
                    self.to.write_all(chunk).await
                }
                Fault::Drip { bytes, interval } if self.answers => {
                    drip(&mut self.to, chunk, bytes, interval).await
                }
                Fault::ResetAfter { bytes } if self.answers => {
                    let rest = bytes.saturating_sub(passed);
                    if chunk.len() > rest {
                        self.to.write_all(&chunk[..rest]).await.ok();
                        return;
                    }
                    passed += chunk.len();
                    self.to.write_all(chunk).await
                }
                Fault::Drip { .. } | Fault::ResetAfter { .. } => self.to.write_all(chunk).await,
            };
            if written.is_err() {
                return;
            }
        }
    }
}

async fn drip(
    to: &mut OwnedWriteHalf,
    chunk: &[u8],
    bytes: usize,
    interval: Duration,
) -> std::io::Result<()> {
    for piece in chunk.chunks(bytes) {
        to.write_all(piece).await?;
        tokio::time::sleep(interval).await;
    }
    Ok(())
}
