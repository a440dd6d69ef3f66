//! What a policy has learnt, as data: a safetensors file whose metadata says for whom it is.
//! Nothing here can run code, whatever the bytes are.

use std::collections::{BTreeMap, HashMap};

use kernel::Digest;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Name of the architecture these weights fit.
pub const ARCHITECTURE: &str = "tamiyo_rank_v1";

const TENSOR_BASE: &str = "candidate.base";
const TENSOR_CAPACITY: &str = "candidate.capacity";
const TENSOR_PRIOR: &str = "candidate.prior";
/// Larger numbers than this are no weights of a ranking.
const WEIGHT_MAX: f32 = 1e6;
/// The built-in policy's opinion: the blueprint, and what is added to its score.
const BUILT_IN_PRIOR: [(&str, f32); 3] = [("BP009", 2.0), ("BP014", 1.0), ("BP002", 0.5)];

/// The numbers that rank candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Name under which decisions and field reports cite this policy.
    pub version: String,
    /// Grows with each update; an update that does not raise it is stale. The built-in policy has 0.
    pub sequence: u64,
    /// Weight of the published candidate score.
    pub base: f32,
    /// Weight of the logarithm of one plus the trainable numbers.
    pub capacity: f32,
    /// One number for each blueprint of the catalogue, in its order.
    pub prior: Vec<f32>,
}

/// Why an update was not taken. The names are those of the published table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Made for another architecture.
    #[error("it is for architecture {found:?}, this is {ARCHITECTURE}")]
    VersionMismatch {
        /// The architecture named.
        found: String,
    },
    /// Older than allowed, or not newer than what is in force.
    #[error("it is stale: {reason}")]
    StaleUpdate {
        /// In which way.
        reason: String,
    },
    /// No safetensors, or without the metadata this service needs.
    #[error("its payload is no usable safetensors file: {reason}")]
    InvalidPayload {
        /// In which way.
        reason: String,
    },
    /// A tensor is absent, superfluous, or of another shape or type.
    #[error("tensor {tensor}: {reason}")]
    ShapeMismatch {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Made for another catalogue: the same place would mean another blueprint.
    #[error("it was made for catalogue {found}, this one is {expected}")]
    RegistryMismatch {
        /// The digest named.
        found: String,
        /// The digest of this service's catalogue.
        expected: String,
    },
    /// It fits and would not work.
    #[error("tensor {tensor} holds a number that is not finite or beyond any use")]
    IncompatibleUpdate {
        /// The tensor.
        tensor: String,
    },
    /// It is good and could not be put in force.
    #[error("it could not be stored: {reason}")]
    SwapFailed {
        /// What the system said.
        reason: String,
    },
}

impl Rejection {
    /// The published reason code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::VersionMismatch { .. } => "version_mismatch",
            Self::StaleUpdate { .. } => "stale_update",
            Self::InvalidPayload { .. } => "invalid_payload",
            Self::ShapeMismatch { .. } => "shape_mismatch",
            Self::RegistryMismatch { .. } => "registry_mismatch",
            Self::IncompatibleUpdate { .. } => "incompatible_update",
            Self::SwapFailed { .. } => "swap_failed",
        }
    }
}

/// SHA-256 over the catalogue's ids in order: two services with the same digest mean the same
/// blueprint by the same place.
pub fn registry_digest() -> String {
    let ids: Vec<&str> = karn::catalogue().iter().map(|one| one.id().as_str()).collect();
    Digest::of(ids.join("\n").as_bytes()).to_string()
}

impl Weights {
    /// The policy that is compiled in: it prefers residual blocks, then what has more to train.
    pub fn built_in() -> Self {
        let ids = karn::catalogue().iter().map(|one| one.id().as_str());
        let opinion = |id: &str| BUILT_IN_PRIOR.iter().find(|(other, _)| *other == id);
        let prior = ids.map(|id| opinion(id).map_or(0.0, |(_, value)| *value)).collect();
        Self { version: "built-in".to_owned(), sequence: 0, base: 1.0, capacity: 0.1, prior }
    }

