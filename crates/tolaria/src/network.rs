//! The network in training: parameters, optimiser and the passes for its present form. When a slot changes its mode
//! the passes are composed anew; parameters and the optimiser's state of everything else stay. A pass that was made for
//! something else (other rows, other parameters trained) is found by its guard and made anew too.

use std::collections::BTreeMap;
use std::time::Instant;

use kasmina::BlendMode;
use kernel::optimiser::{Adam, Optimiser, OptimiserError};
use kernel::{
    Execution, Fallback, Graph, GraphError, ParamStore, Params, PlanMismatch, Purpose, RunError,
    STEP_INPUT, StoreError, differentiate,
};
use leyline::ids::SeedId;

use crate::data::Part;
use crate::host::{
    self, EMBED, FEATURES, HEAD, HostShape, LABELS, LOGITS, LOSS, Mode, Site, is_of,
};
use crate::pass::{Pass, PassCounts, Wanted};

/// Scores this close (in nats) are equal, and of equal scores the first class counts: a network that knows nothing is
/// then not right, or wrong, by the noise in its last digits.
const TIE: f32 = 0.01;
/// Gradients of a pass are scaled down to this norm, all together.
const GRADIENT_NORM_MAX: f32 = 1.0;
/// A seed that was trained in isolation goes on at this share of its rate once the host sees it. At full rate it makes
/// up for a small alpha by a large output, which is far too large when alpha has risen.
const SEEN_RATE: f32 = 0.1;
/// Rows evaluated in one step at most: bounds the memory of its pass.
const EVALUATION_ROWS_MAX: usize = 1024;

/// Why the engine refused. All of them are faults of this program or of a kernel, none of the data.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A graph cannot be composed.
    #[error("the network cannot be composed in this form")]
    Graph(#[from] GraphError),
    /// A plan cannot run.
    #[error("a training step cannot run")]
    Run(#[from] RunError),
    /// The parameters are not those of the graph.
    #[error("the parameters do not fit the network")]
    Store(#[from] StoreError),
    /// The optimiser refused.
    #[error("the optimiser refused a step")]
    Optimiser(#[from] OptimiserError),
    /// There is no such slot.
    #[error("there is no slot {0}")]
    NoSlot(SeedId),
}

/// A kernel's graph with its weights, to be grown at one slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Graft {
    /// Input `input`, output `output`, of one shape but for the batch.
    pub graph: Graph,
    /// Weights by the graph's own names.
    pub params: Params,
    /// What must run the passes it is part of; a plan that was found wrong elsewhere is used nowhere.
    pub execution: Execution,
}

impl Graft {
    /// Numbers in its weights.
    pub fn parameter_count(&self) -> usize {
        self.params.element_count()
    }
}

#[derive(Debug, Clone)]
struct Slot {
    seed: SeedId,
    mode: Mode,
    blend: BlendMode,
    alpha: f32,
    /// Learning rate of its seed in isolation.
    rate: Option<f32>,
    graft: Option<Graft>,
}

/// The host with its slots, in training.
#[derive(Debug)]
pub struct Network {
    shape: HostShape,
    batch: usize,
    slots: Vec<Slot>,
    store: ParamStore,
    optimiser: Optimiser,
    steps: u64,
    passes: Option<Passes>,
    evaluations: BTreeMap<usize, Pass>,
    counts: PassCounts,
}

#[derive(Debug)]
struct Passes {
    host: Pass,
    isolated: Vec<(SeedId, Pass)>,
    alphas: Vec<String>,
}

impl Passes {
    /// Whether each serves for so many rows and the slots as they are.
    fn check(&self, sites: &[Site<'_>], rows: usize) -> Result<(), PlanMismatch> {
        let purpose = Purpose::Training;
        for (seed, pass) in &self.isolated {
            let trained = host::isolated_trains(seed);
            pass.check(Wanted { purpose, rows, trained: &trained })?;
        }
        let trained = host::host_trains(sites);
        self.host.check(Wanted { purpose, rows, trained: &trained })
    }
}

/// The host's own parameters at some time, to come back to.
#[derive(Debug, Clone)]
pub struct Snapshot(Params);

/// What one step showed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutcome {
    /// Loss of the host's pass.
    pub loss: f32,
    /// Norm of all its gradients together.
    pub gradient_norm: f32,
    /// Each seed that took part, in slot order.
    pub seeds: Vec<SeedStep>,
}

/// What one step showed of one seed.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedStep {
    /// Which.
    pub seed: SeedId,
    /// Its own loss while isolated, else the network's.
    pub loss: f32,
    /// Norm of its own gradients, where it trained.
    pub gradient_norm: Option<f32>,
    /// Norm of the gradients that its branch put on the host.
    pub host_gradient_norm: Option<f32>,
    /// Root mean squares of the host's activation and of its output.
    pub scale: Option<(f32, f32)>,
    /// Milliseconds its isolated pass took.
    pub isolated_ms: Option<f32>,
}

/// How good the network is on some rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Mean cross entropy in nats.
    pub loss: f32,
    /// Share of rows whose class is right, 0 to 1.
    pub accuracy: f32,
}

