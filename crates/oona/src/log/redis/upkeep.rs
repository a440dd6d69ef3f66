//! Groups, trimming, looking: what is done now and then.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;

use super::RedisLog;
use super::reply::{Groups, entry, groups, items, number, text};
use crate::entry::{EntryId, Fields};
use crate::error::LogError;
use crate::log::{GroupInfo, GroupLife, Seat, Spare};

impl RedisLog {
    pub(crate) async fn create_group(&self, stream: &str, group: &str) -> Result<bool, LogError> {
        let operation = "creation of a group";
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(stream).arg(group).arg("0").arg("MKSTREAM");
        match self.ask_even_when_full::<Value>(operation, false, &command).await {
            Ok(_) => Ok(true),
            Err(LogError::Refused { source, .. }) if source.code() == Some("BUSYGROUP") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn remove_group(&self, stream: &str, group: &str) -> Result<(), LogError> {
        let operation = "removal of a group";
        let mut pipe = redis::pipe();
        pipe.cmd("XGROUP").arg("DESTROY").arg(stream).arg(group).ignore();
        pipe.cmd("DEL").arg(self.beats_key(stream, group)).ignore();
        match self.ask_many::<()>(operation, false, &pipe).await {
            // Without the stream there is no group either.
            Err(LogError::Refused { .. }) => Ok(()),
            other => other,
        }
    }

    pub(crate) async fn groups(&self, stream: &str) -> Result<Vec<GroupInfo>, LogError> {
        let operation = "list of groups";
        let mut command = redis::cmd("XINFO");
        command.arg("GROUPS").arg(stream);
        match self.ask::<Value>(operation, false, &command).await {
            Ok(value) => {
                let groups = groups(value).ok_or(LogError::Reply { operation })?;
                self.count_unknown(stream, groups).await
            }
            Err(LogError::Refused { source, .. })
                if source.detail().is_some_and(|text| text.contains("no such key")) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// After a restart from its append-only file, and after deletions, the server has forgotten how
    /// far a group has read, until it has read all: the backlog is counted, as far as it matters to
    /// admission. Taken for none, it would admit everything.
    pub(super) async fn count_unknown(
        &self,
        stream: &str,
        groups: Groups,
    ) -> Result<Vec<GroupInfo>, LogError> {
        let mut known = groups.known;
        for info in groups.unknown {
            let mut call = self.0.scripts.recount.prepare_invoke();
            call.key(stream).arg(&info.name).arg(self.0.limits.borrow().depth_max);
            let mut connection = self.connection(false);
            let operation = "count of a backlog";
            let lag = self.bounded(operation, call.invoke_async(&mut connection)).await?;
            known.push(GroupInfo { lag, ..info });
        }
        Ok(known)
    }

    pub(crate) async fn group_life(
        &self,
        stream: &str,
        group: &str,
    ) -> Result<GroupLife, LogError> {
        let operation = "look at a group";
        let mut call = self.0.scripts.life.prepare_invoke();
        call.key(self.beats_key(stream, group)).key(stream).arg(group);
        let mut connection = self.connection(false);
        let value: Value = self.bounded(operation, call.invoke_async(&mut connection)).await?;
        let parts = items(value).unwrap_or_default();
        let [oldest, silent] = parts.as_slice() else {
            return Err(LogError::Reply { operation });
        };
        Ok(GroupLife {
            oldest_pending: text(oldest).and_then(|id| id.parse().ok()),
            silent_for: Duration::from_millis(number(silent).unwrap_or(0)),
        })
    }

    pub(crate) async fn remove_consumer(
        &self,
        seat: &Seat,
        silent: Duration,
    ) -> Result<bool, LogError> {
        let mut call = self.0.scripts.remove.prepare_invoke();
        call.key(self.beats_key(&seat.stream, &seat.group)).key(&seat.stream);
        call.arg(&seat.group).arg(&seat.consumer);
        call.arg(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX));
        let mut connection = self.connection(false);
        self.bounded("removal of a consumer", call.invoke_async(&mut connection)).await
    }

    /// Where the server can, it is also told to spare what some group has not acknowledged: the
    /// trim point was right when it was reckoned, and groups may have come since.
    pub(crate) async fn trim(
        &self,
        stream: &str,
        below: EntryId,
        spare: Spare,
    ) -> Result<u64, LogError> {
        let operation = "trim";
        let mut command = redis::cmd("XTRIM");
        command.arg(stream).arg("MINID").arg(below.to_string());
        let knows = self.0.acked_trim.load(Ordering::Relaxed);
        if spare == Spare::Nothing || !knows {
            return self.ask(operation, false, &command).await;
        }
        match self.ask(operation, false, command.clone().arg("ACKED")).await {
            // Another server than at connect: an older one took over.
            Err(LogError::Refused { source, .. }) if source.code() == Some("ERR") => {
                self.0.acked_trim.store(false, Ordering::Relaxed);
                self.ask(operation, false, &command).await
            }
            answer => answer,
        }
    }

    pub(crate) async fn range(
        &self,
        stream: &str,
        after: EntryId,
        count: usize,
    ) -> Result<Vec<(EntryId, Fields)>, LogError> {
        let operation = "range";
        let mut command = redis::cmd("XRANGE");
        command.arg(stream).arg(format!("({after}")).arg("+").arg("COUNT").arg(count);
        let value = self.ask(operation, false, &command).await?;
        items(value)
            .and_then(|values| {
                let one = |value| entry(value).map(|(id, fields)| (id, fields.unwrap_or_default()));
                values.into_iter().map(one).collect()
            })
            .ok_or(LogError::Reply { operation })
    }

    pub(crate) async fn delete(&self, stream: &str, id: EntryId) -> Result<bool, LogError> {
        self.ask("delete", false, redis::cmd("XDEL").arg(stream).arg(id.to_string())).await
    }
}
