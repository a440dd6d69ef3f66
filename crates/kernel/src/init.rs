//! Rules by which parameters start, deterministic on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Init {
    /// Every element the same.
    Constant {
        /// The value.
        value: f32,
    },
    /// 1 where all indices of a square matrix agree, otherwise 0; for a rank-4 convolution weight, the centre tap.
    Identity,
    /// Uniform in `[low, high)`.
    Uniform {
        /// Lower end, included.
        low: f32,
        /// Upper end, excluded.
        high: f32,
    },
    /// Normal distribution.
    Normal {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        deviation: f32,
    },
    /// Uniform with bound `sqrt(6 / fan_in)` (He et al. 2015), for layers followed by a rectifier.
    He {
        /// Number of values each result depends on.
        fan_in: usize,
    },
    /// Uniform with bound `sqrt(6 / (fan_in + fan_out))` (Glorot and Bengio 2010).
    Glorot {
        /// Number of values each result depends on.
        fan_in: usize,
        /// Number of results each value goes into.
        fan_out: usize,
    },
    /// Uniform with bound `1 / sqrt(fan_in)`, PyTorch's default for linear layers and convolutions, bias included.
    FanIn {
        /// Number of values each result depends on.
        fan_in: usize,
    },
}

impl Init {
    /// All zeros.
    pub const ZEROS: Self = Self::Constant { value: 0.0 };
    /// All ones.
    pub const ONES: Self = Self::Constant { value: 1.0 };

    /// Whether every number in the rule is finite and every fan is above zero.
    pub(crate) fn is_sound(self) -> bool {
        match self {
            Self::Constant { value } => value.is_finite(),
            Self::Identity => true,
            Self::Uniform { low, high } => low.is_finite() && high.is_finite() && low < high,
            Self::Normal { mean, deviation } => {
                mean.is_finite() && deviation.is_finite() && deviation >= 0.0
            }
            Self::He { fan_in } | Self::FanIn { fan_in } => fan_in > 0,
            Self::Glorot { fan_in, fan_out } => fan_in > 0 && fan_out > 0,
        }
    }

    /// The starting values of the parameter `name` of `shape`: a function of its arguments only.
    ///
    /// The generator is ChaCha8 keyed by SHA-256 of seed and name, and the functions are those of `libm`,
    /// so that the values are the same on every machine and do not depend on the other parameters.
    pub(crate) fn values(self, name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
        let len = shape.iter().product();
        let mut generator = generator(name, seed);
        match self {
            Self::Constant { value } => vec![value; len],
            Self::Identity => identity(shape, len),
            Self::Uniform { low, high } => uniform(&mut generator, len, low, high),
            Self::Normal { mean, deviation } => normal(&mut generator, len, mean, deviation),
            Self::He { fan_in } => symmetric(&mut generator, len, 6.0 / fan_in as f64),
            Self::Glorot { fan_in, fan_out } => {
                symmetric(&mut generator, len, 6.0 / (fan_in as f64 + fan_out as f64))
            }
            Self::FanIn { fan_in } => symmetric(&mut generator, len, 1.0 / fan_in as f64),
        }
    }
}

fn generator(name: &str, seed: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// Uniform in (-bound, bound) with `bound = sqrt(bound_squared)`.
fn symmetric(generator: &mut ChaCha8Rng, len: usize, bound_squared: f64) -> Vec<f32> {
    let bound = libm::sqrt(bound_squared) as f32;
    uniform(generator, len, -bound, bound)
}

fn uniform(generator: &mut ChaCha8Rng, len: usize, low: f32, high: f32) -> Vec<f32> {
    let width = f64::from(high) - f64::from(low);
    let below_high = f32::next_down(high);
    (0..len)
        .map(|_| {
            let value = f64::from(low) + unit(generator) * width;
            // Rounding to `f32` may reach the excluded end.
            (value as f32).clamp(low, below_high)
        })
        .collect()
}

/// Box-Muller transform; both halves of each pair are used.
fn normal(generator: &mut ChaCha8Rng, len: usize, mean: f32, deviation: f32) -> Vec<f32> {
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - unit(generator)));
        let angle = std::f64::consts::TAU * unit(generator);
        for direction in [libm::cos(angle), libm::sin(angle)] {
            let value = f64::from(mean) + f64::from(deviation) * radius * direction;
            values.push(value as f32);
        }
    }
    values.truncate(len);
    values
}

/// Uniform in [0, 1) with 53 random bits.
fn unit(generator: &mut ChaCha8Rng) -> f64 {
    (generator.random::<u64>() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Ones on the diagonal of the first two dimensions, at the middle of all further ones.
fn identity(shape: &[usize], len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    let [rows, columns, taps @ ..] = shape else {
        return values;
    };
    let tap_count: usize = taps.iter().product();
    let centre = taps.iter().fold(0, |index, &size| index * size + size / 2);
    for diagonal in 0..*rows.min(columns) {
        values[(diagonal * columns + diagonal) * tap_count + centre] = 1.0;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_seed_and_name_only() {
        let rule = Init::FanIn { fan_in: 16 };
        let values = rule.values("a", &[16, 4], 7);
        assert_eq!(values, rule.values("a", &[16, 4], 7));
        assert_ne!(values, rule.values("b", &[16, 4], 7));
        assert_ne!(values, rule.values("a", &[16, 4], 8));
        assert!(values.iter().all(|value| value.abs() <= 0.25));
    }

    #[test]
    fn normal_has_its_moments() {
        let rule = Init::Normal { mean: 1.0, deviation: 2.0 };
        let values = rule.values("w", &[10_001], 3);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance =
            values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!((mean - 1.0).abs() < 0.1, "mean {mean}");
        assert!((variance - 4.0).abs() < 0.2, "variance {variance}");
    }

    #[test]
    fn identity_of_a_convolution_is_its_centre_tap() {
        let values = Init::Identity.values("w", &[2, 2, 3, 3], 0);
        let ones: Vec<usize> = (0..values.len()).filter(|&index| values[index] == 1.0).collect();
        assert_eq!(ones, [4, 31]);
    }
}
