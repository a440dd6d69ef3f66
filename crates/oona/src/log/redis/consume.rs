//! What a consumer asks of the server beside reading.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Cmd, Value};

use super::RedisLog;
use super::reply::{entry, items, number, pairs, text};
use crate::entry::{EntryId, IdText, RawEntry};
use crate::error::LogError;
use crate::leaving::RELEASED;
use crate::log::{ConsumerSeen, Epitaph, NonceClaim, PendingEntry, PendingOf, Seat, dead};

/// Arguments of one script call; Lua's `unpack` takes some thousands at most.
const IDS_PER_SCRIPT: usize = 500;

impl RedisLog {
    /// `SET key entry NX GET` claims and tells the owner in one step; a batch is one round trip.
    pub(crate) async fn claim_nonces(
        &self,
        _stream: &str,
        nonces: Vec<(String, EntryId)>,
    ) -> Result<Vec<NonceClaim>, LogError> {
        if nonces.is_empty() {
            return Ok(Vec::new());
        }
        let ttl_ms = u64::try_from(self.0.claim_ttl.as_millis()).unwrap_or(u64::MAX);
        let mut pipe = redis::pipe();
        let mut ids = Vec::with_capacity(nonces.len());
        for (nonce, id) in nonces {
            let text = IdText::from(id);
            let key_len = self.0.claim_prefix.len() + 1 + nonce.len();
            let mut set = Cmd::with_capacity(7, key_len + 60);
            set.arg("SET").arg([self.0.claim_prefix.as_str(), &nonce].join(":"));
            set.arg(text.as_bytes()).arg("NX").arg("GET").arg("PX").arg(ttl_ms);
            pipe.add_command(set);
            ids.push(text);
        }
        let owners: Vec<Option<Vec<u8>>> =
            self.ask_many_even_when_full("claim of nonces", false, &pipe).await?;
        let claim = |(owner, id): (Option<Vec<u8>>, IdText)| match owner {
            None => NonceClaim::First,
            Some(owner) if owner == id.as_bytes() => NonceClaim::Again,
            Some(_) => NonceClaim::Replay,
        };
        Ok(owners.into_iter().zip(ids).map(claim).collect())
    }

    pub(crate) async fn ack(&self, seat: &Seat, ids: &[EntryId]) -> Result<(), LogError> {
        let _acknowledged: u64 = self.ask("acknowledge", false, &xack(seat, ids)).await?;
        Ok(())
    }

    pub(crate) async fn tick(&self, seat: &Seat) -> Result<Vec<ConsumerSeen>, LogError> {
        let operation = "heartbeat";
        let mut call = self.0.scripts.tick.prepare_invoke();
        call.key(self.beats_key(&seat.stream, &seat.group)).key(&seat.stream);
        call.arg(&seat.group).arg(&seat.consumer);
        let mut connection = self.connection(false);
        let value: Value = self
            .bounded(operation, call.invoke_async(&mut connection))
            .await
            .map_err(|error| located(error, seat))?;
        consumers(value).ok_or(LogError::Reply { operation })
    }

    /// One plain command, with the time as this process knows the server's clock.
    pub(crate) async fn beat(&self, seat: &Seat) -> Result<(), LogError> {
        let now = match self.0.clock.now_ms() {
            Some(now) => now,
            None => self.now_ms().await?,
        };
        let mut command = redis::cmd("HSET");
        command.arg(self.beats_key(&seat.stream, &seat.group));
        command.arg(&seat.consumer).arg(now).arg("*").arg(now);
        let beaten = self.ask_even_when_full::<u64>("heartbeat", false, &command).await;
        beaten.inspect_err(|_| self.0.clock.forget())?;
        Ok(())
    }

    pub(crate) async fn pending_counts(&self, seat: &Seat) -> Result<Vec<(String, u64)>, LogError> {
        let operation = "count of pending entries";
        let mut command = redis::cmd("XPENDING");
        command.arg(&seat.stream).arg(&seat.group);
        let value =
            self.ask(operation, false, &command).await.map_err(|error| located(error, seat))?;
        pending_counts(value).ok_or(LogError::Reply { operation })
    }

