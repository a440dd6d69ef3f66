//! Which kernels the seeds of this trainer hold, and when their leases at the library are renewed. Decides without a
//! clock and without the bus.
//!
//! A kernel is held while a clone of its [`InUse`] lives: in the life of its seed, and before that in what is on its way
//! there. So nobody has to say that a seed has let go, no full queue can lose the word, and when the training thread
//! ends, however it does, its leases run out.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kernel::Digest;
use leyline::ids::{BlueprintId, RequestId};
use tokio::time::Instant;

use crate::fetch::FetchFailure;

/// The first renewal goes out this soon: a service that was killed between an answer and the write of its lease has
/// forgotten it.
const FIRST: Duration = Duration::from_secs(30);
/// A lease is renewed in this part of its time to live.
const RENEWALS: u32 = 3;
/// An answer is waited for this part of the time between two renewals; then it is asked for again.
const ATTEMPTS: u32 = 4;

/// A kernel in use: while a clone of this lives, its lease is renewed.
#[derive(Debug, Clone, Default)]
pub struct InUse(Arc<()>);

impl PartialEq for InUse {
    /// Whether both are of the same fetch.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A renewal to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Renewal {
    pub(crate) request: RequestId,
    pub(crate) blueprint: BlueprintId,
    pub(crate) digest: Digest,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The lease is renewed.
    Yes,
    /// It is not, and a person should know.
    NoAndSaySo,
    /// It is not, and that was said before, or it is asked for again soon.
    No,
}

#[derive(Debug)]
struct Held {
    blueprint: BlueprintId,
    users: Vec<Weak<()>>,
    period: Duration,
    due: Instant,
    /// The renewal that is waited for. Asked again under the same id, so that a late answer is as good.
    asked: Option<RequestId>,
    is_said: bool,
}

impl Held {
    fn is_in_use(&self) -> bool {
        self.users.iter().any(|user| user.strong_count() > 0)
    }
}

/// Every kernel that is held under a lease, by its digest.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    held: BTreeMap<Digest, Held>,
}

impl Renewals {
    /// Kernels that are held under a lease.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// A kernel goes to its seed, under a lease that lives so long.
    pub(crate) fn hold(
        &mut self,
        blueprint: &BlueprintId,
        digest: Digest,
        in_use: &InUse,
        lease: Duration,
        now: Instant,
    ) {
        let period = lease / RENEWALS;
        let due = now + period.min(FIRST);
        let held = self.held.entry(digest).or_insert_with(|| Held {
            blueprint: blueprint.clone(),
            users: Vec::new(),
            period,
            due,
            asked: None,
            is_said: false,
        });
        held.users.retain(|user| user.strong_count() > 0);
        held.users.push(Arc::downgrade(&in_use.0));
        (held.period, held.due) = (period, held.due.min(due));
    }

    /// Forgets what no seed holds any more.
    pub(crate) fn let_go(&mut self) {
        self.held.retain(|_, held| held.is_in_use());
    }

    /// Takes the renewals that are due; one without an answer comes again.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Renewal> {
        self.let_go();
        let mut due = Vec::new();
        for (digest, held) in &mut self.held {
            if now < held.due {
                continue;
            }
            held.due = now + held.period / ATTEMPTS;
            let request = held.asked.get_or_insert_with(RequestId::fresh).clone();
            due.push(Renewal { request, blueprint: held.blueprint.clone(), digest: *digest });
        }
        due
    }

    /// When something is next due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.held.values().map(|held| held.due).min()
    }

    /// Whether an answer is for a renewal that is waited for.
    pub(crate) fn awaits(&self, request: &RequestId, blueprint: &str) -> bool {
        let asked = |held: &Held| {
            held.asked.as_ref() == Some(request) && held.blueprint.as_str() == blueprint
        };
        self.held.values().any(asked)
    }

    /// The library says that an artifact is there, for so long under a lease.
    pub(crate) fn answered(
        &mut self,
        request: &RequestId,
        checksum: &str,
        lease: Option<Duration>,
        now: Instant,
    ) -> Renewed {
        let Some((digest, held)) = self.of(request) else { return Renewed::No };
        let is_this = checksum.parse::<Digest>().ok() == Some(digest);
        // A service that says nothing takes no leases; another one may.
        let renewed = lease.filter(|_| is_this);
        held.period = renewed.map_or(held.period, |lease| lease / RENEWALS);
        (held.asked, held.due) = (None, now + held.period);
        match renewed {
            Some(_) => {
                held.is_said = false;
                Renewed::Yes
            }
            None => held.said(),
        }
    }

    /// The library cannot give what is held. What may pass is asked for again soon; all else at the usual time, since
    /// it may have been built again.
    pub(crate) fn refused(
        &mut self,
        request: &RequestId,
        failure: &FetchFailure,
        now: Instant,
    ) -> Renewed {
        let Some((_, held)) = self.of(request) else { return Renewed::No };
        let may_pass =
            matches!(failure, FetchFailure::Unavailable | FetchFailure::Compiling { .. });
        let wait = if may_pass { held.period / ATTEMPTS } else { held.period };
        (held.asked, held.due) = (None, now + wait);
        if may_pass { Renewed::No } else { held.said() }
    }

    fn of(&mut self, request: &RequestId) -> Option<(Digest, &mut Held)> {
        let mut held = self.held.iter_mut();
        let found = held.find(|(_, held)| held.asked.as_ref() == Some(request));
        found.map(|(digest, held)| (*digest, held))
    }
}

