//! Redis Streams. One multiplexed connection carries all commands, a second one the urgent
//! appends, and every blocking reader has its own: a blocked connection answers nobody else.

mod connect;
mod consume;
mod link;
mod look;
mod reader;
mod reply;
mod scripts;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError};

use crate::config::Config;
use crate::entry::EntryId;
use crate::error::{BusError, LogError};
use crate::log::GroupInfo;

use self::link::Link;
pub(crate) use self::reader::RedisReader;
use self::reply::{entry_id, groups};
use self::scripts::Scripts;

/// A log on a Redis or Valkey server.
#[derive(Clone)]
pub(crate) struct RedisLog(Arc<Inner>);

struct Inner {
    client: redis::Client,
    /// Address without credentials, for errors.
    address: String,
    main: Link,
    urgent: Link,
    command_timeout: Duration,
    key_prefix: String,
    claim_ttl: Duration,
    scripts: Scripts,
}

impl std::fmt::Debug for RedisLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisLog({})", self.0.address)
    }
}

impl RedisLog {
    /// Connects and asks for the time: a server that does not answer now is reported now.
    pub(crate) async fn open(url: &str, config: &Config) -> Result<Self, BusError> {
        let (client, address) = connect::client(url)?;
        let link = || {
            let (client, command_timeout) = (client.clone(), config.command_timeout);
            Link::new(move || connect::manager(&client, command_timeout))
                .map_err(|source| LogError::Unreachable { log: address.clone(), source })
        };
        let (main, urgent) = (link()?, link()?);
        let log = Self(Arc::new(Inner {
            client,
            address,
            main,
            urgent,
            command_timeout: config.command_timeout,
            key_prefix: config.key_prefix.clone(),
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
            return Err(BusError::TooOld { log: self.0.address.clone(), version });
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
        let seen = answers.next().and_then(Result::ok).and_then(groups);
        Ok((id, seen.unwrap_or_default()))
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
        self.bounded_on(urgent, operation, cmd.query_async(&mut connection)).await
    }

    /// Sends a pipeline and waits for all its answers.
    async fn ask_many<T: FromRedisValue>(
        &self,
        operation: &'static str,
        urgent: bool,
        pipe: &Pipeline,
    ) -> Result<T, LogError> {
        let mut connection = self.connection(urgent);
        self.bounded_on(urgent, operation, pipe.query_async(&mut connection)).await
    }

    fn connection(&self, urgent: bool) -> ConnectionManager {
        self.link(urgent).manager()
    }

    fn link(&self, urgent: bool) -> &Link {
        if urgent { &self.0.urgent } else { &self.0.main }
    }

    /// Waits for an answer on the main connection.
    async fn bounded<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, LogError> {
        self.bounded_on(false, operation, answer).await
    }

    async fn bounded_on<T>(
        &self,
        urgent: bool,
        operation: &'static str,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, LogError> {
        let after = self.0.command_timeout;
        let watch = self.link(urgent).watch();
        let answer = match tokio::time::timeout(after, answer).await {
            Ok(answer) => answer.map_err(|source| self.fault(operation, source)),
            Err(_) => Err(LogError::TimedOut { operation, after }),
        };
        if !matches!(answer, Err(LogError::TimedOut { .. })) {
            watch.answered();
        }
        answer
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
        match source.kind() {
            Kind::Io | Kind::Client => {
                LogError::Unreachable { log: self.0.address.clone(), source }
            }
            Kind::Parse | Kind::UnexpectedReturnType => LogError::Reply { operation },
            _ => LogError::Refused { operation, source },
        }
    }

    /// The hash with the heartbeats of a group's consumers; `*` stands for any of them.
    fn beats_key(&self, stream: &str, group: &str) -> String {
        format!("{}:beats:{stream}:{group}", self.0.key_prefix)
    }
}

fn xadd(stream: &str, fields: &[(&[u8], &[u8])]) -> Cmd {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(stream).arg("*");
    for (name, value) in fields {
        cmd.arg(*name).arg(*value);
    }
    cmd
}
