//! The handle that everything is done with.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use leyline::Message;
use leyline::sign::Keyring;
use leyline::wire::MessagePriority;
use tokio::time::Instant;

use crate::admission::Bands;
use crate::breaker::{self, BreakerPosition, BreakerStanding};
use crate::bucket::Buckets;
use crate::check::Checker;
use crate::config::{Config, LogKind};
use crate::conservative::ConservativeBecause;
use crate::consumer::{Consumer, ConsumerSpec, Post, Role};
use crate::durability::Durability;
use crate::entry::EntryId;
use crate::error::{BusError, PublishError};
use crate::lease::Leases;
use crate::leaving::Leaving;
use crate::live::{Limits, Live};
use crate::log::{Capabilities, Log};
use crate::metrics::Metrics;
use crate::publish::{Outcome, Outgoing};
use crate::shared::{Names, Pulse};
use crate::span::Tracer;
use crate::spool::{Spool, SpoolStanding};
use crate::stream::Stream;
use crate::sync::Mutex;
use crate::work::Work;

/// Origins whose rate on the emergency lane is kept apart; some 100 bytes each.
pub(crate) const ORIGINS_MAX: usize = 1024;
/// A delivery dropped unsettled comes back after this at the latest.
const UNSETTLED_DELAY_MAX: Duration = Duration::from_secs(1);

/// One handle over either log. Cheap to clone; all clones share connections, limits and breakers.
#[derive(Debug, Clone)]
pub struct Bus(pub(crate) Arc<Inner>, Tracer);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) log: Log,
    pub(crate) config: Config,
    /// What may change while it works.
    pub(crate) live: Live,
    pub(crate) metrics: Metrics,
    pub(crate) emergency_rates: Mutex<Buckets>,
    pub(crate) spool: Option<Spool>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) leases: Leases,
    pub(crate) leaving: Arc<Leaving>,
    pub(crate) names: Arc<Names>,
    posts: Mutex<Vec<Weak<Post>>>,
}

impl Bus {
    /// Opens the log. Connects or opens files; spawns nothing of its own.
    ///
    /// # Errors
    /// [`BusError::Config`] with every fault of the settings; [`BusError::Locked`],
    /// [`BusError::Open`] or [`BusError::Damaged`] for the embedded log's file;
    /// [`BusError::BadUrl`], [`BusError::UnsupportedUrl`], [`BusError::Certificate`],
    /// [`BusError::TooOld`], [`BusError::Durability`] or [`BusError::Log`] for Redis.
    pub async fn open(
        config: Config,
        keyring: Keyring,
        metrics: Metrics,
    ) -> Result<Self, BusError> {
        let live = Live::fixed(keyring, config.limits());
        Self::open_live(config, live, metrics).await
    }

    /// The same for secrets and limits that may change while it works.
    ///
    /// # Errors
    /// As [`Bus::open`].
    pub async fn open_live(config: Config, live: Live, metrics: Metrics) -> Result<Self, BusError> {
        let faults = config.check();
        if !faults.is_empty() {
            return Err(BusError::Config(faults));
        }
        let log = Log::open(&config, live.limits.clone()).await?;
        let keyring = live.keyring();
        // Both are there from the start: one that is never used shows as 0.
        for key in std::iter::once(keyring.current_id()).chain(keyring.previous_id()) {
            drop(metrics.key_use(key));
        }
        let admission = live.limits.clone();
        let pulse = Arc::new(Pulse::new(breaker_limits(&config), admission, metrics.clone()));
        let emergency_per_min = live.limits().emergency_per_min;
        let spool = config.spool.clone().filter(|_| log.kind() == LogKind::Redis);
        let spool = spool.map(|spool| Spool::new(spool, live.clone(), metrics.clone()));
        if let Some(spool) = &spool {
            pulse.tell(spool.clone());
        }
        let leases = Leases::new(log.kind(), config.lease_ttl, metrics.clone());
        Ok(Self(
            Arc::new(Inner {
                log,
                leases,
                config,
                live,
                metrics,
                spool,
                emergency_rates: Mutex::new(Buckets::new(emergency_per_min, ORIGINS_MAX)),
                pulse,
                leaving: Arc::default(),
                names: Arc::default(),
                posts: Mutex::default(),
            }),
            Tracer::default(),
        ))
    }

    /// Signs and publishes a message. See [`Outcome`] for what can become of it.
    ///
    /// # Errors
    /// [`PublishError`] when it is too large, does not travel on that stream, or the log failed.
    pub async fn publish(
        &self,
        stream: Stream,
        priority: MessagePriority,
        source: &'static str,
        message: &Message,
    ) -> Result<Outcome, PublishError> {
        self.send(Outgoing { stream, priority, source, message, traceparent: None }).await
    }

