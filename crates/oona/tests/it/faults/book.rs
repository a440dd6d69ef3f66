//! What a publisher was told and what a consumer saw, and whether the two agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use oona::{Bus, EntryId, Refusal, Stream, attributes};
use tokio::time::Instant;

use crate::rig::GROUP;

/// Messages are numbered over all keys, and dealt to the keys in turn.
pub const KEYS: u32 = 3;

#[derive(Default)]
pub struct Book(Mutex<Pages>);

#[derive(Default)]
pub struct Pages {
    /// Messages that the publisher was told are safe, and when it began to publish each. Its answer
    /// may come after that of a command which the server carried out later.
    pub told: BTreeMap<u32, Instant>,
    /// Publishing it failed once in a way that may have appended it. It was published again, as a
    /// new message: handling both is right.
    pub uncertain: BTreeSet<u32>,
    pub handled: Vec<Handled>,
}

pub struct Handled {
    pub number: u32,
    pub entry: EntryId,
    pub at: Instant,
}

/// What a fault may cost, beyond nothing.
#[derive(Default)]
pub struct Allowed {
    /// Messages told to be safe whose publishing began between these times may be gone: the server
    /// forgot them.
    pub lost_between: Option<(Instant, Instant)>,
    /// The server may have forgotten acknowledgements and claims: what was handled may come again.
    pub handled_again: Again,
}

#[derive(Default, PartialEq, Eq)]
pub enum Again {
    #[default]
    Never,
    AfterForgetting,
}

impl Book {
    pub fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap()
    }

    pub fn handled_after(&self, time: Instant) -> usize {
        self.pages().handled.iter().filter(|one| one.at > time).count()
    }

    pub fn first_handled_after(&self, time: Instant) -> Option<Instant> {
        self.pages().handled.iter().map(|one| one.at).find(|at| *at > time)
    }

    /// Numbers that are safe by what the publisher was told, and were not handled.
    pub fn missing(&self, allowed: &Allowed) -> Vec<u32> {
        let pages = self.pages();
        let handled: BTreeSet<u32> = pages.handled.iter().map(|one| one.number).collect();
        let excused = |begun: Instant| {
            allowed.lost_between.is_some_and(|(from, to)| from <= begun && begun <= to)
        };
        let missing = |(number, begun): (&u32, &Instant)| {
            (!handled.contains(number) && !excused(*begun)).then_some(*number)
        };
        pages.told.iter().filter_map(missing).collect()
    }

    /// Nothing lost, nothing twice without a reason, order per key, no wrong refusal, nothing left.
    pub async fn balance(&self, bus: &Bus, name: &str, allowed: &Allowed) {
        assert_eq!(self.missing(allowed), [], "{name}: told to be safe and never handled");
        self.nothing_twice(name, allowed);
        self.in_order(name, allowed);
        let refused = |reason| bus.metrics().refused_total(Stream::Normal, reason);
        for reason in Refusal::ALL {
            let expected = match reason {
                // A publisher whose answer was lost appended the same bytes twice.
                Refusal::Replay if allowed.handled_again == Again::Never => copies(bus).await,
                Refusal::Replay => continue,
                _ => 0,
            };
            assert_eq!(refused(reason), expected, "{name}: refused as {reason}");
        }
        assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0, "{name}: left pending");
        let letters = bus.dead_letters(EntryId::ZERO, 10).await.unwrap();
        assert!(letters.is_empty(), "{name}: given up: {letters:?}");
    }

    fn nothing_twice(&self, name: &str, allowed: &Allowed) {
        if allowed.handled_again == Again::AfterForgetting {
            return;
        }
        let pages = self.pages();
        let (mut entries, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for one in &pages.handled {
            assert!(entries.insert(one.entry), "{name}: entry {} handled twice", one.entry);
            let first = numbers.insert(one.number);
            let excused = pages.uncertain.contains(&one.number);
            assert!(first || excused, "{name}: message {} handled twice", one.number);
        }
    }

    /// Every key's messages were first handled in the order in which they were published.
    fn in_order(&self, name: &str, allowed: &Allowed) {
        let pages = self.pages();
        let mut seen = BTreeSet::new();
        let mut last = BTreeMap::new();
        for one in pages.handled.iter().filter(|one| seen.insert(one.number)) {
            let before = last.insert(one.number % KEYS, one.number);
            // What the server forgot and the publisher never repeated leaves gaps, not disorder.
            let _ = allowed;
            assert!(before < Some(one.number), "{name}: {} after {before:?}", one.number);
        }
    }
}

/// Entries that repeat the nonce of an earlier one.
async fn copies(bus: &Bus) -> u64 {
    let (mut after, mut ids, mut copies) = (EntryId::ZERO, BTreeSet::new(), 0);
    loop {
        let page = bus.peek(Stream::Normal, after, 1000).await.unwrap();
        let Some(last) = page.last() else { return copies };
        after = last.id;
        for entry in page {
            let id = entry.envelope.unwrap().attributes[attributes::ID].clone();
            copies += u64::from(!ids.insert(id));
        }
    }
}
