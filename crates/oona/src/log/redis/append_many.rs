//! Many appends in one step.

use redis::Value;

use super::consume::xack;
use super::durable::Durable;
use super::reply::entry_id;
use super::{RedisLog, xadd};
use crate::entry::EntryId;
use crate::error::LogError;
use crate::log::{Append, Seat};

impl RedisLog {
    /// Appends all or none, in order (`MULTI`): should the answer be lost, all of them are sent
    /// again, and none of the copies stands before an original.
    pub(crate) async fn append_many(
        &self,
        stream: &str,
        entries: &[[(&[u8], &[u8]); 2]],
        urgent: bool,
    ) -> Result<Vec<EntryId>, LogError> {
        if let Some(durable) = self.durable(stream, urgent) {
            return self.append_many_durably(stream, durable, entries).await;
        }
        let operation = "append of what waited";
        let mut pipe = redis::pipe();
        pipe.atomic();
        for fields in entries {
            pipe.add_command(xadd(stream, fields));
        }
        let answers: Vec<Value> = self.ask_many(operation, urgent, &pipe).await?;
        let ids: Option<Vec<EntryId>> = answers.iter().map(entry_id).collect();
        ids.filter(|ids| ids.len() == entries.len()).ok_or(LogError::Reply { operation })
    }
    /// Appends answers and acknowledges what they answer in one step (`MULTI`) and one round trip.
    /// Waits for no replica and no disk, whatever the class of the stream: a server that loses the
    /// answer loses the acknowledgement with it, and the request is answered again.
    pub(crate) async fn answer(
        &self,
        answers: &[Append<'_>],
        seat: &Seat,
        ids: &[EntryId],
    ) -> Result<(), LogError> {
        let operation = "answer";
        let mut pipe = redis::pipe();
        pipe.atomic();
        for (stream, fields) in answers {
            pipe.add_command(xadd(stream, fields));
        }
        pipe.add_command(xack(seat, ids));
        let told: Vec<Value> = self.ask_many(operation, false, &pipe).await?;
        let appended = told.iter().filter_map(entry_id).count();
        if appended < answers.len() {
            return Err(LogError::Reply { operation });
        }
        Ok(())
    }

    /// As safe as the stream's class says: in order as well, and in one wait. What is appended and
    /// less safe than that stands in the log: sending it again would only add copies.
    async fn append_many_durably(
        &self,
        stream: &str,
        durable: &Durable,
        entries: &[[(&[u8], &[u8]); 2]],
    ) -> Result<Vec<EntryId>, LogError> {
        let append =
            |fields: &[(&[u8], &[u8]); 2]| self.append_durably(durable, xadd(stream, fields));
        let mut ids = Vec::with_capacity(entries.len());
        let mut weak = None;
        for answer in futures_util::future::join_all(entries.iter().map(append)).await {
            match answer {
                Ok(id) => ids.push(id),
                Err(LogError::NotDurable { entry, .. }) => {
                    weak = Some(entry);
                    ids.push(entry);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(entry) = weak {
            tracing::warn!(stream, %entry, messages = ids.len(), "what waited on disk is in the log, less safe than asked for");
        }
        Ok(ids)
    }
}
