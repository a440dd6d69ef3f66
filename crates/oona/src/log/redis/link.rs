//! Connections. A [`Wire`] is one of them, to a server or to a cluster. A [`Link`] is a wire that
//! comes back by itself: to the same server, or to whichever the sentinels call the master now.
//!
//! Why not the client's own manager: it knows one address, so it cannot follow a failover, and it
//! keeps a connection that no longer answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterConfig;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr};
use redis::{
    Arg, AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult,
    ServerErrorKind, Value,
};
use tokio::time::Instant;

use super::access::{Access, Door};

/// A server on the local network answers a connection attempt well within this.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// First delay before connecting again; it doubles, with jitter.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);
/// So that a server that is back is found within a second.
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(400);
/// A command given up after this long without an answer counts as a time-out, whoever gave it up: a
/// publisher's own limit may be shorter than the command's.
const SILENCE: Duration = Duration::from_millis(500);
/// Commands that wait for being written to one connection; more wait for a place.
const COMMANDS_WAITING_MAX: usize = 1024;
/// A blocking reader has time-outs of its own, far below this.
const UNBOUNDED: Duration = Duration::from_secs(24 * 3600);

/// One connection.
#[derive(Clone)]
pub(super) enum Wire {
    Server(MultiplexedConnection),
    Cluster {
        connection: Box<ClusterConnection>,
        /// Where all streams of the bus stand; commands without a key go there too.
        slot: Slot,
    },
}

impl Wire {
    /// Connects. `response` bounds the wait for each answer of a cluster, whose client asks on its
    /// own account as well; none for a reader that blocks.
    pub(super) async fn connect(
        access: &Access,
        slot: Slot,
        response: Option<Duration>,
    ) -> RedisResult<Self> {
        // Whoever asks a single server bounds its own wait; a second timer for every command would
        // cost and say nothing.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(COMMANDS_WAITING_MAX);
        Ok(match access.door()? {
            Door::Server(client) => {
                Self::Server(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Door::Sentinel(mut client) => {
                Self::Server(client.get_async_connection_with_config(&config).await?)
            }
            Door::Cluster(client) => {
                let config = ClusterConfig::new()
                    .set_connection_timeout(CONNECT_TIMEOUT)
                    .set_response_timeout(response.unwrap_or(UNBOUNDED));
                let connection = client.get_async_connection_with_config(config).await?;
                Self::Cluster { connection: Box::new(connection), slot }
            }
        })
    }
}

impl ConnectionLike for Wire {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster { connection, slot } => {
                if has_no_key(cmd) {
                    let routing = RoutingInfo::SingleNode(home(*slot));
                    return Box::pin(connection.route_command(cmd.clone(), routing));
                }
                connection.req_packed_command(cmd)
            }
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster { connection, slot } => {
                Box::pin(connection.route_pipeline(pipeline.clone(), offset, count, home(*slot)))
            }
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster { .. } => 0,
        }
    }
}

fn home(slot: Slot) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::SpecificNode(Route::with_slot(slot, SlotAddr::Master))
}

/// What the bus asks of the server itself; the node that has the streams is the one to ask.
fn has_no_key(cmd: &Cmd) -> bool {
    const KEYLESS: [&[u8]; 6] = [b"TIME", b"INFO", b"WAIT", b"WAITAOF", b"COMMAND", b"HELLO"];
    matches!(cmd.args_iter().next(), Some(Arg::Simple(name)) if KEYLESS.contains(&name))
}

/// A connection that comes back by itself. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub(super) struct Link(Arc<Inner>);

struct Inner {
    access: Arc<Access>,
    slot: Slot,
    response: Duration,
    current: Mutex<Current>,
    /// Held by whoever connects; the others wait for it, each within its own time-out.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Current {
    generation: u64,
    wire: Option<Wire>,
    /// Attempts in a row that failed, the last error, and when to try again.
    failures: u32,
    failed: Option<(RedisError, Instant)>,
}

