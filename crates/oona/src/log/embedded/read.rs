//! Reading as a consumer of a group.
//!
//! A delivery is noted in memory at once and reaches the file with the next commit, which nobody
//! waits for. There is one exception. An entry whose handler kills the process before that commit
//! would come back with its count of deliveries unchanged, for ever. Therefore what stood in the log
//! when it was opened is handed out only after its delivery is on disk: the second time round the
//! poison is counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::ReadableDatabase as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::codec;
use super::file;
use super::state::{Change, Pending, StreamNo};
use super::{EmbeddedLog, Shared};
use crate::entry::{EntryId, Fields, RawEntry};
use crate::error::LogError;
use crate::log::Seat;

/// Reads for one seat. Waiting readers are woken by the commit, there is no polling.
#[derive(Debug)]
pub(crate) struct EmbeddedReader {
    log: EmbeddedLog,
    seat: Seat,
    tail: Option<watch::Receiver<EntryId>>,
}

/// Entries as they stand: id and encoded fields.
type Values = Vec<(EntryId, Bytes)>;

impl EmbeddedLog {
    pub(crate) fn reader(&self, seat: Seat) -> EmbeddedReader {
        EmbeddedReader { log: self.clone(), seat, tail: None }
    }

    /// Entries with ids in `first..=last`, at most `count`. From memory where that has them all, else
    /// on a blocking thread.
    pub(super) async fn load(
        &self,
        stream: StreamNo,
        first: EntryId,
        last: EntryId,
        count: usize,
    ) -> Result<Vec<(EntryId, Fields)>, LogError> {
        let values = match self.shared().load_recent(stream, first, last, count) {
            (values, true) => values,
            (_, false) => {
                self.blocking(move |shared| shared.load_now(stream, first, last, count)).await?
            }
        };
        let decode = |(id, value): (EntryId, Bytes)| (id, codec::decode_fields(&value));
        Ok(values.into_iter().map(decode).collect())
    }
}

impl Shared {
    /// What memory has of them, and whether that is all there is.
    fn load_recent(
        &self,
        stream: StreamNo,
        first: EntryId,
        last: EntryId,
        count: usize,
    ) -> (Values, bool) {
        let core = self.core();
        let stream = &core.streams[usize::from(stream)];
        let first = first.max(stream.floor);
        if first > last {
            return (Vec::new(), true);
        }
        let recent = stream.recent.range(first..=last);
        let shown = recent.filter(|(id, _)| !stream.hidden.contains(id)).take(count);
        (shown.map(|(id, value)| (*id, value.clone())).collect(), first > stream.stored_last)
    }

    /// The same from memory and store together.
    pub(super) fn load_now(
        &self,
        stream: StreamNo,
        first: EntryId,
        last: EntryId,
        count: usize,
    ) -> Result<Values, LogError> {
        // Memory first: what the store takes in meanwhile is then found in both, and not in neither.
        let (recent, _) = self.load_recent(stream, first, last, count);
        let (first, hidden) = {
            let core = self.core();
            let stream = &core.streams[usize::from(stream)];
            (first.max(stream.floor), stream.hidden.clone())
        };
        if first > last {
            return Ok(Vec::new());
        }
        let mut loaded = Vec::new();
        self.with_store(|db| {
            loaded.clear();
            file::visit(&db.begin_read()?, stream, first, last, |id, value| {
                if loaded.len() < count && !hidden.contains(&id) {
                    loaded.push((id, Bytes::copy_from_slice(value)));
                }
                loaded.len() < count
            })
        })?;
        let end = loaded.last().map(|(id, _)| *id);
        loaded.extend(recent.into_iter().filter(|(id, _)| end.is_none_or(|end| *id > end)));
        loaded.truncate(count);
        Ok(loaded)
    }
}

