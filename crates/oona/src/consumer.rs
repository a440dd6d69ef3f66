//! Reading: one consumer of one group on one stream.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::{BreakerPosition, BreakerStanding};
use crate::check::{Checker, order_key};
use crate::delivery::{Delivery, Receipt};
use crate::error::{BusError, LogError};
use crate::fill::{Filler, Ready};
use crate::leaving::{Leaver, Leaving};
use crate::log::{Log, Seat};
use crate::metrics::{BreakerName, Consumed, Metrics};
use crate::shared::{Names, Pulse};
use crate::stream::Stream;
use crate::sync::Mutex;
use crate::work::Work;

/// In which order a consumer hands out what it has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As it stands in the stream, retries last. For workers that handle one message at a time.
    Arrival,
    /// As above, but a message whose key (`request_id`, `training_run_id`) is still in work, or
    /// waits for its retry, holds back later messages of that key. For concurrent handlers. Settle
    /// every delivery: collecting several of one key before acknowledging waits for ever.
    PerKey,
}

/// Whether what a consumer sees goes into the metrics of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It handles the stream for everybody: what it refuses or handles is counted and logged.
    Handler,
    /// It looks on in a group of its own while another handles the stream. It checks and refuses
    /// like any other, but an entry refused once is counted once, by the handler.
    Observer,
}

/// What to read, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// The stream.
    pub stream: Stream,
    /// The group; made from the stream's beginning when it does not exist.
    pub group: String,
    /// Entries read in one step; 256.
    pub batch_max: usize,
    /// Entries held at once, handed out or waiting; 1024. Beyond it reading pauses.
    pub in_work_max: usize,
    /// In which order to hand out; [`Order::Arrival`].
    pub order: Order,
    /// Whether it counts; [`Role::Handler`].
    pub role: Role,
}

impl ConsumerSpec {
    /// A consumer with the usual limits.
    pub fn new(stream: Stream, group: impl Into<String>) -> Self {
        Self {
            stream,
            group: group.into(),
            batch_max: 256,
            in_work_max: 1024,
            order: Order::Arrival,
            role: Role::Handler,
        }
    }
}

/// What a consumer, its deliveries and the housekeeping share.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) log: Log,
    pub(crate) stream: Stream,
    pub(crate) seat: Seat,
    pub(crate) dead_letter: String,
    pub(crate) work: Work,
    /// Those of the bus, or of nobody for an observer.
    pub(crate) metrics: Metrics,
    pub(crate) role: Role,
    pub(crate) attempts_max: u32,
    pub(crate) retry_delay_min: Duration,
    pub(crate) retry_delay_max: Duration,
    pub(crate) claim_idle: Duration,
    /// After which an entry comes back that was dropped unsettled.
    pub(crate) unsettled_delay: Duration,
    /// When this consumer last gave its heartbeat.
    pub(crate) beaten: Mutex<Instant>,
    /// When heartbeat and renewals were last given, by the consumer or by the housekeeping.
    pub(crate) renewed: Mutex<Instant>,
    /// Where the consumer's breaker stands.
    pub(crate) breaker: Mutex<BreakerPosition>,
    pub(crate) names: Arc<Names>,
    pub(crate) leaving: Arc<Leaving>,
    pub(crate) pulse: Arc<Pulse>,
}

impl Post {
    /// Where the consumer's breaker stands.
    pub(crate) fn breaker(&self) -> BreakerStanding {
        let position = *self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        BreakerStanding { name: format!("consume_{}.{}", self.stream, self.seat.group), position }
    }

    /// Takes note of where the consumer's breaker stands, in the metrics too.
    pub(crate) fn show_breaker(&self, position: BreakerPosition) {
        *self.breaker.lock().unwrap_or_else(PoisonError::into_inner) = position;
        self.metrics.show_breaker(BreakerName::Consume(self.stream), position);
    }

    /// Gives this consumer's heartbeat.
    pub(crate) async fn beat(&self) -> Result<(), LogError> {
        self.log.beat(&self.seat).await?;
        *self.beaten.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }

    /// Since the last heartbeat.
    pub(crate) fn beat_age(&self) -> Duration {
        self.beaten.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Renews what this consumer holds, when it is time for that.
    pub(crate) async fn renew(&self) -> Result<(), BusError> {
        {
            let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
            if renewed.elapsed() < self.claim_idle / 4 {
                return Ok(());
            }
            *renewed = Instant::now();
        }
        self.log.renew(&self.seat, &self.work.ids()).await?;
        Ok(())
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.names.give_back(&self.seat);
        self.leaving.add(Leaver {
            log: self.log.clone(),
            stream: self.stream,
            seat: self.seat.clone(),
            owed: self.work.owed(),
            failed: self.work.failed(),
        });
    }
}

/// One in so many messages looks after the batch that comes next; looking costs a little.
const AHEAD_EVERY: usize = 32;

type Filling = Pin<Box<dyn Future<Output = (Filler, Result<Vec<Ready>, BusError>)> + Send>>;

/// Hands out the messages of one stream. Make it with [`Bus::consumer`](crate::Bus::consumer).
pub struct Consumer {
    post: Arc<Post>,
    spec: ConsumerSpec,
    ready: VecDeque<Ready>,
    /// What waits for its key, in the order of arrival: found at once when the key becomes free.
    parked: HashMap<String, VecDeque<Ready>>,
    /// Keys that became free and were not looked at yet.
    freed: VecDeque<String>,
    /// At rest, or busy reading the next batch. The reading survives a cancelled `recv`.
    filler: Option<Filler>,
    filling: Option<Filling>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("seat", &self.post.seat).finish_non_exhaustive()
    }
}

