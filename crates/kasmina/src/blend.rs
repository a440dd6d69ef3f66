//! Blending: how much of a seed the host sees, and by which formula.
//!
//! The functions over slices are the reference that a trainer's graph is checked against. The host
//! branch `h` is detached in every mode: no gradient of the blend reaches what produced it.

use std::collections::BTreeMap;

/// How host and seed are combined. `a` is alpha, within 0 to 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum BlendMode {
    /// `a*s + (1-a)*h`; the default.
    #[default]
    Convex,
    /// `h + a*s`
    Residual,
    /// `v*s + (1-v)*h` with `v = clamp(a*w, 0, 1)` for each channel (axis 1).
    Channel {
        /// One weight for each channel, within 0 to 1.
        weights: Vec<f32>,
    },
    /// `g*s + (1-g)*h` with `g = clamp(a*sigmoid(k*(top1-top2-tau)), low, high)` for each sample.
    Confidence(Confidence),
}

/// Parameters of [`BlendMode::Confidence`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// Steepness, at least 0; default 4.
    pub k: f32,
    /// Margin between the two best logits at which the gate is half open, at least 0; default 0.2.
    pub tau: f32,
    /// Least gate, within 0 to 1; default 0.
    pub low: f32,
    /// Greatest gate, within `low` to 1; default 1.
    pub high: f32,
}

impl Default for Confidence {
    fn default() -> Self {
        Self { k: 4.0, tau: 0.2, low: 0.0, high: 1.0 }
    }
}

impl Confidence {
    /// The gate of one sample whose two best logits are `top1` and `top2`; a sample with fewer than
    /// two logits has gate 1 before alpha.
    pub fn gate(&self, alpha: f32, logits: &[f32]) -> f32 {
        let (mut top1, mut top2) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &logit in logits {
            if logit > top1 {
                (top1, top2) = (logit, top1);
            } else if logit > top2 {
                top2 = logit;
            }
        }
        let confidence =
            if logits.len() < 2 { 1.0 } else { sigmoid(self.k * (top1 - top2 - self.tau)) };
        (clamped(alpha) * confidence).clamp(self.low, self.high)
    }
}

impl BlendMode {
    /// Upper-case name as annotations spell it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Convex => "CONVEX",
            Self::Residual => "RESIDUAL",
            Self::Channel { .. } => "CHANNEL",
            Self::Confidence(_) => "CONFIDENCE",
        }
    }

    /// Reads the blend annotations of a seed command. `None` without `blend_mode`: the seed then
    /// blends as its slot does by default. An unknown mode, and CHANNEL without a usable weight, is
    /// CONVEX, as the contract has it.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let mode = annotations.get("blend_mode")?.trim().to_ascii_uppercase();
        Some(match mode.as_str() {
            "RESIDUAL" => Self::Residual,
            "CHANNEL" => match annotations.get("alpha_vec").map(|text| weights(text)) {
                Some(weights) if !weights.is_empty() => Self::Channel { weights },
                _ => Self::Convex,
            },
            "CONFIDENCE" => Self::Confidence(confidence(annotations)),
            _ => Self::Convex,
        })
    }

    /// The gate on one element: the weight of the seed in the blend. `channel` is the element's
    /// index on axis 1; a channel without a weight has weight 1. CONFIDENCE needs the sample's
    /// logits and is taken from [`Confidence::gate`]; here its gate is alpha within its bounds.
    pub fn gate(&self, alpha: f32, channel: usize) -> f32 {
        let alpha = clamped(alpha);
        match self {
            Self::Convex | Self::Residual => alpha,
            Self::Channel { weights } => {
                clamped(alpha * weights.get(channel).copied().unwrap_or(1.0))
            }
            Self::Confidence(confidence) => alpha.clamp(confidence.low, confidence.high),
        }
    }

    /// One element of the blend, for a gate from [`BlendMode::gate`] or [`Confidence::gate`].
    pub fn mix(&self, gate: f32, host: f32, seed: f32) -> f32 {
        match self {
            Self::Residual => host + gate * seed,
            Self::Convex | Self::Channel { .. } | Self::Confidence(_) => {
                gate * seed + (1.0 - gate) * host
            }
        }
    }
}

/// Alpha over the optimiser steps of BLENDING: `sigmoid((t - T/2) / theta)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ramp {
    /// T: steps until the ramp counts as complete; 0 means at once. Default 20.
    pub steps: u32,
    /// theta: steps over which it rises; small is steep. Default 2.
    pub temperature: f32,
}

