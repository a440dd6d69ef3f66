//! What is measured: a graph with its inputs and, for training steps, an optimiser.

use std::time::Duration;

use super::BenchError;
use crate::gradient::{differentiate, differentiate_trainable};
use crate::graph::Graph;
use crate::init::Init;
use crate::op::Conv;
use crate::optimiser::{Adam, Optimiser};
use crate::plan::Plan;
use crate::store::ParamStore;

/// How long a plan may measure its loops before it is run.
const CHOICE_BUDGET: Duration = Duration::from_millis(200);

/// A step that is run again and again.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its short name, which `torch_engine.py` knows too.
    pub name: &'static str,
    /// What it is, in words.
    pub title: &'static str,
    /// Loss and gradients.
    pub graph: Graph,
    inputs: Vec<(&'static str, Vec<f32>)>,
    is_training: bool,
}

impl Workload {
    /// All of them.
    ///
    /// # Errors
    /// None, unless the engine is at fault; this holds for every workload.
    pub fn all() -> Result<[Self; 3], BenchError> {
        Ok([Self::mlp()?, Self::convolution()?, Self::transformer()?])
    }

    /// A training step of a perceptron 64-128-10 with ReLU at batch 64: cross entropy, all gradients, Adam.
    ///
    /// # Errors
    /// See [`Workload::all`].
    pub fn mlp() -> Result<Self, BenchError> {
        let mut graph = Graph::new();
        let x = graph.input("x", &[64, 64])?;
        let hidden = graph.linear_layer(x, "hidden", 128)?;
        let hidden = graph.relu(hidden)?;
        let logits = graph.linear_layer(hidden, "head", 10)?;
        let labels = graph.input("labels", &[64])?;
        let loss = graph.cross_entropy(logits, labels)?;
        graph.output("loss", loss)?;
        Ok(Self {
            name: "mlp",
            title: "mlp 64-128-10, batch 64, training step",
            graph: differentiate_trainable(&graph, "loss")?,
            inputs: vec![
                ("x", values("x", 64 * 64)),
                ("labels", (0..64).map(|index| (index % 10) as f32).collect()),
            ],
            is_training: true,
        })
    }

    /// A 3x3 convolution of 16 channels over 16x16 at batch 32 with the gradients of input, weight and bias; the loss
    /// is the mean of squares.
    ///
    /// # Errors
    /// See [`Workload::all`].
    pub fn convolution() -> Result<Self, BenchError> {
        let mut graph = Graph::new();
        let x = graph.input("x", &[32, 16, 16, 16])?;
        let y =
            graph.conv2d_layer(x, "conv", 16, 3, Conv { padding: [1, 1], ..Conv::default() })?;
        let squares = graph.square(y)?;
        let loss = graph.mean_all(squares)?;
        graph.output("loss", loss)?;
        Ok(Self {
            name: "convolution",
            title: "convolution 3x3, 16 channels, 16x16, batch 32, all gradients",
            graph: differentiate(&graph, "loss", &["x", "conv.weight", "conv.bias"])?,
            inputs: vec![("x", values("x", 32 * 16 * 16 * 16))],
            is_training: false,
        })
    }

    /// A training step of a transformer block of width 64 with 4 heads over 32 tokens at batch 16: norms before
    /// attention and before a network 64-256-64 with GELU, residuals, mean of squares, all gradients, Adam.
    ///
    /// # Errors
    /// See [`Workload::all`].
    pub fn transformer() -> Result<Self, BenchError> {
        let mut graph = Graph::new();
        let x = graph.input("x", &[16, 32, 64])?;
        let y = graph.layer_norm(x, "before_attention", 1e-5)?;
        let y = graph.self_attention_layer(y, "attention", 4)?;
        let x = graph.add(x, y)?;
        let y = graph.layer_norm(x, "before_network", 1e-5)?;
        let y = graph.linear_layer(y, "network.in", 256)?;
        let y = graph.gelu(y)?;
        let y = graph.linear_layer(y, "network.out", 64)?;
        let x = graph.add(x, y)?;
        let squares = graph.square(x)?;
        let loss = graph.mean_all(squares)?;
        graph.output("loss", loss)?;
        Ok(Self {
            name: "transformer",
            title: "transformer block, width 64, 4 heads, 32 tokens, batch 16, training step",
            graph: differentiate_trainable(&graph, "loss")?,
            inputs: vec![("x", values("x", 16 * 32 * 64))],
            is_training: true,
        })
    }

    pub(super) fn inputs(&self) -> Vec<(&str, &[f32])> {
        self.inputs.iter().map(|(name, values)| (*name, values.as_slice())).collect()
    }

    /// Parameters at their start and the optimiser that moves them.
    pub(super) fn start(&self) -> Result<(ParamStore, Optimiser), BenchError> {
        let mut optimiser = Optimiser::adam(Adam::default());
        optimiser.add_group("all", 1e-3)?;
        Ok((ParamStore::with_group("all", &self.graph.init_params(1))?, optimiser))
    }

    /// Parameters the optimiser moves; none where the gradients are all that is wanted.
    pub(super) fn moved(&self) -> Vec<&str> {
        if self.is_training { self.graph.trainable().collect() } else { Vec::new() }
    }

    /// The plan with its parameters, ready to step.
    ///
    /// # Errors
    /// See [`Workload::all`].
    pub fn prepare(&self) -> Result<Prepared<'_>, BenchError> {
        let plan = Plan::compile_measured(&self.graph, CHOICE_BUDGET)?;
        let (store, optimiser) = self.start()?;
        let optimiser = self.is_training.then_some(optimiser);
        Ok(Prepared { inputs: self.inputs(), plan, store, optimiser })
    }
}

/// A workload whose plan is compiled.
#[derive(Debug)]
pub struct Prepared<'a> {
    inputs: Vec<(&'a str, &'a [f32])>,
    plan: Plan,
    store: ParamStore,
    optimiser: Option<Optimiser>,
}

impl Prepared<'_> {
    /// Runs one step.
    ///
    /// # Errors
    /// See [`Workload::all`].
    pub fn step(&mut self) -> Result<(), BenchError> {
        let outputs = self.plan.run(&self.store, &self.inputs)?;
        if let Some(optimiser) = &mut self.optimiser {
            optimiser.step(&mut self.store, &outputs, 1.0)?;
        }
        Ok(())
    }

    /// The compiled plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

fn values(name: &str, len: usize) -> Vec<f32> {
    Init::Uniform { low: -1.0, high: 1.0 }.values(name, &[len], 1)
}
