//! Who uses an artifact. What is leased is not removed, whatever room is wanted.
//!
//! A lease is over when it was not renewed for its time to live. Whoever removes things all day long measures that by
//! its own monotonic clock, so a step of anybody's clock neither ends a lease whose holder still renews it, nor keeps a
//! dead holder's. A program that looks once cannot wait: it goes by the database's clock and takes twice the time.

use std::collections::HashMap;
use std::time::Duration;

use kernel::Digest;
use tokio::time::Instant;

/// Longest name of a holder or a purpose, in bytes.
const TEXT_LEN_MAX: usize = 256;

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What is used.
    pub digest: Digest,
    /// Who uses it: a training run, a machine, a person.
    pub holder: String,
    /// What for, in words.
    pub purpose: String,
    /// How long it holds after each renewal.
    pub ttl: Duration,
    /// How long ago it was last renewed, by the database's clock.
    pub age: Duration,
    /// When it was taken, in Unix milliseconds of the database's clock.
    pub taken_at_ms: u64,
    pub(crate) beat: i64,
}

/// A lease that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseTermsError {
    /// A holder or purpose of another form.
    #[error("a lease's {field} has 1 to {TEXT_LEN_MAX} bytes without control characters")]
    Text {
        /// Which.
        field: &'static str,
    },
    /// A time to live of another length.
    #[error("a lease lives 1 s to 30 days")]
    Ttl,
}

/// Whether this can name a holder or a purpose.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=TEXT_LEN_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

pub(crate) fn check(holder: &str, purpose: &str, ttl: Duration) -> Result<(), LeaseTermsError> {
    const DAY_S: u64 = 86_400;
    for (field, text) in [("holder", holder), ("purpose", purpose)] {
        if !is_name(text) {
            return Err(LeaseTermsError::Text { field });
        }
    }
    let known = Duration::from_secs(1)..=Duration::from_secs(30 * DAY_S);
    if known.contains(&ttl) { Ok(()) } else { Err(LeaseTermsError::Ttl) }
}

/// How somebody tells that a lease is over.
#[derive(Debug)]
pub enum LeaseJudge {
    /// By having watched it stand still for its time to live.
    Watching(LeaseWatch),
    /// By the database's clock, for whoever looks once.
    ByClock,
}

impl LeaseJudge {
    /// Which of these leases are over.
    pub(crate) fn over<'a>(&mut self, leases: &'a [Lease], now: Instant) -> Vec<&'a Lease> {
        match self {
            Self::Watching(watch) => watch.over(leases, now),
            Self::ByClock => leases.iter().filter(|lease| lease.ttl * 2 < lease.age).collect(),
        }
    }
}

/// Since when each lease has stood still, by this process's monotonic clock.
#[derive(Debug, Default)]
pub struct LeaseWatch {
    seen: HashMap<(Digest, String), (i64, Instant)>,
}

impl LeaseWatch {
    fn over<'a>(&mut self, leases: &'a [Lease], now: Instant) -> Vec<&'a Lease> {
        let mut seen = HashMap::with_capacity(leases.len());
        let mut over = Vec::new();
        for lease in leases {
            let key = (lease.digest, lease.holder.clone());
            let since = match self.seen.get(&key) {
                Some((beat, since)) if *beat == lease.beat => *since,
                _ => now,
            };
            if lease.ttl < now.saturating_duration_since(since) {
                over.push(lease);
            }
            seen.insert(key, (lease.beat, since));
        }
        self.seen = seen;
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(beat: i64, age_s: u64) -> Lease {
        Lease {
            digest: Digest::of("one"),
            holder: "run-1".to_owned(),
            purpose: "seed".to_owned(),
            ttl: Duration::from_secs(60),
            age: Duration::from_secs(age_s),
            taken_at_ms: 0,
            beat,
        }
    }

    #[test]
    fn a_lease_is_over_when_it_was_seen_to_stand_still() {
        let (mut judge, start) = (LeaseJudge::Watching(LeaseWatch::default()), Instant::now());
        let after = |s| start + Duration::from_secs(s);
        // A clock that stepped an hour ahead says it is long over; that alone ends nothing.
        assert!(judge.over(&[lease(1, 3600)], after(0)).is_empty());
        assert!(judge.over(&[lease(1, 3660)], after(60)).is_empty());
        assert!(judge.over(&[lease(2, 3600)], after(61)).is_empty(), "it was renewed");
        // A clock that stepped back says it was renewed just now; it stands still all the same.
        assert_eq!(judge.over(&[lease(2, 0)], after(122)).len(), 1);
    }

    #[test]
    fn whoever_looks_once_takes_twice_the_time() {
        let mut judge = LeaseJudge::ByClock;
        assert!(judge.over(&[lease(1, 120)], Instant::now()).is_empty());
        assert_eq!(judge.over(&[lease(1, 121)], Instant::now()).len(), 1);
    }

    #[test]
    fn terms_are_checked() {
        let minute = Duration::from_secs(60);
        assert_eq!(check("run-1", "seed", minute), Ok(()));
        assert_eq!(check("", "seed", minute), Err(LeaseTermsError::Text { field: "holder" }));
        assert_eq!(check("run", "a\nb", minute), Err(LeaseTermsError::Text { field: "purpose" }));
        assert_eq!(check("run", "seed", Duration::ZERO), Err(LeaseTermsError::Ttl));
        assert_eq!(check("run", "seed", minute * 60 * 24 * 31), Err(LeaseTermsError::Ttl));
    }
}
