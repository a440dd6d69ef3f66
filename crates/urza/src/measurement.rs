//! What one machine has measured of one artifact.

use serde_json::Value;

/// Measurements of an artifact on one machine with one engine. Kept by (digest, machine, engine), never in the
/// artifact's bytes: the same job gives the same bytes on every machine, and each machine its own figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurement {
    /// Milliseconds of one forward run each, oldest first; at most [`crate::SAMPLES_MAX`], all finite and above zero.
    pub samples_ms: Vec<f64>,
    /// The algorithms the engine chose on this machine, as the engine spells them; `null` when it chose none.
    pub algorithms: Value,
    /// When, in Unix milliseconds.
    pub measured_at_ms: u64,
}
