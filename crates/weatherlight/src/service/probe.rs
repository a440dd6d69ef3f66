//! Asks the log for a sign of life every second, and keeps the picture of the bus that health
//! reports show.

use std::time::Duration;

use nissa::LaneHealth;
use oona::{Bus, BusError, Heartbeat, Stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::metrics::OwnMetrics;
use super::parts::GROUP;
use crate::supervisor::BusPicture;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the log may take to answer before it counts as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The streams that the service's own group reads.
const LANES: [Stream; 3] = [Stream::Emergency, Stream::KernelRequests, Stream::Policy];

/// The worker.
#[derive(Debug)]
pub struct Probe {
    /// The bus to look at.
    pub bus: Bus,
    /// Where the picture goes.
    pub picture: watch::Sender<BusPicture>,
    /// The supervisor's picture, copied into the metrics.
    pub health: nissa::HealthSource,
    /// Where it is copied to.
    pub metrics: OwnMetrics,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

impl Probe {
    /// Looks until told to stop. A silent log is what it reports, not an error of its own.
    ///
    /// # Errors
    /// None.
    pub async fn run(self, stop: CancellationToken) -> Result<(), BusError> {
        loop {
            self.heartbeat.beat("ask the log");
            let looked = tokio::time::timeout(ANSWER_TIMEOUT, self.look()).await;
            let (failure, lanes) = match looked {
                Ok(Ok(lanes)) => (None, lanes),
                Ok(Err(error)) => (Some(crate::supervisor::chain(&error)), Vec::new()),
                Err(_) => (Some(format!("no answer within {ANSWER_TIMEOUT:?}")), Vec::new()),
            };
            self.show(failure, lanes);
            self.metrics.show(&self.health.borrow());
            self.heartbeat.beat("wait");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn look(&self) -> Result<Vec<LaneHealth>, BusError> {
        self.bus.ping().await?;
        let mut lanes = Vec::with_capacity(LANES.len());
        for stream in LANES {
            let depth = self.bus.depth(stream, GROUP).await?;
            let name = self.bus.config().streams.name(stream).to_owned();
            lanes.push(LaneHealth { stream: name, depth });
        }
        Ok(lanes)
    }

    /// Keeps the last known backlog while the log is silent, and logs the change only.
    fn show(&self, failure: Option<String>, lanes: Vec<LaneHealth>) {
        let was_silent = self.picture.borrow().failure.is_some();
        match &failure {
            Some(failure) if !was_silent => tracing::error!(failure, "the log does not answer"),
            None if was_silent => tracing::info!("the log answers again"),
            _ => {}
        }
        self.picture.send_modify(|picture| {
            if failure.is_none() {
                picture.lanes = lanes;
            }
            picture.failure = failure;
        });
    }
}
