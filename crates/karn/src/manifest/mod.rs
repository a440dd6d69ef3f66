//! Blueprints that users bring: a manifest in TOML says what a blueprint is called, how far it is trusted, what its
//! parameters are, and its graph from the operators that our own templates are made of.
//!
//! `read` finds every fault of a text, `expression` computes sizes, `draw` makes the graph. Nothing in a manifest is
//! code, and nothing is allocated by its sizes before they are within bounds.

mod draw;
mod expression;
mod fault;
mod operator;
mod read;

use kernel::Digest;

pub use draw::DrawError;
pub(crate) use draw::draw;
use expression::Expression;
pub use fault::{ManifestError, ManifestFault};
use operator::Operation;

use crate::blueprint::{Clearance, Tier};
use crate::site::Site;

/// Largest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 64 << 10;
/// Most nodes of a manifest's graph.
pub const MANIFEST_NODES_MAX: usize = 256;
/// Most numbers in all parameters of a manifest's graph.
pub const MANIFEST_WEIGHTS_MAX: usize = 4 << 20;
/// Most numbers in one tensor of a manifest's graph, for [`crate::BATCH`] samples.
pub const MANIFEST_TENSOR_MAX: usize = 4 << 20;
/// Most parameters, and most sites, that a manifest declares.
pub(crate) const DECLARED_MAX: usize = 16;

/// A manifest that reads well. Whether its graph does what it must is examined when it joins a catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) tier: Tier,
    pub(crate) parameters: Vec<(String, f64, f64)>,
    pub(crate) risk: f32,
    pub(crate) stage: u32,
    pub(crate) clearance: Clearance,
    pub(crate) description: String,
    /// Sites on which it is examined; it works on their kinds.
    pub(crate) sites: Vec<Site>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) output: String,
    /// Line of the output.
    pub(crate) output_line: usize,
    /// Digest of the text: part of the key of every job.
    pub(crate) digest: Digest,
}

/// One node of the graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// Where the manifest says it, from 1.
    pub(crate) line: usize,
    pub(crate) operation: Operation,
    /// Names of earlier nodes, or `input`.
    pub(crate) inputs: Vec<String>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Every fault at once, each with its line and field.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        read::read(text)
    }

    /// Its blueprint's id.
    pub fn id(&self) -> &str {
        &self.id
    }
}
