//! Everything of a log but appending, reading and the claims of nonces.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::EmbeddedLog;
use super::codec;
use super::file::entry_bytes;
use super::state::{Change, Group, Pending};
use crate::entry::{EntryId, Fields, RawEntry};
use crate::error::LogError;
use crate::leaving::RELEASED;
use crate::log::{
    Append, ConsumerSeen, Epitaph, GroupInfo, GroupLife, PendingEntry, PendingOf, Seat, dead,
};

impl EmbeddedLog {
    pub(crate) async fn create_group(&self, stream: &str, group: &str) -> Result<bool, LogError> {
        let ticket = {
            let mut core = self.shared().core();
            let found = core.ensure_stream(stream);
            if found.groups.contains_key(group) {
                return Ok(false);
            }
            let number = found.groups_made;
            found.groups_made += 1;
            found.groups.insert(group.to_owned(), Group::new(number, EntryId::ZERO, found.len));
            let stream = found.number;
            core.queue.push(Change::NewGroup { stream, group: number, name: group.into() });
            core.ticket()
        };
        self.shared().commit(ticket).await?;
        Ok(true)
    }

    pub(crate) async fn remove_group(&self, stream: &str, group: &str) -> Result<(), LogError> {
        let ticket = {
            let mut core = self.shared().core();
            let Some((stream, queue)) = core.parts(stream) else { return Ok(()) };
            let Some(removed) = stream.groups.remove(group) else { return Ok(()) };
            let (stream, group) = (stream.number, removed.number);
            queue.push(Change::RemoveGroup { stream, group });
            core.ticket()
        };
        self.shared().commit(ticket).await
    }

    pub(crate) async fn groups(&self, stream: &str) -> Result<Vec<GroupInfo>, LogError> {
        let core = self.shared().core();
        let Some(stream) = core.stream(stream) else { return Ok(Vec::new()) };
        let info = |(name, group): (&String, &Group)| GroupInfo {
            name: name.clone(),
            last_delivered: group.last_delivered,
            pending: u64::try_from(group.pending.len()).unwrap_or(u64::MAX),
            lag: group.behind,
        };
        Ok(stream.groups.iter().map(info).collect())
    }

    pub(crate) async fn group_life(
        &self,
        stream: &str,
        group: &str,
    ) -> Result<GroupLife, LogError> {
        let core = self.shared().core();
        let found = core.stream(stream).and_then(|stream| stream.groups.get(group));
        let group = found.ok_or_else(|| LogError::NoGroup {
            stream: stream.to_owned(),
            group: group.to_owned(),
        })?;
        Ok(GroupLife {
            oldest_pending: group.pending.keys().next().copied(),
            silent_for: group.heard.elapsed(),
        })
    }

    pub(crate) async fn ack(&self, seat: &Seat, ids: &[EntryId]) -> Result<(), LogError> {
        {
            let mut core = self.shared().core();
            core.settle(&seat.stream, &seat.group, ids);
            self.shared().wake_writer(&mut core);
        }
        Ok(())
    }

