//! Redis Streams. One multiplexed connection carries all commands, a second one the urgent
//! appends, and every blocking reader has its own: a blocked connection answers nobody else.
//!
//! Reading order: `url` (what a URL says), `access` (the clients it stands for), `link`
//! (connections that come back by themselves), then this file and what is asked over them.

mod access;
mod append_many;
mod consume;
mod link;
mod look;
mod reader;
mod reply;
mod reserve;
mod scripts;
mod tag;
mod upkeep;
mod url;

use std::sync::Arc;
use std::time::Duration;

use redis::cluster_routing::Slot;
use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ServerErrorKind};

use crate::config::Config;
use crate::entry::EntryId;
use crate::error::{BusError, LogError};
use crate::log::GroupInfo;

use self::access::Access;
use self::link::Link;
pub(crate) use self::reader::RedisReader;
use self::reply::{entry_id, groups};
use self::scripts::Scripts;
pub(crate) use self::tag::hash_tag;
pub use self::url::check_url;
pub(crate) use self::url::is_cluster;

/// A log on a Redis or Valkey server.
#[derive(Clone)]
pub(crate) struct RedisLog(Arc<Inner>);

struct Inner {
    access: Arc<Access>,
    /// Of the streams in a cluster, all of them.
    slot: Slot,
    main: Link,
    urgent: Link,
    command_timeout: Duration,
    key_prefix: String,
    /// Prefix of the claims; with the hash tag of the streams when they have one.
    claim_prefix: String,
    claim_ttl: Duration,
    scripts: Scripts,
}

impl std::fmt::Debug for RedisLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisLog({})", self.0.access.shown)
    }
}

impl RedisLog {
    /// Connects and asks for the time: a server that does not answer now is reported now.
    pub(crate) async fn open(url: &str, config: &Config) -> Result<Self, BusError> {
        let access = Arc::new(Access::of(url, &config.redis)?);
        let anchor = &config.streams.dead_letter;
        let slot = Slot::for_key(anchor);
        let prefix = &config.key_prefix;
        let log = Self(Arc::new(Inner {
            slot,
            main: Link::new(Arc::clone(&access), slot, config.command_timeout),
            urgent: Link::new(Arc::clone(&access), slot, config.command_timeout),
            access,
            command_timeout: config.command_timeout,
            key_prefix: prefix.clone(),
            claim_prefix: match hash_tag(anchor) {
                Some(tag) => format!("{prefix}:{{{tag}}}"),
                None => prefix.clone(),
            },
            claim_ttl: config.claim_ttl(),
            scripts: Scripts::new(),
        }));
        log.now_ms().await?;
        log.check_version().await?;
        Ok(log)
    }

    /// A server that does not tell its version (no permission for `INFO`) is given the benefit of
    /// the doubt: the first command that it does not know says so.
    async fn check_version(&self) -> Result<(), BusError> {
        let info = self.ask::<String>("version", false, redis::cmd("INFO").arg("server")).await;
        let info = match info {
            Err(LogError::Refused { .. }) => return Ok(()),
            other => other?,
        };
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        let Some(version) = version.map(str::trim) else { return Ok(()) };
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major < 7) {
            let version = version.to_owned();
            return Err(BusError::TooOld { log: self.0.access.shown.clone(), version });
        }
        Ok(())
    }

    pub(crate) async fn append(
        &self,
        stream: &str,
        fields: &[(&[u8], &[u8])],
        urgent: bool,
    ) -> Result<EntryId, LogError> {
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
        Ok((id, self.count_unknown(stream, seen).await.unwrap_or_default()))
    }

    pub(crate) async fn now_ms(&self) -> Result<u64, LogError> {
        let (seconds, micros): (u64, u64) = self.ask("time", false, &redis::cmd("TIME")).await?;
        Ok(seconds * 1000 + micros / 1000)
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

    fn connection(&self, urgent: bool) -> Link {
        if urgent { self.0.urgent.clone() } else { self.0.main.clone() }
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

    /// What a client error means to the bus.
    fn fault(&self, operation: &'static str, source: RedisError) -> LogError {
        use redis::ErrorKind as Kind;
        if source.code() == Some("NOGROUP") {
            return LogError::NoGroup { stream: String::new(), group: String::new() };
        }
        if source.is_timeout() {
            return LogError::TimedOut { operation, after: self.0.command_timeout };
        }
        let log = self.0.access.shown.clone();
        if is_untrusted(&source) {
            return LogError::Untrusted { log, source };
        }
        match source.kind() {
            Kind::Parse | Kind::UnexpectedReturnType => LogError::Reply { operation },
            kind if is_absent(kind) => LogError::Unreachable { log, source },
            _ => LogError::Refused { operation, source },
        }
    }

    /// The hash with the heartbeats of a group's consumers; `*` stands for any of them.
    fn beats_key(&self, stream: &str, group: &str) -> String {
        format!("{}:beats:{stream}:{group}", self.0.key_prefix)
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

/// Whether the server's certificate, or ours in its eyes, was the reason.
fn is_untrusted(error: &RedisError) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let found = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)) =
            found.or(cause.downcast_ref::<rustls::Error>())
        {
            return true;
        }
        source = cause.source();
    }
    false
}

fn xadd(stream: &str, fields: &[(&[u8], &[u8])]) -> Cmd {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(stream).arg("*");
    for (name, value) in fields {
        cmd.arg(*name).arg(*value);
    }
    cmd
}