    /// The same bus, for users who record how long their steps take.
    #[must_use]
    pub fn traced(self, tracer: Tracer) -> Self {
        Self(self.0, tracer)
    }

    /// Begins the spans of those who handle and publish messages here; records none unless
    /// [`traced`](Self::traced) said otherwise.
    pub fn tracer(&self) -> &Tracer {
        &self.1
    }

    /// A consumer. Opens nothing before its first `recv`.
    pub fn consumer(&self, spec: ConsumerSpec) -> Consumer {
        let config = &self.0.config;
        let stream = config.streams.name(spec.stream);
        let post = Arc::new(Post {
            log: match spec.stream {
                // What it claims and acknowledges must not wait behind normal traffic either.
                Stream::Emergency => self.0.log.urgent(),
                _ => self.0.log.clone(),
            },
            stream: spec.stream,
            seat: self.0.names.take(stream, &spec.group, &config.consumer),
            dead_letter: config.streams.dead_letter.clone(),
            work: Work::default(),
            metrics: match spec.role {
                Role::Handler => self.0.metrics.clone(),
                Role::Observer => Metrics::detached(),
            },
            role: spec.role,
            attempts_max: config.attempts_max,
            retry_delay_min: config.retry_delay_min,
            retry_delay_max: config.retry_delay_max,
            claim_idle: config.claim_idle,
            unsettled_delay: UNSETTLED_DELAY_MAX.min(config.consumer_ttl / 3),
            beaten: Mutex::new(Instant::now()),
            renewed: Mutex::new(Instant::now()),
            breaker: Mutex::new(BreakerPosition::Closed),
            names: Arc::clone(&self.0.names),
            leaving: Arc::clone(&self.0.leaving),
            pulse: Arc::clone(&self.0.pulse),
        });
        let mut posts = self.0.posts.lock().unwrap_or_else(PoisonError::into_inner);
        posts.retain(|post| post.strong_count() > 0);
        posts.push(Arc::downgrade(&post));
        drop(posts);
        let limits = crate::fill::Limits {
            read_block: config.read_block,
            consumer_ttl: config.consumer_ttl,
            claim_idle: config.claim_idle,
            batch_max: spec.batch_max,
            in_work_max: spec.in_work_max,
            breaker: breaker_limits(config),
        };
        let checker =
            Checker::new(spec.stream, self.0.live.clone(), config).counted_in(&self.0.metrics);
        Consumer::new(post, spec, checker, limits)
    }