impl Consumer {
    pub(crate) fn new(
        post: Arc<Post>,
        spec: ConsumerSpec,
        checker: Checker,
        limits: crate::fill::Limits,
    ) -> Self {
        let filler = Filler::new(Arc::clone(&post), checker, limits);
        Self {
            post,
            spec,
            ready: VecDeque::new(),
            parked: HashMap::new(),
            freed: VecDeque::new(),
            filler: Some(filler),
            filling: None,
        }
    }

    /// The name under which this consumer stands in its group.
    pub fn name(&self) -> &str {
        &self.post.seat.consumer
    }

    /// Waits for the next message. Cancel safe: nothing is lost when the future is dropped.
    ///
    /// Outages of the log are waited out here, with growing delays; what was refused never shows up.
    ///
    /// # Errors
    /// [`BusError::Log`] when the embedded log has failed for good.
    pub async fn recv(&mut self) -> Result<Delivery, BusError> {
        if self.ready.len().is_multiple_of(AHEAD_EVERY) {
            self.go_ahead().await?;
        }
        loop {
            if let Some(ready) = self.next_ready() {
                return Ok(self.hand_out(ready));
            }
            self.wait_for_more().await?;
        }
    }

    /// Waits for the next message and takes up to `max` that can be had without waiting. Handle
    /// them in order; [`Delivery::ack_all`] settles them in one step. Cancel safe.
    ///
    /// # Errors
    /// As for [`recv`](Self::recv).
    pub async fn recv_batch(&mut self, max: usize) -> Result<Vec<Delivery>, BusError> {
        self.go_ahead().await?;
        let mut batch = vec![self.recv().await?];
        while batch.len() < max {
            let Some(ready) = self.next_ready() else { break };
            batch.push(self.hand_out(ready));
        }
        Ok(batch)
    }

    fn next_ready(&mut self) -> Option<Ready> {
        if self.spec.order == Order::Arrival {
            return self.ready.pop_front();
        }
        self.freed.extend(self.post.work.take_freed());
        while let Some(key) = self.freed.pop_front() {
            if let Some(ready) = self.unpark(key) {
                return Some(ready);
            }
        }
        while let Some(ready) = self.ready.pop_front() {
            let Some(key) = order_key(&ready.checked.message) else { return Some(ready) };
            let (work, id) = (&self.post.work, ready.checked.id);
            // Nobody overtakes what waits; but a retry of the key's owner is what they wait for.
            let in_turn = !self.parked.contains_key(key) || work.owns(key, id);
            if in_turn && work.reserve(key, id) {
                return Some(ready);
            }
            let key = key.to_owned();
            self.parked.entry(key).or_default().push_back(ready);
        }
        None
    }

    /// The first that waited for this key, if it can have it now.
    fn unpark(&mut self, key: String) -> Option<Ready> {
        let Entry::Occupied(mut waiting) = self.parked.entry(key) else { return None };
        let first = waiting.get().front().map(|ready| ready.checked.id);
        let free = first.is_some_and(|id| self.post.work.reserve(waiting.key(), id));
        let ready = if free { waiting.get_mut().pop_front() } else { None };
        if waiting.get().is_empty() {
            waiting.remove();
        }
        ready
    }

    /// Where more waits in the log, lets it come while what is at hand is handled. Waits for nothing.
    async fn go_ahead(&mut self) -> Result<(), BusError> {
        let sent = self.filler.as_ref().is_some_and(|filler| filler.reading.is_in_flight());
        if sent
            && self.ready.len() < self.spec.batch_max
            && let Some(filler) = self.filler.take()
        {
            self.filling = Some(Box::pin(filler.fill()));
        }
        let Some(filling) = &mut self.filling else { return Ok(()) };
        let Poll::Ready((filler, filled)) =
            poll_fn(|context| Poll::Ready(filling.as_mut().poll(context))).await
        else {
            return Ok(());
        };
        (self.filler, self.filling) = (Some(filler), None);
        self.ready.extend(filled?);
        Ok(())
    }

    fn hand_out(&self, ready: Ready) -> Delivery {
        let checked = ready.checked;
        let received_at = Instant::now();
        self.post.metrics.count_consume(self.post.stream, Consumed::Delivered);
        Delivery {
            stream: self.post.stream,
            entry: checked.id,
            attempt: checked.attempt,
            message: checked.message,
            attributes: checked.attributes,
            received_at,
            receipt: Receipt {
                post: Arc::clone(&self.post),
                entry: checked.id,
                attempt: checked.attempt,
                received_at,
                settled: false,
            },
        }
    }

    /// Waits until there may be something to hand out: more was read, or something was settled.
    async fn wait_for_more(&mut self) -> Result<(), BusError> {
        let work = &self.post.work;
        // A full desk takes nothing new, but what makes room again has to go on: acknowledgements
        // that did not arrive, and retries.
        let wanted = work.len() < self.spec.in_work_max || work.needs_the_log(Instant::now());
        if wanted && let Some(filler) = self.filler.take() {
            self.filling = Some(Box::pin(filler.fill()));
        }
        let Some(filling) = &mut self.filling else {
            work.changed_or_due().await;
            return Ok(());
        };
        let (filler, filled) = tokio::select! {
            biased;
            outcome = filling => outcome,
            () = self.post.work.changed.notified() => return Ok(()),
        };
        (self.filler, self.filling) = (Some(filler), None);
        self.ready.extend(filled?);
        Ok(())
    }
}
