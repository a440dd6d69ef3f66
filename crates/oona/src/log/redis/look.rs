//! Looking into streams from outside, and bringing a dead letter back.

use redis::Value;

use super::RedisLog;
use super::reply::{by_stream, entry_id, items};
use crate::entry::{EntryId, Fields};
use crate::error::LogError;
use crate::log::Replayed;

impl RedisLog {
    pub(crate) async fn replay(
        &self,
        dead_letter: &str,
        id: EntryId,
        origin: &str,
        fields: &[(&[u8], &[u8])],
    ) -> Result<Replayed, LogError> {
        let operation = "replay of a dead letter";
        let mut call = self.0.scripts.replay.prepare_invoke();
        call.key(dead_letter).key(origin).arg(id.to_string());
        for (name, value) in fields {
            call.arg(*name).arg(*value);
        }
        let mut connection = self.connection(false);
        match self.bounded(operation, call.invoke_async(&mut connection)).await? {
            Value::Nil => Ok(Replayed::Gone),
            value => entry_id(&value).map(Replayed::Appended).ok_or(LogError::Reply { operation }),
        }
    }

    pub(crate) async fn newest(&self, stream: &str) -> Result<Option<EntryId>, LogError> {
        let operation = "look at the newest entry";
        let mut command = redis::cmd("XREVRANGE");
        command.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
        let found = items(self.ask(operation, false, &command).await?);
        let found = found.ok_or(LogError::Reply { operation })?;
        let Some(newest) = found.into_iter().next() else { return Ok(None) };
        let id = items(newest).and_then(|parts| entry_id(parts.first()?));
        id.map(Some).ok_or(LogError::Reply { operation })
    }

    /// One command for all streams, where one server has them all.
    pub(crate) async fn read_after(
        &self,
        places: &[(&str, EntryId)],
        count: usize,
    ) -> Result<Vec<(usize, EntryId, Fields)>, LogError> {
        let operation = "look at new entries";
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(count).arg("STREAMS");
        for (stream, _) in places {
            command.arg(*stream);
        }
        for (_, after) in places {
            command.arg(after.to_string());
        }
        let value = match self.ask::<Value>(operation, false, &command).await {
            Err(LogError::Refused { source, .. }) if source.code() == Some("CROSSSLOT") => {
                return self.read_each_after(places, count).await;
            }
            other => other?,
        };
        let streams = by_stream(value).ok_or(LogError::Reply { operation })?;
        let mut found = Vec::new();
        for (name, entries) in streams {
            let index = places.iter().position(|(stream, _)| *stream == name);
            let index = index.ok_or(LogError::Reply { operation })?;
            found.extend(entries.into_iter().map(|(id, fields)| (index, id, fields)));
        }
        Ok(found)
    }

    async fn read_each_after(
        &self,
        places: &[(&str, EntryId)],
        count: usize,
    ) -> Result<Vec<(usize, EntryId, Fields)>, LogError> {
        let mut found = Vec::new();
        for (index, (stream, after)) in places.iter().enumerate() {
            let entries = self.range(stream, *after, count).await?;
            found.extend(entries.into_iter().map(|(id, fields)| (index, id, fields)));
        }
        Ok(found)
    }
}
