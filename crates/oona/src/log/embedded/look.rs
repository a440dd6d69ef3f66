//! Looking into streams from outside, and bringing a dead letter back.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::EmbeddedLog;
use super::file;
use super::state::Change;
use crate::entry::{EntryId, Fields};
use crate::error::LogError;
use crate::log::Replayed;

impl EmbeddedLog {
    pub(crate) async fn replay(
        &self,
        dead_letter: &str,
        id: EntryId,
        origin: &str,
        fields: &[(&[u8], &[u8])],
    ) -> Result<Replayed, LogError> {
        let value = file::encode(fields);
        let _only_one = self.0.taking_out.lock().await;
        if self.range(dead_letter, id.previous(), 1).await?.first().is_none_or(|(at, _)| *at != id)
        {
            return Ok(Replayed::Gone);
        }
        let (entry, ticket) = {
            let mut core = self.0.core();
            let Some((stream, journal)) = core.parts(dead_letter) else {
                return Ok(Replayed::Gone);
            };
            // Both stand in the journal under one lock, hence in one transaction.
            let removed = Arc::new(AtomicU64::new(0));
            journal.push(Change::Delete { stream: stream.number, id, removed });
            (core.append(origin, value), core.ticket())
        };
        self.0.commit(ticket).await?;
        Ok(Replayed::Appended(entry))
    }

    pub(crate) async fn newest(&self, stream: &str) -> Result<Option<EntryId>, LogError> {
        let core = self.0.core();
        let found = core.stream(stream).filter(|stream| stream.len > 0);
        Ok(found.map(|stream| *stream.tail.borrow()))
    }

    /// Looks into the file only where something is new.
    pub(crate) async fn read_after(
        &self,
        places: &[(&str, EntryId)],
        count: usize,
    ) -> Result<Vec<(usize, EntryId, Fields)>, LogError> {
        let mut found = Vec::new();
        for (index, (stream, after)) in places.iter().enumerate() {
            if self.newest(stream).await?.is_none_or(|newest| newest <= *after) {
                continue;
            }
            let entries = self.range(stream, *after, count).await?;
            found.extend(entries.into_iter().map(|(id, fields)| (index, id, fields)));
        }
        Ok(found)
    }
}
