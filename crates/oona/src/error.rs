//! What can go wrong, and what to do about it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leyline::wire::BusMessageType;

use crate::config::ConfigFault;
use crate::durability::Durability;
use crate::entry::EntryId;
use crate::spool::SpoolError;
use crate::stream::Stream;

/// Gives every variant of an error its stable code, which `weatherlight explain` knows. A variant
/// without one does not compile.
macro_rules! codes {
    ($name:ident { $($variant:ident = $code:literal),+ $(,)? }) => {
        impl $name {
            /// The code of every variant, in their order.
            pub const CODES: &'static [&'static str] = &[$($code),+];

            /// Its stable code: `weatherlight explain CODE` says what to do.
            pub fn code(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $code),+ }
            }
        }
    };
}
pub(crate) use codes;

/// A failure of the log itself. Clone, because one failed commit fails everyone who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No connection. Retry with a delay; nothing accepted is lost.
    #[error("the log at {log} cannot be reached; check that it runs and that REDIS_URL is right")]
    Unreachable {
        /// Address without credentials.
        log: String,
        /// What the client reported.
        source: redis::RedisError,
    },
    /// One side does not accept the other's certificate. Retrying does not help by itself.
    #[error(
        "the certificate of the log at {log} is not accepted, or it does not accept ours; set \
         OONA_REDIS_CA_FILE to the authority that signed it, and OONA_REDIS_CERT_FILE and \
         OONA_REDIS_KEY_FILE when it asks for a client certificate"
    )]
    Untrusted {
        /// Address without credentials.
        log: String,
        /// What the client reported.
        source: redis::RedisError,
    },
    /// No answer in time. The command may or may not have been carried out.
    #[error("{operation} got no answer from the log within {after:?}")]
    TimedOut {
        /// What was asked.
        operation: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server refused the command; its text says why (no permission, out of memory, read-only).
    #[error("the log refused {operation}: {source}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// The server's answer.
        source: redis::RedisError,
    },
    /// The entry was appended, and did not become as safe as its stream asks in time. It will be
    /// delivered, unless the server is lost before its disk or its replicas have caught up: do not
    /// publish it again.
    #[error(
        "entry {entry} stands in the log, on {disks} disk(s) and {replicas} replica(s) after \
         {after:?} where {class} was asked for; look after the server's disk and replicas, and do \
         not send it again"
    )]
    NotDurable {
        /// The entry.
        entry: EntryId,
        /// What was asked for.
        class: Durability,
        /// Disks that are known to have it.
        disks: u32,
        /// Replicas that are known to have it.
        replicas: u32,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server answered with a shape that the command does not have.
    #[error("the log answered {operation} with something unexpected; is it Redis 7.0 or later?")]
    Reply {
        /// What was asked.
        operation: &'static str,
    },
    /// The stream or the group is gone, as after a flush or a failover. Consumers recreate it.
    #[error("group {group} does not exist on stream {stream}; ensure it and retry")]
    NoGroup {
        /// Name of the stream in the log.
        stream: String,
        /// Name of the group.
        group: String,
    },
    /// The embedded log could not read its file. It is opened again by itself: retry with a delay.
    #[error(
        "the embedded log {path} cannot be read; check the disk and permissions, it is tried again"
    )]
    Storage {
        /// The log's file.
        path: PathBuf,
        /// What the store reported.
        source: Arc<redb::Error>,
    },
    /// The embedded log could not write: most often the disk is full. What was to be appended is not
    /// stored and does not appear later, unless the machine stops at this moment. Nothing
    /// acknowledged before is lost, and the log goes on by itself once it can write.
    #[error(
        "not stored: the embedded log {path} cannot write{}; free disk space, the log then goes on by itself",
        free(*free_bytes)
    )]
    NotStored {
        /// The log's file.
        path: PathBuf,
        /// What is left on its disk, when that is known.
        free_bytes: Option<u64>,
        /// What the system reported.
        source: Arc<std::io::Error>,
    },
    /// The embedded log holds as much as it may. What was to be appended is not stored. Consume,
    /// shorten `OONA_MESSAGE_TTL_MS`, or raise the bound.
    #[error(
        "not stored: the embedded log {path} is full, {bytes} of {bytes_max} bytes; let consumers catch up or raise OONA_EMBEDDED_MAX_BYTES"
    )]
    Full {
        /// The log's file.
        path: PathBuf,
        /// What it takes now.
        bytes: u64,
        /// The bound, `OONA_EMBEDDED_MAX_BYTES`.
        bytes_max: u64,
    },
    /// The embedded log was closed while the call waited.
    #[error("the embedded log {path} is closed; open the bus again")]
    Closed {
        /// The log's file.
        path: PathBuf,
    },
}

impl LogError {
    /// Whether it counts against a breaker: the log did not do its work. A missing group or a full
    /// log is its state, not its failure; and what is less safe than asked for was appended all the
    /// same.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::NoGroup { .. } | Self::Full { .. } | Self::NotDurable { .. })
    }

    /// Whether nobody answered: the log is away, or on its way. Publishes wait in the spool then.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. })
    }

    /// Whether waiting may help. What is final ends a worker, so that the supervisor sees it.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }
}

