//! Redis Streams. One multiplexed connection carries all commands, a second one the urgent
//! appends, and every blocking reader has its own: a blocked connection answers nobody else.
//!
//! Reading order: `url` (what a URL says), `access` (the clients it stands for), `link`
//! (connections that come back by themselves), then this file and what is asked over them.

mod about;
mod access;
mod append_many;
mod clock;
mod consume;
mod durable;
mod lease;
mod link;
mod look;
mod reader;
mod reply;
mod reserve;
mod scripts;
mod tag;
mod upkeep;
mod url;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use redis::cluster_routing::Slot;
use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ServerErrorKind};
use tokio::sync::watch;

use crate::config::Config;
use crate::durability::Durability;
use crate::entry::EntryId;
use crate::error::{BusError, LogError};
use crate::live::Limits;
use crate::log::GroupInfo;
use crate::stream::Stream;

pub use self::about::{About, Capabilities, ServerKind, probe};
use self::access::Access;
use self::clock::ServerClock;
use self::durable::{Durable, Shortfall};
use self::link::Link;
pub(crate) use self::reader::RedisReader;
use self::reply::{entry_id, groups};
use self::scripts::Scripts;
pub(crate) use self::tag::hash_tag;
pub use self::url::check_url;
pub(crate) use self::url::is_cluster;

/// What was appended is published: a backlog that takes longer to count is left to the next look.
const COUNT_TIMEOUT: Duration = Duration::from_millis(200);

/// A log on a Redis or Valkey server, and whether all that is asked goes by the urgent connection.
#[derive(Clone)]
pub(crate) struct RedisLog(Arc<Inner>, bool);

struct Inner {
    access: Arc<Access>,
    /// Of the streams in a cluster, all of them.
    slot: Slot,
    main: Link,
    urgent: Link,
    /// For the streams whose publishers wait, by class and by whether it is the urgent lane.
    durable: HashMap<(Durability, bool), Arc<Durable>>,
    /// Of the streams that have one, by their name in the log.
    classes: HashMap<String, Durability>,
    capabilities: Capabilities,
    /// Whether trimming may name the acknowledged; false once a server has refused that.
    acked_trim: AtomicBool,
    command_timeout: Duration,
    key_prefix: String,
    /// Prefix of the claims; with the hash tag of the streams when they have one.
    claim_prefix: String,
    claim_ttl: Duration,
    /// No need to count a backlog beyond this.
    limits: watch::Receiver<Limits>,
    scripts: Scripts,
    clock: ServerClock,
}

impl std::fmt::Debug for RedisLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisLog({})", self.0.access.shown)
    }
}

