//! Random histories of several processes with clocks of their own against one simulated log: at no
//! moment do two of them believe that they hold the lease.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::Leases;
use super::record::Record;
use super::term::{Answer, Position, Step, Term, Times};
use crate::config::LogKind;
use crate::metrics::Metrics;

const TTL: Duration = Duration::from_millis(2_400);
const TIMES: Times = Times { ttl: TTL };

/// One process: its clock, what it believes, and its question under way.
struct Process {
    token: String,
    /// Its clock shows `offset + rate * real`.
    offset: f64,
    rate: f64,
    term: Term,
    /// When it asks next, on its own clock.
    ask_at: Duration,
    asked: Option<Asked>,
    /// Frozen until that real time: it neither sends nor receives, though its clock goes on.
    frozen_until: f64,
    is_dead: bool,
}

/// A question on its way: when it reaches the log and when its answer comes back, in real seconds.
struct Asked {
    sent: Duration,
    step: Step,
    arrives: f64,
    returns: f64,
    answer: Option<Answer>,
    is_lost: bool,
}

impl Process {
    fn clock(&self, real: f64) -> Duration {
        Duration::from_secs_f64(self.offset + self.rate * real)
    }

    fn believes(&self, real: f64) -> Option<u64> {
        match self.term.position(self.clock(real)) {
            Position::Held { fencing, .. } if !self.is_dead => Some(fencing),
            Position::Held { .. } | Position::Standby { .. } | Position::Unknown => None,
        }
    }
}

struct World {
    random: StdRng,
    processes: Vec<Process>,
    record: Record,
    /// Questions that nobody waits for any more, and that reach the log all the same.
    given_up: Vec<(f64, Step, String)>,
    /// The log answers nothing until then.
    log_away_until: f64,
    /// What the server's clock shows beside the real time; it steps.
    server_step: f64,
    real: f64,
    holders: Vec<(String, u64)>,
    overlaps: u32,
    unheld: f64,
    unheld_max: f64,
}

