//! The outbox: copies of what the training thread says, put on the bus by a worker beside it.

use std::sync::Arc;

use leyline::Message;
use leyline::wire::MessagePriority;
use oona::{Bus, Heartbeat, Outcome, Stream};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Messages that may wait to be published: several seconds of a fast run.
pub const OUTBOX_LEN_MAX: usize = 512;
/// Name under which messages are published.
const SOURCE: &str = "tolaria";
/// Longest time one publish may take.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time the rest of the outbox may take when the worker stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// One message on its way out.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub stream: Stream,
    /// How urgent.
    pub priority: MessagePriority,
    /// What.
    pub message: Message,
}

/// The training thread's end of the outbox. Never waits.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: mpsc::Sender<Outgoing>,
    dropped: Counter,
}

impl Outbox {
    /// An outbox and the end that [`Publisher`] reads.
    pub fn new(metrics: &Metrics) -> (Self, OutboxEnd) {
        let (sender, receiver) = mpsc::channel(OUTBOX_LEN_MAX);
        let end = OutboxEnd(Arc::new(Mutex::new(receiver)));
        (Self { sender, dropped: metrics.outbox_dropped.clone() }, end)
    }

    /// Hands a message over, or drops and counts it when there is no room or nobody reads.
    pub fn send(&self, stream: Stream, priority: MessagePriority, message: impl Into<Message>) {
        let outgoing = Outgoing { stream, priority, message: message.into() };
        match self.sender.try_send(outgoing) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                self.dropped.inc();
            }
        }
    }

    /// Messages dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }
}

/// The other end. Cheap to clone, so that a restarted publisher reads on where the last one stopped; only one reads at
/// a time.
#[derive(Debug, Clone)]
pub struct OutboxEnd(Arc<Mutex<mpsc::Receiver<Outgoing>>>);

impl OutboxEnd {
    /// The next message; `None` when the run has ended and everything was read. Cancel safe.
    pub async fn recv(&self) -> Option<Outgoing> {
        self.0.lock().await.recv().await
    }
}

/// Why the publisher ended early. It has no such reason: what the bus refuses is counted.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {}

/// Puts the outbox on the bus.
#[derive(Debug)]
pub struct Publisher {
    /// The bus.
    pub bus: Bus,
    /// The outbox.
    pub outbox: OutboxEnd,
    /// Counted here.
    pub metrics: Metrics,
    /// Beaten here.
    pub heartbeat: Heartbeat,
}

enum Event {
    Message(Box<Outgoing>),
    Stop,
}

impl Publisher {
    /// Publishes until told to stop, or until the run has ended and everything is out. On a stop the rest of the
    /// outbox is still published, within a time limit.
    ///
    /// # Errors
    /// None.
    pub async fn run(self, stop: CancellationToken) -> Result<(), PublisherError> {
        while let Event::Message(outgoing) = self.next_event(&stop).await {
            self.publish(*outgoing).await;
        }
        if timeout(DRAIN_TIMEOUT, self.drain()).await.is_err() {
            warn!("outbox not empty at the end");
        }
        Ok(())
    }

    async fn next_event(&self, stop: &CancellationToken) -> Event {
        let heartbeat = self.heartbeat.clone();
        let next = async {
            tokio::select! {
                biased;
                () = stop.cancelled() => Event::Stop,
                outgoing = self.outbox.recv() => outgoing.map_or(Event::Stop, |outgoing| Event::Message(Box::new(outgoing))),
            }
        };
        heartbeat.during("waiting for messages", next).await
    }

    async fn drain(&self) {
        let mut outbox = self.outbox.0.lock().await;
        while let Ok(outgoing) = outbox.try_recv() {
            self.publish(outgoing).await;
        }
    }

    async fn publish(&self, outgoing: Outgoing) {
        self.heartbeat.beat("publishing");
        let Outgoing { stream, priority, message } = outgoing;
        let published = self.bus.publish(stream, priority, SOURCE, &message);
        match timeout(PUBLISH_TIMEOUT, published).await {
            Ok(Ok(Outcome::Refused { .. })) => {
                self.metrics.publish_failed.inc();
                debug!(?stream, kind = message.message_type().as_str_name(), "bus refused a copy");
            }
            Ok(Ok(
                Outcome::Published { .. } | Outcome::Rerouted { .. } | Outcome::Spooled { .. },
            )) => {
                self.metrics.published.inc();
            }
            Ok(Err(error)) => {
                self.metrics.publish_failed.inc();
                warn!(?stream, error = &error as &dyn std::error::Error, "copy not published");
            }
            Err(_) => {
                self.metrics.publish_failed.inc();
                warn!(?stream, "copy not published in time");
            }
        }
    }
}
