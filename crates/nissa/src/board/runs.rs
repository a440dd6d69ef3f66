//! Training runs with a bounded history each.

use std::collections::{BTreeMap, VecDeque};

use leyline::wire::SystemStatePacket;
use serde::Serialize;

use super::Now;
use super::seeds::Seed;

/// Runs kept; the one heard of longest ago goes first.
const RUNS_MAX: usize = 8;
/// Points of a run's history. At this number every second one of the older half is dropped, so
/// that a long run keeps its whole shape and its newest part in full.
const POINTS_MAX: usize = 2048;
/// Seeds shown for one run.
const SEEDS_MAX: usize = 64;
/// Named figures of the newest packet.
const FIGURES_MAX: usize = 64;

/// One epoch. A value that is not finite becomes `null` in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The epoch.
    pub epoch: u32,
    /// When its newest packet was made, Unix milliseconds.
    pub at_ms: u64,
    /// Loss on the validation set.
    pub loss: f32,
    /// Accuracy on the validation set.
    pub accuracy: f32,
    /// Loss on the training set.
    pub training_loss: f32,
    /// Alpha of each seed that has one.
    pub alpha: BTreeMap<String, f32>,
    /// Revision of the board that last changed this point.
    #[serde(skip)]
    pub revision: u64,
}

/// One training run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// Name of the experiment.
    pub experiment: String,
    /// Who reports it.
    pub source: String,
    /// When its first packet arrived, Unix milliseconds.
    pub first_ms: u64,
    /// When its newest packet arrived, Unix milliseconds.
    pub last_ms: u64,
    /// Newest epoch.
    pub epoch: u32,
    /// Optimiser steps so far.
    pub step: u64,
    /// Named figures of the newest packet.
    pub figures: BTreeMap<String, f32>,
    /// Seeds by id.
    pub seeds: BTreeMap<String, Seed>,
    /// History, oldest first.
    pub points: VecDeque<Point>,
    newest_ns: u64,
}

/// All runs, the newest last.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    list: Vec<Run>,
    evicted: u64,
}

/// Whether a packet was the first of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// It was.
    NewRun,
    /// The run is known.
    Known,
}

impl Runs {
    /// Takes one packet.
    pub(super) fn report(
        &mut self,
        now: Now,
        revision: u64,
        packet: &SystemStatePacket,
    ) -> Novelty {
        let known = self.list.iter().position(|run| run.id == packet.training_run_id);
        let mut run = match known {
            Some(index) => self.list.remove(index),
            None => Run::new(now, packet),
        };
        run.report(now, revision, packet);
        self.list.push(run);
        if self.list.len() > RUNS_MAX {
            self.list.remove(0);
            self.evicted += 1;
        }
        if known.is_some() { Novelty::Known } else { Novelty::NewRun }
    }

    /// Notes the blueprint commanded for a seed, in the run that has it and reported last.
    pub(super) fn blueprint(&mut self, seed: &str, blueprint: &str) {
        let run = self.list.iter_mut().rev().find(|run| run.seeds.contains_key(seed));
        if let Some(seed) = run.and_then(|run| run.seeds.get_mut(seed)) {
            seed.blueprint = Some(blueprint.to_owned());
        }
    }

    /// Every run, the one heard of last at the end.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.list.iter()
    }

    /// The run of this id.
    pub fn find(&self, id: &str) -> Option<&Run> {
        self.list.iter().find(|run| run.id == id)
    }

    /// The run heard of last.
    pub fn newest(&self) -> Option<&Run> {
        self.list.last()
    }

    /// Runs forgotten for newer ones.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Run {
    fn new(now: Now, packet: &SystemStatePacket) -> Self {
        Self {
            id: packet.training_run_id.clone(),
            experiment: packet.experiment_name.clone(),
            source: packet.source_subsystem.clone(),
            first_ms: now.unix_ms,
            last_ms: now.unix_ms,
            epoch: 0,
            step: 0,
            figures: BTreeMap::new(),
            seeds: BTreeMap::new(),
            points: VecDeque::new(),
            newest_ns: 0,
        }
    }

    fn report(&mut self, now: Now, revision: u64, packet: &SystemStatePacket) {
        self.last_ms = now.unix_ms;
        let at_ms = match packet.timestamp_ns {
            0 => now.unix_ms,
            nanos => nanos / 1_000_000,
        };
        let point = Point {
            epoch: packet.current_epoch,
            at_ms,
            loss: packet.validation_loss,
            accuracy: packet.validation_accuracy,
            training_loss: packet.training_loss,
            alpha: packet
                .seed_states
                .iter()
                .take(SEEDS_MAX)
                .filter_map(|seed| Some((seed.seed_id.clone(), *seed.metrics.get("alpha")?)))
                .collect(),
            revision,
        };
        // Under pressure a packet may take the emergency lane and overtake older ones. What comes
        // late fills its gap in the history and changes nothing else.
        if packet.timestamp_ns < self.newest_ns {
            return self.fill(point);
        }
        self.newest_ns = packet.timestamp_ns;
        if packet.current_epoch < self.epoch {
            self.rewind(packet.current_epoch);
        }
        self.epoch = packet.current_epoch;
        self.step = packet.global_step;
        self.figures = packet
            .training_metrics
            .iter()
            .take(FIGURES_MAX)
            .map(|(name, value)| (name.clone(), *value))
            .collect();
        for state in packet.seed_states.iter().take(SEEDS_MAX) {
            if self.seeds.len() >= SEEDS_MAX && !self.seeds.contains_key(&state.seed_id) {
                continue;
            }
            self.seeds
                .entry(state.seed_id.clone())
                .or_insert_with(|| Seed::new(&state.seed_id))
                .report(state, packet.current_epoch, at_ms);
        }
        self.append(point);
    }

    /// The trainer went back to an earlier epoch: what it undid is no longer this run's history.
    fn rewind(&mut self, epoch: u32) {
        self.points.retain(|point| point.epoch < epoch);
        for seed in self.seeds.values_mut() {
            seed.rewind(epoch);
        }
    }

    fn append(&mut self, point: Point) {
        if self.points.back().is_some_and(|last| last.epoch == point.epoch) {
            self.points.pop_back();
        }
        if self.points.len() >= POINTS_MAX {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index > POINTS_MAX / 2 || index % 2 == 1
            });
        }
        self.points.push_back(point);
    }

    fn fill(&mut self, point: Point) {
        if let Err(place) = self.points.binary_search_by_key(&point.epoch, |held| held.epoch)
            && self.points.len() < POINTS_MAX
        {
            self.points.insert(place, point);
        }
    }
}
