//! Settings of the bus.

use std::path::PathBuf;
use std::time::Duration;

use crate::durability::{Durabilities, Durability};
use crate::log::hash_tag;
use crate::spool::SpoolConfig;
use crate::stream::Stream;

/// Which log stands behind the bus.
#[derive(Clone, PartialEq, Eq)]
pub enum LogChoice {
    /// A durable log in one local file, for one process.
    Embedded {
        /// The file; its directory is made when missing. Beside it stands a lock file.
        path: PathBuf,
    },
    /// Redis Streams, Redis 7.0 or later, for several processes or machines.
    Redis {
        /// A `redis://`, `rediss://`, `unix://`, `redis-sentinel://` or `redis-cluster://` URL. It
        /// may hold a password and is therefore never printed.
        url: String,
    },
}

impl std::fmt::Debug for LogChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded { path } => write!(f, "Embedded({})", path.display()),
            Self::Redis { .. } => f.write_str("Redis(url hidden)"),
        }
    }
}

/// What it takes to reach Redis beside the URL.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RedisAccess {
    /// `REDIS_PASSWORD`: goes before one in the URL.
    pub password: Option<String>,
    /// `OONA_REDIS_CA_FILE`: authorities that may have signed the server's certificate, as PEM. The
    /// system's own when absent.
    pub ca_file: Option<PathBuf>,
    /// `OONA_REDIS_CERT_FILE`: the client's certificate, as PEM, for servers that ask for one.
    pub cert_file: Option<PathBuf>,
    /// `OONA_REDIS_KEY_FILE`: the key to it, as PEM.
    pub key_file: Option<PathBuf>,
}

impl std::fmt::Debug for RedisAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let password = self.password.as_ref().map(|_| "hidden");
        f.debug_struct("RedisAccess")
            .field("password", &password)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .finish()
    }
}

/// Which kind of log a bus runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// The embedded log.
    Embedded,
    /// Redis Streams.
    Redis,
}

/// What each stream is called in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamNames {
    /// `OONA_NORMAL_STREAM`, default `oona.normal`.
    pub normal: String,
    /// `OONA_EMERGENCY_STREAM`, default `oona.emergency`.
    pub emergency: String,
    /// `OONA_TELEMETRY_STREAM`, default `oona.telemetry`.
    pub telemetry: String,
    /// `OONA_POLICY_STREAM`, default `oona.policy`.
    pub policy: String,
    /// `OONA_KERNEL_REQUEST_STREAM`, default `oona.kernels.requests`.
    pub kernel_requests: String,
    /// `OONA_KERNEL_READY_STREAM`, default `oona.kernels.ready`.
    pub kernel_ready: String,
    /// `OONA_KERNEL_ERROR_STREAM`, default `oona.kernels.errors`.
    pub kernel_errors: String,
    /// `OONA_DEAD_LETTER_STREAM`, default `oona.deadletter`.
    pub dead_letter: String,
}

impl Default for StreamNames {
    fn default() -> Self {
        Self {
            normal: "oona.normal".to_owned(),
            emergency: "oona.emergency".to_owned(),
            telemetry: "oona.telemetry".to_owned(),
            policy: "oona.policy".to_owned(),
            kernel_requests: "oona.kernels.requests".to_owned(),
            kernel_ready: "oona.kernels.ready".to_owned(),
            kernel_errors: "oona.kernels.errors".to_owned(),
            dead_letter: "oona.deadletter".to_owned(),
        }
    }
}

impl StreamNames {
    /// The name of a stream in the log.
    pub fn name(&self, stream: Stream) -> &str {
        match stream {
            Stream::Normal => &self.normal,
            Stream::Emergency => &self.emergency,
            Stream::Telemetry => &self.telemetry,
            Stream::Policy => &self.policy,
            Stream::KernelRequests => &self.kernel_requests,
            Stream::KernelReady => &self.kernel_ready,
            Stream::KernelErrors => &self.kernel_errors,
            Stream::DeadLetter => &self.dead_letter,
        }
    }

    /// The environment variable that names a stream.
    pub fn setting(stream: Stream) -> &'static str {
        match stream {
            Stream::Normal => "OONA_NORMAL_STREAM",
            Stream::Emergency => "OONA_EMERGENCY_STREAM",
            Stream::Telemetry => "OONA_TELEMETRY_STREAM",
            Stream::Policy => "OONA_POLICY_STREAM",
            Stream::KernelRequests => "OONA_KERNEL_REQUEST_STREAM",
            Stream::KernelReady => "OONA_KERNEL_READY_STREAM",
            Stream::KernelErrors => "OONA_KERNEL_ERROR_STREAM",
            Stream::DeadLetter => "OONA_DEAD_LETTER_STREAM",
        }
    }
}

