//! Streams, groups and pending entries in memory, and the queue of changes that the journal does not
//! know yet. No I/O and no waiting here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::file::entry_bytes;
use super::nonces::Claim;
use crate::entry::EntryId;
use crate::error::LogError;

/// Changes that nobody waits for are written at once when there are so many.
const QUEUE_LEN_MAX: usize = 1024;

/// Number of a stream in the file.
pub(super) type StreamNo = u16;
/// Number of a group in the file, within its stream.
pub(super) type GroupNo = u32;

/// A change that the writer carries to the file, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    NewStream {
        stream: StreamNo,
        name: Arc<str>,
    },
    NewGroup {
        stream: StreamNo,
        group: GroupNo,
        name: Arc<str>,
    },
    RemoveGroup {
        stream: StreamNo,
        group: GroupNo,
    },
    Append {
        stream: StreamNo,
        id: EntryId,
        value: Bytes,
        /// Written later when it cannot be written now: an entry that was moved. A publisher's is
        /// given up instead, and the publisher is told.
        owed: bool,
        /// Readers saw it when it was made, before it is on disk.
        shown: bool,
    },
    Cursor {
        stream: StreamNo,
        group: GroupNo,
        at: EntryId,
    },
    Delivered {
        stream: StreamNo,
        group: GroupNo,
        id: EntryId,
        deliveries: u32,
        to: Arc<str>,
    },
    Settled {
        stream: StreamNo,
        group: GroupNo,
        id: EntryId,
    },
    /// What lies before `below` is gone: so many entries and bytes.
    Trim {
        stream: StreamNo,
        below: EntryId,
        removed: u64,
        bytes: u64,
    },
    Delete {
        stream: StreamNo,
        id: EntryId,
        bytes: u64,
    },
}

/// Answered when everything queued before it is on disk.
pub(super) type Ticket = oneshot::Sender<Result<(), LogError>>;

/// A frame that the journal holds and the store does not.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) number: u64,
    pub(super) bytes: u64,
    pub(super) changes: Vec<Change>,
    pub(super) claims: Vec<Claim>,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) streams: Vec<Stream>,
    pub(super) by_name: HashMap<String, StreamNo>,
    pub(super) queue: Vec<Change>,
    pub(super) tickets: Vec<Ticket>,
    /// Whether a writer is at work; it takes what is left here before it ends.
    pub(super) writing: bool,
    /// The same of the thread that hands frames to the store.
    pub(super) absorbing: bool,
    pub(super) flights: VecDeque<Arc<Flight>>,
    pub(super) flight_bytes: u64,
    /// Bytes of entries that are queued and not visible yet.
    pub(super) queued_bytes: u64,
    /// Why the journal could not be written at the last attempt.
    pub(super) journal_failure: Option<LogError>,
    /// Why the store could not take anything in at the last attempt.
    pub(super) store_failure: Option<Arc<redb::Error>>,
    /// What the writer waits for.
    pub(super) waiting: Waiting,
    /// The last handle is gone: finish and leave.
    pub(super) closing: bool,
    /// Names of the streams that are prompt.
    prompt: Vec<String>,
}

/// What the writer waits for, hence when it has to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// It is at work, or it pauses.
    No,
    /// Anything.
    ForWork,
    /// It has work that nobody waits for.
    ForCompany,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) number: StreamNo,
    /// Greatest id given out.
    pub(super) last: EntryId,
    pub(super) len: u64,
    /// Bytes of the visible entries.
    pub(super) bytes: u64,
    /// Everything before is trimmed.
    pub(super) floor: EntryId,
    /// Visible entries that the store does not hold yet.
    pub(super) recent: BTreeMap<EntryId, Bytes>,
    /// Greatest id that the store may hold.
    pub(super) stored_last: EntryId,
    /// Deleted here, and still in the store.
    pub(super) hidden: BTreeSet<EntryId>,
    /// Readers see what is appended at once: kernel traffic, of which nothing is left when the process
    /// ends before the disk has it, neither the entry nor what was done with it.
    pub(super) is_prompt: bool,
    /// Entries that are queued and not visible yet.
    pub(super) unshown: usize,
    /// Greatest visible id; readers wait on it.
    pub(super) tail: watch::Sender<EntryId>,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) groups_made: GroupNo,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) number: GroupNo,
    pub(super) last_delivered: EntryId,
    /// Visible entries after `last_delivered`.
    pub(super) behind: u64,
    pub(super) pending: BTreeMap<EntryId, Pending>,
    /// Last heartbeat of each consumer. One of an earlier process has none, and is dead.
    pub(super) beats: HashMap<Arc<str>, Instant>,
    /// When any consumer was last heard of, or the group first seen by this process.
    pub(super) heard: Instant,
    /// One fetch at a time: between reading entries and moving the cursor nobody else may.
    pub(super) fetching: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) consumer: Arc<str>,
    pub(super) since: Instant,
    pub(super) deliveries: u32,
}