    pub(crate) async fn pending(
        &self,
        seat: &Seat,
        of: PendingOf<'_>,
        count: usize,
    ) -> Result<Vec<PendingEntry>, LogError> {
        let operation = "list of pending entries";
        let mut command = redis::cmd("XPENDING");
        command.arg(&seat.stream).arg(&seat.group);
        if let PendingOf::Idle(idle) = of {
            command.arg("IDLE").arg(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("-").arg("+").arg(count);
        if let PendingOf::Consumer(consumer) = of {
            command.arg(consumer);
        }
        let value =
            self.ask(operation, false, &command).await.map_err(|error| located(error, seat))?;
        pending(value).ok_or(LogError::Reply { operation })
    }

    pub(crate) async fn claim(
        &self,
        seat: &Seat,
        entries: &[PendingEntry],
    ) -> Result<Vec<RawEntry>, LogError> {
        let operation = "claim";
        let mut pipe = redis::pipe();
        for entry in entries {
            // Idle at least as long as listed: of two claimers only the first gets it.
            let idle = u64::try_from(entry.idle.as_millis()).unwrap_or(u64::MAX);
            pipe.cmd("XCLAIM").arg(&seat.stream).arg(&seat.group).arg(&seat.consumer);
            pipe.arg(idle).arg(entry.id.to_string());
        }
        let answers: Vec<Value> =
            self.ask_many(operation, false, &pipe).await.map_err(|error| located(error, seat))?;
        let mut claimed = Vec::with_capacity(entries.len());
        let mut gone = Vec::new();
        for (asked, answer) in entries.iter().zip(answers) {
            for value in items(answer).ok_or(LogError::Reply { operation })? {
                match entry(value) {
                    Some((id, Some(fields))) => {
                        claimed.push(RawEntry::new(id, fields, asked.deliveries + 1));
                    }
                    Some((id, None)) => gone.push(id),
                    None => gone.push(asked.id),
                }
            }
        }
        if !gone.is_empty() {
            self.ack(seat, &gone).await?;
        }
        Ok(claimed)
    }

    pub(crate) async fn renew(&self, seat: &Seat, ids: &[EntryId]) -> Result<(), LogError> {
        for ids in ids.chunks(IDS_PER_SCRIPT) {
            let mut call = self.0.scripts.renew.prepare_invoke();
            call.key(&seat.stream).arg(&seat.group).arg(&seat.consumer);
            for id in ids {
                call.arg(id.to_string());
            }
            let mut connection = self.connection(false);
            let _renewed: u64 = self
                .bounded("renew", call.invoke_async(&mut connection))
                .await
                .map_err(|error| located(error, seat))?;
        }
        Ok(())
    }

    pub(crate) async fn release(&self, seat: &Seat, counted: &[EntryId]) -> Result<u64, LogError> {
        let mut call = self.0.scripts.release.prepare_invoke();
        call.key(self.beats_key(&seat.stream, &seat.group)).key(&seat.stream);
        call.key(self.released_key());
        call.arg(&seat.group).arg(&seat.consumer).arg(RELEASED);
        for id in counted {
            call.arg(id.to_string());
        }
        let mut connection = self.connection(false);
        let released = self.bounded("release", call.invoke_async(&mut connection)).await;
        released.map_err(|error| located(error, seat))
    }

    pub(crate) async fn bury(
        &self,
        seat: &Seat,
        id: EntryId,
        dead_letter: &str,
        epitaph: &Epitaph,
    ) -> Result<bool, LogError> {
        let mut call = self.0.scripts.bury.prepare_invoke();
        call.key(&seat.stream).key(dead_letter).arg(&seat.group).arg(id.to_string());
        call.arg(dead::REASON).arg(&epitaph.reason);
        call.arg(dead::ATTEMPTS).arg(epitaph.attempts);
        call.arg(dead::ORIGIN).arg(&seat.stream);
        call.arg(dead::ENTRY).arg(id.to_string());
        call.arg(dead::GROUP).arg(&seat.group);
        let mut connection = self.connection(false);
        self.bounded("dead letter", call.invoke_async(&mut connection)).await
    }
}

pub(super) fn xack(seat: &Seat, ids: &[EntryId]) -> Cmd {
    let mut command = Cmd::with_capacity(3 + ids.len(), 24 * ids.len() + 80);
    command.arg("XACK").arg(&seat.stream).arg(&seat.group);
    for id in ids {
        command.arg(IdText::from(*id).as_bytes());
    }
    command
}

fn located(error: LogError, seat: &Seat) -> LogError {
    match error {
        LogError::NoGroup { .. } => seat.no_group(),
        other => other,
    }
}

fn consumers(value: Value) -> Option<Vec<ConsumerSeen>> {
    let mut parts = items(value)?.into_iter();
    let now = number(&parts.next()?)?;
    let mut seen: HashMap<String, ConsumerSeen> = HashMap::new();
    for (name, beat) in pairs(parts.next()?)? {
        let age = Duration::from_millis(now.saturating_sub(number(&beat)?));
        let name = text(&name)?.to_owned();
        if name != "*" {
            let one = ConsumerSeen { name: name.clone(), pending: 0, beat_age: Some(age) };
            seen.insert(name, one);
        }
    }
    for consumer in items(parts.next()?)? {
        let mut consumer = items(consumer)?.into_iter();
        let name = text(&consumer.next()?)?.to_owned();
        let pending = number(&consumer.next()?)?;
        seen.entry(name.clone())
            .or_insert(ConsumerSeen { name, pending: 0, beat_age: None })
            .pending = pending;
    }
    Some(seen.into_values().collect())
}

/// The last part of the summary: consumers and their counts.
fn pending_counts(value: Value) -> Option<Vec<(String, u64)>> {
    let counts = items(value)?.into_iter().nth(3)?;
    let count = |one: Value| {
        let mut one = items(one)?.into_iter();
        Some((text(&one.next()?)?.to_owned(), number(&one.next()?)?))
    };
    items(counts)?.into_iter().map(count).collect()
}

fn pending(value: Value) -> Option<Vec<PendingEntry>> {
    let one = |value| {
        let parts = items(value)?;
        let [id, consumer, idle, deliveries] = parts.as_slice() else { return None };
        Some(PendingEntry {
            id: text(id)?.parse().ok()?,
            consumer: text(consumer)?.to_owned(),
            idle: Duration::from_millis(number(idle)?),
            deliveries: u32::try_from(number(deliveries)?).unwrap_or(u32::MAX),
        })
    };
    items(value)?.into_iter().map(one).collect()
}
