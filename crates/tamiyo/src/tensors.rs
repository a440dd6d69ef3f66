//! A policy as bytes: safetensors with exactly the tensors of the architecture, and in its header
//! the architecture, the digest of the catalogue and a sequence number. Nothing here can run code.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::UpdateRefused;
use crate::weights::{
    ARCHITECTURE, BLUEPRINTS, CANDIDATE_FEATURES, PlateauNumbers, RISK_CLASSES, SLOT_FEATURES,
    STATE_FEATURES, Weights, registry_digest,
};

/// Header entry with [`ARCHITECTURE`].
pub const HEADER_ARCHITECTURE: &str = "architecture";
/// Header entry with the hex digits of [`registry_digest`].
pub const HEADER_REGISTRY: &str = "registry_digest";
/// Header entry with the sequence number in decimal digits, 1 or more.
pub const HEADER_SEQUENCE: &str = "sequence";

/// Every tensor of the architecture with its shape. All are F32.
pub const TENSORS: [(&str, &[usize]); 11] = [
    ("plateau.patience", &[1]),
    ("plateau.min_delta", &[2]),
    ("plateau.smoothing", &[1]),
    ("plateau.warm_up", &[1]),
    ("plateau.target_loss", &[1]),
    ("verdict.thresholds", &[2]),
    ("blueprint.bias", &[BLUEPRINTS]),
    ("candidate.weights", &[CANDIDATE_FEATURES]),
    ("slot.weights", &[SLOT_FEATURES]),
    ("risk.weights", &[RISK_CLASSES, STATE_FEATURES]),
    ("risk.bias", &[RISK_CLASSES]),
];

/// Writes a policy as the payload of an update: what a trainer of policies publishes.
///
/// # Panics
/// When the format refuses our own table of tensors, which it does not.
pub fn encode(weights: &Weights, sequence: u64) -> Vec<u8> {
    let header = HashMap::from([
        (HEADER_ARCHITECTURE.to_owned(), ARCHITECTURE.to_owned()),
        (HEADER_REGISTRY.to_owned(), registry_digest().to_hex()),
        (HEADER_SEQUENCE.to_owned(), sequence.to_string()),
    ]);
    let values = TENSORS.map(|(name, _)| {
        values(weights, name).iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
    });
    let views = TENSORS.iter().zip(&values).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        (*name, view.expect("each tensor has as many values as its shape says"))
    });
    safetensors::serialize(views, Some(header)).expect("a header of eleven tensors fits")
}

#[expect(clippy::cast_precision_loss, reason = "numbers of epochs stay below 2^24")]
fn values(weights: &Weights, name: &str) -> Vec<f32> {
    let plateau = &weights.plateau;
    match name {
        "plateau.patience" => vec![plateau.patience_epochs as f32],
        "plateau.min_delta" => vec![plateau.min_delta_absolute, plateau.min_delta_relative],
        "plateau.smoothing" => vec![plateau.smoothing],
        "plateau.warm_up" => vec![plateau.warm_up_epochs as f32],
        "plateau.target_loss" => vec![plateau.target_loss],
        "verdict.thresholds" => vec![weights.keep_effect, weights.cull_effect],
        "blueprint.bias" => weights.blueprint_bias.to_vec(),
        "candidate.weights" => weights.candidate.to_vec(),
        "slot.weights" => weights.slot.to_vec(),
        "risk.weights" => weights.risk.concat(),
        "risk.bias" => weights.risk_bias.to_vec(),
        _ => unreachable!("{name} stands in the table of tensors"),
    }
}

