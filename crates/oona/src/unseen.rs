//! Deliveries that the log has counted and that no handler has seen.
//!
//! The log counts a delivery when an entry is claimed, also when the answer to the claim never
//! arrives. A log that answers too late would use up the attempts of entries that nobody has tried
//! to handle, and they would be given up; so those deliveries are noted and left out.

use std::collections::HashMap;

use crate::entry::EntryId;
use crate::log::PendingEntry;

/// Entries noted at once. Beyond it the oldest notes go: their entries may be given up early, into
/// the dead-letter stream.
const NOTES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Unseen {
    /// Claims without an answer: the log's count before them.
    asked: HashMap<EntryId, u32>,
    /// Deliveries that are known to have been counted and not seen.
    unseen: HashMap<EntryId, u32>,
}

impl Unseen {
    /// The claim of these entries, as [`correct`](Self::correct) left them, got no answer.
    pub(crate) fn unanswered(&mut self, entries: &[PendingEntry]) {
        for entry in entries {
            let unseen = self.unseen.get(&entry.id).copied().unwrap_or(0);
            self.asked.insert(entry.id, entry.deliveries + unseen);
        }
        for notes in [&mut self.asked, &mut self.unseen] {
            if notes.len() > NOTES_MAX {
                let mut ids: Vec<EntryId> = notes.keys().copied().collect();
                ids.sort_unstable();
                let first_kept = ids[ids.len() - NOTES_MAX];
                notes.retain(|id, _| *id >= first_kept);
            }
        }
    }

    /// Takes what was not seen out of the log's counts, in a list just got from the log.
    pub(crate) fn correct(&mut self, entries: &mut [PendingEntry], own: &str) {
        if self.asked.is_empty() && self.unseen.is_empty() {
            return;
        }
        for entry in entries {
            if let Some(before) = self.asked.remove(&entry.id)
                && entry.consumer == own
            {
                let counted = entry.deliveries.saturating_sub(before);
                *self.unseen.entry(entry.id).or_default() += counted;
            }
            let unseen = self.unseen.get(&entry.id).copied().unwrap_or(0);
            entry.deliveries = entry.deliveries.saturating_sub(unseen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn listed(consumer: &str, deliveries: u32) -> [PendingEntry; 1] {
        let id = EntryId { ms: 1, seq: 0 };
        [PendingEntry { id, consumer: consumer.to_owned(), idle: Duration::ZERO, deliveries }]
    }

    fn corrected(unseen: &mut Unseen, mut list: [PendingEntry; 1]) -> [PendingEntry; 1] {
        unseen.correct(&mut list, "me");
        list
    }

    #[test]
    fn a_claim_without_an_answer_is_no_attempt_however_often() {
        let mut unseen = Unseen::default();
        let mut list = corrected(&mut unseen, listed("dead", 1));
        for counted in 2..9 {
            unseen.unanswered(&list);
            list = corrected(&mut unseen, listed("me", counted));
            assert_eq!(list[0].deliveries, 1);
        }
        // Answered at last, handled and failed: the next delivery is one more.
        assert_eq!(corrected(&mut unseen, listed("me", 9))[0].deliveries, 2);
    }

    #[test]
    fn a_claim_that_never_reached_the_log_changes_nothing() {
        let mut unseen = Unseen::default();
        unseen.unanswered(&listed("dead", 2));
        assert_eq!(corrected(&mut unseen, listed("dead", 2))[0].deliveries, 2);
        // Somebody else was faster: its delivery counts.
        unseen.unanswered(&listed("dead", 2));
        assert_eq!(corrected(&mut unseen, listed("other", 3))[0].deliveries, 3);
    }

    #[test]
    fn notes_are_bounded() {
        let mut unseen = Unseen::default();
        let many: Vec<PendingEntry> = (0..2 * NOTES_MAX as u64)
            .map(|ms| PendingEntry { id: EntryId { ms, seq: 0 }, ..listed("me", 1)[0].clone() })
            .collect();
        unseen.unanswered(&many);
        assert_eq!(unseen.asked.len(), NOTES_MAX);
    }
}
