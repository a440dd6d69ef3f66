//! Streams, groups and pending entries in memory, and the journal of what the file does not know yet.
//! No I/O and no waiting here.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::entry::EntryId;
use crate::error::LogError;

/// Changes that nobody waits for are written at once when there are so many.
const JOURNAL_LEN_MAX: usize = 1024;

/// Number of a stream in the file.
pub(super) type StreamNo = u16;
/// Number of a group in the file, within its stream.
pub(super) type GroupNo = u32;

/// A change that the writer carries to the file, in order.
#[derive(Debug)]
pub(super) enum Change {
    NewStream {
        stream: StreamNo,
        name: String,
    },
    NewGroup {
        stream: StreamNo,
        group: GroupNo,
        name: String,
    },
    RemoveGroup {
        stream: StreamNo,
        group: GroupNo,
    },
    Append {
        stream: StreamNo,
        id: EntryId,
        value: Vec<u8>,
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
    /// Removes what lies before `below`; counts it.
    Trim {
        stream: StreamNo,
        below: EntryId,
        removed: Arc<AtomicU64>,
    },
    /// Removes one entry; counts it.
    Delete {
        stream: StreamNo,
        id: EntryId,
        removed: Arc<AtomicU64>,
    },
}

/// Answered when everything journaled before it is on disk.
pub(super) type Ticket = oneshot::Sender<Result<(), LogError>>;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) streams: Vec<Stream>,
    pub(super) by_name: HashMap<String, StreamNo>,
    pub(super) journal: Vec<Change>,
    pub(super) tickets: Vec<Ticket>,
    /// Whether a writer is at work; it takes what is left here before it ends.
    pub(super) writing: bool,
    /// Set when a commit failed: memory and file have parted, only a restart helps.
    pub(super) failed: Option<LogError>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) number: StreamNo,
    /// Greatest id given out.
    pub(super) last: EntryId,
    pub(super) len: u64,
    /// Greatest id on disk, hence visible; readers wait on it.
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
    /// One fetch at a time: between reading the file and moving the cursor nobody else may.
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
        let tail = watch::Sender::new(last);
        Self { number, last, len, tail, groups: BTreeMap::new(), groups_made: 0 }
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
}

impl Core {
    pub(super) fn new() -> Self {
        Self {
            streams: Vec::new(),
            by_name: HashMap::new(),
            journal: Vec::new(),
            tickets: Vec::new(),
            writing: false,
            failed: None,
        }
    }

    pub(super) fn stream(&self, name: &str) -> Option<&Stream> {
        self.by_name.get(name).map(|number| &self.streams[usize::from(*number)])
    }

    /// The stream and the journal, so that a change can be noted where it is made.
    pub(super) fn parts(&mut self, name: &str) -> Option<(&mut Stream, &mut Vec<Change>)> {
        let number = self.by_name.get(name)?;
        Some((&mut self.streams[usize::from(*number)], &mut self.journal))
    }

    pub(super) fn ensure_stream(&mut self, name: &str) -> &mut Stream {
        let number = match self.by_name.get(name) {
            Some(number) => *number,
            None => {
                let number = StreamNo::try_from(self.streams.len())
                    .unwrap_or_else(|_| panic!("a log has fewer than 65536 streams"));
                self.streams.push(Stream::new(number, EntryId::ZERO, 0));
                self.by_name.insert(name.to_owned(), number);
                self.journal.push(Change::NewStream { stream: number, name: name.to_owned() });
                number
            }
        };
        &mut self.streams[usize::from(number)]
    }

    /// Gives the entry its id. It is not visible before the writer says so.
    pub(super) fn append(&mut self, name: &str, value: Vec<u8>) -> EntryId {
        let now_ms = leyline::time::now_unix_ms();
        let stream = self.ensure_stream(name);
        // A clock that steps back must not give ids that readers have already passed.
        let id = EntryId { ms: now_ms, seq: 0 }.max(stream.last.next());
        stream.last = id;
        let stream = stream.number;
        self.journal.push(Change::Append { stream, id, value });
        id
    }

    /// Whether the next commit must not wait: somebody waits for it, or much has gathered.
    pub(super) fn is_urgent(&self) -> bool {
        !self.tickets.is_empty() || self.journal.len() >= JOURNAL_LEN_MAX
    }

    /// A ticket for everything journaled so far.
    pub(super) fn ticket(&mut self) -> oneshot::Receiver<Result<(), LogError>> {
        let (sender, receiver) = oneshot::channel();
        self.tickets.push(sender);
        receiver
    }

    /// The writer has put these appended entries of a stream on disk, in this order.
    pub(super) fn became_visible(&mut self, stream: StreamNo, entries: u64, last: EntryId) {
        let stream = &mut self.streams[usize::from(stream)];
        stream.len += entries;
        for group in stream.groups.values_mut() {
            group.behind += entries;
        }
        stream.tail.send_replace(last);
    }
}

impl Group {
    /// Ids pending after `after`, oldest first.
    pub(super) fn pending_after(
        &self,
        after: EntryId,
    ) -> impl Iterator<Item = (&EntryId, &Pending)> {
        self.pending.range((Excluded(after), Unbounded))
    }
}