    /// Makes groups that do not exist, from their stream's beginning.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn ensure_groups(&self, groups: &[(Stream, &str)]) -> Result<(), BusError> {
        for (stream, group) in groups {
            self.0.log.create_group(self.name(*stream), group).await?;
        }
        Ok(())
    }

    /// Removes a group, as a trainer does with its own when it ends. What it had not read is
    /// forgotten.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn remove_group(&self, stream: Stream, group: &str) -> Result<(), BusError> {
        Ok(self.0.log.remove_group(self.name(stream), group).await?)
    }

    /// Asks the log for a sign of life and says how long that took.
    ///
    /// # Errors
    /// [`BusError::Log`] when it gives none.
    pub async fn ping(&self) -> Result<Duration, BusError> {
        let asked = Instant::now();
        self.0.log.now_ms().await?;
        self.0.pulse.log_is_alive();
        Ok(asked.elapsed())
    }

    /// The log's clock, in Unix milliseconds, to compare one's own with.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn log_time_ms(&self) -> Result<u64, BusError> {
        Ok(self.0.log.now_ms().await?)
    }

    /// What a group has not acknowledged yet: delivered or not. 0 for a group that does not exist.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn depth(&self, stream: Stream, group: &str) -> Result<u64, BusError> {
        let groups = self.0.log.groups(self.name(stream)).await?;
        let found = groups.iter().find(|info| info.name == group);
        Ok(found.map_or(0, crate::log::GroupInfo::depth))
    }

    /// Entries standing in a stream, acknowledged or not.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn len(&self, stream: Stream) -> Result<u64, BusError> {
        Ok(self.0.log.len(self.name(stream)).await?)
    }

    /// Appends an entry with exactly these fields, unsigned as they are: for the replay of dead
    /// letters and for tests. Readers check it like any other.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn append_raw(
        &self,
        stream: Stream,
        fields: &[(&str, &[u8])],
    ) -> Result<EntryId, BusError> {
        let fields: Vec<(&[u8], &[u8])> =
            fields.iter().map(|(name, value)| (name.as_bytes(), *value)).collect();
        Ok(self.0.log.append(self.name(stream), &fields, false).await?)
    }

    /// Waits until all that was handed to the log is as durable as it gets; call it before exit.
    ///
    /// # Errors
    /// [`BusError::Log`] when the log fails.
    pub async fn flush(&self) -> Result<(), BusError> {
        Ok(self.0.log.flush().await?)
    }

    /// Which log stands behind the bus.
    pub fn log_kind(&self) -> LogKind {
        self.0.log.kind()
    }

    /// What the bus has counted, under the dotted names that older programs read in telemetry
    /// packets: `oona.publish_total`, `oona.queue_depth_normal` and so on.
    pub fn points(&self) -> Vec<(String, f64)> {
        let mut points = self.0.metrics.points();
        for stream in Stream::ALL {
            #[expect(clippy::cast_precision_loss, reason = "a backlog stays far below 2^52")]
            let depth = self.0.pulse.lanes.last(stream).depth() as f64;
            points.push((format!("oona.queue_depth_{stream}"), depth));
        }
        #[expect(clippy::cast_precision_loss, reason = "bounded by settings far below 2^52")]
        if let Some(spool) = self.spool() {
            points.push(("oona.spool_messages".to_owned(), spool.messages as f64));
            points.push(("oona.spool_bytes".to_owned(), spool.bytes as f64));
        }
        let conservative = f64::from(u8::from(!self.conservative().is_empty()));
        points.push(("oona.conservative_mode".to_owned(), conservative));
        let publish = self.0.pulse.standings().into_iter().collect();
        let consume = self.posts().iter().map(|post| post.breaker()).collect();
        points.push(("oona.publish_breaker_state".to_owned(), worst(publish)));
        points.push(("oona.consume_breaker_state".to_owned(), worst(consume)));
        points
    }

    /// Where the breakers of publishing stand, and those of the consumers that live in this
    /// process, by name.
    pub fn breakers(&self) -> Vec<BreakerStanding> {
        let mut breakers = Vec::from(self.0.pulse.standings());
        breakers.extend(self.posts().iter().map(|post| post.breaker()));
        // Consumers of one group share a name: the worst of them speaks.
        breakers.sort_by(|a, b| a.name.cmp(&b.name).then(b.position.cmp(&a.position)));
        breakers.dedup_by(|a, b| a.name == b.name);
        breakers
    }

    /// The streams in conservative mode, where NORMAL and LOW messages pause, and why.
    pub fn conservative(&self) -> Vec<(Stream, ConservativeBecause)> {
        let mode = |stream| Some((stream, self.0.pulse.lanes.last(stream).because()?));
        Stream::ALL.into_iter().filter_map(mode).collect()
    }

    /// What waits on disk for a log that is away; `None` without a spool.
    pub fn spool(&self) -> Option<SpoolStanding> {
        self.0.spool.as_ref().map(Spool::standing)
    }

    /// What the server behind the bus is and can do; `None` for the embedded log.
    pub fn capabilities(&self) -> Option<&Capabilities> {
        self.0.log.capabilities()
    }

    /// How safe an entry of this stream is when its publish returns.
    pub fn durability(&self, stream: Stream) -> Durability {
        self.0.log.durability(self.name(stream))
    }

    /// The limits of admission in force.
    pub fn limits(&self) -> Limits {
        self.0.live.limits()
    }

    /// What decides at a backlog, as in force now.
    pub(crate) fn bands(&self) -> Bands {
        Bands::of(&self.limits())
    }

    /// The settings it was opened with. Of what may change, [`Bus::limits`] is in force.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The counters of this bus.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The stream's name in the log.
    pub(crate) fn name(&self, stream: Stream) -> &str {
        self.0.config.streams.name(stream)
    }

    /// Lets every consumer of this process look at once for entries that others have left.
    pub(crate) fn look_for_released(&self) {
        for post in self.posts() {
            post.work.look_soon();
        }
    }

    /// The consumers of this process that still live.
    pub(crate) fn posts(&self) -> Vec<Arc<Post>> {
        let posts = self.0.posts.lock().unwrap_or_else(PoisonError::into_inner);
        posts.iter().filter_map(Weak::upgrade).collect()
    }
}

/// The number of the worst; of a closed one when there is none.
fn worst(breakers: Vec<BreakerStanding>) -> f64 {
    let worst = breakers.iter().map(|breaker| breaker.position).max();
    f64::from(worst.unwrap_or(BreakerPosition::Closed).number())
}

fn breaker_limits(config: &Config) -> breaker::Limits {
    breaker::Limits {
        failures: config.breaker_failures,
        open: config.breaker_open,
        probes: config.breaker_probes,
    }
}