impl World {
    /// `drift` is how much faster or slower than real time a clock may run.
    fn new(seed: u64, drift: f64, times: Times) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let process = |number: u32| Process {
            token: format!("token-{number}"),
            offset: random.random_range(10.0..1_000.0),
            rate: 1.0 + random.random_range(-drift..=drift),
            term: Term::new(times),
            ask_at: Duration::ZERO,
            asked: None,
            frozen_until: 0.0,
            is_dead: false,
        };
        let processes = (0..3).map(process).collect();
        Self {
            random,
            processes,
            record: Record::default(),
            given_up: Vec::new(),
            log_away_until: 0.0,
            server_step: 0.0,
            real: 0.0,
            holders: Vec::new(),
            overlaps: 0,
            unheld: 0.0,
            unheld_max: 0.0,
        }
    }

    fn run(&mut self, seconds: f64, events: bool) {
        const STEP: f64 = 0.01;
        let end = self.real + seconds;
        while self.real < end {
            self.real += STEP;
            if events {
                self.disturb();
            }
            for index in 0..self.processes.len() {
                self.turn(index);
            }
            self.deliver_late();
            self.judge(STEP);
        }
    }

    fn disturb(&mut self) {
        let index = self.random.random_range(0..self.processes.len());
        match self.random.random_range(0..2_000) {
            0..6 => {
                let pause = self.random.random_range(0.1..6.0);
                self.processes[index].frozen_until = self.real + pause;
            }
            6..8 => self.log_away_until = self.real + self.random.random_range(0.1..6.0),
            8..10 => self.server_step += self.random.random_range(-3_600.0..3_600.0),
            10..13 => {
                // It ends well: gives back, and begins anew later under another token.
                let process = &mut self.processes[index];
                process.term.resigned();
                let token = process.token.clone();
                let answer = self.record.apply(Step::Release, &token, "", 0);
                assert!(!answer.is_ours);
                self.born_again(index);
            }
            13..16 => self.born_again(index),
            _ => {}
        }
    }

    /// Killed, and started anew at once: it remembers nothing.
    fn born_again(&mut self, index: usize) {
        let number: u64 = self.random.random();
        let now = self.processes[index].clock(self.real);
        let process = &mut self.processes[index];
        process.token = format!("token-{number}");
        process.term = Term::new(TIMES);
        process.asked = None;
        process.ask_at = now;
    }

    fn turn(&mut self, index: usize) {
        let (real, now_ms) = (self.real, ((self.real + self.server_step + 1e6) * 1e3) as u64);
        let log_is_there = real >= self.log_away_until;
        let process = &mut self.processes[index];
        if process.is_dead {
            return;
        }
        let now = process.clock(real);
        // The server works on what has reached it, whether or not somebody still waits.
        if let Some(asked) = &mut process.asked
            && asked.answer.is_none()
            && asked.arrives <= real
            && log_is_there
        {
            let answer = self.record.apply(asked.step, &process.token, "", now_ms);
            asked.returns = asked.returns.max(real);
            asked.answer = Some(answer);
        }
        if real < process.frozen_until {
            return;
        }
        let times = TIMES;
        if let Some(asked) = process.asked.take() {
            let late = now >= asked.sent + times.patience();
            match asked.answer {
                Some(answer) if !asked.is_lost && asked.returns <= real => {
                    process.term.answered(asked.sent, now, answer);
                    process.ask_at = process.term.next(asked.sent);
                }
                answer if late => {
                    process.ask_at = now;
                    if answer.is_none() {
                        let late = asked.arrives.max(real) + self.random.random_range(0.0..3.0);
                        self.given_up.push((late, asked.step, process.token.clone()));
                    }
                }
                answer => process.asked = Some(Asked { answer, ..asked }),
            }
        }
        if process.asked.is_none() && process.ask_at <= now {
            let there = self.random.random_range(0.0..0.3);
            let back = self.random.random_range(0.0..0.3);
            process.asked = Some(Asked {
                sent: now,
                step: process.term.step(now),
                arrives: real + there * there,
                returns: real + there * there + back * back,
                answer: None,
                is_lost: self.random.random_ratio(1, 20),
            });
        }
    }

    fn deliver_late(&mut self) {
        if self.real < self.log_away_until {
            return;
        }
        let now_ms = ((self.real + self.server_step + 1e6) * 1e3) as u64;
        let (due, later) =
            std::mem::take(&mut self.given_up).into_iter().partition(|(at, ..)| *at <= self.real);
        self.given_up = later;
        let due: Vec<(f64, Step, String)> = due;
        for (_, step, token) in due {
            self.record.apply(step, &token, "", now_ms);
        }
    }

    fn judge(&mut self, step: f64) {
        let real = self.real;
        let believing: Vec<(String, u64)> = self
            .processes
            .iter()
            .filter_map(|process| Some((process.token.clone(), process.believes(real)?)))
            .collect();
        if believing.len() > 1 {
            self.overlaps += 1;
        }
        self.unheld = if believing.is_empty() { self.unheld + step } else { 0.0 };
        self.unheld_max = self.unheld_max.max(self.unheld);
        for holder in believing {
            if self.holders.last() != Some(&holder) {
                self.holders.push(holder);
            }
        }
    }
}

#[test]
fn two_never_hold_at_once_whatever_happens() {
    let mut changes = 0;
    for seed in 0..60 {
        // Clocks a fifth too fast and a fifth too slow.
        let mut world = World::new(seed, 0.2, TIMES);
        world.run(120.0, true);
        assert_eq!(world.overlaps, 0, "seed {seed}: {:?}", world.holders);
        let fencing: Vec<u64> = world.holders.iter().map(|(_, fencing)| *fencing).collect();
        assert!(fencing.is_sorted(), "seed {seed}: the fencing number only grows: {fencing:?}");
        let terms: BTreeSet<&(String, u64)> = world.holders.iter().collect();
        let numbers: BTreeSet<u64> = fencing.iter().copied().collect();
        assert_eq!(terms.len(), numbers.len(), "seed {seed}: no two terms have one number");
        changes += world.holders.len();
    }
    assert!(changes > 300, "the histories tried it: {changes} changes of holder");
}

/// The property can fail: a holder that acts for as long as the lease lives is found out.
#[test]
fn without_the_margin_two_hold_at_once() {
    let mut overlaps = 0;
    for seed in 0..60 {
        let mut world = World::new(seed, 0.2, TIMES);
        // Others wait for half of what the holder counts on.
        for process in &mut world.processes[1..] {
            process.term = Term::new(Times { ttl: TTL / 2 });
        }
        world.run(120.0, true);
        overlaps += world.overlaps;
    }
    assert!(overlaps > 0, "a margin that is not needed is no margin");
}