impl Stream {
    pub(super) fn new(number: StreamNo, last: EntryId, len: u64) -> Self {
        Self {
            number,
            last,
            len,
            bytes: 0,
            floor: EntryId::ZERO,
            recent: BTreeMap::new(),
            stored_last: last,
            hidden: BTreeSet::new(),
            is_prompt: false,
            unshown: 0,
            tail: watch::Sender::new(last),
            groups: BTreeMap::new(),
            groups_made: 0,
        }
    }

    /// An entry becomes visible, and counts as such. Readers are woken by the caller.
    fn show(&mut self, id: EntryId, value: Bytes) {
        self.len += 1;
        self.bytes += entry_bytes(&value);
        self.recent.insert(id, value);
        for group in self.groups.values_mut() {
            group.behind += 1;
        }
    }

    /// These entries, visible so far and counted as such, are gone: ids in order, bytes of all.
    pub(super) fn lose(&mut self, ids: &[EntryId], bytes: u64) {
        let count = |ids: &[EntryId]| u64::try_from(ids.len()).unwrap_or(u64::MAX);
        self.len = self.len.saturating_sub(count(ids));
        self.bytes = self.bytes.saturating_sub(bytes);
        for group in self.groups.values_mut() {
            let read = ids.partition_point(|id| *id <= group.last_delivered);
            group.behind = group.behind.saturating_sub(count(&ids[read..]));
        }
    }
}

impl Group {
    pub(super) fn new(number: GroupNo, last_delivered: EntryId, behind: u64) -> Self {
        Self {
            number,
            last_delivered,
            behind,
            pending: BTreeMap::new(),
            beats: HashMap::new(),
            heard: Instant::now(),
            fetching: Arc::default(),
        }
    }

    /// Since a consumer's heartbeat. Nobody else writes this log: unheard of is long dead.
    pub(super) fn beat_age(&self, consumer: &str) -> Duration {
        self.beats.get(consumer).map_or(Duration::MAX, Instant::elapsed)
    }

    /// Ids pending after `after`, oldest first.
    pub(super) fn pending_after(
        &self,
        after: EntryId,
    ) -> impl Iterator<Item = (&EntryId, &Pending)> {
        self.pending.range((Excluded(after), Unbounded))
    }
}

impl Core {
    pub(super) fn new() -> Self {
        Self {
            streams: Vec::new(),
            by_name: HashMap::new(),
            queue: Vec::new(),
            tickets: Vec::new(),
            writing: false,
            absorbing: false,
            flights: VecDeque::new(),
            flight_bytes: 0,
            queued_bytes: 0,
            journal_failure: None,
            store_failure: None,
            waiting: Waiting::No,
            closing: false,
            prompt: Vec::new(),
        }
    }

    pub(super) fn stream(&self, name: &str) -> Option<&Stream> {
        self.by_name.get(name).map(|number| &self.streams[usize::from(*number)])
    }

    /// The stream and the queue, so that a change can be noted where it is made.
    pub(super) fn parts(&mut self, name: &str) -> Option<(&mut Stream, &mut Vec<Change>)> {
        let number = self.by_name.get(name)?;
        Some((&mut self.streams[usize::from(*number)], &mut self.queue))
    }

    /// Says whose readers see entries at once.
    pub(super) fn make_prompt(&mut self, names: impl IntoIterator<Item = String>) {
        self.prompt.extend(names);
        for name in &self.prompt {
            if let Some(number) = self.by_name.get(name) {
                self.streams[usize::from(*number)].is_prompt = true;
            }
        }
    }

    pub(super) fn ensure_stream(&mut self, name: &str) -> &mut Stream {
        let number = match self.by_name.get(name) {
            Some(number) => *number,
            None => {
                let number = StreamNo::try_from(self.streams.len())
                    .unwrap_or_else(|_| panic!("a log has fewer than 65536 streams"));
                let mut stream = Stream::new(number, EntryId::ZERO, 0);
                stream.is_prompt = self.prompt.iter().any(|prompt| prompt == name);
                self.streams.push(stream);
                self.by_name.insert(name.to_owned(), number);
                self.queue.push(Change::NewStream { stream: number, name: name.into() });
                number
            }
        };
        &mut self.streams[usize::from(number)]
    }

    /// Bytes of all entries, visible or on their way.
    pub(super) fn bytes(&self) -> u64 {
        self.queued_bytes + self.streams.iter().map(|stream| stream.bytes).sum::<u64>()
    }

