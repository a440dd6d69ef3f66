//! What the server is and can do: asked at connect, once.

use std::collections::HashMap;
use std::fmt;

use redis::aio::ConnectionLike;
use redis::cluster_routing::Slot;
use redis::{RedisError, Value};

use super::access::Access;
use super::link::{CONNECT_TIMEOUT, Wire};
use super::reply::{items, number, pairs, text};
use crate::config::RedisAccess;
use crate::error::{BusError, LogError};

/// Who made the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    /// Redis, or something that says it is.
    Redis,
    /// Valkey.
    Valkey,
}

/// What a server can do beyond Redis 7.0, which Oona needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Who made it.
    pub server: ServerKind,
    /// Its own version: major, minor, patch.
    pub version: (u32, u32, u32),
    /// `WAITAOF`: Redis 7.2, every Valkey. Used for the durability `waitaof`.
    pub waitaof: bool,
    /// `XTRIM ... ACKED`, with `XACKDEL` and `XDELEX`: Redis 8.2. Used when trimming.
    pub acked_trim: bool,
    /// `XREADGROUP ... CLAIM`: Redis 8.4. Shown only: it claims by idle time alone, Oona by
    /// heartbeats.
    pub claiming_read: bool,
    /// `XADD ... IDMP`: Redis 8.6. Shown only: claims of nonces already refuse a second copy, on
    /// every version.
    pub idempotent_append: bool,
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.version;
        let server = match self.server {
            ServerKind::Redis => "Redis",
            ServerKind::Valkey => "Valkey",
        };
        write!(f, "{server} {major}.{minor}.{patch}")?;
        let all = [
            (self.waitaof, "WAITAOF"),
            (self.acked_trim, "trimming of the acknowledged"),
            (self.claiming_read, "claiming reads"),
            (self.idempotent_append, "idempotent appends"),
        ];
        for (_, name) in all.iter().filter(|(there, _)| *there) {
            write!(f, ", {name}")?;
        }
        Ok(())
    }
}

/// What a server told about itself; `None` where it keeps that to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Address without credentials.
    pub log: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Whether it keeps an append-only file.
    pub aof: Option<bool>,
    /// When it writes that to disk: `always`, `everysec`, `no`.
    pub appendfsync: Option<String>,
    /// What it forgets when memory runs out; `None` without a limit of memory too.
    pub eviction: Option<String>,
    /// Whether it is a replica, to which nothing can be appended.
    pub is_replica: Option<bool>,
    /// Replicas that are connected to it.
    pub replicas: Option<u32>,
    /// Its clock, Unix milliseconds.
    pub time_ms: Option<u64>,
}

/// Connects as a bus would, asks the server what it is, and lets go.
///
/// # Errors
/// [`BusError::BadUrl`], [`BusError::UnsupportedUrl`] or [`BusError::Certificate`] when nothing can
/// be tried; [`BusError::Log`] when the server cannot be reached or does not let this user in;
/// [`BusError::TooOld`].
pub async fn probe(url: &str, access: &RedisAccess) -> Result<About, BusError> {
    let access = Access::of(url, access)?;
    let slot = Slot::for_key("oona");
    let found = async {
        let mut wire = Wire::connect(&access, slot, Some(CONNECT_TIMEOUT)).await?;
        look(&mut wire, &access.shown).await
    };
    let about = found.await.map_err(|source| {
        super::fault(&access.shown, CONNECT_TIMEOUT, "look at the server", source)
    })?;
    about.ok_or(LogError::Reply { operation: "look at the server" }.into()).and_then(About::judged)
}

impl About {
    /// Refuses what is too old.
    pub(super) fn judged(self) -> Result<Self, BusError> {
        let Capabilities { server, version: (major, minor, patch), .. } = self.capabilities;
        if server == ServerKind::Redis && major < 7 {
            return Err(BusError::TooOld {
                log: self.log,
                version: format!("{major}.{minor}.{patch}"),
            });
        }
        Ok(self)
    }
}

/// Asks. What the server keeps from this user is left open; a server that does not answer is an
/// error, one whose answers make no sense is `None`.
pub(super) async fn look(
    connection: &mut impl ConnectionLike,
    log: &str,
) -> Result<Option<About>, RedisError> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO");
    pipe.cmd("COMMAND").arg("INFO").arg("WAITAOF").arg("XACKDEL");
    pipe.cmd("CONFIG").arg("GET").arg("appendfsync");
    pipe.cmd("TIME");
    pipe.ignore_errors();
    let answers: Vec<Result<Value, RedisError>> = pipe.query_async(connection).await?;
    let mut answers = answers.into_iter();
    let mut next = || answers.next();
    let (Some(info), Some(commands), Some(config), Some(time)) = (next(), next(), next(), next())
    else {
        return Ok(None);
    };
    let info = match info {
        Ok(info) => fields(text_of(info).unwrap_or_default().as_str()),
        Err(error) if is_refusal(&error) => hello(connection).await?,
        Err(error) => return Err(error),
    };
    let commands = commands.ok().and_then(known_commands);
    let config = config
        .ok()
        .and_then(pairs)
        .and_then(|pairs| pairs.iter().find_map(|(_, value)| text(value).map(str::to_owned)));
    let time = time.ok().and_then(items).and_then(|parts| {
        let [seconds, micros] = parts.as_slice() else { return None };
        Some(number(seconds)? * 1000 + number(micros)? / 1000)
    });
    let Some(capabilities) = capabilities(&info, commands) else { return Ok(None) };
    let limited = info.get("maxmemory").is_some_and(|bytes| bytes != "0");
    Ok(Some(About {
        log: log.to_owned(),
        capabilities,
        aof: info.get("aof_enabled").map(|enabled| enabled == "1"),
        appendfsync: config,
        eviction: info.get("maxmemory_policy").filter(|_| limited).cloned(),
        is_replica: info.get("role").map(|role| role == "slave" || role == "replica"),
        replicas: info.get("connected_slaves").and_then(|count| count.parse().ok()),
        time_ms: time,
    }))
}

