//! The numbers a policy consists of, as plain data. Reading them from a file or a message is
//! `tensors`'s business; which ranges they must keep is decided here.

use std::sync::LazyLock;

use kernel::Digest;

use crate::config::Growth;

/// The architecture these numbers belong to. An update for another one is refused.
pub const ARCHITECTURE: &str = "tamiyo_linear_v1";
/// Blueprints in the catalogue, hence biases in a policy.
pub const BLUEPRINTS: usize = 50;
/// Features of a candidate: 1 − risk, maturity, number of parameters, the trainer's preference.
pub const CANDIDATE_FEATURES: usize = 4;
/// Features of a slot: 1 − risk, depth, gradient norm, activation variance, culls so far.
pub const SLOT_FEATURES: usize = 5;
/// Features of a run's state: loss rise, volatility, gradient variance, gradient conflicts.
pub const STATE_FEATURES: usize = 4;
/// Ordered classes of risk.
pub const RISK_CLASSES: usize = 5;

/// SHA-256 over the ids of the catalogue, each followed by a line feed: weights indexed by
/// blueprint mean something only together with this list.
pub fn registry_digest() -> Digest {
    static DIGEST: LazyLock<Digest> = LazyLock::new(|| {
        let ids: Vec<&str> =
            karn::catalogue().iter().map(|blueprint| blueprint.id().as_str()).collect();
        Digest::of(ids.join("\n") + "\n")
    });
    *DIGEST
}

/// When a run counts as flat.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlateauNumbers {
    /// Epochs without improvement.
    pub patience_epochs: u32,
    /// Smallest improvement in units of the loss.
    pub min_delta_absolute: f32,
    /// Smallest improvement as a share of the best loss.
    pub min_delta_relative: f32,
    /// Weight of the newest loss, 0 (exclusive) to 1.
    pub smoothing: f32,
    /// Epochs at the start that are never a plateau.
    pub warm_up_epochs: u32,
    /// Loss below which nothing is grown; 0 for none.
    pub target_loss: f32,
}

/// All numbers of one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Plateau detection.
    pub plateau: PlateauNumbers,
    /// A seed is kept when the loss fell by this share.
    pub keep_effect: f32,
    /// A seed is culled when the loss rose by this share.
    pub cull_effect: f32,
    /// Added to a candidate's score, by position in the catalogue.
    pub blueprint_bias: [f32; BLUEPRINTS],
    /// Weights of a candidate's features.
    pub candidate: [f32; CANDIDATE_FEATURES],
    /// Weights of a slot's features.
    pub slot: [f32; SLOT_FEATURES],
    /// Weights of the risk classes, by class and feature.
    pub risk: [[f32; STATE_FEATURES]; RISK_CLASSES],
    /// Biases of the risk classes.
    pub risk_bias: [f32; RISK_CLASSES],
}

impl Weights {
    /// The built-in policy, with the operator's numbers for when to grow and what to keep.
    ///
    /// A candidate scores `(1−risk) + 0.05·maturity + 0.02·#parameters` (the published formula),
    /// plus 4 times the trainer's preference, plus a bias: layers without weights of their own
    /// (identity, dropout, activations, pooling) add no capacity and are tried last.
    ///
    /// Risk: with z a weighted sum of state features from 0 to 1, class c of 5 gets the logit
    /// `2s·c·z − s·c²` for c = 0, ¼ … 1 and s = 16, which is a softmax over the distance of z from
    /// c. Its expectation follows z.
    pub fn built_in(growth: &Growth) -> Self {
        let mut blueprint_bias = [0.0; BLUEPRINTS];
        for (bias, blueprint) in blueprint_bias.iter_mut().zip(karn::catalogue()) {
            *bias = match blueprint.id().as_str() {
                "BP001" => -8.0,
                "BP003" | "BP004" | "BP005" | "BP006" | "BP007" | "BP008" | "BP011" | "BP012" => {
                    -1.0
                }
                _ => 0.0,
            };
        }
        const SHARPNESS: f32 = 16.0;
        const SHARES: [f32; STATE_FEATURES] = [0.55, 0.15, 0.15, 0.15];
        let class = |index: usize| index as f32 / (RISK_CLASSES - 1) as f32;
        let risk = std::array::from_fn(|c| SHARES.map(|share| 2.0 * SHARPNESS * class(c) * share));
        let risk_bias = std::array::from_fn(|c| -SHARPNESS * class(c) * class(c));
        Self {
            plateau: PlateauNumbers {
                patience_epochs: growth.patience_epochs,
                min_delta_absolute: growth.min_delta_absolute,
                min_delta_relative: growth.min_delta_relative,
                smoothing: growth.smoothing,
                warm_up_epochs: growth.warm_up_epochs,
                target_loss: growth.target_loss,
            },
            keep_effect: growth.keep_effect,
            cull_effect: growth.cull_effect,
            blueprint_bias,
            candidate: [1.0, 0.05, 0.02, 4.0],
            slot: [1.0, 0.1, 0.05, -0.5, -1.0],
            risk,
            risk_bias,
        }
    }

