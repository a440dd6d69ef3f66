//! Latencies measured by running a kernel before it is offered.

/// Samples kept for one artifact; the newest displace the oldest.
pub const SAMPLES_MAX: usize = 20;

/// Latencies of one artifact on one machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prewarm {
    /// Fingerprint of the machine that measured (processor, engine version).
    pub machine: String,
    /// Milliseconds of one forward run each, oldest first; at most [`SAMPLES_MAX`], all finite and
    /// above zero.
    pub samples_ms: Vec<f64>,
}

impl Prewarm {
    /// Takes measurements, keeping the last [`SAMPLES_MAX`] that are finite and above zero.
    pub fn new(machine: impl Into<String>, samples_ms: impl IntoIterator<Item = f64>) -> Self {
        let mut samples_ms: Vec<f64> =
            samples_ms.into_iter().filter(|ms| ms.is_finite() && *ms > 0.0).collect();
        samples_ms.drain(..samples_ms.len().saturating_sub(SAMPLES_MAX));
        Self { machine: machine.into(), samples_ms }
    }

    /// Median, in milliseconds; 0 without samples.
    pub fn p50_ms(&self) -> f64 {
        percentile(&self.samples_ms, 0.5)
    }

    /// 95th percentile, in milliseconds; 0 without samples.
    pub fn p95_ms(&self) -> f64 {
        percentile(&self.samples_ms, 0.95)
    }
}

/// The percentile `q` (0 to 1) of samples in any order: position (n-1)*q of the sorted samples,
/// interpolated linearly. One sample is its own percentile; of none it is 0.
pub fn percentile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let position = last as f64 * q.clamp(0.0, 1.0);
    let below = position.floor();
    let low = sorted[below as usize];
    let high = sorted[(below as usize + 1).min(last)];
    low + (high - low) * (position - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_percentiles() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert!((percentile(&samples, 0.5) - 2.5).abs() < 1e-12);
        assert!((percentile(&samples, 0.95) - 3.85).abs() < 1e-12);
        assert_eq!(percentile(&[7.0], 0.95), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn only_the_last_usable_samples_are_kept() {
        let prewarm =
            Prewarm::new("m", [0.0, f64::NAN, -1.0].into_iter().chain((1..=25).map(f64::from)));
        let expected: Vec<f64> = (6..=25).map(f64::from).collect();
        assert_eq!(prewarm.samples_ms, expected);
    }
}
