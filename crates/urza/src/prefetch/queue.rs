//! The order in which requests are served. Decides without a clock.
//!
//! The highest priority goes first, and among equals the earliest deadline. A request that waits is
//! promoted by one priority after each [`AGING`], and no deadline counts as later than [`BUDGET`]
//! after arrival. So nobody starves: whoever has waited for 3 * `AGING` + `BUDGET` longer than
//! another is served before it, whatever either of them asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use leyline::wire::MessagePriority;
use tokio::time::Instant;

/// After so long a request counts as one priority higher.
pub(crate) const AGING: Duration = Duration::from_secs(1);
/// The deadline of a request that has none, and the latest that counts.
pub(crate) const BUDGET: Duration = Duration::from_secs(20);
const LEVELS: usize = 4;

/// What decides when something is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rank {
    pub(crate) priority: MessagePriority,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Option<Instant>,
}

impl Rank {
    /// Of two that want the same: it is served when either would be.
    pub(crate) fn joined(self, other: Self) -> Self {
        let priority = self.priority.max(other.priority);
        let deadline = match (self.deadline, other.deadline) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self { priority, deadline, arrived: self.arrived.min(other.arrived) }
    }

    fn level(self) -> usize {
        match self.priority {
            MessagePriority::Critical => 0,
            MessagePriority::High => 1,
            MessagePriority::Normal | MessagePriority::Unspecified => 2,
            MessagePriority::Low => 3,
        }
    }

    fn due(self) -> Instant {
        let latest = self.arrived + BUDGET;
        self.deadline.map_or(latest, |deadline| deadline.clamp(self.arrived, latest))
    }
}

/// When it is due, and which it is.
type Place = (Instant, u64);

#[derive(Debug)]
struct Level<T> {
    /// With the time of the next promotion.
    waiting: BTreeMap<Place, (Instant, T)>,
    /// Who is promoted when.
    promotions: BTreeMap<Place, Place>,
}

/// What waits to be served.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    levels: [Level<T>; LEVELS],
    pushed: u64,
    len: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        let level = || Level { waiting: BTreeMap::new(), promotions: BTreeMap::new() };
        Self { levels: std::array::from_fn(|_| level()), pushed: 0, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, item: T, rank: Rank) {
        self.pushed += 1;
        self.len += 1;
        let place = (rank.due(), self.pushed);
        self.put(rank.level(), place, rank.arrived + AGING, item);
    }

    fn put(&mut self, level: usize, place: Place, promoted: Instant, item: T) {
        let level_ref = &mut self.levels[level];
        level_ref.waiting.insert(place, (promoted, item));
        if level > 0 {
            level_ref.promotions.insert((promoted, place.1), place);
        }
    }

    /// Takes what is to be served next.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<T> {
        self.promote(now);
        for level in &mut self.levels {
            if let Some(((_, number), (promoted, item))) = level.waiting.pop_first() {
                level.promotions.remove(&(promoted, number));
                self.len -= 1;
                return Some(item);
            }
        }
        None
    }

    /// From the lowest level up, so that who has waited for long goes up several at once.
    fn promote(&mut self, now: Instant) {
        for level in (1..LEVELS).rev() {
            while let Some(entry) = self.levels[level].promotions.first_entry() {
                let (at, _) = *entry.key();
                if at > now {
                    break;
                }
                let place = entry.remove();
                if let Some((_, item)) = self.levels[level].waiting.remove(&place) {
                    self.put(level - 1, place, at + AGING, item);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRIORITIES: [MessagePriority; 4] = [
        MessagePriority::Critical,
        MessagePriority::High,
        MessagePriority::Normal,
        MessagePriority::Low,
    ];

    #[derive(Debug, Clone)]
    struct Step {
        after_ms: u64,
        push: Option<(usize, Option<u64>)>,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let push = (0..PRIORITIES.len(), prop::option::of(0..90_000_u64));
        let step = (0..3_000_u64, prop::option::weighted(0.6, push))
            .prop_map(|(after_ms, push)| Step { after_ms, push });
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn the_next_is_the_most_urgent_and_nobody_starves(steps in steps()) {
            let mut queue = Queue::new();
            let mut now = Instant::now();
            let mut waiting: Vec<Rank> = Vec::new();
            for step in steps {
                now += Duration::from_millis(step.after_ms);
                if let Some((priority, deadline_ms)) = step.push {
                    let deadline = deadline_ms.map(|ms| now + Duration::from_millis(ms));
                    let rank = Rank { priority: PRIORITIES[priority], arrived: now, deadline };
                    queue.push(rank, rank);
                    waiting.push(rank);
                } else {
                    check_pop(&mut queue, &mut waiting, now)?;
                }
            }
            while !waiting.is_empty() {
                check_pop(&mut queue, &mut waiting, now)?;
            }
            prop_assert!(queue.is_empty() && queue.pop(now).is_none());
        }
    }

    /// The level that somebody has come to, by the plain definition.
    fn level(rank: &Rank, now: Instant) -> u64 {
        let promotions = (now - rank.arrived).as_secs() / AGING.as_secs();
        u64::try_from(rank.level()).unwrap().saturating_sub(promotions)
    }

    fn check_pop(
        queue: &mut Queue<Rank>,
        waiting: &mut Vec<Rank>,
        now: Instant,
    ) -> Result<(), TestCaseError> {
        let Some(served) = queue.pop(now) else {
            prop_assert!(waiting.is_empty());
            return Ok(());
        };
        let index = waiting.iter().position(|rank| *rank == served);
        prop_assert!(index.is_some(), "served twice, or never asked");
        waiting.remove(index.unwrap());
        for other in waiting.iter() {
            let (ours, theirs) = (level(&served, now), level(other, now));
            prop_assert!(ours <= theirs);
            prop_assert!(ours < theirs || served.due() <= other.due());
            let overtaken = other.arrived + 3 * AGING + BUDGET < served.arrived;
            prop_assert!(!overtaken, "{other:?} starves behind {served:?}");
        }
        prop_assert_eq!(queue.len(), waiting.len());
        Ok(())
    }

    #[test]
    fn of_two_that_want_the_same_the_more_urgent_decides() {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(3);
        let one = Rank { priority: MessagePriority::Low, arrived: now, deadline: Some(deadline) };
        let later = now + Duration::from_secs(1);
        let two = Rank { priority: MessagePriority::High, arrived: later, deadline: None };
        let both = Rank { priority: MessagePriority::High, arrived: now, deadline: Some(deadline) };
        assert_eq!((one.joined(two), two.joined(one)), (both, both));
    }
}
