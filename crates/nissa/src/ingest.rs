//! The ingest worker: reads every lane that says something about the system, and keeps the board.
//!
//! It is the board's only writer. Each replica reads through a group of its own, so each sees
//! everything; the emergency lane comes first, because what is urgent is sent there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use oona::{Bus, BusError, Consumer, ConsumerSpec, Delivery, Heartbeat, Role, Stream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::alerts::{Change, Notification, Route};
use crate::board::{Board, BoardSink, Now, Received};
use crate::config::{IngestConfig, Thresholds};
use crate::error::IngestError;
use crate::labels::Kind;
use crate::mapping::{self, Settings};
use crate::metrics::Metrics;
use crate::slo::Verdict;

/// Objective of this worker's own speed.
const OWN_OBJECTIVE: &str = "nissa.ingest";
/// Longest wait for an acknowledgement; the bus goes on trying after it.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two looks at the backlog.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for one stream's backlog.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// The streams that say something about the system. Of kernel traffic the requests and both answers
/// are read, so that the page can join them.
pub const STREAMS: [Stream; 6] = [
    Stream::Emergency,
    Stream::Normal,
    Stream::Telemetry,
    Stream::KernelRequests,
    Stream::KernelReady,
    Stream::KernelErrors,
];

/// Reads telemetry, states, reports, commands, emergencies and kernel traffic until told to stop.
///
/// A restarted worker begins with the newest published board, so the page and the alerts go on where
/// they were.
#[derive(Debug)]
pub struct Ingest {
    /// Where messages come from.
    pub bus: Bus,
    /// Group, pace, and the thresholds to begin with.
    pub config: IngestConfig,
    /// The thresholds in force.
    pub thresholds: watch::Receiver<Thresholds>,
    /// Where snapshots go.
    pub board: BoardSink,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    Arrived(Vec<Delivery>),
    Idle,
    Stop,
}

/// One consumer for each stream.
struct Lanes {
    emergency: Consumer,
    normal: Consumer,
    telemetry: Consumer,
    requests: Consumer,
    ready: Consumer,
    errors: Consumer,
}

impl Lanes {
    fn new(bus: &Bus, config: &IngestConfig) -> Self {
        let batch_max = config.batch_max.get();
        let spec = |stream| ConsumerSpec { batch_max, ..ConsumerSpec::new(stream, config.group()) };
        let consumer = |stream| bus.consumer(spec(stream));
        // These have handlers of their own, which count what they refuse.
        let observer = |stream| bus.consumer(ConsumerSpec { role: Role::Observer, ..spec(stream) });
        Self {
            emergency: observer(Stream::Emergency),
            normal: consumer(Stream::Normal),
            telemetry: consumer(Stream::Telemetry),
            requests: observer(Stream::KernelRequests),
            ready: observer(Stream::KernelReady),
            errors: observer(Stream::KernelErrors),
        }
    }

    /// The next batch, of one stream. Every arm is cancel safe.
    async fn recv(&mut self, max: usize) -> Result<Vec<Delivery>, BusError> {
        // Emergencies first; among the others none may starve another, so their order is random.
        let others = async {
            tokio::select! {
                batch = self.normal.recv_batch(max) => batch,
                batch = self.telemetry.recv_batch(max) => batch,
                batch = self.requests.recv_batch(max) => batch,
                batch = self.ready.recv_batch(max) => batch,
                batch = self.errors.recv_batch(max) => batch,
            }
        };
        tokio::select! {
            biased;
            batch = self.emergency.recv_batch(max) => batch,
            batch = others => batch,
        }
    }
}

/// The board in the worker's hands.
struct Desk {
    board: Board,
    published: u64,
    next_publish: Instant,
    next_look: Instant,
}

