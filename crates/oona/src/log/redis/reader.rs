//! A blocking reader with a connection of its own.

use std::time::Duration;

use super::link::Wire;
use super::{RedisLog, reply};
use crate::entry::RawEntry;
use crate::error::LogError;
use crate::log::Seat;

/// How much longer than it blocks a read may take before the connection is given up.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// Reads for one seat. After a failure it connects anew at the next read.
pub(crate) struct RedisReader {
    log: RedisLog,
    seat: Seat,
    connection: Option<Wire>,
}

impl std::fmt::Debug for RedisReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisReader").field("seat", &self.seat).finish_non_exhaustive()
    }
}

impl RedisLog {
    pub(crate) fn reader(&self, seat: Seat) -> RedisReader {
        RedisReader { log: self.clone(), seat, connection: None }
    }
}

impl RedisReader {
    pub(crate) async fn read(
        &mut self,
        count: usize,
        block: Duration,
    ) -> Result<Vec<RawEntry>, LogError> {
        // Taken out, so that a failed or cancelled read never leaves a half-read connection behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Wire::connect(&self.log.0.access, self.log.0.slot, None)
                .await
                .map_err(|source| self.log.fault("connect", source))?,
        };
        let block_ms = u64::try_from(block.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.seat.group).arg(&self.seat.consumer);
        command.arg("COUNT").arg(count).arg("BLOCK").arg(block_ms);
        command.arg("STREAMS").arg(&self.seat.stream).arg(">");
        let after = block + ANSWER_GRACE;
        let answer = tokio::time::timeout(after, command.query_async(&mut connection)).await;
        let value = match answer {
            Err(_) => return Err(LogError::TimedOut { operation: "read", after }),
            Ok(Err(source)) => {
                let fault = self.log.fault("read", source);
                if let LogError::NoGroup { .. } = fault {
                    self.connection = Some(connection);
                    return Err(self.seat.no_group());
                }
                return Err(fault);
            }
            Ok(Ok(value)) => value,
        };
        self.connection = Some(connection);
        reply::read(value).ok_or(LogError::Reply { operation: "read" })
    }
}