    /// The first number outside its range, by the name of its tensor.
    pub(crate) fn out_of_range(&self) -> Option<&'static str> {
        let finite = |values: &[f32], bound: f32| values.iter().all(|v| v.abs() <= bound);
        let share = |value: f32| (0.0..=10.0).contains(&value);
        let plateau = &self.plateau;
        let checks = [
            ("plateau.patience", (1..=100_000).contains(&plateau.patience_epochs)),
            (
                "plateau.min_delta",
                share(plateau.min_delta_absolute) && share(plateau.min_delta_relative),
            ),
            ("plateau.smoothing", plateau.smoothing > 0.0 && plateau.smoothing <= 1.0),
            ("plateau.warm_up", plateau.warm_up_epochs <= 100_000),
            ("plateau.target_loss", (0.0..=1e6).contains(&plateau.target_loss)),
            ("verdict.thresholds", share(self.keep_effect) && share(self.cull_effect)),
            ("blueprint.bias", finite(&self.blueprint_bias, 1e3)),
            ("candidate.weights", finite(&self.candidate, 1e3)),
            ("slot.weights", finite(&self.slot, 1e3)),
            ("risk.weights", self.risk.iter().all(|row| finite(row, 1e3))),
            ("risk.bias", finite(&self.risk_bias, 1e3)),
        ];
        checks.into_iter().find(|(_, holds)| !holds).map(|(name, _)| name)
    }

    /// Risk of a state: the expectation over the ordered classes, from 0 to 1, and the most likely
    /// class. Not the probability of that class, which is high for a confident "no risk" too.
    pub fn risk_score(&self, features: &[f32; STATE_FEATURES]) -> (f32, usize) {
        let logit = |class: usize| {
            let products = self.risk[class].iter().zip(features).map(|(weight, x)| weight * x);
            products.sum::<f32>() + self.risk_bias[class]
        };
        let logits: [f32; RISK_CLASSES] = std::array::from_fn(logit);
        let (mut index, mut largest) = (0, logits[0]);
        for (class, value) in logits.iter().enumerate().skip(1) {
            if *value > largest {
                (index, largest) = (class, *value);
            }
        }
        let shares = logits.map(|value| (value - largest).exp());
        let total: f32 = shares.iter().sum();
        let weighted: f32 = shares.iter().enumerate().map(|(c, share)| c as f32 * share).sum();
        (weighted / total / (RISK_CLASSES - 1) as f32, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_policy_keeps_its_own_ranges() {
        assert_eq!(Weights::built_in(&Growth::default()).out_of_range(), None);
        assert_eq!(karn::catalogue().len(), BLUEPRINTS);
    }

    #[test]
    fn a_confident_low_risk_is_a_low_score() {
        let weights = Weights::built_in(&Growth::default());
        let (calm, class) = weights.risk_score(&[0.0; STATE_FEATURES]);
        assert!(calm < 0.1, "{calm}");
        assert_eq!(class, 0);
        let (wild, class) = weights.risk_score(&[1.0; STATE_FEATURES]);
        assert!(wild > 0.9, "{wild}");
        assert_eq!(class, RISK_CLASSES - 1);
    }

    #[test]
    fn the_score_rises_with_the_loss() {
        let weights = Weights::built_in(&Growth::default());
        let scores: Vec<f32> = (0..=10)
            .map(|step| weights.risk_score(&[step as f32 / 10.0, 0.0, 0.0, 0.0]).0)
            .collect();
        assert!(scores.is_sorted(), "{scores:?}");
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let good = Weights::built_in(&Growth::default());
        let mut bad = good.clone();
        bad.risk[2][1] = f32::NAN;
        assert_eq!(bad.out_of_range(), Some("risk.weights"));
        let mut bad = good.clone();
        bad.plateau.patience_epochs = 0;
        assert_eq!(bad.out_of_range(), Some("plateau.patience"));
        let mut bad = good;
        bad.keep_effect = -0.1;
        assert_eq!(bad.out_of_range(), Some("verdict.thresholds"));
    }
}
