//! What both sides of the comparison with PyTorch start from: sites, parameters, input and what the output counts.

use karn::Site;
use kernel::{Graph, Params};

/// One small site of each kind.
pub const SITES: [Site; 3] = [
    Site::Vector { features: 12 },
    Site::Image { channels: 4, height: 6, width: 5 },
    Site::Sequence { length: 6, width: 8 },
];

/// Tolerance written into the manifests.
#[allow(dead_code, reason = "the test compares by itself")]
pub const TOLERANCE: f32 = 1e-4;

/// Parameters off their start: behind a projection that starts at zero everything would agree.
pub fn params(graph: &Graph) -> Params {
    let trainable: Vec<&str> = graph.trainable().collect();
    let start = graph.init_params(7);
    let moved = start.iter().map(|(name, tensor)| {
        let mut tensor = tensor.clone();
        if trainable.contains(&name) {
            let inner: usize = tensor.shape().iter().skip(1).product();
            let size = if tensor.shape().len() > 1 { 0.5 / (inner as f64).sqrt() } else { 0.1 };
            let phase = name.len() as f64;
            for (index, value) in tensor.data_mut().iter_mut().enumerate() {
                *value += (size * (1.7 * index as f64 + phase).sin()) as f32;
            }
        }
        (name.to_owned(), tensor)
    });
    moved.collect()
}