    /// Appends answers and settles what they answer, in this order and in one frame. Nobody waits
    /// for the disk: what a crash takes away it takes away from the end, hence an acknowledgement
    /// without its answer never stands.
    pub(crate) async fn answer(
        &self,
        answers: &[Append<'_>],
        seat: &Seat,
        ids: &[EntryId],
    ) -> Result<(), LogError> {
        let shared = self.shared();
        let values: Vec<bytes::Bytes> =
            answers.iter().map(|(_, fields)| codec::encode_fields(fields).into()).collect();
        let mut core = shared.core();
        if let Some(failure) = &core.journal_failure {
            return Err(failure.clone());
        }
        for value in &values {
            shared.has_room_for(&core, value)?;
        }
        for ((stream, _), value) in answers.iter().zip(values) {
            core.append(stream, value, true);
        }
        core.settle(&seat.stream, &seat.group, ids);
        shared.wake_writer(&mut core);
        Ok(())
    }

    pub(crate) async fn tick(&self, seat: &Seat) -> Result<Vec<ConsumerSeen>, LogError> {
        self.with_group(seat, |_, group, _| {
            if !seat.consumer.is_empty() {
                group.heard = Instant::now();
                group.beats.insert(seat.consumer.as_str().into(), group.heard);
            }
            let mut counts: HashMap<Arc<str>, u64> =
                group.beats.keys().map(|name| (Arc::clone(name), 0)).collect();
            for pending in group.pending.values() {
                *counts.entry(Arc::clone(&pending.consumer)).or_default() += 1;
            }
            let seen = |(name, pending): (Arc<str>, u64)| ConsumerSeen {
                beat_age: Some(group.beat_age(&name)),
                name: name.to_string(),
                pending,
            };
            counts.into_iter().map(seen).collect()
        })
    }

    pub(crate) async fn pending(
        &self,
        seat: &Seat,
        of: PendingOf<'_>,
        count: usize,
    ) -> Result<Vec<PendingEntry>, LogError> {
        self.with_group(seat, |_, group, _| {
            let wanted = |pending: &Pending| match of {
                PendingOf::Consumer(name) => &*pending.consumer == name,
                PendingOf::Idle(idle) => pending.since.elapsed() >= idle,
            };
            let list = group.pending_after(EntryId::ZERO).filter(|(_, pending)| wanted(pending));
            let one = |(id, pending): (&EntryId, &Pending)| PendingEntry {
                id: *id,
                consumer: pending.consumer.to_string(),
                idle: pending.since.elapsed(),
                deliveries: pending.deliveries,
            };
            list.take(count).map(one).collect()
        })
    }

    pub(crate) async fn claim(
        &self,
        seat: &Seat,
        entries: &[PendingEntry],
    ) -> Result<Vec<RawEntry>, LogError> {
        let (stream, moved) = self.with_group(seat, |stream, group, queue| {
            let to: Arc<str> = seat.consumer.as_str().into();
            let mut moved = Vec::new();
            for listed in entries {
                let Some(pending) = group.pending.get_mut(&listed.id) else { continue };
                if pending.since.elapsed() < listed.idle {
                    continue;
                }
                let deliveries = pending.deliveries.saturating_add(1);
                *pending = Pending { consumer: Arc::clone(&to), since: Instant::now(), deliveries };
                moved.push((listed.id, deliveries));
                queue.push(Change::Delivered {
                    stream,
                    group: group.number,
                    id: listed.id,
                    deliveries,
                    to: Arc::clone(&to),
                });
            }
            (stream, moved)
        })?;
        // On disk before a handler sees them again: a count of deliveries that is lost never grows.
        // On a full disk it goes on all the same, and the count is lost only with the process.
        drop(self.flush().await);
        let (mut claimed, mut gone) = (Vec::with_capacity(moved.len()), Vec::new());
        for (id, deliveries) in moved {
            match self.load(stream, id, id, 1).await?.pop() {
                Some((id, fields)) => claimed.push(RawEntry::new(id, fields, deliveries)),
                None => gone.push(id),
            }
        }
        self.ack(seat, &gone).await?;
        Ok(claimed)
    }

    pub(crate) async fn renew(&self, seat: &Seat, ids: &[EntryId]) -> Result<(), LogError> {
        self.with_group(seat, |_, group, _| {
            for id in ids {
                if let Some(pending) = group.pending.get_mut(id)
                    && *pending.consumer == *seat.consumer
                {
                    pending.since = Instant::now();
                }
            }
        })
    }

    pub(crate) async fn release(&self, seat: &Seat, counted: &[EntryId]) -> Result<u64, LogError> {
        let released = self.with_group(seat, |stream, group, queue| {
            let to: Arc<str> = RELEASED.into();
            let mut released = 0;
            for (id, pending) in &mut group.pending {
                if *pending.consumer != *seat.consumer {
                    continue;
                }
                if !counted.contains(id) {
                    pending.deliveries = pending.deliveries.saturating_sub(1);
                }
                pending.consumer = Arc::clone(&to);
                // The idle time tells the first of two claimers from the second.
                let long_ago = Instant::now().checked_sub(Duration::from_secs(60));
                pending.since = long_ago.unwrap_or(pending.since);
                queue.push(Change::Delivered {
                    stream,
                    group: group.number,
                    id: *id,
                    deliveries: pending.deliveries,
                    to: Arc::clone(&to),
                });
                released += 1;
            }
            group.beats.remove(seat.consumer.as_str());
            released
        })?;
        self.shared().kick();
        Ok(released)
    }

    pub(crate) async fn bury(
        &self,
        seat: &Seat,
        id: EntryId,
        dead_letter: &str,
        epitaph: &Epitaph,
    ) -> Result<bool, LogError> {
        // Without the group nothing is pending, as for Redis.
        let Ok(stream) = self.with_group(seat, |stream, _, _| stream) else { return Ok(false) };
        let fields = self.load(stream, id, id, 1).await?.pop().map(|(_, fields)| fields);
        let (attempts, entry) = (epitaph.attempts.to_string(), id.to_string());
        let beside = [
            (dead::REASON, epitaph.reason.as_str()),
            (dead::ATTEMPTS, &attempts),
            (dead::ORIGIN, &seat.stream),
            (dead::ENTRY, &entry),
            (dead::GROUP, &seat.group),
        ];
        let fields = fields.unwrap_or_default();
        let fields: Vec<(&[u8], &[u8])> = fields
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
            .chain(beside.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
            .collect();
        let value = codec::encode_fields(&fields);
        let ticket = {
            let mut core = self.shared().core();
            let Some((stream, queue)) = core.parts(&seat.stream) else { return Ok(false) };
            let number = stream.number;
            let Some(group) = stream.groups.get_mut(&seat.group) else { return Ok(false) };
            if group.pending.remove(&id).is_none() {
                return Ok(false);
            }
            // Both stand in the queue under one lock, hence in one frame.
            queue.push(Change::Settled { stream: number, group: group.number, id });
            core.append(dead_letter, value.into(), true);
            core.ticket()
        };
        self.shared().commit(ticket).await?;
        Ok(true)
    }

    pub(crate) async fn remove_consumer(
        &self,
        seat: &Seat,
        silent: Duration,
    ) -> Result<bool, LogError> {
        let removed = self.with_group(seat, |_, group, _| {
            let idle = group.beat_age(&seat.consumer) >= silent;
            let empty = group.pending.values().all(|pending| *pending.consumer != *seat.consumer);
            idle && empty && group.beats.remove(seat.consumer.as_str()).is_some()
        });
        Ok(removed.unwrap_or(false))
    }

    pub(crate) async fn trim(&self, stream: &str, below: EntryId) -> Result<u64, LogError> {
        let _only_one = self.shared().removing.lock().await;
        let Some((number, first, below)) = self.before(stream, below) else { return Ok(0) };
        let gone = self.blocking(move |shared| {
            let all = shared.load_now(number, first, below, usize::MAX)?;
            Ok(all.iter().map(|(id, value)| (*id, entry_bytes(value))).collect::<Vec<_>>())
        });
        let mut gone = gone.await?;
        let (removed, ticket) = {
            let mut core = self.shared().core();
            let Some((stream, queue)) = core.parts(stream) else { return Ok(0) };
            gone.retain(|(id, _)| *id < below);
            let bytes = gone.iter().map(|(_, bytes)| bytes).sum();
            let ids: Vec<EntryId> = gone.iter().map(|(id, _)| *id).collect();
            stream.lose(&ids, bytes);
            stream.floor = stream.floor.max(below);
            let removed = u64::try_from(ids.len()).unwrap_or(u64::MAX);
            queue.push(Change::Trim { stream: number, below, removed, bytes });
            (removed, core.ticket())
        };
        self.shared().commit(ticket).await?;
        Ok(removed)
    }

    /// The stream, its first id, and `below`, but not beyond what the stream has: a later entry must
    /// not be trimmed by an earlier wish.
    fn before(&self, stream: &str, below: EntryId) -> Option<(u16, EntryId, EntryId)> {
        let core = self.shared().core();
        let stream = core.stream(stream)?;
        let visible = stream.tail.borrow().next();
        let below = below.min(visible);
        (stream.floor < below).then_some((stream.number, stream.floor, below))
    }

    pub(crate) async fn len(&self, stream: &str) -> Result<u64, LogError> {
        Ok(self.shared().core().stream(stream).map_or(0, |stream| stream.len))
    }

    pub(crate) async fn range(
        &self,
        stream: &str,
        after: EntryId,
        count: usize,
    ) -> Result<Vec<(EntryId, Fields)>, LogError> {
        let (stream, last) = {
            let core = self.shared().core();
            let Some(stream) = core.stream(stream) else { return Ok(Vec::new()) };
            (stream.number, *stream.tail.borrow())
        };
        self.load(stream, after.next(), last, count).await
    }

    pub(crate) async fn delete(&self, stream: &str, id: EntryId) -> Result<bool, LogError> {
        let _only_one = self.shared().removing.lock().await;
        let Some(bytes) = self.size_of(stream, id).await? else { return Ok(false) };
        let ticket = {
            let mut core = self.shared().core();
            if !core.delete(stream, id, bytes) {
                return Ok(false);
            }
            core.ticket()
        };
        self.shared().commit(ticket).await?;
        Ok(true)
    }

    /// What an entry counts for; `None` without it.
    pub(super) async fn size_of(&self, stream: &str, id: EntryId) -> Result<Option<u64>, LogError> {
        let Some(number) = self.shared().core().stream(stream).map(|stream| stream.number) else {
            return Ok(None);
        };
        let found = self.blocking(move |shared| shared.load_now(number, id, id, 1)).await?.pop();
        Ok(found.map(|(_, value)| entry_bytes(&value)))
    }

    pub(crate) async fn now_ms(&self) -> Result<u64, LogError> {
        Ok(leyline::time::now_unix_ms())
    }

    fn with_group<T>(
        &self,
        seat: &Seat,
        act: impl FnOnce(u16, &mut Group, &mut Vec<Change>) -> T,
    ) -> Result<T, LogError> {
        let mut core = self.shared().core();
        let (stream, queue) = core.parts(&seat.stream).ok_or_else(|| seat.no_group())?;
        let number = stream.number;
        let group = stream.groups.get_mut(&seat.group).ok_or_else(|| seat.no_group())?;
        Ok(act(number, group, queue))
    }
}