/// Settings of one bus handle. The environment name and the default stand beside each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `REDIS_URL`, else the embedded log in `./var/oona/log.redb`.
    pub log: LogChoice,
    /// What it takes to reach Redis beside the URL; nothing.
    pub redis: RedisAccess,
    /// `OONA_DURABILITY`, none: what a publish waits for, for all streams and for single ones.
    pub durability: Durabilities,
    /// `OONA_DURABILITY_TIMEOUT_MS`, 1.5 s: how long it waits for that.
    pub durability_timeout: Duration,
    /// Names of the streams.
    pub streams: StreamNames,
    /// The service's consumer group, `weatherlight`. Its backlog is what admission looks at.
    pub group: String,
    /// This process's consumer name: distinct for every process, also on one host. The default is
    /// `weatherlight-<hostname>-<pid>-<random>`.
    pub consumer: String,
    /// Prefix of the keys that Oona itself keeps in the log (claims, heartbeats), `oona`.
    pub key_prefix: String,
    /// `OONA_MAX_MESSAGE_BYTES`, 256 KiB. Larger entries are refused on both sides.
    pub message_bytes_max: usize,
    /// `OONA_FRESHNESS_WINDOW_MS`, 300 s: how old a message may be when it is appended.
    pub freshness_window: Duration,
    /// `KERNEL_FRESHNESS_WINDOW_MS`, 60 s: the same for requests for kernels.
    pub kernel_freshness_window: Duration,
    /// 5 s: how far a sender's clock may run ahead.
    pub future_tolerance: Duration,
    /// `OONA_ACCEPT_LEGACY`, false: admit messages without the attributes. Prefetch messages of
    /// older programs are always admitted.
    pub accept_legacy: bool,
    /// `OONA_MESSAGE_TTL_MS`, 900 s: age beyond which a handled entry is trimmed, and for which a
    /// group without a live consumer still holds trimming back.
    pub message_ttl: Duration,
    /// 7 days: age beyond which a dead letter is trimmed.
    pub dead_letter_ttl: Duration,
    /// `OONA_STREAM_LEN_MAX`, 100 000 entries: length beyond which handled entries are trimmed.
    pub stream_len_max: u64,
    /// `OONA_EMBEDDED_MAX_BYTES`, 4 GiB: how large the embedded log's file may grow. Beyond it
    /// publishing is refused until something has been consumed and trimmed.
    pub embedded_bytes_max: u64,
    /// `OONA_MAX_ATTEMPTS`, 5: deliveries of one entry before it becomes a dead letter.
    pub attempts_max: u32,
    /// 200 ms: the first retry's delay; it doubles with every attempt, with jitter.
    pub retry_delay_min: Duration,
    /// 30 s: the longest delay of a retry.
    pub retry_delay_max: Duration,
    /// `OONA_CLAIM_IDLE_MS`, 10 s: entries of a silent consumer are taken over after this.
    pub claim_idle: Duration,
    /// 5 s: a consumer whose heartbeat is older than this is dead; its entries are taken over.
    pub consumer_ttl: Duration,
    /// 2.4 s: how long a lease of a process that died stays with it. Renewed every quarter of it; see
    /// the page on replicas.
    pub lease_ttl: Duration,
    /// 5 s: the longest blocking read. Heartbeats, take-overs and retries happen beside it; the longer
    /// it is, the fewer commands an idle consumer costs.
    pub read_block: Duration,
    /// `OONA_QUEUE_DEPTH_MAX`, 10 000 entries: the backlog that counts as full.
    pub depth_max: u64,
    /// `OONA_BACKPRESSURE_THRESHOLD`, 7 500 entries: from here on LOW is refused, and half-way to
    /// 95 % of `depth_max` NORMAL as well. HIGH is refused at 95 %, CRITICAL never.
    pub backpressure_threshold: u64,
    /// `OONA_EMERGENCY_THRESHOLD`, 5 000 entries: from here on HIGH and CRITICAL are rerouted to
    /// the emergency stream, kernel traffic excepted.
    pub emergency_threshold: u64,
    /// `OONA_RECOVERY_DEPTH`, 5 000 entries: conservative mode, which begins where NORMAL is refused,
    /// ends below this backlog.
    pub recovery_depth: u64,
    /// `OONA_RECOVERY_WINDOW_MS`, 2 s: how long the backlog must have been below that.
    pub recovery_window: Duration,
    /// `OONA_EMERGENCY_MAX_PER_MIN`, 120: emergency messages a minute of one origin (a subsystem and
    /// its training run), published by it or handed out as signals.
    pub emergency_per_min: u32,
    /// Where publishes wait while Redis is away; none by default. The embedded log needs none: it
    /// stands on the same disk. Run a [`SpoolSender`](crate::SpoolSender) with it.
    pub spool: Option<SpoolConfig>,
    /// 100 ms: the backlog is looked at no more often than this.
    pub depth_sample_interval: Duration,
    /// 3: failures of the log in a row that open a breaker.
    pub breaker_failures: u32,
    /// 30 s: how long an open breaker stays open when nothing shows that the log is back.
    pub breaker_open: Duration,
    /// 5: calls let through by a half-open breaker before it decides.
    pub breaker_probes: u32,
    /// 2 s: how long a publish may take, retries included.
    pub publish_timeout: Duration,
    /// 2 s: how long any other command may take, beyond what it blocks by design.
    pub command_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log: LogChoice::Embedded { path: PathBuf::from("./var/oona/log.redb") },
            redis: RedisAccess::default(),
            durability: Durabilities::default(),
            durability_timeout: Duration::from_millis(1_500),
            streams: StreamNames::default(),
            group: "weatherlight".to_owned(),
            consumer: default_consumer("weatherlight"),
            key_prefix: "oona".to_owned(),
            message_bytes_max: 256 * 1024,
            freshness_window: Duration::from_millis(300_000),
            kernel_freshness_window: Duration::from_millis(60_000),
            future_tolerance: Duration::from_secs(5),
            accept_legacy: false,
            message_ttl: Duration::from_millis(900_000),
            dead_letter_ttl: Duration::from_secs(7 * 24 * 3600),
            stream_len_max: 100_000,
            embedded_bytes_max: 4 << 30,
            attempts_max: 5,
            retry_delay_min: Duration::from_millis(200),
            retry_delay_max: Duration::from_secs(30),
            claim_idle: Duration::from_millis(10_000),
            consumer_ttl: Duration::from_secs(5),
            lease_ttl: Duration::from_millis(2_400),
            read_block: Duration::from_secs(5),
            depth_max: 10_000,
            backpressure_threshold: 7_500,
            emergency_threshold: 5_000,
            recovery_depth: 5_000,
            recovery_window: Duration::from_millis(2_000),
            emergency_per_min: 120,
            spool: None,
            depth_sample_interval: Duration::from_millis(100),
            breaker_failures: 3,
            breaker_open: Duration::from_secs(30),
            breaker_probes: 5,
            publish_timeout: Duration::from_secs(2),
            command_timeout: Duration::from_secs(2),
        }
    }
}