    /// The file that [`Self::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let scalars = [self.base.to_le_bytes(), self.capacity.to_le_bytes()];
        let prior: Vec<u8> = self.prior.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = |shape: Vec<usize>, data| {
            TensorView::new(Dtype::F32, shape, data)
                .unwrap_or_else(|_| unreachable!("the data is as long as its shape says"))
        };
        let tensors = BTreeMap::from([
            (TENSOR_BASE, view(vec![1], &scalars[0])),
            (TENSOR_CAPACITY, view(vec![1], &scalars[1])),
            (TENSOR_PRIOR, view(vec![self.prior.len()], &prior)),
        ]);
        let metadata = HashMap::from([
            ("architecture".to_owned(), ARCHITECTURE.to_owned()),
            ("version".to_owned(), self.version.clone()),
            ("sequence".to_owned(), self.sequence.to_string()),
            ("registry".to_owned(), registry_digest()),
        ]);
        safetensors::serialize(tensors, Some(metadata))
            .unwrap_or_else(|_| unreachable!("three small tensors can be written"))
    }

    /// Reads and checks a file completely; nothing of it is used unless everything is right.
    ///
    /// # Errors
    /// [`Rejection`] with the first thing that is wrong, in the order of the published table.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Rejection> {
        let invalid = |reason: &str| Rejection::InvalidPayload { reason: reason.to_owned() };
        let unreadable = |error: safetensors::SafeTensorError| invalid(&error.to_string());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(unreadable)?;
        let metadata = header.metadata().as_ref().ok_or_else(|| invalid("it has no metadata"))?;
        let entry = |key: &str| {
            metadata.get(key).ok_or_else(|| invalid(&format!("its metadata lacks {key}")))
        };
        let architecture = entry("architecture")?;
        if architecture != ARCHITECTURE {
            return Err(Rejection::VersionMismatch { found: architecture.clone() });
        }
        let sequence = entry("sequence")?
            .parse::<u64>()
            .map_err(|_| invalid("its metadata's sequence is no whole number"))?;
        let (found, expected) = (entry("registry")?.clone(), registry_digest());
        if found != expected {
            return Err(Rejection::RegistryMismatch { found, expected });
        }
        let version = entry("version")?.clone();
        let known = [TENSOR_BASE, TENSOR_CAPACITY, TENSOR_PRIOR];
        if let Some(other) = tensors.names().into_iter().find(|name| !known.contains(name)) {
            let (tensor, reason) = (other.to_owned(), "is not part of the architecture".to_owned());
            return Err(Rejection::ShapeMismatch { tensor, reason });
        }
        Ok(Self {
            version,
            sequence,
            base: numbers(&tensors, TENSOR_BASE, 1)?[0],
            capacity: numbers(&tensors, TENSOR_CAPACITY, 1)?[0],
            prior: numbers(&tensors, TENSOR_PRIOR, karn::catalogue().len())?,
        })
    }
}

fn numbers(tensors: &SafeTensors<'_>, name: &str, length: usize) -> Result<Vec<f32>, Rejection> {
    let mismatch = |reason: String| Rejection::ShapeMismatch { tensor: name.to_owned(), reason };
    let view = tensors.tensor(name).map_err(|_| mismatch("is absent".to_owned()))?;
    if view.dtype() != Dtype::F32 || view.shape() != [length] {
        let found = format!("is {:?} {:?} instead of F32 [{length}]", view.dtype(), view.shape());
        return Err(mismatch(found));
    }
    let values: Vec<f32> = view
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    if values.iter().all(|value| value.is_finite() && value.abs() <= WEIGHT_MAX) {
        Ok(values)
    } else {
        Err(Rejection::IncompatibleUpdate { tensor: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_survive_the_round_trip() {
        let weights = Weights { sequence: 7, version: "v7".to_owned(), ..Weights::built_in() };
        assert_eq!(Weights::from_bytes(&weights.to_bytes()), Ok(weights));
    }

    #[test]
    fn a_foreign_pickle_is_refused_as_invalid_payload() {
        for bytes in [&b"\x80\x04\x95cos\nsystem\n(S'true'\ntR."[..], b"PK\x03\x04 torch zip", b""]
        {
            assert_eq!(Weights::from_bytes(bytes).unwrap_err().code(), "invalid_payload");
        }
    }

    #[test]
    fn every_cut_is_refused() {
        let whole = Weights::built_in().to_bytes();
        for length in 0..whole.len() {
            assert!(Weights::from_bytes(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    /// The same file with one piece of its header replaced by another of the same length.
    #[track_caller]
    fn check_edit(from: &str, to: &str, code: &str) {
        assert_eq!(from.len(), to.len());
        let bytes = Weights::built_in().to_bytes();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut edited = bytes;
        edited[at..at + to.len()].copy_from_slice(to.as_bytes());
        assert_eq!(Weights::from_bytes(&edited).unwrap_err().code(), code, "{from} to {to}");
    }

    #[test]
    fn the_header_is_checked_in_every_entry() {
        check_edit(ARCHITECTURE, "tamiyo_rank_v2", "version_mismatch");
        check_edit("architecture", "architektura", "invalid_payload");
        check_edit("\"sequence\":\"0\"", "\"sequence\":\"x\"", "invalid_payload");
        check_edit(&registry_digest(), &"0".repeat(registry_digest().len()), "registry_mismatch");
        check_edit("candidate.base", "candidate.nase", "shape_mismatch");
        check_edit("\"F32\"", "\"I32\"", "shape_mismatch");
    }

    #[test]
    fn numbers_no_ranking_can_use_are_refused() {
        for value in [f32::NAN, f32::INFINITY, 1e30] {
            let bytes = Weights { capacity: value, ..Weights::built_in() }.to_bytes();
            assert_eq!(Weights::from_bytes(&bytes).unwrap_err().code(), "incompatible_update");
        }
        let bytes = Weights { prior: vec![0.0; 49], ..Weights::built_in() }.to_bytes();
        assert_eq!(Weights::from_bytes(&bytes).unwrap_err().code(), "shape_mismatch");
    }
}
