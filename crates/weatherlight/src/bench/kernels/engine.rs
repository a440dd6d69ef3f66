//! The engine's own workloads, by the plan; the baseline is the plain interpreter.

use std::time::Duration;

use kernel::bench::Comparison;

use super::figure::Figure;
use super::{Bench, BenchError};

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, BenchError> {
    let mlp = kernel::bench::mlp_step(bench.rounds(5000, 1000), bench.rounds(200, 20))?;
    let convolution = kernel::bench::conv_gradients(bench.rounds(200, 40), bench.rounds(5, 2))?;
    let transformer = kernel::bench::transformer_step(bench.rounds(200, 40), bench.rounds(3, 1))?;
    let conditions = "steps by the plan on one core; baseline: the same by the interpreter";
    Ok(vec![
        figure("engine_mlp_step", &mlp).at_least(25_000.0).under(conditions),
        figure("engine_convolution_gradients", &convolution).at_least(600.0).under(conditions),
        figure("engine_transformer_step", &transformer).under(conditions),
    ])
}

fn figure(name: &str, measured: &Comparison) -> Figure {
    let rate = |step: Duration| 1.0 / step.as_secs_f64();
    Figure::new(name, "steps/s", rate(measured.plan)).beside(rate(measured.interpreter))
}
