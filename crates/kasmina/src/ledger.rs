//! Command ids that were executed: an id is accepted once.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use leyline::ids::CommandId;

/// How long an executed id is remembered.
pub const TTL: Duration = Duration::from_secs(300);
/// Ids remembered at most. At the pause quota of one command each 6 ms this is the TTL's worth.
pub const LEN_MAX: usize = 50_000;

/// The ids of the last 300 s. Times are the caller's monotonic clock and never go back.
#[derive(Debug, Default)]
pub struct NonceLedger {
    seen: HashSet<CommandId>,
    order: VecDeque<(Duration, CommandId)>,
}

impl NonceLedger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the id was recorded within the TTL.
    pub fn contains(&mut self, id: &CommandId, now: Duration) -> bool {
        self.purge(now);
        self.seen.contains(id)
    }

    /// Whether there is room for another id. Forgetting one that may still be replayed is no way to
    /// make room, so a full ledger refuses.
    pub fn is_full(&mut self, now: Duration) -> bool {
        self.purge(now);
        self.order.len() >= LEN_MAX
    }

    /// Remembers an id.
    pub fn record(&mut self, id: CommandId, now: Duration) {
        self.purge(now);
        if self.seen.insert(id.clone()) {
            self.order.push_back((now, id));
        }
    }

    /// Ids remembered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn purge(&mut self, now: Duration) {
        while let Some((at, _)) = self.order.front() {
            if now.saturating_sub(*at) < TTL {
                return;
            }
            if let Some((_, id)) = self.order.pop_front() {
                self.seen.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the obvious model: the time of the last recording of each id.
        #[test]
        fn an_id_is_known_exactly_for_the_ttl(
            uses in prop::collection::vec((0_u64..120_000, 0_u8..6), 1..200)
        ) {
            let (mut ledger, mut model) = (NonceLedger::new(), HashMap::new());
            let mut now = Duration::ZERO;
            for (pause_ms, id) in uses {
                now += Duration::from_millis(pause_ms);
                let id = CommandId::new(format!("c{id}"));
                let expected = model.get(&id).is_some_and(|at| now - *at < TTL);
                prop_assert_eq!(ledger.contains(&id, now), expected);
                if !expected {
                    ledger.record(id.clone(), now);
                    model.insert(id, now);
                }
                let live = model.values().filter(|at| now - **at < TTL).count();
                prop_assert_eq!(ledger.len(), live);
            }
        }
    }

    #[test]
    fn a_full_ledger_says_so_until_the_ttl_makes_room() {
        let mut ledger = NonceLedger::new();
        for n in 0..LEN_MAX {
            ledger.record(CommandId::new(n.to_string()), Duration::ZERO);
        }
        assert!(ledger.is_full(Duration::from_secs(299)));
        assert!(!ledger.is_full(Duration::from_secs(300)));
        assert!(ledger.is_empty());
    }
}