impl Network {
    /// A host with empty slots, initialised by `seed`.
    ///
    /// # Errors
    /// [`NetworkError`] when the sizes do not make a network.
    pub fn new(
        shape: HostShape,
        slots: &[SeedId],
        batch: usize,
        rate: f32,
        seed: u64,
    ) -> Result<Self, NetworkError> {
        let slots: Vec<Slot> = slots
            .iter()
            .map(|seed| Slot {
                seed: seed.clone(),
                mode: Mode::Identity,
                blend: BlendMode::Convex,
                alpha: 0.0,
                rate: None,
                graft: None,
            })
            .collect();
        let bare = host::host_pass(shape, &[], batch)?;
        let params = bare.graph.init_params(seed);
        let mut store = ParamStore::new();
        let mut optimiser = Optimiser::adam(Adam::default());
        for group in [EMBED, HEAD] {
            let own = params.iter().filter(|(name, _)| name.starts_with(group));
            let own: Params = own.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
            store.add_group(group, &own)?;
            optimiser.add_group(group, rate)?;
        }
        Ok(Self {
            shape,
            batch,
            slots,
            store,
            optimiser,
            steps: 0,
            passes: None,
            evaluations: BTreeMap::new(),
            counts: PassCounts::default(),
        })
    }

    /// Puts a kernel into a slot; the host does not see it yet.
    ///
    /// # Errors
    /// [`NetworkError`] when there is no such slot or something grows there already.
    pub fn attach(
        &mut self,
        seed: &SeedId,
        graft: Graft,
        blend: BlendMode,
        rate: f32,
    ) -> Result<(), NetworkError> {
        let index = self.index(seed)?;
        self.store.add_group(seed.as_str(), &graft.params.prefixed(seed.as_str()))?;
        if let Err(error) = self.optimiser.add_group(seed.as_str(), rate) {
            self.store.remove_group(seed.as_str())?;
            return Err(error.into());
        }
        let slot = &mut self.slots[index];
        slot.rate = Some(rate);
        (slot.graft, slot.blend, slot.mode, slot.alpha) = (Some(graft), blend, Mode::Isolated, 0.0);
        self.changed();
        Ok(())
    }

    /// Takes what grows in a slot out; the slot is the identity again. An empty one stays so.
    ///
    /// # Errors
    /// [`NetworkError::NoSlot`]
    pub fn detach(&mut self, seed: &SeedId) -> Result<(), NetworkError> {
        let index = self.index(seed)?;
        let slot = &mut self.slots[index];
        (slot.mode, slot.alpha) = (Mode::Identity, 0.0);
        if slot.graft.take().is_some() {
            self.store.remove_group(seed.as_str())?;
            self.optimiser.remove_group(seed.as_str())?;
        }
        self.changed();
        Ok(())
    }

    /// Changes what a slot does.
    ///
    /// # Errors
    /// [`NetworkError::NoSlot`]
    pub fn set_mode(&mut self, seed: &SeedId, mode: Mode) -> Result<(), NetworkError> {
        let index = self.index(seed)?;
        let slot = &mut self.slots[index];
        if slot.mode != mode {
            slot.mode = mode;
            if let Some(rate) = slot.graft.as_ref().and(slot.rate) {
                let share = if matches!(mode, Mode::Blended | Mode::Shadowed | Mode::Live) {
                    SEEN_RATE
                } else {
                    1.0
                };
                self.optimiser.set_rate(seed.as_str(), rate * share)?;
            }
            self.changed();
        }
        Ok(())
    }

