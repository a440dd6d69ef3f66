//! Looking into streams from outside, and bringing a dead letter back.

use super::EmbeddedLog;
use super::codec;
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
        let value = codec::encode_fields(fields);
        let _only_one = self.shared().removing.lock().await;
        let Some(bytes) = self.size_of(dead_letter, id).await? else { return Ok(Replayed::Gone) };
        let (entry, ticket) = {
            let mut core = self.shared().core();
            if !core.delete(dead_letter, id, bytes) {
                return Ok(Replayed::Gone);
            }
            // Both stand in the queue under one lock, hence in one frame.
            (core.append(origin, value.into(), true), core.ticket())
        };
        self.shared().commit(ticket).await?;
        Ok(Replayed::Appended(entry))
    }

    pub(crate) async fn newest(&self, stream: &str) -> Result<Option<EntryId>, LogError> {
        let core = self.shared().core();
        let found = core.stream(stream).filter(|stream| stream.len > 0);
        Ok(found.map(|stream| *stream.tail.borrow()))
    }

    /// Looks further only where something is new.
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