impl Ingest {
    /// Ingests until `stop`, then publishes what it knows.
    ///
    /// # Errors
    /// [`IngestError::Bus`] when the bus has failed for good.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), IngestError> {
        self.look_for_a_namesake().await;
        let mut lanes = Lanes::new(&self.bus, &self.config);
        let mut board = Board::clone(&self.board.borrow());
        board.alerts.adopt(&self.thresholds.borrow_and_update());
        let (published, now) = (board.revision, Instant::now());
        let mut desk = Desk { board, published, next_publish: now, next_look: now };
        loop {
            self.heartbeat.beat("waiting for messages");
            let event = self.next_event(&mut lanes, &desk, &stop).await?;
            if self.thresholds.has_changed().unwrap_or(false) {
                desk.board.alerts.adopt(&self.thresholds.borrow_and_update());
            }
            match event {
                Event::Arrived(batch) => self.ingest(&mut desk, batch).await,
                Event::Idle => {}
                Event::Stop => break,
            }
            if Instant::now() >= desk.next_look {
                self.look(&mut desk).await;
            }
            self.tick(&mut desk);
        }
        self.board.send_replace(Arc::new(desk.board));
        Ok(())
    }

    /// Two services that observe under one name share what they should both see.
    async fn look_for_a_namesake(&self) {
        let group = self.config.group();
        let looking = self.bus.neighbours(Stream::Telemetry, &group);
        let found = self.heartbeat.during("looking for a namesake", looking).await;
        if let Some(other) = found.unwrap_or_default().first() {
            tracing::warn!(
                group,
                other,
                "another service observes under this name, each sees a part; give each its own NISSA_REPLICA"
            );
        }
    }

    /// Waits for the next event. Only receives, so losing the race loses nothing.
    async fn next_event(
        &self,
        lanes: &mut Lanes,
        desk: &Desk,
        stop: &CancellationToken,
    ) -> Result<Event, BusError> {
        let beat = Instant::now() + Heartbeat::INTERVAL;
        let unpublished = desk.board.revision != desk.published;
        let wake = if unpublished { beat.min(desk.next_publish) } else { beat };
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(Event::Stop),
            batch = lanes.recv(self.config.batch_max.get()) => Ok(Event::Arrived(batch?)),
            () = tokio::time::sleep_until(wake) => Ok(Event::Idle),
        }
    }

    /// Applies a batch, then acknowledges it. The board is in memory, so a batch that is delivered
    /// again after a crash meets a board that has not seen it.
    async fn ingest(&self, desk: &mut Desk, batch: Vec<Delivery>) {
        let mut applied = Vec::with_capacity(batch.len());
        let mut poison = Vec::new();
        for delivery in batch {
            self.heartbeat.beat_about("applying a message", delivery.entry);
            // What a panic leaves half done is one message's share of the board.
            let applying = AssertUnwindSafe(|| self.apply(&mut desk.board, &delivery));
            match catch_unwind(applying) {
                Ok(()) => applied.push(delivery),
                Err(panic) => poison.push((delivery.spare(), panic)),
            }
        }
        let settling = async {
            for (spare, panic) in poison {
                spare.fail(panic).await;
            }
            Delivery::ack_all(applied).await
        };
        match timeout(ACK_TIMEOUT, settling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "not acknowledged yet")
            }
            Err(_) => tracing::warn!("no acknowledgement in time"),
        }
    }

    fn apply(&self, board: &mut Board, delivery: &Delivery) {
        let began = Instant::now();
        let now = Now::read();
        let settings = Settings {
            features: &self.config.coverage_features,
            elevated_risk: self.thresholds.borrow().elevated_risk,
        };
        mapping::observe(&self.metrics, &delivery.message, &settings);
        let (message, attributes) = (&delivery.message, &delivery.attributes);
        let applied = board.apply(now, Received { message, attributes });
        if applied.new_run {
            self.metrics.new_run();
        }
        self.notify(&applied.notifications);
        self.metrics.ingested(Kind::from(message), began.elapsed());
        let limit = self.config.ingest_objective;
        let in_time = delivery.received_at.elapsed() <= limit;
        let verdict = if in_time { Verdict::Good } else { Verdict::Bad };
        self.notify(&board.level(now, OWN_OBJECTIVE, verdict));
    }

    /// Measures what its own group has not read yet. A log that does not answer is the bus's to
    /// report, not this worker's.
    async fn look(&self, desk: &mut Desk) {
        let group = self.config.group();
        for stream in STREAMS {
            self.heartbeat.beat("measuring the backlog");
            let name = self.bus.config().streams.name(stream);
            match timeout(LOOK_TIMEOUT, self.bus.depth(stream, &group)).await {
                Ok(Ok(depth)) => {
                    self.notify(&desk.board.backlog(Now::read(), &group, (stream, name), depth));
                }
                Ok(Err(error)) => tracing::debug!(
                    name,
                    error = &error as &dyn std::error::Error,
                    "backlog unknown"
                ),
                Err(_) => tracing::debug!(name, "backlog not measured in time"),
            }
        }
        desk.next_look = Instant::now() + LOOK_EVERY;
    }

    /// What is due whether or not something arrived.
    fn tick(&self, desk: &mut Desk) {
        let now = Now::read();
        self.notify(&desk.board.tick(now));
        self.metrics.quarantine(desk.board.sources.quarantines(now.mono));
        self.metrics.evicted(desk.board.evicted());
        for (rule, sources) in desk.board.alerts.counts() {
            self.metrics.alerts_active(rule, sources);
        }
        if desk.board.revision != desk.published && now.mono >= desk.next_publish {
            desk.published = desk.board.revision;
            desk.next_publish = now.mono + self.config.publish_every;
            self.board.send_replace(Arc::new(desk.board.clone()));
        }
    }

    /// Tells every route, which in this version means the log and a counter; the page reads the
    /// board's own list.
    fn notify(&self, notifications: &[Notification]) {
        for note in notifications {
            self.metrics.alert_change(note.rule, note.change);
            for route in note.routes {
                self.metrics.notified(*route);
            }
            let (rule, source, value) = (note.rule, note.source.as_str(), note.value);
            match note.change {
                Change::Fired if note.routes.contains(&Route::PagerDuty) => {
                    tracing::error!(%rule, source, value, "alert fired");
                }
                Change::Fired => tracing::warn!(%rule, source, value, "alert fired"),
                Change::Resolved => tracing::info!(%rule, source, value, "alert resolved"),
            }
        }
    }
}