/// `<program>-<hostname>-<pid>-<random>`: two processes on one host, and two boots of one
/// process, are different consumers.
fn default_consumer(program: &str) -> String {
    let boot = rand::random::<u32>();
    format!("{program}-{}-{}-{boot:08x}", host(), std::process::id())
}

/// This machine's name.
pub(crate) fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME").map_err(std::io::Error::other))
        .unwrap_or_else(|_| "host".to_owned());
    host.trim().to_owned()
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {problem}; {remedy}")]
pub struct ConfigFault {
    /// Name of the setting as an operator knows it.
    pub setting: &'static str,
    /// What is wrong with its value.
    pub problem: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Config {
    /// Reports every fault at once; empty when the settings can be used. Pure.
    pub fn check(&self) -> Vec<ConfigFault> {
        let mut faults = Vec::new();
        let mut demand = |holds: bool, setting, problem: &str, remedy| {
            if !holds {
                faults.push(ConfigFault { setting, problem: problem.to_owned(), remedy });
            }
        };
        demand(
            self.names_are_distinct(),
            "OONA_*_STREAM",
            "gives two streams one name, or an empty one",
            "give every stream a name of its own",
        );
        let astray = self.streams_astray();
        demand(
            astray.is_empty(),
            "OONA_*_STREAM",
            &format!("needs one hash tag for all streams on a cluster: set {}", astray.join(", ")),
            "entries are moved to the dead-letter stream in one step, which takes one node",
        );
        demand(
            !self.is_on_cluster() || hash_tag(&self.key_prefix).is_none(),
            "OONA_KEY_PREFIX",
            "has a hash tag of its own",
            "leave the braces to the names of the streams",
        );
        demand(
            self.redis.cert_file.is_some() == self.redis.key_file.is_some(),
            "OONA_REDIS_CERT_FILE",
            "and OONA_REDIS_KEY_FILE belong together",
            "set both, or neither",
        );
        for (setting, name) in [
            ("OONA_GROUP", &self.group),
            ("OONA_CONSUMER", &self.consumer),
            ("OONA_KEY_PREFIX", &self.key_prefix),
        ] {
            demand(!name.trim().is_empty(), setting, "is empty", "name it");
        }
        demand(
            (1024..=64 << 20).contains(&self.message_bytes_max),
            "OONA_MAX_MESSAGE_BYTES",
            "is outside 1 KiB to 64 MiB",
            "choose a size between them; artifacts never travel on the bus",
        );
        demand(
            self.embedded_bytes_max >= 16 << 20,
            "OONA_EMBEDDED_MAX_BYTES",
            "is below 16 MiB",
            "give the embedded log some room",
        );
        demand(self.attempts_max > 0, "OONA_MAX_ATTEMPTS", "is 0", "allow at least one attempt");
        for (setting, time) in [
            ("OONA_FRESHNESS_WINDOW_MS", self.freshness_window),
            ("KERNEL_FRESHNESS_WINDOW_MS", self.kernel_freshness_window),
            ("OONA_MESSAGE_TTL_MS", self.message_ttl),
            ("OONA_CLAIM_IDLE_MS", self.claim_idle),
            ("OONA_LEASE_TTL_MS", self.lease_ttl),
            ("OONA_READ_BLOCK_MS", self.read_block),
            ("OONA_COMMAND_TIMEOUT_MS", self.command_timeout),
            ("OONA_PUBLISH_TIMEOUT_MS", self.publish_timeout),
            ("OONA_DURABILITY_TIMEOUT_MS", self.durability_timeout),
        ] {
            demand(time >= Duration::from_millis(1), setting, "is below 1 ms", "give it some time");
        }
        let waits = self.durability.classes().any(|class| class != Durability::None);
        demand(
            !waits || self.durability_timeout < self.publish_timeout,
            "OONA_DURABILITY_TIMEOUT_MS",
            "is not below the time that a publish may take (2 s)",
            "leave the publish time for the append itself",
        );
        demand(
            self.emergency_threshold <= self.backpressure_threshold
                && self.backpressure_threshold <= self.depth_max
                && self.emergency_threshold > 0,
            "OONA_BACKPRESSURE_THRESHOLD",
            "does not lie between OONA_EMERGENCY_THRESHOLD and OONA_QUEUE_DEPTH_MAX",
            "order them: 0 < emergency <= backpressure <= depth",
        );
        demand(
            self.recovery_depth > 0,
            "OONA_RECOVERY_DEPTH",
            "is 0",
            "choose half of OONA_QUEUE_DEPTH_MAX, else conservative mode never ends",
        );
        if let Some(spool) = &self.spool {
            let room = self.message_bytes_max as u64 + 64;
            demand(
                spool.messages_max > 0 && spool.bytes_max >= room,
                "OONA_SPOOL_MAX_BYTES",
                "has no room for one message of OONA_MAX_MESSAGE_BYTES",
                "make it several times as large",
            );
        }
        demand(
            self.emergency_per_min > 0,
            "OONA_EMERGENCY_MAX_PER_MIN",
            "is 0",
            "allow at least one emergency message a minute",
        );
        faults
    }

    fn is_on_cluster(&self) -> bool {
        matches!(&self.log, LogChoice::Redis { url } if crate::log::is_cluster(url))
    }

    /// On a cluster: how to name the streams that do not share a node with the dead-letter stream.
    fn streams_astray(&self) -> Vec<String> {
        if !self.is_on_cluster() {
            return Vec::new();
        }
        let common = hash_tag(&self.streams.dead_letter);
        let tag = common.unwrap_or("oona");
        let astray = Stream::ALL
            .iter()
            .filter(|stream| common.is_none() || hash_tag(self.streams.name(**stream)) != common);
        astray
            .map(|stream| {
                let name = self.streams.name(*stream);
                let rest = name.strip_prefix(tag).and_then(|rest| rest.strip_prefix('.'));
                let rest = rest.unwrap_or(name).replace(['{', '}'], "");
                format!("{}={{{tag}}}.{rest}", StreamNames::setting(*stream))
            })
            .collect()
    }

    /// The same settings with every band at its share of `depth_max`: 75 % (LOW refused), 50 %
    /// (rerouting, end of conservative mode).
    #[must_use]
    pub fn with_bands_of_depth(self) -> Self {
        let share = |percent: u64| (self.depth_max.saturating_mul(percent) / 100).max(1);
        Self {
            backpressure_threshold: share(75),
            emergency_threshold: share(50),
            recovery_depth: share(50),
            ..self
        }
    }

    fn names_are_distinct(&self) -> bool {
        let mut names: Vec<&str> = Stream::ALL.map(|stream| self.streams.name(stream)).to_vec();
        let filled = names.iter().all(|name| !name.trim().is_empty());
        names.sort_unstable();
        names.dedup();
        filled && names.len() == Stream::ALL.len()
    }

    /// The window in which a message of this kind must have been issued before it was appended.
    pub(crate) fn window(&self, kernel_request: bool) -> Duration {
        if kernel_request { self.kernel_freshness_window } else { self.freshness_window }
    }

    /// How long a nonce stays claimed: as long as a copy could still be fresh and unread.
    pub(crate) fn claim_ttl(&self) -> Duration {
        self.freshness_window.max(self.kernel_freshness_window)
            + self.message_ttl
            + self.future_tolerance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_usable() {
        assert_eq!(Config::default().check(), []);
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let mut config = Config { attempts_max: 0, message_bytes_max: 1, ..Config::default() };
        config.streams.policy = config.streams.normal.clone();
        config.emergency_threshold = config.depth_max + 1;
        let settings: Vec<_> = config.check().into_iter().map(|fault| fault.setting).collect();
        for expected in [
            "OONA_*_STREAM",
            "OONA_MAX_MESSAGE_BYTES",
            "OONA_MAX_ATTEMPTS",
            "OONA_BACKPRESSURE_THRESHOLD",
        ] {
            assert!(settings.contains(&expected), "{expected} missing in {settings:?}");
        }
    }

    /// Whatever windows and age are set: while a copy could still be fresh and unread, its nonce is
    /// known.
    #[test]
    fn a_nonce_outlives_its_message() {
        let second = Duration::from_secs(1);
        for (window, kernel, ttl) in [(300, 60, 900), (1, 86_400, 1), (86_400, 1, 2_592_000)] {
            let config = Config {
                freshness_window: window * second,
                kernel_freshness_window: kernel * second,
                message_ttl: ttl * second,
                ..Config::default()
            };
            assert_eq!(config.check(), []);
            assert!(config.claim_ttl() >= (window.max(kernel) + ttl) * second);
        }
    }

    #[test]
    fn two_processes_never_share_a_consumer_name() {
        assert_ne!(Config::default().consumer, Config::default().consumer);
    }

    #[test]
    fn on_a_cluster_all_streams_share_a_hash_tag() {
        let log = LogChoice::Redis { url: "redis-cluster://localhost".to_owned() };
        let mut config = Config { log, ..Config::default() };
        let fault = config.check().remove(0);
        for expected in ["OONA_NORMAL_STREAM={oona}.normal", "OONA_DEAD_LETTER_STREAM={oona}.dead"]
        {
            assert!(fault.problem.contains(expected), "{fault}");
        }
        let names = &mut config.streams;
        for name in [
            &mut names.normal,
            &mut names.emergency,
            &mut names.telemetry,
            &mut names.policy,
            &mut names.kernel_requests,
            &mut names.kernel_ready,
            &mut names.kernel_errors,
            &mut names.dead_letter,
        ] {
            *name = name.replacen("oona", "{bus}", 1);
        }
        assert_eq!(config.check(), []);
        config.streams.policy = "{other}.policy".to_owned();
        let problem = config.check().remove(0).problem;
        assert!(problem.ends_with("set OONA_POLICY_STREAM={bus}.other.policy"), "{problem}");
    }

    #[test]
    fn a_password_in_the_url_is_never_shown() {
        let log = LogChoice::Redis { url: "redis://:hunter2@localhost".to_owned() };
        let redis = RedisAccess { password: Some("hunter2".to_owned()), ..RedisAccess::default() };
        assert!(!format!("{:?}", Config { log, redis, ..Config::default() }).contains("hunter2"));
    }
}
