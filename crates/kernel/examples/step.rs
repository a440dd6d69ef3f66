//! Prints the engine's workloads, plan beside interpreter: `cargo run --release -p kernel --example step`.

use std::time::Duration;

use kernel::bench::{BenchError, conv_gradients, mlp_step};

fn main() -> Result<(), BenchError> {
    for comparison in [mlp_step(20_000, 20)?, conv_gradients(500, 5)?] {
        let rate = |time: Duration| 1.0 / time.as_secs_f64();
        println!(
            "{}: plan {:.0}/s, interpreter {:.1}/s, ratio {:.0}",
            comparison.name,
            rate(comparison.plan),
            rate(comparison.interpreter),
            comparison.interpreter.as_secs_f64() / comparison.plan.as_secs_f64()
        );
    }
    Ok(())
}
