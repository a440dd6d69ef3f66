//! What the network says all over a plane of two features, for the report.

use crate::error::TrainError;
use crate::network::Network;
use crate::prepared::Prepared;
use crate::progress::Boundary;

/// Points along each axis.
const RESOLUTION: usize = 96;
/// Share of the data's range shown beyond it on each side.
const MARGIN: f32 = 0.08;

/// The decision boundary, for two features and two classes.
///
/// # Errors
/// [`TrainError::Network`]
pub(crate) fn of(
    network: &mut Network,
    prepared: &Prepared,
) -> Result<Option<Boundary>, TrainError> {
    if prepared.data.width() != 2 || prepared.data.classes.len() != 2 {
        return Ok(None);
    }
    let range = [range(prepared, 0), range(prepared, 1)];
    let at = |axis: usize, index: usize| {
        let (low, high) = range[axis];
        let value = low + (high - low) * (index as f32 + 0.5) / RESOLUTION as f32;
        prepared.split.standardiser.apply(axis, value)
    };
    let mut points = Vec::with_capacity(RESOLUTION * RESOLUTION * 2);
    for row in 0..RESOLUTION {
        for column in 0..RESOLUTION {
            points.extend([at(0, column), at(1, row)]);
        }
    }
    let logits = network.logits(&points, RESOLUTION * RESOLUTION)?;
    let probability =
        logits.chunks_exact(2).map(|pair| 1.0 / (1.0 + (pair[0] - pair[1]).exp())).collect();
    Ok(Some(Boundary { resolution: RESOLUTION, range, probability }))
}

fn range(prepared: &Prepared, axis: usize) -> (f32, f32) {
    let values = prepared.data.features.iter().skip(axis).step_by(2);
    let (low, high) = values
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
    let margin = (high - low).max(1e-3) * MARGIN;
    (low - margin, high + margin)
}