impl RedisLog {
    /// Connects and asks what the server is: one that does not answer now is reported now.
    pub(crate) async fn open(
        url: &str,
        config: &Config,
        limits: watch::Receiver<Limits>,
    ) -> Result<Self, BusError> {
        let access = Arc::new(Access::of(url, &config.redis)?);
        let anchor = &config.streams.dead_letter;
        let slot = Slot::for_key(anchor);
        let prefix = &config.key_prefix;
        let link = || Link::new(Arc::clone(&access), slot, config.command_timeout);
        let main = link();
        let about = learn(&main, &access, config).await?;
        tracing::info!(log = %access.shown, server = %about.capabilities, "connected to the log");
        let inner = Arc::new(Inner {
            slot,
            main,
            urgent: link(),
            durable: durables(&access, slot, config),
            classes: classes(config),
            acked_trim: AtomicBool::new(about.capabilities.acked_trim),
            capabilities: about.capabilities,
            access,
            command_timeout: config.command_timeout,
            key_prefix: prefix.clone(),
            claim_prefix: match hash_tag(anchor) {
                Some(tag) => format!("{prefix}:{{{tag}}}"),
                None => prefix.clone(),
            },
            claim_ttl: config.claim_ttl(),
            limits,
            scripts: Scripts::new(),
            clock: ServerClock::default(),
        });
        Ok(Self(inner, false))
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// What a publish on this stream waits for.
    pub(crate) fn durability(&self, stream: &str) -> Durability {
        self.0.classes.get(stream).copied().unwrap_or_default()
    }

    pub(crate) async fn append(
        &self,
        stream: &str,
        fields: &[(&[u8], &[u8])],
        urgent: bool,
    ) -> Result<EntryId, LogError> {
        if let Some(durable) = self.durable(stream, urgent) {
            return self.append_durably(durable, xadd(stream, fields)).await;
        }
        let value: redis::Value = self.ask("append", urgent, &xadd(stream, fields)).await?;
        entry_id(&value).ok_or(LogError::Reply { operation: "append" })
    }

    pub(crate) async fn append_and_sample(
        &self,
        stream: &str,
        fields: &[(&[u8], &[u8])],
        urgent: bool,
    ) -> Result<(EntryId, Vec<GroupInfo>), LogError> {
        let operation = "append";
        if let Some(durable) = self.durable(stream, urgent) {
            let id = self.append_durably(durable, xadd(stream, fields)).await?;
            return Ok((id, self.groups(stream).await.unwrap_or_default()));
        }
        let mut pipe = redis::pipe();
        pipe.add_command(xadd(stream, fields));
        pipe.cmd("XINFO").arg("GROUPS").arg(stream);
        pipe.ignore_errors();
        let answers: Vec<Result<redis::Value, RedisError>> =
            self.ask_many(operation, urgent, &pipe).await?;
        let mut answers = answers.into_iter();
        let appended = answers.next().ok_or(LogError::Reply { operation })?;
        let appended = appended.map_err(|source| self.fault(operation, source))?;
        let id = entry_id(&appended).ok_or(LogError::Reply { operation })?;
        // Once appended it is appended, whether or not the backlog could be seen.
        let Some(seen) = answers.next().and_then(Result::ok).and_then(groups) else {
            return Ok((id, Vec::new()));
        };
        let counted = tokio::time::timeout(COUNT_TIMEOUT, self.count_unknown(stream, seen)).await;
        Ok((id, counted.ok().and_then(Result::ok).unwrap_or_default()))
    }

    fn durable(&self, stream: &str, urgent: bool) -> Option<&Arc<Durable>> {
        self.0.durable.get(&(*self.0.classes.get(stream)?, urgent))
    }

    async fn append_durably(&self, durable: &Durable, command: Cmd) -> Result<EntryId, LogError> {
        let operation = "durable append";
        let (class, after) = (durable.class(), durable.wait());
        durable.append(command).await.map_err(|shortfall| match shortfall {
            Shortfall::Failed(source) => self.fault(operation, source),
            Shortfall::TimedOut => LogError::TimedOut { operation, after },
            Shortfall::Reply => LogError::Reply { operation },
            Shortfall::Weak { entry, disks, replicas } => {
                LogError::NotDurable { entry, class, disks, replicas, after }
            }
        })
    }

    pub(crate) async fn now_ms(&self) -> Result<u64, LogError> {
        let (seconds, micros): (u64, u64) = self.ask("time", false, &redis::cmd("TIME")).await?;
        let now_ms = seconds * 1000 + micros / 1000;
        self.0.clock.said(now_ms);
        Ok(now_ms)
    }

    /// Its clock, as far as this process knows it.
    pub(crate) fn known_ms(&self) -> Option<u64> {
        self.0.clock.now_ms()
    }

    pub(crate) async fn len(&self, stream: &str) -> Result<u64, LogError> {
        self.ask("length", false, redis::cmd("XLEN").arg(stream)).await
    }

    /// Sends one command and waits for its answer, but not for ever.
    async fn ask<T: FromRedisValue>(
        &self,
        operation: &'static str,
        urgent: bool,
        cmd: &Cmd,
    ) -> Result<T, LogError> {
        let mut connection = self.connection(urgent);
        self.bounded(operation, cmd.query_async(&mut connection)).await
    }

    /// Sends a pipeline and waits for all its answers.
    async fn ask_many<T: FromRedisValue>(
        &self,
        operation: &'static str,
        urgent: bool,
        pipe: &Pipeline,
    ) -> Result<T, LogError> {
        let mut connection = self.connection(urgent);
        self.bounded(operation, pipe.query_async(&mut connection)).await
    }

    /// The same log, with everything on the urgent connection.
    pub(crate) fn urgent(&self) -> Self {
        Self(Arc::clone(&self.0), true)
    }

    fn connection(&self, urgent: bool) -> Link {
        if urgent || self.1 { self.0.urgent.clone() } else { self.0.main.clone() }
    }

    async fn bounded<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, LogError> {
        let after = self.0.command_timeout;
        match tokio::time::timeout(after, answer).await {
            Ok(answer) => answer.map_err(|source| self.fault(operation, source)),
            Err(_) => Err(LogError::TimedOut { operation, after }),
        }
    }

    fn fault(&self, operation: &'static str, source: RedisError) -> LogError {
        let fault = fault(&self.0.access.shown, self.0.command_timeout, operation, source);
        if matches!(fault, LogError::Unreachable { .. }) {
            self.0.clock.forget();
        }
        fault
    }

    fn lease_key(&self, name: &str) -> String {
        format!("{}:lease:{name}", self.0.claim_prefix)
    }

    /// Changes whenever a consumer leaves entries for others.
    fn released_key(&self) -> String {
        format!("{}:released", self.0.claim_prefix)
    }

    /// The hash with the heartbeats of a group's consumers; `*` stands for any of them.
    fn beats_key(&self, stream: &str, group: &str) -> String {
        format!("{}:beats:{stream}:{group}", self.0.key_prefix)
    }
}

/// Asks the server what it is, and whether that is enough for what is set.
async fn learn(main: &Link, access: &Access, config: &Config) -> Result<About, BusError> {
    let operation = "look at the server";
    // Once for finding and connecting, which takes sentinels two steps, and once for the answer.
    let after = config.command_timeout * 2;
    let mut link = main.clone();
    let looked = tokio::time::timeout(after, about::look(&mut link, &access.shown)).await;
    let looked = looked.map_err(|_| LogError::TimedOut { operation, after })?;
    let about = looked.map_err(|source| fault(&access.shown, after, operation, source))?;
    let about = about.ok_or(LogError::Reply { operation })?.judged()?;
    let class =
        config.durability.classes().find(|class| matches!(class, Durability::WaitAof { .. }));
    let problem = match class {
        Some(_) if !about.capabilities.waitaof => {
            "it has no WAITAOF, which takes Redis 7.2 or later, or Valkey"
        }
        Some(_) if about.aof == Some(false) => {
            "it keeps no append-only file, which takes `appendonly yes`"
        }
        _ => return Ok(about),
    };
    let class = class.unwrap_or_default();
    Err(BusError::Durability { log: access.shown.clone(), class, problem })
}

fn classes(config: &Config) -> HashMap<String, Durability> {
    let class = |stream| (config.streams.name(stream).to_owned(), config.durability.of(stream));
    Stream::ALL.map(class).into_iter().filter(|(_, class)| *class != Durability::None).collect()
}

/// One for each class of the usual streams, and one for that of the emergency lane.
fn durables(
    access: &Arc<Access>,
    slot: Slot,
    config: &Config,
) -> HashMap<(Durability, bool), Arc<Durable>> {
    let wait = config.durability_timeout;
    let limit = wait + config.command_timeout;
    let mut durables = HashMap::new();
    for stream in Stream::ALL {
        let class = config.durability.of(stream);
        if class != Durability::None {
            durables.entry((class, stream == Stream::Emergency)).or_insert_with(|| {
                Durable::new(Link::new(Arc::clone(access), slot, limit), class, wait, limit)
            });
        }
    }
    durables
}

/// What a client error means to the bus.
fn fault(log: &str, after: Duration, operation: &'static str, source: RedisError) -> LogError {
    use redis::ErrorKind as Kind;
    // A read that is blocked when its stream is removed is told so in its own way.
    if matches!(source.code(), Some("NOGROUP" | "UNBLOCKED")) {
        return LogError::NoGroup { stream: String::new(), group: String::new() };
    }
    if source.is_timeout() {
        return LogError::TimedOut { operation, after };
    }
    let log = log.to_owned();
    if is_untrusted(&source) {
        return LogError::Untrusted { log, source };
    }
    match source.kind() {
        Kind::Parse | Kind::UnexpectedReturnType => LogError::Reply { operation },
        kind if is_absent(kind) => LogError::Unreachable { log, source },
        _ => LogError::Refused { operation, source },
    }
}

/// Nobody there who could answer, or nobody yet: while a server loads its data, while a failover
/// goes on, while a slot moves. Waiting helps.
fn is_absent(kind: ErrorKind) -> bool {
    use ServerErrorKind as Server;
    match kind {
        ErrorKind::Io
        | ErrorKind::Client
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::ClusterConnectionNotFound => true,
        ErrorKind::Server(kind) => matches!(
            kind,
            Server::ReadOnly
                | Server::MasterDown
                | Server::BusyLoading
                | Server::ClusterDown
                | Server::TryAgain
                | Server::Moved
                | Server::Ask
        ),
        _ => false,
    }
}

/// Whether the server's certificate, or ours in its eyes, was the reason. The client hides the TLS
/// library's error below its own, so its text has to do; tests with real servers watch over it.
fn is_untrusted(error: &RedisError) -> bool {
    error.is_io_error() && {
        let told = error.to_string();
        told.contains("invalid peer certificate") || told.contains("received fatal alert")
    }
}

fn xadd(stream: &str, fields: &[(&[u8], &[u8])]) -> Cmd {
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    // Room for all of it at once: growing would copy the payload several times.
    let mut cmd = Cmd::with_capacity(3 + 2 * fields.len(), 5 + stream.len() + bytes);
    cmd.arg("XADD").arg(stream).arg("*");
    for (name, value) in fields {
        cmd.arg(*name).arg(*value);
    }
    cmd
}
