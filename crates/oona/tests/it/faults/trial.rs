//! One fault: calm before, the fault, its end, recovery, calm after, balance.

use std::sync::Arc;
use std::time::Duration;

use leyline::wire::MessagePriority;
use oona::{
    Bus, Config, ConsumerSpec, Heartbeat, Housekeeping, LeaseKeeper, LogChoice, Metrics, Order,
    PublishError, SpoolConfig, SpoolSender, Stream,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::book::{Allowed, Book, Handled, KEYS};
use crate::proxy::Proxy;
use crate::redis_server::RedisServer;
use crate::rig::{GROUP, epoch, keyring, state};

/// The goal is one second, and what was measured stands in `docs/oona.md`. A test machine may be busy
/// with ten other servers.
pub const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two messages, and between two looks at the book.
const PACE: Duration = Duration::from_millis(5);
/// Messages handled before the fault and after recovery.
const CALM: usize = 40;

/// What a fault can reach.
pub struct World {
    pub server: RedisServer,
    pub proxy: Proxy,
    pub bus: Bus,
    pub book: Arc<Book>,
}

/// When the fault was over, and what it may have cost.
pub struct Over {
    pub at: Instant,
    pub allowed: Allowed,
}

impl Over {
    /// Now, at no cost.
    pub fn now() -> Self {
        Self { at: Instant::now(), allowed: Allowed::default() }
    }
}

/// Where a publisher's messages wait while the log is away.
#[derive(PartialEq, Eq)]
enum Waiting {
    /// With the publisher, which tries again.
    Nowhere,
    /// On disk: it is told so, and goes on.
    InTheSpool,
}

/// Runs one fault and prints how long the first delivery after its end took.
pub async fn trial(
    name: &str,
    server: &[&str],
    fault: impl AsyncFnOnce(&mut World) -> Over,
) -> Duration {
    run(name, server, Waiting::Nowhere, fault).await
}

/// The same with a spool: no publish may fail.
pub async fn spooled_trial(
    name: &str,
    server: &[&str],
    fault: impl AsyncFnOnce(&mut World) -> Over,
) -> Duration {
    run(&format!("{name}, with a spool"), server, Waiting::InTheSpool, fault).await
}

async fn run(
    name: &str,
    server: &[&str],
    waiting: Waiting,
    fault: impl AsyncFnOnce(&mut World) -> Over,
) -> Duration {
    // Not on this thread: the other trials run here, too, and their time-outs go on.
    let arguments: Vec<String> = server.iter().map(|word| (*word).to_owned()).collect();
    let start = move || match arguments.as_slice() {
        [] => RedisServer::start(),
        some => RedisServer::start_with(&some.iter().map(String::as_str).collect::<Vec<_>>()),
    };
    let server = tokio::task::spawn_blocking(start).await.unwrap();
    let proxy = Proxy::before(server.port()).await;
    let mut config = Config { log: LogChoice::Redis { url: proxy.url() }, ..Config::default() };
    let directory = tempfile::tempdir().unwrap();
    if waiting == Waiting::InTheSpool {
        config.spool = Some(SpoolConfig::new(directory.path()));
    }
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    let book = Arc::new(Book::default());
    let mut world = World { server, proxy, bus: bus.clone(), book: Arc::clone(&book) };
    let stop = CancellationToken::new();
    let work = async {
        let book = book.as_ref();
        let drive = async {
            wait_for(name, "the first deliveries", || book.pages().handled.len() >= CALM).await;
            let over = fault(&mut world).await;
            let back = || book.first_handled_after(over.at);
            wait_for(name, "a delivery after the fault", || back().is_some()).await;
            let recovery = back().map_or(PATIENCE, |at| at - over.at);
            wait_for(name, "calm", || book.handled_after(over.at) >= CALM).await;
            stop.cancel();
            (over, recovery)
        };
        let worked = async {
            let ((over, recovery), ()) = tokio::join!(drive, publish(&bus, book, &stop));
            wait_for(name, "the rest", || book.missing(&over.allowed).is_empty()).await;
            acknowledged(&bus).await;
            (over, recovery)
        };
        // As in every process of production. Its ping shows publishers that the log is back.
        let keeper = Housekeeping { bus: bus.clone(), heartbeat: Heartbeat::detached() };
        let leases = LeaseKeeper { bus: bus.clone(), heartbeat: Heartbeat::detached() };
        let sender = SpoolSender { bus: bus.clone(), heartbeat: Heartbeat::detached() };
        let (over, recovery) = tokio::select! {
            done = worked => done,
            () = consume(&bus, book) => unreachable!("it never ends"),
            ended = sender.run(CancellationToken::new()) => unreachable!("{ended:?}"),
            ended = keeper.run(CancellationToken::new()) => unreachable!("{ended:?}"),
            ended = leases.run(CancellationToken::new()) => unreachable!("{ended:?}"),
        };
        if waiting == Waiting::InTheSpool {
            let failed = &book.pages().uncertain;
            assert!(failed.is_empty(), "{name}: publishing failed: {failed:?}");
        }
        book.balance(&bus, name, &over.allowed).await;
        recovery
    };
    let recovery = tokio::time::timeout(2 * PATIENCE, work).await;
    let recovery = recovery.unwrap_or_else(|_| panic!("{name}: hangs"));
    println!("recovery after {name}: {recovery:.0?}");
    assert!(recovery < RECOVERY_MAX, "{name}: recovery took {recovery:?}");
    recovery
}

/// Waits until nothing is pending or unread; the trial's own time-out bounds it.
async fn acknowledged(bus: &Bus) {
    while bus.depth(Stream::Normal, GROUP).await.ok() != Some(0) {
        tokio::time::sleep(PACE).await;
    }
}

async fn publish(bus: &Bus, book: &Book, stop: &CancellationToken) {
    for number in 0.. {
        let message = state(&format!("run-{}", number % KEYS), number);
        while !stop.is_cancelled() {
            let lane = (Stream::Normal, MessagePriority::Normal);
            let begun = Instant::now();
            match bus.publish(lane.0, lane.1, "test", &message).await {
                Ok(outcome) if outcome.is_accepted() => {
                    book.pages().told.insert(number, begun);
                    break;
                }
                Ok(_refused) => {}
                Err(PublishError::Log(_)) => {
                    book.pages().uncertain.insert(number);
                }
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(PACE).await;
        }
        if stop.is_cancelled() {
            return;
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn consume(bus: &Bus, book: &Book) {
    let spec = ConsumerSpec::new(Stream::Normal, GROUP);
    let mut consumer = bus.consumer(ConsumerSpec { order: Order::PerKey, ..spec });
    loop {
        let delivery = consumer.recv().await.unwrap();
        let (number, entry) = (epoch(&delivery), delivery.entry);
        book.pages().handled.push(Handled { number, entry, at: Instant::now() });
        // Where this fails the consumer sends it again before its next read.
        delivery.ack().await.ok();
    }
}

/// Polls, because what is waited for happens in another task's book.
pub async fn wait_for(name: &str, what: &str, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "{name}: no {what} within {PATIENCE:?}");
        tokio::time::sleep(PACE).await;
    }
}