    /// Sets how much of a blended seed the host sees, 0 to 1.
    ///
    /// # Errors
    /// [`NetworkError::NoSlot`]
    pub fn set_alpha(&mut self, seed: &SeedId, alpha: f32) -> Result<(), NetworkError> {
        let index = self.index(seed)?;
        self.slots[index].alpha = alpha;
        Ok(())
    }

    /// What a slot does.
    pub fn mode(&self, seed: &SeedId) -> Option<Mode> {
        self.slots.iter().find(|slot| slot.seed == *seed).map(|slot| slot.mode)
    }

    /// Multiplies every learning rate.
    ///
    /// # Errors
    /// [`NetworkError::Optimiser`] for a factor that makes no rate.
    pub fn scale_rates(&mut self, factor: f32) -> Result<(), NetworkError> {
        let groups: Vec<String> = self.optimiser.groups().map(str::to_owned).collect();
        for group in groups {
            let rate = self.optimiser.rate(&group).unwrap_or(0.0) * factor;
            self.optimiser.set_rate(&group, rate)?;
        }
        Ok(())
    }

    /// Whether something grows in a slot.
    pub fn has_graft(&self, seed: &SeedId) -> bool {
        self.slots.iter().any(|slot| slot.seed == *seed && slot.graft.is_some())
    }

    /// What grows, as it was attached, in slot order: only what the host sees.
    pub(crate) fn grafts(&self) -> Vec<(SeedId, Graft, BlendMode)> {
        let seen = self.slots.iter().filter(|slot| slot.mode.is_seen());
        seen.filter_map(|slot| Some((slot.seed.clone(), slot.graft.clone()?, slot.blend.clone())))
            .collect()
    }

    /// Learning rate of the host.
    pub fn rate(&self) -> f32 {
        self.optimiser.rate(HEAD).unwrap_or(0.0)
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Rows a step takes.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Numbers in all parameters the host sees.
    pub fn parameter_count(&self) -> usize {
        let seen = self.slots.iter().filter(|slot| slot.mode.is_seen());
        let grafts: usize =
            seen.filter_map(|slot| slot.graft.as_ref()).map(Graft::parameter_count).sum();
        self.host_parameter_count() + grafts
    }

    /// Numbers in the host's own parameters.
    pub fn host_parameter_count(&self) -> usize {
        let HostShape { features, width, classes } = self.shape;
        (features + 1) * width + (width + 1) * classes
    }

    /// Names of the host's own parameters.
    pub fn host_parameters(&self) -> Vec<String> {
        [EMBED, HEAD].iter().flat_map(|group| self.store.names(group)).map(str::to_owned).collect()
    }

    /// The host's own parameters, to come back to.
    pub fn snapshot(&self) -> Snapshot {
        let own = self.host_parameters();
        let all = self.store.params();
        Snapshot(
            own.iter().filter_map(|name| Some((name.clone(), all.get(name)?.clone()))).collect(),
        )
    }

    /// All parameters, those of seeds under their slot's id.
    pub fn params(&self) -> Params {
        self.store.params()
    }

    /// Brings the host's own parameters back to those of a snapshot, slots and step count as they are.
    ///
    /// # Errors
    /// [`NetworkError::Store`] when the snapshot is of another host.
    pub fn restore_host(&mut self, snapshot: &Snapshot) -> Result<(), NetworkError> {
        for (name, tensor) in snapshot.0.iter() {
            self.store.set(name, tensor.data())?;
        }
        Ok(())
    }

    /// What has become of the passes since this was last asked.
    pub fn take_counts(&mut self) -> PassCounts {
        std::mem::take(&mut self.counts)
    }

    /// One optimiser step on one batch: the pass of the host, then that of each isolated seed. A batch of other than
    /// [`Self::batch`] rows is taken too, by passes made for it.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub fn step(&mut self, features: &[f32], labels: &[f32]) -> Result<StepOutcome, NetworkError> {
        self.make_ready(labels.len())?;
        let Some(passes) = self.passes.as_mut() else { return Ok(StepOutcome::default()) };
        let step = [self.steps as f32];
        let alphas: Vec<[f32; 1]> = self.slots.iter().map(|slot| [slot.alpha]).collect();
        let mut inputs: Vec<(&str, &[f32])> =
            vec![(FEATURES, features), (LABELS, labels), (STEP_INPUT, &step)];
        inputs.extend(
            passes.alphas.iter().map(String::as_str).zip(alphas.iter().map(<[f32; 1]>::as_slice)),
        );

        let mut outcome = StepOutcome::default();
        // The isolated seeds first: they train against the host as it is, not as this step makes it.
        for (seed, pass) in &mut passes.isolated {
            let started = Instant::now();
            let outputs = pass.run(&self.store, &inputs)?;
            let own = norm(&outputs, |name| is_of(name, seed.as_str()));
            let felt = norm(&outputs, |name| is_of(name, EMBED));
            let loss = outputs.scalar(LOSS).unwrap_or(f32::NAN);
            move_seed(&mut self.optimiser, &mut self.store, &outputs, clip(own))?;
            self.store.absorb(&outputs)?;
            outcome.seeds.push(SeedStep {
                seed: seed.clone(),
                loss,
                gradient_norm: Some(own),
                host_gradient_norm: Some(felt),
                scale: None,
                isolated_ms: Some(started.elapsed().as_secs_f32() * 1e3),
            });
        }
        let outputs = passes.host.run(&self.store, &inputs)?;
        outcome.loss = outputs.scalar(LOSS).unwrap_or(f32::NAN);
        outcome.gradient_norm = norm(&outputs, |_| true);
        for slot in &self.slots {
            let watched = matches!(slot.mode, Mode::Blended | Mode::Shadowed | Mode::Live);
            if !watched || slot.graft.is_none() {
                continue;
            }
            let [host, seed] =
                host::square_outputs(&slot.seed).map(|name| outputs.scalar(&name).map(f32::sqrt));
            let trained = slot.mode != Mode::Shadowed;
            outcome.seeds.push(SeedStep {
                seed: slot.seed.clone(),
                loss: outcome.loss,
                gradient_norm: trained
                    .then(|| norm(&outputs, |name| is_of(name, slot.seed.as_str()))),
                host_gradient_norm: None,
                scale: host.zip(seed),
                isolated_ms: None,
            });
        }
        self.optimiser.step(&mut self.store, &outputs, clip(outcome.gradient_norm))?;
        self.store.absorb(&outputs)?;
        self.steps += 1;
        Ok(outcome)
    }

