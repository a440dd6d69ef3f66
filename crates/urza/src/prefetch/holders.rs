//! Which training runs hold which kernels: noted in memory with each answer, written as leases beside the loop.
//! Decides without a clock and without the catalogue.
//!
//! A pair of run and kernel is written at once when it is new, and again when it is noted a quarter of the time to live
//! or more after it was written; a thousand requests between are one look into a map each. A trainer asks again every
//! third, so none of its renewals is passed over, and one may be lost.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use kernel::Digest;
use tokio::time::Instant;

use crate::lease;

/// What a run has a kernel for.
pub(super) const PURPOSE: &str = "training run";
/// Leases written in one step.
pub(super) const BATCH_MAX: usize = 256;
/// Pairs that are remembered. Of more, each note is not written before there is room again.
const PAIRS_MAX: usize = 65_536;
/// What could not be written is written again after this.
const PAUSE: Duration = Duration::from_secs(1);

/// A run and what it holds.
pub(super) type Pair = (Digest, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be written, or being written.
    Due,
    Written(Instant),
}

/// What became of a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// It is written, or will be next.
    Held,
    /// The run has no name that a lease can have.
    Nameless,
    /// Too many are remembered.
    NoRoom,
}

#[derive(Debug)]
pub(super) struct Holders {
    ttl: Duration,
    pairs_max: usize,
    pairs_len: usize,
    runs: HashMap<String, HashMap<Digest, State>>,
    due: VecDeque<Pair>,
    /// No write before this: the last one failed.
    pause_until: Option<Instant>,
    /// Before this there is no room again.
    full_until: Option<Instant>,
}

