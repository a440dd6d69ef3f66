//! Asks the log for a sign of life every second, and keeps the picture of the bus that health
//! reports show.

use std::time::Duration;

use leyline::wire::CircuitBreakerState;
use nissa::{BreakerHealth, BreakerState, LaneHealth, LeaseHealth};
use oona::{
    Backlog, BreakerPosition, Bus, BusError, ConservativeBecause, Heartbeat, LeaseStanding, Stream,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::metrics::AllMetrics;
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
    /// Where it is copied to, and where the forge's breaker shows.
    pub metrics: AllMetrics,
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
            self.metrics.own.show(&self.health.borrow());
            self.heartbeat.beat("wait");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn look(&self) -> Result<Vec<LaneHealth>, BusError> {
        // All at once: one round trip, and the process is woken once for it.
        let [emergency, requests, policy] = LANES.map(|stream| self.bus.backlog(stream, GROUP));
        let (_, emergency, requests, policy) =
            tokio::try_join!(self.bus.ping(), emergency, requests, policy)?;
        let backlogs = [emergency, requests, policy];
        // An idle service does not ask for the time.
        let now_ms = match backlogs.iter().any(|backlog| backlog.oldest.is_some()) {
            true => self.bus.log_time_ms().await?,
            false => 0,
        };
        let lane = |(backlog, stream): (Backlog, Stream)| LaneHealth {
            stream: self.bus.config().streams.name(stream).to_owned(),
            depth: backlog.depth,
            oldest_ms: backlog.oldest.map(|id| now_ms.saturating_sub(id.ms)),
        };
        Ok(backlogs.into_iter().zip(LANES).map(lane).collect())
    }

    /// Every breaker of this process that guards something for all runs. Needs no answer of the log.
    fn breakers(&self) -> Vec<BreakerHealth> {
        let forge = match self.metrics.tezzeret.breaker_state() {
            // What it begins with, until the forge has reported.
            CircuitBreakerState::CircuitStateUnknown | CircuitBreakerState::CircuitStateClosed => {
                BreakerState::Closed
            }
            CircuitBreakerState::CircuitStateOpen => BreakerState::Open,
            CircuitBreakerState::CircuitStateHalfOpen => BreakerState::HalfOpen,
        };
        let mut breakers = vec![BreakerHealth { name: "tezzeret.forge".to_owned(), state: forge }];
        breakers.extend(self.bus.breakers().into_iter().map(|breaker| {
            let state = match breaker.position {
                BreakerPosition::Closed => BreakerState::Closed,
                BreakerPosition::Open => BreakerState::Open,
                BreakerPosition::HalfOpen => BreakerState::HalfOpen,
            };
            BreakerHealth { name: format!("oona.{}", breaker.name), state }
        }));
        breakers
    }

    fn leases(&self) -> Vec<LeaseHealth> {
        let show = |lease: LeaseStanding| LeaseHealth {
            name: lease.name,
            holder: lease.holder,
            mine: lease.is_ours,
            fencing: lease.fencing,
        };
        self.bus.leases().into_iter().map(show).collect()
    }

    /// What conservative mode takes away, in words. Needs no answer of the log either.
    fn paused(&self) -> Vec<String> {
        let pause = |(stream, because): (Stream, ConservativeBecause)| match because {
            ConservativeBecause::Backlog => {
                format!(
                    "NORMAL and LOW messages on the {stream} stream pause: its backlog is too long"
                )
            }
            ConservativeBecause::LogAway => {
                format!("NORMAL and LOW messages on the {stream} stream pause: the log is away")
            }
        };
        let mut paused: Vec<String> = self.bus.conservative().into_iter().map(pause).collect();
        let waiting = self.bus.spool().map_or(0, |spool| spool.messages);
        if waiting > 0 {
            paused.push(format!("{waiting} messages wait on disk until the log is back"));
        }
        paused
    }

    /// Keeps the last known backlog while the log is silent, and logs the change only.
    fn show(&self, failure: Option<String>, lanes: Vec<LaneHealth>) {
        let was_silent = self.picture.borrow().failure.is_some();
        match &failure {
            Some(failure) if !was_silent => tracing::error!(failure, "the log does not answer"),
            None if was_silent => tracing::info!("the log answers again"),
            _ => {}
        }
        let (breakers, keys) = (self.breakers(), nissa::bus::keys(&self.bus));
        let (paused, leases) = (self.paused(), self.leases());
        self.picture.send_modify(|picture| {
            picture.breakers = breakers;
            picture.keys = keys;
            picture.paused = paused;
            picture.leases = leases;
            if failure.is_none() {
                picture.lanes = lanes;
            }
            picture.failure = failure;
        });
    }
}

#[cfg(test)]
mod tests {
    use nissa::Health;
    use oona::ConsumerSpec;

    use super::*;
    use crate::service::live;
    use crate::service::parts::open_bus;
    use crate::settings::{Sources, resolve};

    #[tokio::test]
    async fn it_shows_every_breaker_and_how_old_a_backlog_is() {
        let directory = tempfile::tempdir().unwrap();
        let state = format!("WEATHERLIGHT_STATE_DIR={}", directory.path().display());
        let secret = "ESPER_LEYLINE_SECRET=a secret of the tests, long enough".to_owned();
        let sources = Sources { overrides: vec![state, secret], ..Sources::default() };
        let settings = resolve(&sources).unwrap().settings;
        let (metrics, _) = AllMetrics::register();
        let (_, live) = live::channel(live::Values::of(&settings).unwrap());
        let bus = open_bus(&settings, live.bus, &metrics, oona::Tracer::default()).await.unwrap();
        let _consumer = bus.consumer(ConsumerSpec::new(Stream::KernelRequests, GROUP));

        for _ in 0..2 {
            bus.append_raw(Stream::KernelRequests, &[("payload", b"x")]).await.unwrap();
        }

        let picture = watch::Sender::new(BusPicture::default());
        let mut seen = picture.subscribe();
        let health = watch::Sender::new(Health::booting("1", "embedded")).subscribe();
        let probe = Probe { bus, picture, health, metrics, heartbeat: Heartbeat::detached() };
        let stop = CancellationToken::new();
        let looking = async {
            seen.changed().await.unwrap();
            stop.cancel();
            seen.borrow().clone()
        };
        let (ended, picture) = tokio::join!(probe.run(stop.clone()), looking);
        ended.unwrap();

        assert_eq!(picture.failure, None);
        let lane = |at: usize| (picture.lanes[at].depth, picture.lanes[at].oldest_ms);
        assert_eq!((lane(0), lane(2)), ((0, None), (0, None)));
        assert!(matches!(lane(1), (2, Some(0..60_000))), "{:?}", lane(1));
        let names: Vec<&str> = picture.breakers.iter().map(|b| b.name.as_str()).collect();
        let consume = "oona.consume_kernel_requests.weatherlight";
        assert_eq!(names, ["tezzeret.forge", consume, "oona.publish", "oona.publish_emergency"]);
        let [key] = picture.keys.as_slice() else { panic!("{:?}", picture.keys) };
        assert_eq!((key.role.as_str(), key.verified, key.last_used_s), ("current", 0, None));
        assert!(picture.breakers.iter().all(|breaker| breaker.state == BreakerState::Closed));
    }
}