impl Default for Ramp {
    fn default() -> Self {
        Self { steps: 20, temperature: 2.0 }
    }
}

impl Ramp {
    /// Alpha after `step` steps.
    pub fn alpha(&self, step: u32) -> f32 {
        if self.steps == 0 {
            return 1.0;
        }
        sigmoid((step as f32 - self.steps as f32 / 2.0) / self.temperature.max(f32::EPSILON))
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// NaN becomes 0: an alpha that is no number shows nothing of the seed.
fn clamped(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

fn confidence(annotations: &BTreeMap<String, String>) -> Confidence {
    let default = Confidence::default();
    let number = |key: &str, default: f32| {
        let parsed = annotations.get(key).and_then(|text| text.trim().parse::<f32>().ok());
        parsed.filter(|value| value.is_finite()).unwrap_or(default)
    };
    let low = clamped(number("alpha_lo", default.low));
    let high = clamped(number("alpha_hi", default.high));
    Confidence {
        k: number("gate_k", default.k).max(0.0),
        tau: number("gate_tau", default.tau).max(0.0),
        low: low.min(high),
        high: low.max(high),
    }
}

/// A JSON list or a comma list of numbers; elements that are none are skipped.
fn weights(text: &str) -> Vec<f32> {
    text.trim()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .split(',')
        .filter_map(|element| element.trim().trim_matches('"').parse::<f32>().ok())
        .filter(|weight| !weight.is_nan())
        .map(clamped)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn published_ramp() {
        let ramp = Ramp::default();
        for (step, alpha) in [
            (0, 0.0067),
            (1, 0.0110),
            (5, 0.0759),
            (8, 0.2689),
            (10, 0.5000),
            (12, 0.7311),
            (15, 0.9241),
            (19, 0.9890),
            (20, 0.9933),
        ] {
            assert!((ramp.alpha(step) - alpha).abs() < 5e-5, "a({step}) = {}", ramp.alpha(step));
        }
        assert_eq!(Ramp { steps: 0, temperature: 2.0 }.alpha(0), 1.0);
        assert!((1..60).all(|step| ramp.alpha(step) > ramp.alpha(step - 1) || step > 40));
    }

    #[test]
    fn formulas() {
        let mix = |mode: &BlendMode, alpha| mode.mix(mode.gate(alpha, 1), 10.0, 2.0);
        assert_eq!(mix(&BlendMode::Convex, 0.25), 8.0);
        assert_eq!(mix(&BlendMode::Convex, 0.0), 10.0);
        assert_eq!(mix(&BlendMode::Convex, f32::NAN), 10.0);
        assert_eq!(mix(&BlendMode::Residual, 0.5), 11.0);
        assert_eq!(mix(&BlendMode::Residual, 7.0), 12.0);
        assert_eq!(mix(&BlendMode::Channel { weights: vec![0.0, 0.5] }, 0.5), 8.0);
        let confidence = Confidence::default();
        assert!((confidence.gate(1.0, &[0.2, 0.0]) - 0.5).abs() < 1e-6);
        assert_eq!(confidence.gate(1.0, &[3.0]), 1.0);
        assert_eq!(Confidence { high: 0.4, ..confidence }.gate(1.0, &[3.0]), 0.4);
    }

    #[test]
    fn annotations_as_published() {
        let read = |pairs: &[(&str, &str)]| BlendMode::from_annotations(&annotations(pairs));
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("blend_mode", "residual")]), Some(BlendMode::Residual));
        assert_eq!(read(&[("blend_mode", "swirl")]), Some(BlendMode::Convex));
        assert_eq!(read(&[("blend_mode", "CHANNEL")]), Some(BlendMode::Convex));
        assert_eq!(
            read(&[("blend_mode", "channel"), ("alpha_vec", "[0.5, x, 2, -1]")]),
            Some(BlendMode::Channel { weights: vec![0.5, 1.0, 0.0] })
        );
        let inverted = read(&[
            ("blend_mode", "CONFIDENCE"),
            ("gate_k", "-3"),
            ("gate_tau", "much"),
            ("alpha_lo", "0.9"),
            ("alpha_hi", "0.1"),
        ]);
        let expected = Confidence { k: 0.0, tau: 0.2, low: 0.1, high: 0.9 };
        assert_eq!(inverted, Some(BlendMode::Confidence(expected)));
    }
}