#[test]
fn a_dead_holder_is_followed_within_its_time_to_live_and_one_renewal() {
    for seed in 0..40 {
        let mut world = World::new(seed, 0.0, TIMES);
        world.run(5.0, false);
        let (token, _) = world.holders.last().unwrap().clone();
        let holder = world.processes.iter_mut().find(|process| process.token == token).unwrap();
        holder.is_dead = true;
        world.unheld_max = 0.0;
        world.run(10.0, false);
        let (successor, _) = world.holders.last().unwrap();
        assert_ne!(*successor, token, "seed {seed}");
        assert!(world.unheld_max < 5.0, "seed {seed}: {} s without a holder", world.unheld_max);
    }
}

#[test]
fn in_quiet_times_the_holder_stays() {
    let mut world = World::new(1, 0.0, TIMES);
    for process in &mut world.processes {
        process.rate = 1.0;
    }
    world.run(60.0, false);
    let tokens: BTreeSet<&String> = world.holders.iter().map(|(token, _)| token).collect();
    assert_eq!(tokens.len(), 1, "{:?}", world.holders);
}

#[test]
fn what_is_given_back_is_free_at_once() {
    let mut record = Record::default();
    let hold = Step::Hold { lapsed: None };
    let first = record.apply(hold, "a", "host/1", 1_000);
    assert!(first.is_ours && first.fencing == 1_000 && first.holder == "host/1");
    let other = record.apply(hold, "b", "host/2", 1_001);
    assert!(!other.is_ours && other.holder == "host/1");
    assert!(!record.apply(Step::Release, "b", "host/2", 1_002).is_ours);
    assert!(record.apply(hold, "a", "host/1", 1_003).is_ours, "nobody else gives it back");
    record.apply(Step::Release, "a", "host/1", 1_004);
    let next = record.apply(hold, "b", "host/2", 900);
    assert!(next.is_ours && next.fencing > first.fencing, "also when the clock goes back");
}

#[test]
fn a_step_is_only_as_good_as_the_clock_it_was_told_by() {
    let at = Duration::from_millis;
    let mut term = Term::new(TIMES);
    assert_eq!(term.position(at(0)), Position::Unknown);
    let theirs =
        |version| Answer { version, fencing: 7, is_ours: false, holder: "host/1".to_owned() };
    term.answered(at(100), at(150), theirs(10));
    assert_eq!(term.position(at(150)), Position::Standby { holder: "host/1" });
    term.answered(at(750), at(760), theirs(10));
    assert_eq!(term.step(at(2_549)), Step::Hold { lapsed: None });
    assert_eq!(term.step(at(2_550)), Step::Hold { lapsed: Some(10) }, "from when it was told");
    assert_eq!(term.next(at(2_400)), at(2_550), "asked as soon as it may be taken");
    term.answered(at(2_400), at(2_410), theirs(11));
    assert_eq!(term.step(at(4_000)), Step::Hold { lapsed: None }, "it was renewed meanwhile");
    let ours = Answer { version: 12, fencing: 12, is_ours: true, holder: "host/2".to_owned() };
    term.answered(at(5_000), at(5_300), ours);
    let until = at(5_000) + TIMES.acting();
    assert_eq!(term.position(at(5_300)), Position::Held { fencing: 12, until });
    assert_eq!(term.position(until), Position::Unknown, "from when it was asked");
    term.answered(at(7_000), at(7_010), theirs(20));
    assert_eq!(term.position(at(7_010)), Position::Standby { holder: "host/1" });
}

/// Where there is nobody to ask, what is wanted is held at once and is never due: a due time that
/// stays in the past would have the keeper turn without end.
#[tokio::test(start_paused = true)]
async fn alone_everything_is_held_and_nothing_is_due() {
    let alone = Leases::new(LogKind::Embedded, TTL, Metrics::detached());
    let shared = Leases::new(LogKind::Redis, TTL, Metrics::detached());
    let leases = [&alone, &shared].map(|leases| leases.want("duty".to_owned(), Some("duty")));
    tokio::time::advance(TTL).await;
    assert!(leases[0].tenure().is_some() && leases[1].tenure().is_none());
    assert_eq!(alone.due(), Duration::MAX);
    assert!(shared.due() < TTL, "the first question is overdue");
}
