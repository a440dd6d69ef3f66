//! What one consumer holds: entries it has been given and has not settled yet.
//!
//! An entry that is pending under this consumer's name but not listed here was lost on the way, in a
//! reply that never arrived for instance, and is fetched again.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::entry::EntryId;
use crate::sync::{Mutex, MutexGuard};

/// The desk of one consumer. Shared with its deliveries, which take their entries off it.
#[derive(Debug, Default)]
pub(crate) struct Work {
    held: Mutex<Held>,
    /// Something was settled, or put back for a retry.
    pub(crate) changed: Notify,
    /// The filler has something to do before its read returns.
    pub(crate) nudged: Notify,
}

#[derive(Debug, Default)]
struct Held {
    entries: HashMap<EntryId, Item>,
    /// Which entry a key waits for, and the other way round.
    busy: HashMap<String, EntryId>,
    keys: HashMap<EntryId, String>,
    /// Keys that became free since somebody asked.
    freed: Vec<String>,
    /// Acknowledgements that did not reach the log; they are sent again before the next read.
    owed: Vec<EntryId>,
    /// Others have left entries: look for them.
    look: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// Waiting to be handed out, or with a handler.
    Held,
    /// Failed; to be fetched again at that time.
    Retry(Instant),
    /// Dropped by its handler, which had not finished; to be fetched again at that time.
    Dropped(Instant),
}

impl Item {
    /// When it is to be fetched again.
    fn due(&self) -> Option<Instant> {
        match self {
            Self::Held => None,
            Self::Retry(at) | Self::Dropped(at) => Some(*at),
        }
    }
}

impl Held {
    fn let_go(&mut self, id: EntryId) {
        self.entries.remove(&id);
        if let Some(key) = self.keys.remove(&id) {
            self.busy.remove(&key);
            self.freed.push(key);
        }
    }
}

impl Work {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes entries that have just been read or claimed.
    pub(crate) fn take_in(&self, ids: impl IntoIterator<Item = EntryId>) {
        let mut held = self.held();
        for id in ids {
            held.entries.insert(id, Item::Held);
        }
    }

    /// Forgets an entry that is settled, or that shall be found by the search for lost ones.
    pub(crate) fn let_go(&self, id: EntryId) {
        self.held().let_go(id);
        self.changed.notify_one();
    }

    /// Forgets entries that are settled, all at once.
    pub(crate) fn let_go_all(&self, ids: &[EntryId]) {
        let mut held = self.held();
        ids.iter().for_each(|id| held.let_go(*id));
        drop(held);
        self.changed.notify_one();
    }

    /// Keeps an entry for a retry. Its key stays busy: what comes after it has to wait.
    pub(crate) fn retry_at(&self, id: EntryId, due: Instant) {
        self.put_back(id, Item::Retry(due));
    }

    /// The same for an entry whose handler neither finished nor failed.
    pub(crate) fn dropped(&self, id: EntryId, due: Instant) {
        self.put_back(id, Item::Dropped(due));
    }

    fn put_back(&self, id: EntryId, item: Item) {
        self.held().entries.insert(id, item);
        self.changed.notify_one();
        self.nudged.notify_one();
    }

    /// Entries that their handlers failed and that wait for their retry.
    pub(crate) fn failed(&self) -> Vec<EntryId> {
        let held = self.held();
        let failed = held.entries.iter().filter(|(_, item)| matches!(item, Item::Retry(_)));
        failed.map(|(id, _)| *id).collect()
    }

    /// Reserves the key for this entry, unless another entry has it.
    pub(crate) fn reserve(&self, key: &str, id: EntryId) -> bool {
        let mut held = self.held();
        match held.busy.get(key) {
            Some(owner) => *owner == id,
            None => {
                held.busy.insert(key.to_owned(), id);
                held.keys.insert(id, key.to_owned());
                true
            }
        }
    }

    /// Whether this entry has the key.
    pub(crate) fn owns(&self, key: &str, id: EntryId) -> bool {
        self.held().busy.get(key) == Some(&id)
    }

    /// Keys that became free since the last call.
    pub(crate) fn take_freed(&self) -> Vec<String> {
        std::mem::take(&mut self.held().freed)
    }

    /// Whether the consumer has this entry.
    pub(crate) fn holds(&self, id: EntryId) -> bool {
        self.held().entries.contains_key(&id)
    }

    /// Whether the consumer has this entry and owes no acknowledgement of it.
    pub(crate) fn is_unsettled(&self, id: EntryId) -> bool {
        let held = self.held();
        held.entries.contains_key(&id) && !held.owed.contains(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.held().entries.len()
    }

    pub(crate) fn ids(&self) -> Vec<EntryId> {
        self.held().entries.keys().copied().collect()
    }

    /// Entries whose retry is due, oldest first.
    pub(crate) fn due(&self, now: Instant) -> Vec<EntryId> {
        let held = self.held();
        let due = |item: &Item| item.due().is_some_and(|at| at <= now);
        let mut ids: Vec<EntryId> =
            held.entries.iter().filter(|(_, item)| due(item)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// When the next retry is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.held().entries.values().filter_map(Item::due).min()
    }

    /// Whether something here waits for the log rather than for a handler.
    pub(crate) fn needs_the_log(&self, now: Instant) -> bool {
        let held = self.held();
        let due = |item: &Item| item.due().is_some_and(|at| at <= now);
        !held.owed.is_empty() || held.entries.values().any(due)
    }

    /// Waits until something changes, or the next retry falls due.
    pub(crate) async fn changed_or_due(&self) {
        let changed = self.changed.notified();
        match self.next_due() {
            Some(due) => drop(tokio::time::timeout_at(due, changed).await),
            None => changed.await,
        }
    }

    /// Lets the filler look for entries that others have left.
    pub(crate) fn look_soon(&self) {
        self.held().look = true;
        self.nudged.notify_one();
    }

    /// Whether it shall look; asked once.
    pub(crate) fn take_look(&self) -> bool {
        std::mem::take(&mut self.held().look)
    }

    pub(crate) fn owe(&self, id: EntryId) {
        self.held().owed.push(id);
        self.nudged.notify_one();
    }

    pub(crate) fn owed(&self) -> Vec<EntryId> {
        self.held().owed.clone()
    }

    /// These acknowledgements have arrived at last.
    pub(crate) fn paid(&self, ids: &[EntryId]) {
        let mut held = self.held();
        let paid: HashSet<EntryId> = ids.iter().copied().collect();
        held.owed.retain(|id| !paid.contains(id));
        for id in ids {
            held.let_go(*id);
        }
        drop(held);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_one_entrys_until_that_is_settled() {
        let work = Work::default();
        work.take_in([id(1), id(2)]);
        assert!(work.reserve("run", id(1)));
        assert!(!work.reserve("run", id(2)));
        work.retry_at(id(1), Instant::now() + Duration::from_secs(1));
        assert!(!work.reserve("run", id(2)), "a retry keeps its place");
        assert!(work.reserve("run", id(1)));
        work.let_go(id(1));
        assert!(work.reserve("run", id(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_fall_due_in_order() {
        let work = Work::default();
        let now = Instant::now();
        work.retry_at(id(2), now + Duration::from_secs(1));
        work.retry_at(id(1), now + Duration::from_secs(2));
        assert_eq!(work.due(now), []);
        assert_eq!(work.next_due(), Some(now + Duration::from_secs(1)));
        assert_eq!(work.due(now + Duration::from_secs(2)), [id(1), id(2)]);
    }
}