/// Why the bus could not be opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The settings cannot be used; every fault is listed.
    #[error("the bus settings have {} fault(s): {}", .0.len(), list(.0))]
    Config(Vec<ConfigFault>),
    /// The URL is no Redis URL.
    #[error("REDIS_URL cannot be used: {problem}; write {URL_FORMS}")]
    BadUrl {
        /// What is wrong with it; never a part of it.
        problem: &'static str,
    },
    /// A URL of something else.
    #[error("{scheme} URLs do not lead to Redis; write {URL_FORMS}")]
    UnsupportedUrl {
        /// Scheme of the URL, without the rest.
        scheme: String,
    },
    /// A file with certificates or a key cannot be read.
    #[error(
        "cannot read {path}; check OONA_REDIS_CA_FILE, OONA_REDIS_CERT_FILE, OONA_REDIS_KEY_FILE"
    )]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// The server is too old: atomic claims need Redis 7.0.
    #[error("the server at {log} is Redis {version}; Oona needs 7.0 or later, or any Valkey")]
    TooOld {
        /// Address without credentials.
        log: String,
        /// What it calls itself.
        version: String,
    },
    /// The server cannot give the durability that a stream asks for.
    #[error("the server at {log} cannot give {class}: {problem}; set OONA_DURABILITY accordingly")]
    Durability {
        /// Address without credentials.
        log: String,
        /// What was asked for.
        class: Durability,
        /// Why not, and what would help.
        problem: &'static str,
    },
    /// Another process, or another bus in this one, holds the embedded log.
    #[error(
        "the embedded log {path} is in use{}; stop that process, choose another file, or set REDIS_URL to share one log",
        holder(*pid, command.as_deref(), host.as_deref(), *held_for)
    )]
    Locked {
        /// The log's file.
        path: PathBuf,
        /// Process that holds it, when it could be read.
        pid: Option<u32>,
        /// Its command line, without what would make a line of its own.
        command: Option<String>,
        /// Its host, when that is another one.
        host: Option<String>,
        /// How long it has had the log.
        held_for: Option<Duration>,
    },
    /// The embedded log's file or directory cannot be made or opened.
    #[error("cannot open the embedded log {path}; check that its directory is writable")]
    Open {
        /// The log's file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// The embedded log's file is damaged.
    #[error("the embedded log {path} cannot be read; move it away to start with an empty one")]
    Damaged {
        /// The log's file.
        path: PathBuf,
        /// What the store reported.
        source: Arc<redb::Error>,
    },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// How the log may be named.
const URL_FORMS: &str = "redis://HOST:PORT/DB, rediss:// for TLS, unix:///PATH, \
    redis-sentinel://HOST:PORT,HOST:PORT/MASTER/DB or redis-cluster://HOST:PORT,HOST:PORT";

fn list(faults: &[ConfigFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(". ")
}

fn free(bytes: Option<u64>) -> String {
    bytes.map(|bytes| format!(", {bytes} bytes are free on its disk")).unwrap_or_default()
}

fn holder(
    pid: Option<u32>,
    command: Option<&str>,
    host: Option<&str>,
    held_for: Option<Duration>,
) -> String {
    let mut text = pid.map(|pid| format!(" by process {pid}")).unwrap_or_default();
    if let Some(command) = command {
        text += &format!(" ({command})");
    }
    if let Some(host) = host {
        text += &format!(" on {host}");
    }
    if let Some(held_for) = held_for {
        text += &format!(" for {} s", held_for.as_secs());
    }
    text
}

/// Why a message was not published. Being refused under pressure is no error but an
/// [`Outcome`](crate::Outcome).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Too large. Artifacts never travel on the bus: send a reference and a digest.
    #[error("the message takes {bytes} bytes, at most {bytes_max} may travel; send a reference")]
    Oversize {
        /// Bytes of envelope and signature.
        bytes: usize,
        /// The limit, `OONA_MAX_MESSAGE_BYTES`.
        bytes_max: usize,
    },
    /// This stream does not carry that type; nobody would read it.
    #[error("{kind:?} does not travel on the {stream} stream")]
    WrongStream {
        /// The stream asked for.
        stream: Stream,
        /// The message's type.
        kind: BusMessageType,
    },
    /// The log is away, and the disk that should keep the message meanwhile failed. Free disk space;
    /// the next publish tries again. The message may have been appended if the log went away just
    /// now.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The log failed, also after retries. The message may have been appended; sending it again is
    /// safe where its handler is idempotent.
    #[error(transparent)]
    Log(#[from] LogError),
}

codes! {
    LogError {
        Unreachable = "log_unreachable", Untrusted = "log_untrusted", TimedOut = "log_timed_out",
        Refused = "log_refused", NotDurable = "log_not_durable", Reply = "log_reply",
        NoGroup = "log_no_group", Storage = "log_storage", NotStored = "log_not_stored",
        Full = "log_full", Closed = "log_closed",
    }
}
codes! {
    BusError {
        Config = "bus_config", BadUrl = "bus_bad_url", UnsupportedUrl = "bus_unsupported_url",
        Certificate = "bus_certificate", TooOld = "bus_too_old", Durability = "bus_durability",
        Locked = "bus_locked", Open = "bus_open", Damaged = "bus_damaged", Log = "bus_log",
    }
}
codes! {
    PublishError {
        Oversize = "publish_oversize", WrongStream = "publish_wrong_stream",
        Spool = "publish_spool", Log = "publish_log",
    }
}
