//! The worker on the emergency lane.

use std::collections::{BTreeMap, VecDeque};

use leyline::Message;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::attributes;
use crate::bucket::Buckets;
use crate::bus::{Bus, ORIGINS_MAX};
use crate::check::order_key;
use crate::consumer::ConsumerSpec;
use crate::dead_letter::{RECEIVER_BUSY, RECEIVER_GONE};
use crate::delivery::Delivery;
use crate::error::BusError;
use crate::heartbeat::Heartbeat;
use crate::stream::Stream;

/// Ordinary messages kept back while their port is full; well below what the consumer may hold, so
/// that it goes on reading. A message more is retried.
const KEPT_BACK_MAX: usize = 512;

/// Whose share of the emergency lane a message uses: a subsystem's, in one training run. One run
/// that has gone wild does not hold up another's signals.
pub(crate) fn origin(source: &str, message: &Message) -> String {
    format!("{source}/{}", order_key(message).unwrap_or_default())
}

/// As above for a message that was read: by what it says of itself, which its signature covers.
fn origin_of(attributes: &BTreeMap<String, String>, message: &Message) -> String {
    let body = match message {
        Message::Emergency(signal) => signal.origin.as_str(),
        _ => "",
    };
    origin(attributes.get(attributes::SOURCE).map_or(body, String::as_str), message)
}

/// Drains the emergency stream, on a connection and in a consumer of its own: signals go to one
/// port, what pressure rerouted goes to another, and so do signals beyond their origin's rate
/// (`OONA_EMERGENCY_MAX_PER_MIN`): another program may not keep to it, and its flood must not hold
/// up anybody else's signals. Nothing is thrown away: where the port for signals is full or either
/// is closed, the entry is retried and in the end becomes a dead letter with that reason.
#[derive(Debug)]
pub struct EmergencyLane {
    /// The bus to read.
    pub bus: Bus,
    /// The group to read as.
    pub group: String,
    /// Takes the emergency signals. Its receiver settles them.
    pub signals: mpsc::Sender<Delivery>,
    /// Takes everything else. Its receiver settles them, best many at a time.
    pub rerouted: mpsc::Sender<Delivery>,
    /// The supervisor's view of this worker.
    pub heartbeat: Heartbeat,
}

#[expect(clippy::large_enum_variant, reason = "lives on the stack for one step")]
enum Event {
    Arrived(Delivery),
    /// The port for ordinary messages has room, or is closed.
    Room,
    Stop,
}

impl EmergencyLane {
    /// Works until told to stop.
    ///
    /// # Errors
    /// [`BusError::Log`] when the embedded log has failed for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        let mut consumer =
            self.bus.consumer(ConsumerSpec::new(Stream::Emergency, self.group.as_str()));
        let mut rates = Buckets::new(self.bus.limits().emergency_per_min, ORIGINS_MAX);
        let mut kept_back = VecDeque::new();
        loop {
            let next = async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Ok(Event::Stop),
                    delivery = consumer.recv() => Ok::<_, BusError>(Event::Arrived(delivery?)),
                    // The permit is given back: the step below takes one again.
                    _ = self.rerouted.reserve(), if !kept_back.is_empty() => Ok(Event::Room),
                }
            };
            match self.heartbeat.during("recv", next).await? {
                Event::Arrived(delivery) => {
                    self.pass_on(delivery, &mut rates, &mut kept_back).await?;
                }
                Event::Room => self.pass_on_kept_back(&mut kept_back).await?,
                // What is kept back is dropped unsettled, and comes again.
                Event::Stop => return Ok(()),
            }
        }
    }

    /// Never waits: a signal behind a stuck ordinary message would be late.
    async fn pass_on(
        &self,
        delivery: Delivery,
        rates: &mut Buckets,
        kept_back: &mut VecDeque<Delivery>,
    ) -> Result<(), BusError> {
        self.heartbeat.beat("pass on");
        let origin = origin_of(&delivery.attributes, &delivery.message);
        let is_signal = matches!(delivery.message, Message::Emergency(_));
        rates.allow(self.bus.limits().emergency_per_min);
        if is_signal && rates.take(&origin, Instant::now()).is_ok() {
            return match self.signals.try_send(delivery) {
                Ok(()) => Ok(()),
                Err(TrySendError::Full(delivery)) => delivery.fail(RECEIVER_BUSY).await,
                Err(TrySendError::Closed(delivery)) => delivery.fail(RECEIVER_GONE).await,
            };
        }
        if is_signal {
            self.bus.metrics().emergency_diverted.inc();
        }
        kept_back.push_back(delivery);
        self.pass_on_kept_back(kept_back).await?;
        if kept_back.len() > KEPT_BACK_MAX
            && let Some(delivery) = kept_back.pop_back()
        {
            return delivery.fail(RECEIVER_BUSY).await;
        }
        Ok(())
    }

    /// As many as there is room for, oldest first.
    async fn pass_on_kept_back(&self, kept_back: &mut VecDeque<Delivery>) -> Result<(), BusError> {
        while let Some(delivery) = kept_back.pop_front() {
            match self.rerouted.try_send(delivery) {
                Ok(()) => {}
                Err(TrySendError::Full(delivery)) => {
                    kept_back.push_front(delivery);
                    return Ok(());
                }
                Err(TrySendError::Closed(delivery)) => {
                    delivery.fail(RECEIVER_GONE).await?;
                }
            }
        }
        Ok(())
    }
}
