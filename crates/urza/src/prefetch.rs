//! The prefetch worker: answers requests for kernels from the bus.
//!
//! Reading order: `want` (what a request asks for), `queue` (who is served first), `desk` (who waits
//! for what), `send` (answers on their way), `holders` (which run holds which kernel), `estimate` (when
//! to ask again).

mod desk;
mod estimate;
mod holders;
mod queue;
mod send;
mod want;

use std::time::Duration;

use futures_util::StreamExt as _;
use oona::chaos::{self, Point};
use oona::{Bus, BusError, Consumer, ConsumerSpec, Delivery, Heartbeat, Stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::desk::{Desk, Shop};
use self::send::Sender;
pub use self::want::{Unfit, Variants, Want};
use crate::demand::{BuildAnswer, Demand};
use crate::library::Library;
use crate::metrics::Metrics;

/// Requests read in one step.
const READ_MAX: usize = 256;

/// Settings of the prefetch worker. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchConfig {
    /// `weatherlight`: the group all workers of all processes share.
    pub group: String,
    /// 4096 requests read and not answered; those that wait for a look or a build are not counted.
    pub in_flight_max: usize,
    /// 4096 requests that wait for a look or a build; beyond it nobody is kept waiting, and is told
    /// `compiling` at once.
    pub waiting_max: usize,
    /// 8 batches of answers on their way to the bus.
    pub sends_max: usize,
    /// 32 looks into the library at once that memory does not answer: SQL, or an artifact's hash.
    pub looks_max: usize,
    /// 3 s: how long a request waits for a build before it is answered `compiling`.
    pub compiling_after: Duration,
    /// `URZA_LEASE_S`, 1 h: how long a training run has a kernel under lease after it has asked for it.
    pub lease: Duration,
    /// 200 ms before an answer that the bus did not take is offered again; doubles up to 5 s.
    pub offer_pause: Duration,
    /// 10 s: how long answers in progress may take once a stop is asked for.
    pub drain_timeout: Duration,
    /// Where other machines fetch artifacts of this service; absent where they cannot.
    pub public_url: Option<String>,
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        Self {
            group: "weatherlight".to_owned(),
            in_flight_max: 4096,
            waiting_max: 4096,
            sends_max: 8,
            looks_max: 32,
            compiling_after: Duration::from_secs(3),
            lease: Duration::from_secs(3600),
            offer_pause: Duration::from_millis(200),
            drain_timeout: Duration::from_secs(10),
            public_url: None,
        }
    }
}

/// Answers requests for kernels until told to stop.
///
/// Holds nothing that must outlive it: a request it did not answer stays unacknowledged, and the
/// next instance claims it. An answer and the acknowledgement of its request are one step, so a
/// crash leaves both or neither.
#[derive(Debug)]
pub struct Prefetcher {
    /// Where requests come from and answers go to.
    pub bus: Bus,
    /// What is offered.
    pub library: Library,
    /// Who builds what is missing.
    pub demand: Demand,
    /// Which job makes a variant.
    pub variants: Variants,
    /// Settings.
    pub config: PrefetchConfig,
    /// What is counted.
    pub metrics: Metrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    Stop,
    Read(Vec<Delivery>),
    Sent(usize),
    Looked(desk::Looked),
    Leased(desk::Leased),
    Built((Want, Option<BuildAnswer>)),
    LibraryChanged,
    Wake,
    Tick,
}

/// Where events come from, beside the desk.
struct Inlet {
    consumer: Consumer,
    changes: watch::Receiver<u64>,
    next_tick: Instant,
}

impl Prefetcher {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// [`BusError`] when the bus has failed for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let Self { bus, library, demand, variants, config, metrics, heartbeat } = self;
        let spec = ConsumerSpec {
            batch_max: READ_MAX,
            in_work_max: config.in_flight_max + config.waiting_max + READ_MAX,
            ..ConsumerSpec::new(Stream::KernelRequests, config.group.clone())
        };
        let mut inlet = Inlet {
            consumer: bus.consumer(spec),
            changes: library.changes(),
            next_tick: Instant::now() + Heartbeat::INTERVAL,
        };
        let sender = Sender {
            bus,
            metrics: metrics.clone(),
            heartbeat: heartbeat.clone(),
            offer_pause: config.offer_pause,
            stop: stop.clone(),
        };
        let drain_timeout = config.drain_timeout;
        let shop = Shop { library, demand, variants, metrics, heartbeat, sender };
        let heartbeat = shop.heartbeat.clone();
        let mut desk = Desk::new(shop, config);
        loop {
            heartbeat.beat("serving");
            match next_event(&mut inlet, &mut desk, &stop).await? {
                Event::Stop => break,
                event => handle(&mut desk, event),
            }
            desk.dispatch();
        }
        heartbeat.beat("draining");
        chaos::points(Point::Draining, desk.len());
        let drain = desk.drain();
        // Answers that take longer stay unacknowledged and are given by the next instance.
        let _ = tokio::time::timeout(drain_timeout, heartbeat.during("draining", drain)).await;
        Ok(())
    }
}

/// Waits for the next event. Only receives, so losing the race loses nothing.
async fn next_event(
    inlet: &mut Inlet,
    desk: &mut Desk,
    stop: &CancellationToken,
) -> Result<Event, BusError> {
    let now = Instant::now();
    if inlet.next_tick <= now {
        inlet.next_tick = now + Heartbeat::INTERVAL;
        return Ok(Event::Tick);
    }
    let wake = desk.next_wake().filter(|at| *at < inlet.next_tick);
    let (has_room, waits) = (desk.has_room(), desk.waiting_len() > 0);
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(Event::Stop),
        Some(count) = desk.sends.next() => Ok(Event::Sent(count)),
        Some(leased) = desk.leasing.next() => Ok(Event::Leased(leased)),
        Some(looked) = desk.looks.next() => Ok(Event::Looked(looked)),
        Some(built) = desk.builds.next() => Ok(Event::Built(built)),
        Ok(()) = inlet.changes.changed(), if waits => Ok(Event::LibraryChanged),
        batch = inlet.consumer.recv_batch(READ_MAX), if has_room => Ok(Event::Read(batch?)),
        () = tokio::time::sleep_until(wake.unwrap_or(inlet.next_tick)) => Ok(Event::Wake),
    }
}

/// Handles one event. Starts work, never waits for it.
fn handle(desk: &mut Desk, event: Event) {
    match event {
        Event::Stop => {}
        Event::Read(batch) => desk.take_in(batch),
        Event::Sent(count) => desk.sent(count),
        Event::Leased(leased) => desk.leased(leased),
        Event::Looked(looked) => desk.looked(looked),
        Event::Built(built) => desk.built(built),
        Event::LibraryChanged | Event::Tick => {
            desk.wake();
            desk.look_again();
        }
        Event::Wake => desk.wake(),
    }
}

#[cfg(test)]
mod tests;
