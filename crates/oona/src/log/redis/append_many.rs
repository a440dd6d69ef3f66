//! Many appends to one stream in one step.

use redis::Value;

use super::reply::entry_id;
use super::{RedisLog, xadd};
use crate::entry::EntryId;
use crate::error::LogError;

impl RedisLog {
    /// Appends all or none, in order (`MULTI`): should the answer be lost, all of them are sent
    /// again, and none of the copies stands before an original.
    pub(crate) async fn append_many(
        &self,
        stream: &str,
        entries: &[[(&[u8], &[u8]); 2]],
        urgent: bool,
    ) -> Result<Vec<EntryId>, LogError> {
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
}