impl Link {
    /// Connects at the first command.
    pub(super) fn new(access: Arc<Access>, slot: Slot, response: Duration) -> Self {
        Self(Arc::new(Inner {
            access,
            slot,
            response,
            current: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Result<(u64, Wire), u32> {
        let current = self.lock();
        current.wire.clone().map(|wire| (current.generation, wire)).ok_or(current.failures)
    }

    async fn wire(&self) -> RedisResult<(u64, Wire)> {
        let failures = match self.current() {
            Ok(found) => return Ok(found),
            Err(failures) => failures,
        };
        let _connecting = self.0.connecting.lock().await;
        let retry_at = {
            let current = self.lock();
            match (&current.wire, &current.failed) {
                (Some(wire), _) => return Ok((current.generation, wire.clone())),
                // Somebody has tried while this caller waited: one attempt answers them all.
                (None, Some((error, _))) if current.failures != failures => {
                    return Err(error.clone());
                }
                (None, failed) => failed.as_ref().map(|(_, at)| *at),
            }
        };
        if let Some(at) = retry_at {
            tokio::time::sleep_until(at).await;
        }
        let connected = Wire::connect(&self.0.access, self.0.slot, Some(self.0.response)).await;
        let mut current = self.lock();
        match connected {
            Ok(wire) => {
                current.generation += 1;
                current.wire = Some(wire.clone());
                (current.failures, current.failed) = (0, None);
                Ok((current.generation, wire))
            }
            Err(error) => {
                let retry_at = Instant::now() + delay(current.failures);
                current.failed = Some((error.clone(), retry_at));
                current.failures = current.failures.saturating_add(1);
                Err(error)
            }
        }
    }

    /// The next command connects anew, unless somebody has done so already.
    fn forget(&self, generation: u64) {
        let mut current = self.lock();
        if current.generation == generation {
            current.wire = None;
        }
    }

    fn watch(&self, generation: u64) -> Watch<'_> {
        Watch { link: self, generation, asked: Instant::now(), answered: false }
    }
}

/// Doubles from attempt to attempt, with jitter of a half.
fn delay(failures: u32) -> Duration {
    let longest =
        RECONNECT_DELAY_MIN.saturating_mul(1 << failures.min(16)).min(RECONNECT_DELAY_MAX);
    longest.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Gives a connection up on which a caller waited for long and in vain: its peer may be gone without
/// a word, and the system would notice after minutes.
struct Watch<'a> {
    link: &'a Link,
    generation: u64,
    asked: Instant,
    answered: bool,
}

impl Watch<'_> {
    fn answered(mut self, is_lost: bool) {
        self.answered = true;
        if is_lost {
            self.link.forget(self.generation);
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.answered && self.asked.elapsed() >= SILENCE.min(self.link.0.response / 2) {
            self.link.forget(self.generation);
        }
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let (generation, mut wire) = self.wire().await?;
            let watch = self.watch(generation);
            let answer = wire.req_packed_command(cmd).await;
            watch.answered(match &answer {
                Ok(value) => tells_wrong_server(value),
                Err(error) => is_lost(error),
            });
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let (generation, mut wire) = self.wire().await?;
            let watch = self.watch(generation);
            let answer = wire.req_packed_commands(pipeline, offset, count).await;
            watch.answered(match &answer {
                Ok(values) => values.iter().any(tells_wrong_server),
                Err(error) => is_lost(error),
            });
            answer
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// Whether another connection may do better than this one.
fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error() || is_wrong_server(error.kind())
}

/// A master that became a replica in a failover, or one that lost its own master.
fn is_wrong_server(kind: ErrorKind) -> bool {
    use ServerErrorKind as Kind;
    matches!(kind, ErrorKind::Server(Kind::ReadOnly | Kind::MasterDown))
}

fn tells_wrong_server(value: &Value) -> bool {
    match value {
        Value::ServerError(error) => {
            error.kind().is_some_and(|kind| is_wrong_server(ErrorKind::Server(kind)))
        }
        _ => false,
    }
}