impl Holders {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            pairs_max: PAIRS_MAX,
            pairs_len: 0,
            runs: HashMap::new(),
            due: VecDeque::new(),
            pause_until: None,
            full_until: None,
        }
    }

    /// Pairs that wait to be written.
    pub(super) fn due_len(&self) -> usize {
        self.due.len()
    }

    /// A run is told of a kernel.
    pub(super) fn note(&mut self, run: &str, digest: &Digest, now: Instant) -> Noted {
        let known = self.runs.get_mut(run).and_then(|kernels| kernels.get_mut(digest));
        match known {
            Some(State::Due) => return Noted::Held,
            Some(State::Written(at)) if now < *at + self.ttl / 4 => return Noted::Held,
            Some(state) => *state = State::Due,
            None => {
                if !lease::is_name(run) {
                    return Noted::Nameless;
                }
                if !self.has_room(now) {
                    return Noted::NoRoom;
                }
                self.pairs_len += 1;
                self.runs.entry(run.to_owned()).or_default().insert(*digest, State::Due);
            }
        }
        self.due.push_back((*digest, run.to_owned()));
        Noted::Held
    }

    /// Makes room, where there is none, by forgetting whose lease is over.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.pairs_len < self.pairs_max {
            return true;
        }
        if self.full_until.is_some_and(|until| now < until) {
            return false;
        }
        let ttl = self.ttl;
        let is_held = |state: &State| match state {
            State::Due => true,
            State::Written(at) => now < *at + ttl,
        };
        self.runs.retain(|_, kernels| {
            kernels.retain(|_, state| is_held(state));
            !kernels.is_empty()
        });
        self.pairs_len = self.runs.values().map(HashMap::len).sum();
        let has_room = self.pairs_len < self.pairs_max;
        // Looking through all of them is not for every request.
        self.full_until = (!has_room).then(|| now + PAUSE);
        has_room
    }

    /// Takes what is to be written now; hand it back to [`Holders::written`] or [`Holders::unwritten`].
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Pair> {
        if self.pause_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        self.pause_until = None;
        self.due.drain(..self.due.len().min(BATCH_MAX)).collect()
    }

    /// A batch is written, but for artifacts that there are not: who asks again is looked for anew.
    pub(super) fn written(&mut self, batch: &[Pair], unknown: &[Pair], began: Instant) {
        for (digest, run) in batch {
            if let Some(state) = self.state(run, digest) {
                *state = State::Written(began);
            }
        }
        for (digest, run) in unknown {
            let Some(kernels) = self.runs.get_mut(run) else { continue };
            self.pairs_len -= usize::from(kernels.remove(digest).is_some());
            if kernels.is_empty() {
                self.runs.remove(run);
            }
        }
    }

    /// A batch could not be written: it goes first in the next, after a pause.
    pub(super) fn unwritten(&mut self, batch: Vec<Pair>, now: Instant) {
        self.pause_until = Some(now + PAUSE);
        for pair in batch.into_iter().rev() {
            self.due.push_front(pair);
        }
    }

    fn state(&mut self, run: &str, digest: &Digest) -> Option<&mut State> {
        self.runs.get_mut(run)?.get_mut(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(3600);

    fn after(now: Instant, s: u64) -> Instant {
        now + Duration::from_secs(s)
    }

    fn write(holders: &mut Holders, now: Instant) -> Vec<Pair> {
        let batch = holders.take_due(now);
        holders.written(&batch, &[], now);
        batch
    }

    #[test]
    fn a_thousand_notes_are_one_write_until_a_quarter_of_the_time_is_over() {
        let (mut holders, start, digest) = (Holders::new(TTL), Instant::now(), Digest::of("one"));
        for _ in 0..1000 {
            assert_eq!(holders.note("run", &digest, start), Noted::Held);
        }
        let pair = (digest, "run".to_owned());
        assert_eq!(write(&mut holders, start), std::slice::from_ref(&pair));
        holders.note("run", &digest, after(start, 899));
        assert!(write(&mut holders, after(start, 899)).is_empty());
        holders.note("run", &digest, after(start, 900));
        assert_eq!(write(&mut holders, after(start, 900)), [pair]);
    }

    #[test]
    fn what_is_noted_while_it_is_written_is_not_written_again() {
        let (mut holders, now, digest) = (Holders::new(TTL), Instant::now(), Digest::of("one"));
        holders.note("run", &digest, now);
        let batch = holders.take_due(now);
        holders.note("run", &digest, now);
        holders.written(&batch, &[], now);
        assert_eq!((batch.len(), holders.due_len()), (1, 0));
    }

    #[test]
    fn what_could_not_be_written_goes_first_after_a_pause() {
        let (mut holders, now) = (Holders::new(TTL), Instant::now());
        let [one, two] = ["one", "two"].map(Digest::of);
        holders.note("run", &one, now);
        let batch = holders.take_due(now);
        holders.note("run", &two, now);
        holders.unwritten(batch, now);
        assert!(holders.take_due(now).is_empty());
        let next = holders.take_due(now + PAUSE);
        assert_eq!(next.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [one, two]);
    }

    #[test]
    fn what_there_is_not_is_forgotten_and_noted_anew() {
        let (mut holders, now, digest) = (Holders::new(TTL), Instant::now(), Digest::of("one"));
        holders.note("run", &digest, now);
        let batch = holders.take_due(now);
        holders.written(&batch, &batch, now);
        assert_eq!(holders.pairs_len, 0);
        assert!(holders.runs.is_empty());
        holders.note("run", &digest, now);
        assert_eq!(write(&mut holders, now), batch);
    }

    #[test]
    fn a_run_without_a_fit_name_holds_nothing() {
        let (mut holders, now, digest) = (Holders::new(TTL), Instant::now(), Digest::of("one"));
        for run in ["", "two\nlines", &"x".repeat(257)] {
            assert_eq!(holders.note(run, &digest, now), Noted::Nameless);
        }
        assert_eq!((holders.due_len(), holders.pairs_len), (0, 0));
    }

    #[test]
    fn room_comes_of_leases_that_are_over() {
        let (start, digest) = (Instant::now(), Digest::of("one"));
        let mut holders = Holders { pairs_max: 2, ..Holders::new(TTL) };
        for run in ["a", "b"] {
            assert_eq!(holders.note(run, &digest, start), Noted::Held);
        }
        assert_eq!(holders.note("c", &digest, start), Noted::NoRoom);
        write(&mut holders, start);
        assert_eq!(holders.note("c", &digest, after(start, 3599)), Noted::NoRoom);
        assert_eq!(holders.note("c", &digest, after(start, 3600)), Noted::Held);
        assert_eq!(holders.runs.keys().collect::<Vec<_>>(), ["c"]);
    }

    #[derive(Debug, Clone)]
    struct Step {
        after_s: u64,
        run: usize,
        kernel: usize,
        written: bool,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0..1200_u64, 0..5_usize, 0..5_usize, prop::bool::weighted(0.8));
        let step =
            step.prop_map(|(after_s, run, kernel, written)| Step { after_s, run, kernel, written });
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Bounded; never a pair twice in a batch, or sooner than a quarter of the time; and whatever was noted is
        /// written by the next step that succeeds.
        #[test]
        fn every_note_is_written_in_time_and_none_too_often(steps in steps()) {
            let mut holders = Holders { pairs_max: 12, ..Holders::new(TTL) };
            let mut now = Instant::now();
            let mut written: HashMap<Pair, Instant> = HashMap::new();
            for Step { after_s, run, kernel, written: succeeds } in steps {
                now = after(now, after_s);
                let pair = (Digest::of(kernel.to_string()), format!("run-{run}"));
                let noted = holders.note(&pair.1, &pair.0, now);
                prop_assert!(holders.pairs_len <= 12);
                let counted: usize = holders.runs.values().map(HashMap::len).sum();
                prop_assert_eq!(holders.pairs_len, counted);
                let batch = holders.take_due(now);
                let distinct: HashSet<&Pair> = batch.iter().collect();
                prop_assert_eq!(distinct.len(), batch.len());
                for one in &batch {
                    let before = written.get(one);
                    prop_assert!(before.is_none_or(|at| *at + TTL / 4 <= now));
                }
                if !succeeds {
                    holders.unwritten(batch, now);
                    continue;
                }
                holders.written(&batch, &[], now);
                written.extend(batch.into_iter().map(|one| (one, now)));
                if noted == Noted::Held && holders.pause_until.is_none() {
                    prop_assert!(now < written[&pair] + TTL / 4);
                }
            }
        }
    }
}
