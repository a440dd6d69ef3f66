//! Reproducible numbers for checks and timings.

use kernel::{Graph, GraphError, Init};

/// `len` numbers of a normal distribution of mean 0 and deviation 1; a function of the arguments only.
pub(crate) fn normal(name: &str, len: usize, number: u64) -> Result<Vec<f32>, GraphError> {
    let mut graph = Graph::new();
    graph.parameter(name, &[len], Init::Normal { mean: 0.0, deviation: 1.0 })?;
    let mut params = graph.init_params(number);
    Ok(params.remove(name).map(kernel::Tensor::into_data).unwrap_or_default())
}