/// Reads and validates a policy: format, architecture, catalogue, tensors, ranges, in this order.
///
/// # Errors
/// [`UpdateRefused`] says which of them failed.
pub fn decode(payload: &[u8], bytes_max: usize) -> Result<(Weights, u64), UpdateRefused> {
    if payload.len() > bytes_max {
        return Err(UpdateRefused::Oversize { bytes: payload.len(), bytes_max });
    }
    let (_, metadata) = SafeTensors::read_metadata(payload).map_err(|source| {
        UpdateRefused::NotTensors { problem: "it does not parse", source: Some(source) }
    })?;
    let tensors = SafeTensors::deserialize(payload).map_err(|source| {
        UpdateRefused::NotTensors { problem: "it does not parse", source: Some(source) }
    })?;
    let entry = |name| metadata.metadata().as_ref().and_then(|header| header.get(name));
    let sequence = entry(HEADER_SEQUENCE).and_then(|text| text.parse().ok()).unwrap_or(0);
    if sequence == 0 {
        let problem = "its header has no sequence number";
        return Err(UpdateRefused::NotTensors { problem, source: None });
    }
    let architecture = entry(HEADER_ARCHITECTURE).cloned().unwrap_or_default();
    if architecture != ARCHITECTURE {
        let (found, expected) = (clip(&architecture), ARCHITECTURE);
        return Err(UpdateRefused::Architecture { found, expected });
    }
    let (found, expected) = (entry(HEADER_REGISTRY), registry_digest());
    if found.is_none_or(|found| *found != expected.to_hex()) {
        let found = clip(found.map_or("", String::as_str));
        return Err(UpdateRefused::Registry { found, expected });
    }
    let weights = read(&Reader::new(&tensors)?);
    match weights.out_of_range() {
        Some(tensor) => Err(UpdateRefused::Incompatible { tensor }),
        None => Ok((weights, sequence)),
    }
}

/// Text from outside, cut to what an error message can bear.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The values of each tensor of the table, all known to be there, of the right shape and finite.
struct Reader(HashMap<&'static str, Vec<f32>>);

impl Reader {
    fn new(tensors: &SafeTensors<'_>) -> Result<Self, UpdateRefused> {
        let known = |name: &str| TENSORS.iter().any(|(known, _)| *known == name);
        if let Some(name) = tensors.names().into_iter().find(|name| !known(name)) {
            let problem = "is not part of the architecture";
            return Err(UpdateRefused::Shape { tensor: clip(name), problem });
        }
        let mut values = HashMap::new();
        for (name, shape) in TENSORS {
            let refuse = |problem| UpdateRefused::Shape { tensor: name.to_owned(), problem };
            let view = tensors.tensor(name).map_err(|_| refuse("is missing"))?;
            if view.shape() != shape {
                return Err(refuse("has another shape"));
            }
            if view.dtype() != Dtype::F32 {
                return Err(refuse("is not F32"));
            }
            let (chunks, _) = view.data().as_chunks::<4>();
            let numbers: Vec<f32> = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            if numbers.iter().any(|number| !number.is_finite()) {
                return Err(UpdateRefused::Incompatible { tensor: name });
            }
            values.insert(name, numbers);
        }
        Ok(Self(values))
    }

    fn array<const N: usize>(&self, name: &str) -> [f32; N] {
        let values = self.0.get(name).expect("the reader has every tensor of the table");
        values.as_slice().try_into().expect("and of the table's shape")
    }

    /// A whole number of epochs; what is none becomes one that is out of every range.
    fn epochs(&self, name: &str) -> u32 {
        let [value] = self.array(name);
        let whole = value.fract() == 0.0 && (0.0..=100_000.0).contains(&value);
        if whole { value as u32 } else { u32::MAX }
    }
}

fn read(from: &Reader) -> Weights {
    let [min_delta_absolute, min_delta_relative] = from.array("plateau.min_delta");
    let [smoothing] = from.array("plateau.smoothing");
    let [target_loss] = from.array("plateau.target_loss");
    let [keep_effect, cull_effect] = from.array("verdict.thresholds");
    let rows: [f32; RISK_CLASSES * STATE_FEATURES] = from.array("risk.weights");
    let (rows, _) = rows.as_chunks::<STATE_FEATURES>();
    Weights {
        plateau: PlateauNumbers {
            patience_epochs: from.epochs("plateau.patience"),
            min_delta_absolute,
            min_delta_relative,
            smoothing,
            warm_up_epochs: from.epochs("plateau.warm_up"),
            target_loss,
        },
        keep_effect,
        cull_effect,
        blueprint_bias: from.array("blueprint.bias"),
        candidate: from.array("candidate.weights"),
        slot: from.array("slot.weights"),
        risk: std::array::from_fn(|class| rows[class]),
        risk_bias: from.array("risk.bias"),
    }
}
