//! What waits, counted. Pure.

use super::SpoolStanding;
use crate::stream::Stream;

/// Messages and bytes that wait, for each stream and in all, and the numbers given out.
#[derive(Debug)]
pub(super) struct Book {
    messages_max: u64,
    bytes_max: u64,
    waiting: [u64; Stream::ALL.len()],
    all: SpoolStanding,
    next: u64,
}

impl Book {
    pub(super) fn new(messages_max: u64, bytes_max: u64) -> Self {
        Self {
            messages_max,
            bytes_max,
            waiting: Default::default(),
            all: SpoolStanding::default(),
            next: 0,
        }
    }

    /// Gives a message its number, unless it would be one too many; says how many then wait for its
    /// stream.
    pub(super) fn reserve(&mut self, lane: u8, bytes: u64) -> Option<(u64, u64)> {
        let fits = self.all.messages < self.messages_max
            && self.all.bytes.saturating_add(bytes) <= self.bytes_max;
        if !fits {
            return None;
        }
        let seq = self.next;
        self.next += 1;
        self.adopt(lane, 1, bytes);
        Some((seq, self.waiting[usize::from(lane)]))
    }

    /// Messages found on disk wait as well, also beyond the bounds: they were accepted.
    pub(super) fn adopt(&mut self, lane: u8, messages: u64, bytes: u64) {
        self.waiting[usize::from(lane)] += messages;
        self.all.messages += messages;
        self.all.bytes += bytes;
    }

    /// These wait no longer.
    pub(super) fn settle(&mut self, lane: u8, messages: u64, bytes: u64) {
        let waiting = &mut self.waiting[usize::from(lane)];
        *waiting = waiting.saturating_sub(messages);
        self.all.messages = self.all.messages.saturating_sub(messages);
        self.all.bytes = self.all.bytes.saturating_sub(bytes);
    }

    /// For each stream.
    pub(super) fn waiting(&self) -> [u64; Stream::ALL.len()] {
        self.waiting
    }

    pub(super) fn standing(&self) -> SpoolStanding {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never beyond a bound, numbers only rise, and what is settled makes room.
        #[test]
        fn it_counts(steps in prop::collection::vec((0_u8..8, 1_u64..400, any::<bool>()), 1..200)) {
            let mut book = Book::new(20, 3_000);
            let mut held: Vec<(u8, u64)> = Vec::new();
            let mut last = None;
            for (lane, bytes, settle) in steps {
                if settle && !held.is_empty() {
                    let (lane, bytes) = held.remove(0);
                    book.settle(lane, 1, bytes);
                } else {
                    let sum: u64 = held.iter().map(|(_, bytes)| bytes).sum();
                    let fits = held.len() < 20 && sum + bytes <= 3_000;
                    let reserved = book.reserve(lane, bytes);
                    prop_assert_eq!(reserved.is_some(), fits);
                    if let Some((seq, waiting)) = reserved {
                        prop_assert!(last.is_none_or(|last| last < seq));
                        last = Some(seq);
                        held.push((lane, bytes));
                        let here = held.iter().filter(|(one, _)| *one == lane).count();
                        prop_assert_eq!(waiting, here as u64);
                    }
                }
                prop_assert_eq!(book.standing().messages, held.len() as u64);
                prop_assert_eq!(book.waiting().iter().sum::<u64>(), held.len() as u64);
            }
        }
    }
}
