//! Repeated events become one line and a count. Decides without a clock: the time comes in.
//!
//! The first of its kind is written at once and opens a window. What repeats it within the window is
//! counted, and the newest of them is kept. When the window closes, that one is written with the
//! count and the next window begins; a window in which nothing repeated ends the matter.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// What was counted and is now written: the newest of the repeated events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repeated<R> {
    /// The newest one.
    pub(super) record: R,
    /// How many there were, this one included.
    pub(super) count: u64,
    /// When the window opened.
    pub(super) since: Duration,
}

#[derive(Debug)]
struct Window<R> {
    opened: Duration,
    seen: Duration,
    count: u64,
    newest: Option<R>,
}

/// Every open window, by what makes two events the same.
#[derive(Debug)]
pub(super) struct Fold<K, R> {
    length: Duration,
    windows_max: usize,
    windows: HashMap<K, Window<R>>,
}

impl<K: Hash + Eq + Copy, R> Fold<K, R> {
    /// Windows of this length, and no more than so many at once.
    pub(super) fn new(length: Duration, windows_max: usize) -> Self {
        Self { length, windows_max: windows_max.max(1), windows: HashMap::new() }
    }

    /// Takes one event in. Returned is what has to be written now, in this order: what an evicted
    /// window had counted, and the event itself unless it repeats another.
    pub(super) fn offer(
        &mut self,
        now: Duration,
        key: K,
        record: R,
    ) -> (Option<Repeated<R>>, Option<R>) {
        if let Some(window) = self.windows.get_mut(&key) {
            window.count += 1;
            window.seen = now;
            window.newest = Some(record);
            return (None, None);
        }
        let evicted = if self.windows.len() < self.windows_max { None } else { self.evict() };
        self.windows.insert(key, Window { opened: now, seen: now, count: 0, newest: None });
        (evicted, Some(record))
    }

    /// Closes the windows that are through, oldest first.
    pub(super) fn close_due(&mut self, now: Duration) -> Vec<Repeated<R>> {
        let length = self.length;
        let mut closed = Vec::new();
        self.windows.retain(|_, window| {
            if now.saturating_sub(window.opened) < length {
                return true;
            }
            let repeated = window.take();
            window.opened = now;
            let goes_on = repeated.is_some();
            closed.extend(repeated);
            goes_on
        });
        closed.sort_by_key(|repeated| repeated.since);
        closed
    }

    /// Closes every window, so that nothing that was counted is lost.
    pub(super) fn close_all(&mut self) -> Vec<Repeated<R>> {
        let windows = std::mem::take(&mut self.windows).into_values();
        let mut closed: Vec<_> = windows.filter_map(|mut window| window.take()).collect();
        closed.sort_by_key(|repeated| repeated.since);
        closed
    }

    /// When the next window is through.
    pub(super) fn next_close(&self) -> Option<Duration> {
        self.windows.values().map(|window| window.opened + self.length).min()
    }

    /// Ends the window whose event was seen longest ago.
    fn evict(&mut self) -> Option<Repeated<R>> {
        let oldest = self.windows.iter().min_by_key(|(_, window)| window.seen);
        let key = oldest.map(|(key, _)| *key)?;
        self.windows.remove(&key)?.take()
    }
}

impl<R> Window<R> {
    fn take(&mut self) -> Option<Repeated<R>> {
        let (count, since) = (std::mem::take(&mut self.count), self.opened);
        self.newest.take().map(|record| Repeated { record, count, since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_goes_out_and_the_rest_is_counted() {
        let mut fold = Fold::new(SECOND * 10, 4);
        assert_eq!(fold.offer(SECOND, 'a', 1), (None, Some(1)));
        assert_eq!(fold.next_close(), Some(SECOND * 11));
        assert_eq!(fold.offer(SECOND * 2, 'a', 2), (None, None));
        assert_eq!(fold.offer(SECOND * 3, 'a', 3), (None, None));
        assert_eq!(fold.close_due(SECOND * 10), []);
        let closed = fold.close_due(SECOND * 11);
        assert_eq!(closed, [Repeated { record: 3, count: 2, since: SECOND }]);
        // It goes on: one line for each window, not two.
        assert_eq!(fold.offer(SECOND * 12, 'a', 4), (None, None));
        assert_eq!(
            fold.close_due(SECOND * 21),
            [Repeated { record: 4, count: 1, since: SECOND * 11 }]
        );
        // A quiet window ends it.
        assert_eq!((fold.close_due(SECOND * 31), fold.next_close()), (vec![], None));
        assert_eq!(fold.offer(SECOND * 32, 'a', 5), (None, Some(5)));
    }

    #[test]
    fn the_window_seen_longest_ago_makes_room() {
        let mut fold = Fold::new(SECOND * 10, 2);
        for (at, key) in [(1, 'a'), (2, 'b'), (3, 'a'), (4, 'b'), (5, 'a')] {
            fold.offer(SECOND * at, key, at);
        }
        let evicted = Some(Repeated { record: 4, count: 1, since: SECOND * 2 });
        assert_eq!(fold.offer(SECOND * 6, 'c', 6), (evicted, Some(6)));
        assert_eq!(fold.close_all(), [Repeated { record: 5, count: 2, since: SECOND }]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Offer(u8),
        Wait(u16),
        Close,
        CloseAll,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..12_u8).prop_map(Step::Offer),
            3 => (0..6000_u16).prop_map(Step::Wait),
            2 => Just(Step::Close),
            1 => Just(Step::CloseAll),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Every event is written or counted, exactly once, and under its own kind.
        #[test]
        fn nothing_is_lost_and_nothing_told_twice(steps in steps(), windows_max in 1..8_usize) {
            let mut fold = Fold::new(SECOND * 2, windows_max);
            let (mut offered, mut told) = (BTreeMap::new(), BTreeMap::new());
            let mut now = Duration::ZERO;
            let mut count = |kind: u8, times: u64| *told.entry(kind).or_insert(0) += times;
            for step in steps {
                let mut closed = Vec::new();
                match step {
                    Step::Offer(kind) => {
                        *offered.entry(kind).or_insert(0) += 1;
                        let (evicted, written) = fold.offer(now, kind, kind);
                        closed.extend(evicted);
                        written.into_iter().for_each(|kind| count(kind, 1));
                    }
                    Step::Wait(ms) => now += Duration::from_millis(ms.into()),
                    Step::Close => closed = fold.close_due(now),
                    Step::CloseAll => closed = fold.close_all(),
                }
                prop_assert!(fold.windows.len() <= windows_max);
                for repeated in closed {
                    prop_assert!(repeated.count > 0 && repeated.since <= now);
                    count(repeated.record, repeated.count);
                }
            }
            for repeated in fold.close_all() {
                count(repeated.record, repeated.count);
            }
            prop_assert_eq!(offered, told);
        }
    }
}
