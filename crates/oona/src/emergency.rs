//! The worker on the emergency lane.

use leyline::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::consumer::ConsumerSpec;
use crate::delivery::Delivery;
use crate::error::BusError;
use crate::heartbeat::Heartbeat;
use crate::stream::Stream;

/// Drains the emergency stream, on a connection and in a consumer of its own: signals go to one
/// port, what pressure rerouted goes to another. Nothing is thrown away: where a port is full or
/// closed, the entry is retried and in the end becomes a dead letter with that reason.
#[derive(Debug)]
pub struct EmergencyLane {
    /// The bus to read.
    pub bus: Bus,
    /// The group to read as.
    pub group: String,
    /// Takes the emergency signals. Its receiver settles them.
    pub signals: mpsc::Sender<Delivery>,
    /// Takes everything else. Its receiver settles them.
    pub rerouted: mpsc::Sender<Delivery>,
    /// The supervisor's view of this worker.
    pub heartbeat: Heartbeat,
}

#[expect(clippy::large_enum_variant, reason = "lives on the stack for one step")]
enum Event {
    Arrived(Delivery),
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
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => Event::Stop,
                delivery = self.heartbeat.during("recv", consumer.recv()) => {
                    Event::Arrived(delivery?)
                }
            };
            match event {
                Event::Arrived(delivery) => self.pass_on(delivery).await?,
                Event::Stop => return Ok(()),
            }
        }
    }

    async fn pass_on(&self, delivery: Delivery) -> Result<(), BusError> {
        self.heartbeat.beat("pass on");
        let port = match delivery.message {
            Message::Emergency(_) => &self.signals,
            _ => &self.rerouted,
        };
        // Never waits: a signal behind a stuck rerouted message would be late.
        match port.try_send(delivery) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(delivery)) => {
                delivery.fail("its receiver is busy").await
            }
            Err(mpsc::error::TrySendError::Closed(delivery)) => {
                delivery.fail("its receiver is gone").await
            }
        }
    }
}