    /// Gives the entry its id. On a prompt stream readers see it at once, unless one before it waits
    /// for the disk or the disk is in trouble; else when the writer says so. What was seen is owed.
    pub(super) fn append(&mut self, name: &str, value: Bytes, owed: bool) -> EntryId {
        let now_ms = leyline::time::now_unix_ms();
        let disk_is_sound = self.journal_failure.is_none();
        let stream = self.ensure_stream(name);
        // A clock that steps back must not give ids that readers have already passed.
        let id = EntryId { ms: now_ms, seq: 0 }.max(stream.last.next());
        stream.last = id;
        let shown = stream.is_prompt && stream.unshown == 0 && disk_is_sound;
        if shown {
            stream.show(id, value.clone());
            stream.tail.send_replace(id);
        } else {
            stream.unshown += 1;
        }
        let (stream, owed) = (stream.number, owed || shown);
        if !shown {
            self.queued_bytes += entry_bytes(&value);
        }
        self.queue.push(Change::Append { stream, id, value, owed, shown });
        id
    }

    /// Settles deliveries of a group; unknown ones are left alone.
    pub(super) fn settle(&mut self, stream: &str, group: &str, ids: &[EntryId]) {
        let Some((stream, queue)) = self.parts(stream) else { return };
        let number = stream.number;
        let Some(group) = stream.groups.get_mut(group) else { return };
        for id in ids {
            if group.pending.remove(id).is_some() {
                queue.push(Change::Settled { stream: number, group: group.number, id: *id });
            }
        }
    }

    /// The journal could not write these: what publishers wanted and nobody saw is given up. Hands
    /// back the rest, to be written later.
    pub(super) fn give_up(&mut self, mut changes: Vec<Change>) -> Vec<Change> {
        changes.retain(|change| match change {
            Change::Append { stream, value, owed: false, .. } => {
                self.queued_bytes = self.queued_bytes.saturating_sub(entry_bytes(value));
                let stream = &mut self.streams[usize::from(*stream)];
                stream.unshown = stream.unshown.saturating_sub(1);
                false
            }
            _ => true,
        });
        changes
    }

    /// Takes out an entry of that size; `false` when somebody else was faster.
    pub(super) fn delete(&mut self, name: &str, id: EntryId, bytes: u64) -> bool {
        let Some((stream, queue)) = self.parts(name) else { return false };
        if id < stream.floor || !stream.hidden.insert(id) {
            return false;
        }
        stream.lose(&[id], bytes);
        queue.push(Change::Delete { stream: stream.number, id, bytes });
        true
    }

    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.tickets.is_empty()
    }

    /// Whether the next commit must not wait: somebody waits for it, or much has gathered.
    pub(super) fn is_urgent(&self) -> bool {
        !self.tickets.is_empty() || self.queue.len() >= QUEUE_LEN_MAX || self.closing
    }

    /// A ticket for everything queued so far.
    pub(super) fn ticket(&mut self) -> oneshot::Receiver<Result<(), LogError>> {
        let (sender, receiver) = oneshot::channel();
        self.tickets.push(sender);
        receiver
    }

    /// The journal holds this frame: what was appended becomes visible.
    pub(super) fn journaled(&mut self, flight: Flight) {
        for change in &flight.changes {
            let Change::Append { stream, id, value, shown: false, .. } = change else { continue };
            self.queued_bytes = self.queued_bytes.saturating_sub(entry_bytes(value));
            let stream = &mut self.streams[usize::from(*stream)];
            stream.unshown = stream.unshown.saturating_sub(1);
            stream.show(*id, value.clone());
        }
        // Only now, each once: a reader that is woken finds the whole frame.
        for stream in &self.streams {
            if let Some((last, _)) = stream.recent.last_key_value()
                && *stream.tail.borrow() < *last
            {
                stream.tail.send_replace(*last);
            }
        }
        self.flight_bytes += flight.bytes;
        self.flights.push_back(Arc::new(flight));
    }

    /// The store holds this change.
    pub(super) fn stored(&mut self, change: &Change) {
        match change {
            Change::Append { stream, id, .. } => {
                let stream = &mut self.streams[usize::from(*stream)];
                stream.recent.remove(id);
                stream.stored_last = stream.stored_last.max(*id);
            }
            Change::Delete { stream, id, .. } => {
                self.streams[usize::from(*stream)].hidden.remove(id);
            }
            Change::NewStream { .. }
            | Change::NewGroup { .. }
            | Change::RemoveGroup { .. }
            | Change::Cursor { .. }
            | Change::Delivered { .. }
            | Change::Settled { .. }
            | Change::Trim { .. } => {}
        }
    }
}