    /// Scores the network as the host sees it.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub fn evaluate(&mut self, part: &Part) -> Result<Score, NetworkError> {
        let logits = self.logits(&part.features, part.rows())?;
        let classes = self.shape.classes;
        let (mut loss, mut right) = (0.0_f64, 0_usize);
        for (row, label) in logits.chunks_exact(classes).zip(&part.labels) {
            let label = *label as usize;
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - best).exp()).sum();
            loss += sum.ln() - f64::from(row[label] - best);
            right += usize::from(row.iter().position(|logit| *logit >= best - TIE) == Some(label));
        }
        let rows = part.rows() as f64;
        Ok(Score { loss: (loss / rows) as f32, accuracy: (right as f64 / rows) as f32 })
    }

    /// Class scores of each row, row-major.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub fn logits(&mut self, features: &[f32], rows: usize) -> Result<Vec<f32>, NetworkError> {
        let width = self.shape.features;
        let mut logits = Vec::with_capacity(rows * self.shape.classes);
        let alphas: Vec<(String, [f32; 1])> =
            self.slots.iter().map(|slot| (host::alpha_input(&slot.seed), [slot.alpha])).collect();
        for chunk in features.chunks(EVALUATION_ROWS_MAX * width) {
            let count = chunk.len() / width;
            self.make_evaluation_ready(count)?;
            let Some(pass) = self.evaluations.get_mut(&count) else { continue };
            let mut inputs: Vec<(&str, &[f32])> = vec![(FEATURES, chunk)];
            inputs.extend(alphas.iter().map(|(name, alpha)| (name.as_str(), alpha.as_slice())));
            let outputs = pass.run(&self.store, &inputs)?;
            logits.extend_from_slice(outputs.get(LOGITS).unwrap_or_default());
        }
        Ok(logits)
    }

    fn index(&self, seed: &SeedId) -> Result<usize, NetworkError> {
        let found = self.slots.iter().position(|slot| slot.seed == *seed);
        found.ok_or_else(|| NetworkError::NoSlot(seed.clone()))
    }

    fn changed(&mut self) {
        self.passes = None;
        self.evaluations.clear();
    }

    /// Makes the passes of a step for so many rows, unless those there are serve.
    fn make_ready(&mut self, rows: usize) -> Result<(), NetworkError> {
        let found = self.passes.as_ref().map(|passes| passes.check(&self.sites(), rows));
        match found {
            Some(Ok(())) => return Ok(()),
            Some(Err(mismatch)) => self.stale(&mismatch),
            None => {}
        }
        let passes = self.compile(rows)?;
        let isolated = passes.isolated.iter().map(|(_, pass)| pass);
        isolated.chain([&passes.host]).for_each(|pass| self.counts.made(pass));
        self.passes = Some(passes);
        Ok(())
    }

    /// Makes the pass that scores so many rows, unless the one there is serves.
    fn make_evaluation_ready(&mut self, rows: usize) -> Result<(), NetworkError> {
        let wanted = Wanted { purpose: Purpose::Evaluation, rows, trained: &[] };
        match self.evaluations.get(&rows).map(|pass| pass.check(wanted)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(mismatch)) => self.stale(&mismatch),
            None => {}
        }
        let pass = self.compile_evaluation(rows)?;
        self.counts.made(&pass);
        self.evaluations.insert(rows, pass);
        Ok(())
    }

    fn stale(&mut self, mismatch: &PlanMismatch) {
        self.counts.stale += 1;
        tracing::debug!(%mismatch, "a pass does not serve any more and is made anew");
    }

    /// Why no plan may run the passes of the host, or of one seed alone: what a kernel in them was found to be.
    fn forbidden(&self, alone: Option<&SeedId>) -> Option<&Fallback> {
        let takes_part = |slot: &&Slot| slot.mode.is_computed() || alone == Some(&slot.seed);
        let grafts = self.slots.iter().filter(takes_part).filter_map(|slot| slot.graft.as_ref());
        grafts.into_iter().find_map(|graft| graft.execution.reason())
    }

    fn sites(&self) -> Vec<Site<'_>> {
        self.slots
            .iter()
            .map(|slot| Site {
                seed: &slot.seed,
                mode: slot.mode,
                blend: &slot.blend,
                graft: slot.graft.as_ref().map(|graft| &graft.graph),
            })
            .collect()
    }

    fn compile(&self, rows: usize) -> Result<Passes, NetworkError> {
        let sites = self.sites();
        let derive = |composed: host::Composed, alone| -> Result<Pass, NetworkError> {
            let wrt: Vec<&str> = composed.wrt.iter().map(String::as_str).collect();
            let graph = differentiate(&composed.graph, LOSS, &wrt)?;
            Ok(Pass::of(&graph, self.forbidden(alone))?)
        };
        let mut isolated = Vec::new();
        for slot in self.slots.iter().filter(|slot| slot.mode == Mode::Isolated) {
            let pass = host::isolated_pass(self.shape, &sites, &slot.seed, rows)?;
            isolated.push((slot.seed.clone(), derive(pass, Some(&slot.seed))?));
        }
        let host = derive(host::host_pass(self.shape, &sites, rows)?, None)?;
        let alphas = self.slots.iter().map(|slot| host::alpha_input(&slot.seed)).collect();
        Ok(Passes { host, isolated, alphas })
    }

    fn compile_evaluation(&self, rows: usize) -> Result<Pass, NetworkError> {
        let pass = host::host_pass(self.shape, &self.sites(), rows)?;
        let graph = pass.graph.select(&[LOGITS])?.inference()?;
        Ok(Pass::of(&graph, self.forbidden(None))?)
    }
}

fn norm(outputs: &kernel::Outputs<'_>, counts: impl Fn(&str) -> bool) -> f32 {
    let squares = outputs
        .gradients()
        .filter(|(name, _)| counts(name))
        .flat_map(|(_, values)| values)
        .map(|value| f64::from(*value).powi(2));
    squares.sum::<f64>().sqrt() as f32
}

/// By what gradients of this norm are multiplied.
fn clip(norm: f32) -> f32 {
    if norm > GRADIENT_NORM_MAX { GRADIENT_NORM_MAX / norm } else { 1.0 }
}

/// A step of a seed's isolated pass: the host's gradient is there to be seen, not to be followed.
fn move_seed(
    optimiser: &mut Optimiser,
    store: &mut ParamStore,
    outputs: &kernel::Outputs<'_>,
    scale: f32,
) -> Result<(), OptimiserError> {
    optimiser.freeze(EMBED)?;
    let moved = optimiser.step(store, outputs, scale);
    optimiser.unfreeze(EMBED)?;
    moved
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
