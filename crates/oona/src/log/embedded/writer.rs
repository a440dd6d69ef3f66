//! The one writer: takes what has been journaled, commits it as one transaction, answers the
//! tickets, and ends when nothing is left. It runs on a blocking thread only while there is work.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use redb::ReadableTable as _;
use tokio::sync::oneshot;

use super::file::{CURSORS, ENTRIES, GROUPS, PENDING, STREAMS, key};
use super::nonces::Owner;
use super::state::{Change, Core, StreamNo};
use super::{EmbeddedLog, Shared};
use crate::entry::EntryId;
use crate::error::LogError;

/// How long acknowledgements and claims wait for a commit to share; a crash within repeats them.
const LINGER: Duration = Duration::from_millis(5);

/// What a commit did that memory has to follow.
#[derive(Default)]
struct Done {
    /// Entries appended to each stream, and the last of them.
    appended: HashMap<StreamNo, (u64, EntryId)>,
    removed: HashMap<StreamNo, u64>,
}

impl Shared {
    /// Sees that the journal gets written, and waits for the ticket.
    pub(super) async fn commit(
        self: &Arc<Self>,
        ticket: oneshot::Receiver<Result<(), LogError>>,
    ) -> Result<(), LogError> {
        self.kick()?;
        ticket.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Starts the writer unless it is at work.
    pub(super) fn kick(self: &Arc<Self>) -> Result<(), LogError> {
        let mut core = self.core();
        if let Some(error) = &core.failed {
            let error = error.clone();
            core.journal.clear();
            core.tickets.clear();
            return Err(error);
        }
        if !core.writing {
            core.writing = true;
            let shared = Arc::clone(self);
            // Nobody waits for the thread: it answers by the tickets.
            drop(tokio::task::spawn_blocking(move || shared.write_all()));
        } else if core.is_urgent() {
            self.urgent.notify_one();
        }
        Ok(())
    }

    fn write_all(&self) {
        loop {
            let (changes, tickets) = {
                let mut core = self.core();
                if core.journal.is_empty() && core.tickets.is_empty() {
                    core.writing = false;
                    return;
                }
                // What nobody waits for shares the next commit that somebody does wait for.
                if !core.is_urgent() {
                    let idle = |core: &mut Core| !core.is_urgent();
                    let waited = self.urgent.wait_timeout_while(core, LINGER, idle);
                    core = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                (std::mem::take(&mut core.journal), std::mem::take(&mut core.tickets))
            };
            // Taken after the changes: an acknowledgement on disk has its claim on disk as well.
            let claims = self.nonces().send_off();
            match self.write(&changes, &claims) {
                Ok(done) => {
                    self.follow(done);
                    for ticket in tickets {
                        // Whoever stopped waiting does not want the answer.
                        let _ = ticket.send(Ok(()));
                    }
                }
                Err(error) => {
                    let error = self.storage(error);
                    tracing::error!(%error, "the embedded log cannot write");
                    let mut core = self.core();
                    core.failed = Some(error.clone());
                    core.writing = false;
                    for ticket in tickets.into_iter().chain(std::mem::take(&mut core.tickets)) {
                        let _ = ticket.send(Err(error.clone()));
                    }
                    return;
                }
            }
        }
    }

    fn write(
        &self,
        changes: &[Change],
        claims: &HashMap<String, Owner>,
    ) -> Result<Done, redb::Error> {
        let write = self.db.begin_write()?;
        let mut done = Done::default();
        {
            let mut streams = write.open_table(STREAMS)?;
            let mut entries = write.open_table(ENTRIES)?;
            let mut groups = write.open_table(GROUPS)?;
            let mut cursors = write.open_table(CURSORS)?;
            let mut pending = write.open_table(PENDING)?;
            for change in changes {
                match change {
                    Change::NewStream { stream, name } => {
                        streams.insert(name.as_str(), (*stream, 0, 0, 0))?;
                    }
                    Change::NewGroup { stream, group, name } => {
                        groups.insert((*stream, *group), name.as_str())?;
                    }
                    Change::RemoveGroup { stream, group } => {
                        groups.remove((*stream, *group))?;
                        cursors.remove((*stream, *group))?;
                        let all = (*stream, *group, 0, 0)..=(*stream, *group, u64::MAX, u64::MAX);
                        pending.retain_in(all, |_, _| false)?;
                    }
                    Change::Append { stream, id, value } => {
                        entries.insert(key(*stream, *id), value.as_slice())?;
                        let count = done.appended.entry(*stream).or_insert((0, *id));
                        *count = (count.0 + 1, *id);
                    }
                    Change::Cursor { stream, group, at } => {
                        cursors.insert((*stream, *group), (at.ms, at.seq))?;
                    }
                    Change::Delivered { stream, group, id, deliveries, to } => {
                        let place = (*stream, *group, id.ms, id.seq);
                        pending.insert(place, (*deliveries, &**to))?;
                    }
                    Change::Settled { stream, group, id } => {
                        pending.remove((*stream, *group, id.ms, id.seq))?;
                    }
                    Change::Trim { stream, below, removed } => {
                        let before = key(*stream, EntryId::ZERO)..key(*stream, *below);
                        let mut count = 0;
                        entries.retain_in(before, |_, _| {
                            count += 1;
                            false
                        })?;
                        removed.store(count, Ordering::Relaxed);
                        *done.removed.entry(*stream).or_default() += count;
                    }
                    Change::Delete { stream, id, removed } => {
                        let count = u64::from(entries.remove(key(*stream, *id))?.is_some());
                        removed.store(count, Ordering::Relaxed);
                        *done.removed.entry(*stream).or_default() += count;
                    }
                }
            }
            self.write_tops(&mut streams, &done)?;
        }
        self.write_claims(&write, claims)?;
        write.commit()?;
        Ok(done)
    }

    /// Last id and length of every stream that changed. The last id outlives its entry.
    fn write_tops(
        &self,
        streams: &mut redb::Table<'_, &str, (u16, u64, u64, u64)>,
        done: &Done,
    ) -> Result<(), redb::Error> {
        let mut tops = Vec::new();
        for row in streams.iter()? {
            let (name, value) = row?;
            let (number, ms, seq, len) = value.value();
            let appended = done.appended.get(&number);
            let removed = done.removed.get(&number).copied().unwrap_or(0);
            if appended.is_none() && removed == 0 {
                continue;
            }
            let (count, last) = appended.copied().unwrap_or((0, EntryId { ms, seq }));
            let len = (len + count).saturating_sub(removed);
            tops.push((name.value().to_owned(), (number, last.ms, last.seq, len)));
        }
        for (name, value) in tops {
            streams.insert(name.as_str(), value)?;
        }
        Ok(())
    }

    /// Lets memory follow what is on disk now.
    fn follow(&self, done: Done) {
        let mut core = self.core();
        for (stream, count) in done.removed {
            let stream = &mut core.streams[usize::from(stream)];
            stream.len = stream.len.saturating_sub(count);
        }
        for (stream, (count, last)) in done.appended {
            core.became_visible(stream, count, last);
        }
        drop(core);
        self.nonces().arrived();
    }
}

impl EmbeddedLog {
    /// Waits until everything so far is on disk.
    pub(crate) async fn flush(&self) -> Result<(), LogError> {
        let ticket = self.0.core().ticket();
        self.0.commit(ticket).await
    }
}