impl EmbeddedReader {
    pub(crate) async fn read(
        &mut self,
        count: usize,
        block: Duration,
    ) -> Result<Vec<RawEntry>, LogError> {
        let deadline = Instant::now() + block;
        loop {
            let mut tail = self.tail()?;
            // Seen before the fetch: what commits meanwhile wakes the wait below.
            tail.mark_unchanged();
            let read = self.fetch(count).await?;
            if !read.is_empty() {
                return Ok(read);
            }
            match tokio::time::timeout_at(deadline, tail.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(self.log.shared().closed()),
                Err(_) => return Ok(Vec::new()),
            }
        }
    }

    fn tail(&mut self) -> Result<watch::Receiver<EntryId>, LogError> {
        if let Some(tail) = &self.tail {
            return Ok(tail.clone());
        }
        let core = self.log.shared().core();
        let stream = core.stream(&self.seat.stream).ok_or_else(|| self.seat.no_group())?;
        let tail = stream.tail.subscribe();
        drop(core);
        self.tail = Some(tail.clone());
        Ok(tail)
    }

    /// Takes the next entries for this consumer, if there are any.
    async fn fetch(&self, count: usize) -> Result<Vec<RawEntry>, LogError> {
        let shared = self.log.shared();
        let fetching = {
            let core = shared.core();
            let group = core
                .stream(&self.seat.stream)
                .and_then(|stream| stream.groups.get(&self.seat.group))
                .ok_or_else(|| self.seat.no_group())?;
            if group.behind == 0 {
                return Ok(Vec::new());
            }
            Arc::clone(&group.fetching)
        };
        let _only_one = fetching.lock().await;
        let (stream, after, last) = {
            let core = shared.core();
            let Some(stream) = core.stream(&self.seat.stream) else {
                return Err(self.seat.no_group());
            };
            let group = stream.groups.get(&self.seat.group).ok_or_else(|| self.seat.no_group())?;
            let last = *stream.tail.borrow();
            (stream.number, group.last_delivered, last)
        };
        let loaded = self.log.load(stream, after.next(), last, count).await?;
        let ids: Vec<EntryId> = loaded.iter().map(|(id, _)| *id).collect();
        self.deliver(&ids, last, ids.len() < count).await?;
        Ok(loaded.into_iter().map(|(id, fields)| RawEntry::new(id, fields, 1)).collect())
    }

    /// Notes the deliveries, and moves the cursor behind them.
    async fn deliver(
        &self,
        ids: &[EntryId],
        last: EntryId,
        reached_the_end: bool,
    ) -> Result<(), LogError> {
        let shared = self.log.shared();
        let careful = ids.first().is_some_and(|id| id.ms <= shared.backlog_until);
        let ticket = {
            let mut core = shared.core();
            let Some((stream, queue)) = core.parts(&self.seat.stream) else {
                return Err(self.seat.no_group());
            };
            let (stream_no, visible) = (stream.number, *stream.tail.borrow());
            let group =
                stream.groups.get_mut(&self.seat.group).ok_or_else(|| self.seat.no_group())?;
            let consumer: Arc<str> = self.seat.consumer.as_str().into();
            let since = Instant::now();
            for id in ids {
                let pending = Pending { consumer: Arc::clone(&consumer), since, deliveries: 1 };
                group.pending.insert(*id, pending);
                queue.push(Change::Delivered {
                    stream: stream_no,
                    group: group.number,
                    id: *id,
                    deliveries: 1,
                    to: Arc::clone(&consumer),
                });
            }
            let count = u64::try_from(ids.len()).unwrap_or(u64::MAX);
            group.behind = group.behind.saturating_sub(count);
            let at = if reached_the_end { last } else { ids.last().copied().unwrap_or(last) };
            group.last_delivered = at;
            if at == visible {
                // What was trimmed unread no longer counts.
                group.behind = 0;
            }
            queue.push(Change::Cursor { stream: stream_no, group: group.number, at });
            careful.then(|| core.ticket())
        };
        match ticket {
            // On a full disk reading goes on: the count of a delivery is lost only with the process.
            Some(ticket) => drop(shared.commit(ticket).await),
            None => shared.kick(),
        }
        Ok(())
    }
}
