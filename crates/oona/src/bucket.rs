//! Token buckets, one for each origin: how often somebody may use the emergency lane.
//!
//! A bucket holds a minute's worth of tokens and refills evenly. Pure: times are passed in.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A bucket is full after this long without use: it holds what is allowed in this time.
const SPAN: Duration = Duration::from_secs(60);

/// The buckets of all origins. An origin that is not listed has a full bucket.
///
/// Bounded: when so many origins are short of tokens at once, those beyond share one bucket.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// Time in which one token comes back.
    interval: Duration,
    origins_max: usize,
    /// When each bucket will be full again, if nothing is taken.
    full_at: HashMap<String, Instant>,
    /// The same for those beyond the bound, together.
    others_full_at: Option<Instant>,
}

impl Buckets {
    /// `per_min` tokens a minute for every origin, and as many at once after a quiet minute.
    pub(crate) fn new(per_min: u32, origins_max: usize) -> Self {
        let interval = SPAN / per_min.max(1);
        Self { interval, origins_max, full_at: HashMap::new(), others_full_at: None }
    }

    /// From now on so many a minute. What was taken stays taken.
    pub(crate) fn allow(&mut self, per_min: u32) {
        self.interval = SPAN / per_min.max(1);
    }

    /// Takes a token, or says when there will be one.
    pub(crate) fn take(&mut self, origin: &str, now: Instant) -> Result<(), Duration> {
        if let Some(full_at) = self.full_at.get_mut(origin) {
            return take(full_at, self.interval, now);
        }
        if self.full_at.len() >= self.origins_max {
            // A full bucket needs no place.
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        if self.full_at.len() >= self.origins_max {
            return take(self.others_full_at.get_or_insert(now), self.interval, now);
        }
        take(self.full_at.entry(origin.to_owned()).or_insert(now), self.interval, now)
    }
}

/// The level is kept as the time at which the bucket is full again: taking a token moves it on by
/// one interval, and it may not be further away than an empty bucket needs (the generic cell rate
/// algorithm).
fn take(full_at: &mut Instant, interval: Duration, now: Instant) -> Result<(), Duration> {
    let then = (*full_at).max(now) + interval;
    let missing = then.saturating_duration_since(now + SPAN);
    if !missing.is_zero() {
        return Err(missing);
    }
    *full_at = then;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PER_MIN: u32 = 120;

    #[test]
    fn a_minutes_worth_at_once_then_one_per_interval() {
        let now = Instant::now();
        let mut buckets = Buckets::new(PER_MIN, 8);
        for _ in 0..PER_MIN {
            assert_eq!(buckets.take("one", now), Ok(()));
        }
        let half_a_second = Duration::from_millis(500);
        assert_eq!(buckets.take("one", now), Err(half_a_second));
        assert_eq!(buckets.take("two", now), Ok(()), "another's bucket is another's");
        assert_eq!(buckets.take("one", now + half_a_second), Ok(()));
        assert_eq!(buckets.take("one", now + half_a_second), Err(half_a_second));
    }

    #[test]
    fn another_rate_holds_from_the_next_token_on() {
        let now = Instant::now();
        let mut buckets = Buckets::new(PER_MIN, 8);
        for _ in 0..PER_MIN {
            assert_eq!(buckets.take("one", now), Ok(()));
        }
        buckets.allow(60);
        assert_eq!(buckets.take("one", now), Err(Duration::from_secs(1)));
        assert_eq!(buckets.take("one", now + Duration::from_secs(1)), Ok(()));
        buckets.allow(6_000);
        let soon = now + Duration::from_secs(1) + Duration::from_millis(10);
        assert_eq!(buckets.take("one", soon), Ok(()));
    }

    #[test]
    fn origins_are_bounded_and_an_honest_one_keeps_its_own() {
        let now = Instant::now();
        let mut buckets = Buckets::new(PER_MIN, 4);
        assert_eq!(buckets.take("honest", now), Ok(()));
        let invented = (0..1_000).filter(|n| buckets.take(&format!("{n}"), now).is_ok()).count();
        // Three find a place, the others share one bucket.
        assert_eq!(invented, 3 + 120);
        assert_eq!(buckets.full_at.len(), 4);
        assert_eq!(buckets.take("honest", now), Ok(()));
        // Full buckets make room.
        assert_eq!(buckets.take("late", now + SPAN), Ok(()));
        assert!(buckets.full_at.contains_key("late"));
    }

    proptest! {
        /// No origin ever gets more than a full bucket and what refills; who keeps to the rate is
        /// never refused; what is told as waiting time is exact.
        #[test]
        fn rates_are_kept(calls in prop::collection::vec((0_usize..3, 0_u64..900), 1..600)) {
            let start = Instant::now();
            let mut buckets = Buckets::new(PER_MIN, 8);
            let mut at = start;
            let mut taken: [Vec<Instant>; 3] = Default::default();
            let mut polite_next = start;
            for (origin, gap_ms) in calls {
                at += Duration::from_millis(gap_ms / 10);
                if at >= polite_next {
                    prop_assert_eq!(buckets.take("polite", at), Ok(()));
                    polite_next = at + Duration::from_millis(500);
                }
                let name = ["a", "b", "c"][origin];
                match buckets.take(name, at) {
                    Ok(()) => taken[origin].push(at),
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO && wait <= buckets.interval);
                        at += wait;
                        prop_assert_eq!(buckets.take(name, at), Ok(()));
                        taken[origin].push(at);
                    }
                }
            }
            for times in &taken {
                for (first, from) in times.iter().enumerate() {
                    for (last, to) in times.iter().enumerate().skip(first) {
                        let refilled = (*to - *from).as_nanos() / buckets.interval.as_nanos();
                        let limit = u128::from(PER_MIN) + refilled;
                        prop_assert!((last - first + 1) as u128 <= limit);
                    }
                }
            }
        }
    }
}