/// No permission, or a command that a managed service has taken away.
fn is_refusal(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOPERM" | "ERR"))
}

/// `HELLO` tells server and version to everybody who may connect.
async fn hello(
    connection: &mut impl ConnectionLike,
) -> Result<HashMap<String, String>, RedisError> {
    let answer: Value = match redis::cmd("HELLO").query_async(connection).await {
        Err(error) if is_refusal(&error) => return Ok(HashMap::new()),
        other => other?,
    };
    let told: HashMap<String, String> = pairs(answer)
        .unwrap_or_default()
        .iter()
        .filter_map(|(name, value)| Some((text(name)?.to_owned(), text(value)?.to_owned())))
        .collect();
    let mut info = HashMap::new();
    if let Some(version) = told.get("version") {
        let valkey = told.get("server").is_some_and(|server| server == "valkey");
        let name = if valkey { "valkey_version" } else { "redis_version" };
        info.insert(name.to_owned(), version.clone());
    }
    if let Some(role) = told.get("role") {
        info.insert("role".to_owned(), role.clone());
    }
    Ok(info)
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::VerbatimString { text, .. } => Some(text),
        other => text(&other).map(str::to_owned),
    }
}

fn fields(info: &str) -> HashMap<String, String> {
    let lines = info.lines().filter_map(|line| line.trim().split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whether it knows `WAITAOF` and `XACKDEL`, in this order.
fn known_commands(answer: Value) -> Option<(bool, bool)> {
    let answers = items(answer)?;
    let [waitaof, xackdel] = answers.as_slice() else { return None };
    let known = |value: &Value| matches!(value, Value::Array(parts) if !parts.is_empty());
    Some((known(waitaof), known(xackdel)))
}

/// A server that tells nothing is given the benefit of the doubt: it is taken for Redis 7.0, and
/// the first command that it does not know says so.
fn capabilities(
    info: &HashMap<String, String>,
    commands: Option<(bool, bool)>,
) -> Option<Capabilities> {
    let (server, version) = match (info.get("valkey_version"), info.get("redis_version")) {
        (Some(version), _) => (ServerKind::Valkey, version.as_str()),
        (None, Some(version)) => (ServerKind::Redis, version.as_str()),
        (None, None) => (ServerKind::Redis, "7.0.0"),
    };
    let version = version_of(version)?;
    let redis_since = |since| server == ServerKind::Redis && version >= since;
    let by_version = (server == ServerKind::Valkey || version >= (7, 2, 0), redis_since((8, 2, 0)));
    let (waitaof, acked_trim) = commands.unwrap_or(by_version);
    Some(Capabilities {
        server,
        version,
        waitaof,
        acked_trim,
        claiming_read: redis_since((8, 4, 0)),
        idempotent_append: redis_since((8, 6, 0)),
    })
}

fn version_of(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.trim().split(['.', '-']).map(str::parse::<u32>);
    let major = parts.next()?.ok()?;
    let mut rest = || parts.next().and_then(Result::ok).unwrap_or(0);
    Some((major, rest(), rest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(info: &str, commands: Option<(bool, bool)>) -> Capabilities {
        capabilities(&fields(info), commands).unwrap()
    }

    #[test]
    fn the_commands_decide_and_else_the_version() {
        let old = found("redis_version:7.0.15\r\n", Some((false, false)));
        assert!(!old.waitaof && !old.acked_trim);
        assert_eq!(old.to_string(), "Redis 7.0.15");
        let eight = found("redis_version:8.0.2\r\n", None);
        assert!(eight.waitaof && !eight.acked_trim && !eight.claiming_read);
        let patched = found("redis_version:8.0.2\r\n", Some((true, true)));
        assert!(patched.acked_trim);
        let newest = found("redis_version:8.6.0\r\n", None);
        assert!(newest.acked_trim && newest.claiming_read && newest.idempotent_append);
        assert_eq!(
            newest.to_string(),
            "Redis 8.6.0, WAITAOF, trimming of the acknowledged, claiming reads, idempotent appends"
        );
    }

    #[test]
    fn valkey_speaks_for_itself_whatever_version_of_redis_it_claims() {
        let info = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.0\r\n";
        let valkey = found(info, None);
        assert_eq!((valkey.server, valkey.version), (ServerKind::Valkey, (9, 1, 0)));
        assert!(valkey.waitaof && !valkey.acked_trim && !valkey.claiming_read);
    }

    #[test]
    fn who_tells_nothing_is_taken_for_the_oldest() {
        let silent = found("", None);
        assert_eq!(silent.version, (7, 0, 0));
        assert!(!silent.waitaof);
        assert_eq!(capabilities(&fields("redis_version:x"), None), None);
    }
}
