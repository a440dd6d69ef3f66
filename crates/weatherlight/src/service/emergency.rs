//! What the emergency lane delivers: signals are reported and counted, what pressure rerouted is
//! settled. Nissa reads the stream through a group of its own, so nothing is lost here.

use std::time::SystemTime;

use leyline::Message;
use leyline::wire::{EmergencyLevel, EmergencySignal};
use oona::{BusError, Delivery, Heartbeat};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Signals that may wait; the lane keeps what does not fit on the log.
pub const SIGNALS_LEN_MAX: usize = 64;
/// Rerouted messages that may wait.
pub const REROUTED_LEN_MAX: usize = 256;

/// What is known of emergencies, for the telemetry packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmergencyPicture {
    /// Signals received.
    pub detections: u64,
    /// Messages on the lane that were no signal.
    pub others: u64,
    /// When the last signal came.
    pub last: Option<SystemTime>,
    /// Its level, as the contract numbers them; 0 before the first.
    pub last_level: i32,
}

/// Settles what the lane passes on.
#[derive(Debug)]
pub struct Receiver {
    /// Emergency signals.
    pub signals: mpsc::Receiver<Delivery>,
    /// Everything else on the lane.
    pub rerouted: mpsc::Receiver<Delivery>,
    /// Where the picture is kept; it survives a restart of the worker.
    pub picture: watch::Sender<EmergencyPicture>,
    /// Sign of life, shared with the lane.
    pub heartbeat: Heartbeat,
}

#[expect(clippy::large_enum_variant, reason = "lives on the stack for one step")]
enum Event {
    Signal(Delivery),
    Rerouted(Vec<Delivery>),
    Stop,
}

impl Receiver {
    /// Settles until told to stop or until the lane is gone.
    ///
    /// # Errors
    /// [`BusError`] when the log fails; what was not settled comes again.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), BusError> {
        loop {
            match self.next_event(&stop).await {
                Event::Signal(delivery) => {
                    let reporting = "reporting a signal";
                    let attempt =
                        delivery.attempt(&self.heartbeat, reporting, |it| self.signal(it));
                    // A signal that panics its handler was failed.
                    attempt.await.unwrap_or(Ok(()))?;
                }
                Event::Rerouted(deliveries) => self.rerouted(deliveries).await?,
                Event::Stop => return Ok(()),
            }
        }
    }

    async fn next_event(&mut self, stop: &CancellationToken) -> Event {
        let mut rerouted = Vec::new();
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(delivery) = self.signals.recv() => Event::Signal(delivery),
            1.. = self.rerouted.recv_many(&mut rerouted, REROUTED_LEN_MAX) => {
                Event::Rerouted(rerouted)
            }
            else => Event::Stop,
        }
    }

    /// In one step, so that a flood is settled as fast as it is read. A signal that comes here was
    /// beyond its origin's rate: it counts, but does not become the last one known.
    async fn rerouted(&self, deliveries: Vec<Delivery>) -> Result<(), BusError> {
        let is_signal = |delivery: &&Delivery| matches!(delivery.message, Message::Emergency(_));
        let signals = deliveries.iter().filter(is_signal).count();
        if let Some(Message::Emergency(signal)) =
            deliveries.iter().find(is_signal).map(|delivery| &delivery.message)
        {
            let EmergencySignal { origin, run_id, .. } = signal;
            tracing::warn!(signals, origin, run_id, "emergency signals beyond their origin's rate");
        }
        let (signals, others) = (signals as u64, (deliveries.len() - signals) as u64);
        self.picture.send_modify(|picture| {
            picture.detections += signals;
            picture.others += others;
        });
        Delivery::ack_all(deliveries).await
    }

    async fn signal(&self, delivery: Delivery) -> Result<(), BusError> {
        if let Message::Emergency(signal) = &delivery.message {
            report(signal);
            self.picture.send_modify(|picture| {
                picture.detections += 1;
                picture.last = Some(SystemTime::now());
                picture.last_level = signal.level;
            });
        }
        delivery.ack().await
    }
}

fn report(signal: &EmergencySignal) {
    let level = signal.level().as_str_name();
    let EmergencySignal { origin, reason, run_id, .. } = signal;
    match signal.level() {
        EmergencyLevel::Halt | EmergencyLevel::Conservative => {
            tracing::error!(level, origin, reason, run_id, "emergency signal");
        }
        EmergencyLevel::Elevated | EmergencyLevel::Notice | EmergencyLevel::Unspecified => {
            tracing::warn!(level, origin, reason, run_id, "emergency signal");
        }
    }
}