impl Held {
    fn said(&mut self) -> Renewed {
        if std::mem::replace(&mut self.is_said, true) { Renewed::No } else { Renewed::NoAndSaySo }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3600);
    const PERIOD: Duration = Duration::from_secs(1200);

    struct Bench {
        renewals: Renewals,
        digest: Digest,
        in_use: InUse,
        now: Instant,
    }

    fn bench() -> Bench {
        let (mut renewals, in_use) = (Renewals::default(), InUse::default());
        let (digest, now) = (Digest::of("kernel"), Instant::now());
        renewals.hold(&"BP009".into(), digest, &in_use, LEASE, now);
        Bench { renewals, digest, in_use, now }
    }

    impl Bench {
        /// The one renewal that is due after so long, and not before.
        fn asks_after(&mut self, time: Duration) -> RequestId {
            let due = self.now + time;
            assert_eq!(self.renewals.next_due(), Some(due));
            assert_eq!(self.renewals.take_due(due - Duration::from_millis(1)), []);
            self.now = due;
            let [renewal]: [Renewal; 1] = self.renewals.take_due(due).try_into().unwrap();
            assert_eq!((renewal.blueprint.as_str(), renewal.digest), ("BP009", self.digest));
            assert!(self.renewals.awaits(&renewal.request, "BP009"));
            assert!(!self.renewals.awaits(&renewal.request, "BP001"));
            renewal.request
        }

        fn answered(&mut self, request: &RequestId, lease: Option<Duration>) -> Renewed {
            self.renewals.answered(request, &self.digest.to_hex(), lease, self.now)
        }
    }

    #[test]
    fn a_lease_is_renewed_soon_and_then_each_third_of_its_time() {
        let mut b = bench();
        let request = b.asks_after(FIRST);
        assert_eq!(b.answered(&request, Some(LEASE)), Renewed::Yes);
        assert!(!b.renewals.awaits(&request, "BP009"), "an answer counts once");
        let request = b.asks_after(PERIOD);
        assert_eq!(b.answered(&request, Some(LEASE / 2)), Renewed::Yes);
        b.asks_after(PERIOD / 2);
    }

    #[test]
    fn a_renewal_without_an_answer_is_sent_again_under_its_id() {
        let mut b = bench();
        let request = b.asks_after(FIRST);
        for _ in 0..3 {
            assert_eq!(b.asks_after(PERIOD / 4), request);
        }
        assert_eq!(b.answered(&request, Some(LEASE)), Renewed::Yes);
        assert_ne!(b.asks_after(PERIOD), request);
    }

    #[test]
    fn what_cannot_be_renewed_is_said_once_until_it_can() {
        let mut b = bench();
        let request = b.asks_after(FIRST);
        let gone = FetchFailure::MissingArtifact;
        assert_eq!(b.renewals.refused(&request, &gone, b.now), Renewed::NoAndSaySo);
        let request = b.asks_after(PERIOD);
        assert_eq!(b.renewals.refused(&request, &gone, b.now), Renewed::No);
        let request = b.asks_after(PERIOD);
        assert_eq!(b.renewals.refused(&request, &FetchFailure::Unavailable, b.now), Renewed::No);
        let request = b.asks_after(PERIOD / 4);
        assert_eq!(b.answered(&request, Some(LEASE)), Renewed::Yes);
        let request = b.asks_after(PERIOD);
        assert_eq!(b.renewals.refused(&request, &gone, b.now), Renewed::NoAndSaySo);
    }

    #[test]
    fn another_artifact_and_an_answer_without_a_lease_renew_nothing() {
        let mut b = bench();
        let request = b.asks_after(FIRST);
        let other = Digest::of("another").to_hex();
        let found = b.renewals.answered(&request, &other, Some(LEASE), b.now);
        assert_eq!(found, Renewed::NoAndSaySo);
        let request = b.asks_after(PERIOD);
        assert_eq!(b.answered(&request, None), Renewed::No);
        b.asks_after(PERIOD);
    }

    #[test]
    fn what_no_seed_holds_is_not_renewed() {
        let mut b = bench();
        let (second, clone) = (InUse::default(), b.in_use.clone());
        b.renewals.hold(&"BP009".into(), b.digest, &second, LEASE, b.now);
        drop(std::mem::take(&mut b.in_use));
        drop(second);
        let request = b.asks_after(FIRST);
        drop(clone);
        assert_eq!(b.renewals.take_due(b.now + LEASE), []);
        assert_eq!((b.renewals.len(), b.renewals.next_due()), (0, None));
        assert_eq!(b.answered(&request, Some(LEASE)), Renewed::No, "an answer that comes too late");
    }
}
