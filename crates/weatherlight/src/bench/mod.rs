//! `weatherlight bench`: the figures of `docs/benchmarks.md`, each beside its baseline in the same
//! run. Every measurement is a median over many repetitions.

mod bus;
pub mod kernels;
mod prefetch;
mod supervisor;
mod training;

use std::time::Duration;

use serde::Serialize;

pub use bus::BusBenchError;
pub(crate) use bus::Scratch;
pub use supervisor::{SupervisorBenchError, measure as supervisor};

/// One figure. Lower is better.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Unit of value and baseline.
    pub unit: &'static str,
    /// The median.
    pub value: f64,
    /// The median of the baseline, measured in the same run.
    pub baseline: f64,
    /// Value over baseline.
    pub ratio: f64,
    /// What is aimed at, in the unit.
    pub target: f64,
    /// Whether it was reached.
    pub met: bool,
}

impl Figure {
    fn new(
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        baseline: f64,
        target: f64,
    ) -> Self {
        let (ratio, met) = (value / baseline, value <= target);
        Self { name: name.into(), unit, value, baseline, ratio, target, met }
    }
}

/// Why a measurement ended early.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Over the bus.
    #[error(transparent)]
    Bus(#[from] BusBenchError),
    /// A training step.
    #[error("the training step cannot be measured")]
    Training(#[from] training::StepError),
    /// The engine alone.
    #[error("the engine cannot be measured")]
    Engine(#[from] kernel::bench::BenchError),
}

/// Measures everything. `redis_url` names a Redis that nothing else uses; without one the embedded
/// log is measured, in a directory of its own that is removed afterwards.
///
/// # Errors
/// [`BenchError`] for the first measurement that failed.
pub async fn run(redis_url: Option<&str>) -> Result<Vec<Figure>, BenchError> {
    let mut figures = bus::measure(redis_url).await?;
    figures.extend(training::measure()?);
    figures.extend(engine()?);
    Ok(figures)
}

/// The engine's own workloads, by the plan; the baseline is the plain interpreter. The targets are
/// the design's hand-made plans: 28,000 and 460 steps a second on one core.
fn engine() -> Result<[Figure; 2], kernel::bench::BenchError> {
    let mlp = kernel::bench::mlp_step(5_000, 200)?;
    let convolution = kernel::bench::conv_gradients(200, 5)?;
    let figure = |name, measured: kernel::bench::Comparison, target| {
        let us = |span: Duration| span.as_secs_f64() * 1e6;
        Figure::new(name, "us", us(measured.plan), us(measured.interpreter), target)
    };
    Ok([
        figure("engine_mlp_step", mlp, 1e6 / 28_000.0),
        figure("engine_convolution_gradients", convolution, 1e6 / 460.0),
    ])
}

fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// The middle of the measured spans; zero for none.
fn median(mut spans: Vec<Duration>) -> Duration {
    spans.sort_unstable();
    spans.get(spans.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_knows_whether_it_was_reached() {
        let lower = Figure::new("x", "ms", 2.0, 1.0, 3.0);
        assert!(lower.met && lower.ratio == 2.0);
        assert!(!Figure::new("x", "ms", 4.0, 1.0, 3.0).met);
    }

    #[test]
    fn the_median_of_an_odd_number_is_the_middle() {
        assert_eq!(median([3, 1, 2].map(Duration::from_secs).to_vec()), Duration::from_secs(2));
        assert_eq!(median(vec![]), Duration::ZERO);
    }
}
