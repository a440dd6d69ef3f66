//! The artifact: one safetensors file that holds a kernel's parameters and, in its metadata, a manifest.
//!
//! A kernel is data. Opening one verifies its digest, parses, and checks everything against everything else; it
//! executes nothing. What was written by [`write_bytes`] is a function of the manifest and the parameters only, so
//! that the same job gives the same file and the same digest.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};

use crate::canonical::to_canonical_json;
use crate::cost::Cost;
use crate::digest::Digest;
use crate::error::{GraphError, RunError};
use crate::graph::Graph;
use crate::guard::GuardSpec;
use crate::probe::probe_digest;
use crate::tensor::{Params, Tensor};

/// Version of the file format this engine writes and reads.
pub const FORMAT: u32 = 1;
/// Largest artifact, in bytes. The largest template has some ten million parameters, 40 MB.
pub const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Key of the manifest in the file's metadata.
const MANIFEST_KEY: &str = "esper.manifest";

/// What a kernel is, apart from the values of its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`] at the time of writing.
    pub format: u32,
    /// Blueprint the kernel was compiled from.
    pub blueprint: String,
    /// The blueprint's parameters at that time.
    pub parameters: BTreeMap<String, f64>,
    /// Where the kernel fits, in the catalogue's own words.
    pub site: serde_json::Value,
    /// The computation, in training form.
    pub graph: Graph,
    /// Inputs it was compiled for.
    pub guard: GuardSpec,
    /// Digest of the guard.
    pub guard_digest: Digest,
    /// Cost of one forward pass at the guard's batch size.
    pub cost: Cost,
    /// How far a plan's outputs may be from the interpreter's, relative to the largest of them.
    pub tolerance: f32,
    /// Digest of the interpreter's outputs for the probe inputs, of the graph in inference form.
    pub probe_digest: Digest,
    /// Who made it.
    pub provenance: Provenance,
}

/// Who made a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of the tensor engine.
    pub engine: String,
}

impl Provenance {
    /// This engine.
    pub fn current() -> Self {
        Self { engine: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Why an artifact could not be made or opened. Nothing of it may be used after an error.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("cannot read kernel {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is empty or larger than [`ARTIFACT_BYTES_MAX`].
    #[error("the kernel has {found} bytes; between 1 and {limit} are accepted")]
    Length {
        /// Its length in bytes.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes are not those asked for: damaged, truncated or replaced. Fetch or compile it again.
    #[error("the kernel has digest {actual}, asked for was {expected}")]
    Corrupt {
        /// Digest asked for.
        expected: Digest,
        /// Digest of the bytes.
        actual: Digest,
    },
    /// Not a safetensors file.
    #[error("not a safetensors file")]
    Format {
        /// Why.
        source: SafeTensorError,
    },
    /// A safetensors file that is no kernel.
    #[error("the file has no manifest under {MANIFEST_KEY:?}; it is not a kernel")]
    NoManifest,
    /// The manifest is not what this engine writes, or its graph is unsound.
    #[error("the kernel's manifest cannot be accepted")]
    Manifest {
        /// Why.
        source: serde_json::Error,
    },
    /// A format of another time.
    #[error("the kernel has format {found}, this engine reads {FORMAT}; compile it again")]
    Version {
        /// Its format.
        found: u32,
    },
    /// Parts of the manifest contradict each other.
    #[error("the manifest's {field} does not belong to its graph")]
    Contradiction {
        /// The part at fault.
        field: &'static str,
    },
    /// A parameter of the graph is not in the file, or the other way round.
    #[error("parameter {name:?} is {problem}")]
    Parameter {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: ParameterProblem,
    },
    /// The graph holds a stress operator, under whatever blueprint's name. Nothing makes such files; find out who did.
    #[error(
        "the kernel holds the stress operator {operator}; such graphs run in quarantine only and are never stored"
    )]
    Quarantined {
        /// Operator, in the spelling of the manifest.
        operator: &'static str,
    },
    /// The graph could not be brought into inference form.
    #[error("the kernel's graph cannot be used")]
    Graph {
        /// Why.
        source: GraphError,
    },
    /// The probe could not be run.
    #[error("the kernel's probe cannot be run")]
    Probe {
        /// Why.
        source: RunError,
    },
}

/// What may be wrong with a parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterProblem {
    /// The graph has it, the file does not.
    #[error("missing")]
    Missing,
    /// The file has it, the graph does not.
    #[error("not in the graph")]
    Unexpected,
    /// Not `float32`.
    #[error("of element type {0}, not F32")]
    ElementType(String),
    /// Another shape than the graph's.
    #[error("of shape {found:?}, the graph has {expected:?}")]
    Shape {
        /// The graph's shape.
        expected: Vec<usize>,
        /// The file's.
        found: Vec<usize>,
    },
    /// A value is infinite or not a number.
    #[error("not finite")]
    NotFinite,
}

impl Manifest {
    /// The manifest of a kernel: guard, cost and probe are computed from graph and parameters.
    ///
    /// # Errors
    /// [`ArtifactError::Parameter`] when the parameters are not those of the graph, [`ArtifactError::Probe`] when it
    /// cannot be run.
    pub fn new(
        blueprint: &str,
        parameters: BTreeMap<String, f64>,
        site: serde_json::Value,
        graph: Graph,
        params: &Params,
        tolerance: f32,
    ) -> Result<Self, ArtifactError> {
        refuse_stress(&graph)?;
        check_params(&graph, params)?;
        let guard = GuardSpec::of_graph(&graph);
        Ok(Self {
            format: FORMAT,
            blueprint: blueprint.to_owned(),
            parameters,
            site,
            guard_digest: guard.digest(),
            guard,
            cost: Cost::of(&graph),
            tolerance,
            probe_digest: probe(&graph, params)?,
            provenance: Provenance::current(),
            graph,
        })
    }

    /// Whether the parts agree with the graph. Executes nothing.
    fn check(&self) -> Result<(), ArtifactError> {
        refuse_stress(&self.graph)?;
        let is_tolerance = self.tolerance.is_finite() && self.tolerance >= 0.0;
        let parts = [
            (self.guard == GuardSpec::of_graph(&self.graph), "guard"),
            (self.guard_digest == self.guard.digest(), "guard digest"),
            (self.cost == Cost::of(&self.graph), "cost"),
            (is_tolerance, "tolerance"),
            (!self.blueprint.is_empty(), "blueprint"),
        ];
        match parts.iter().find(|(holds, _)| !holds) {
            Some(&(_, field)) => Err(ArtifactError::Contradiction { field }),
            None => Ok(()),
        }
    }
}

/// There are no artifacts of graphs that may run in quarantine only, whatever they call themselves.
fn refuse_stress(graph: &Graph) -> Result<(), ArtifactError> {
    match graph.stress() {
        Some(operator) => Err(ArtifactError::Quarantined { operator }),
        None => Ok(()),
    }
}

/// The probe digest of a graph in training form.
fn probe(graph: &Graph, params: &Params) -> Result<Digest, ArtifactError> {
    let served = graph.inference().map_err(|source| ArtifactError::Graph { source })?;
    probe_digest(&served, params).map_err(|source| ArtifactError::Probe { source })
}

fn parameter_error(name: &str, problem: ParameterProblem) -> ArtifactError {
    ArtifactError::Parameter { name: name.to_owned(), problem }
}

/// Exactly the graph's parameters, each of its shape and finite.
fn check_params(graph: &Graph, params: &Params) -> Result<(), ArtifactError> {
    for (name, expected) in graph.parameters() {
        let Some(tensor) = params.get(name) else {
            return Err(parameter_error(name, ParameterProblem::Missing));
        };
        if tensor.shape() != expected {
            let problem = ParameterProblem::Shape {
                expected: expected.to_vec(),
                found: tensor.shape().to_vec(),
            };
            return Err(parameter_error(name, problem));
        }
        if !tensor.is_finite() {
            return Err(parameter_error(name, ParameterProblem::NotFinite));
        }
    }
    match params.iter().find(|(name, _)| graph.parameter_node(name).is_none()) {
        Some((name, _)) => Err(parameter_error(name, ParameterProblem::Unexpected)),
        None => Ok(()),
    }
}

/// The file's bytes and their digest.
///
/// # Errors
/// Everything [`Kernel::parse`] would refuse, so that what is written can be opened.
pub fn write_bytes(
    manifest: &Manifest,
    params: &Params,
) -> Result<(Vec<u8>, Digest), ArtifactError> {
    manifest.check()?;
    check_params(&manifest.graph, params)?;
    let text = to_canonical_json(manifest).map_err(|source| ArtifactError::Manifest { source })?;
    let metadata = HashMap::from([(MANIFEST_KEY.to_owned(), text)]);
    let tensors = params.iter().map(|(name, tensor)| (name, Stored::new(tensor)));
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .map_err(|source| ArtifactError::Format { source })?;
    check_length(bytes.len() as u64)?;
    let digest = Digest::of(&bytes);
    Ok((bytes, digest))
}

/// A tensor in the byte order of the file.
struct Stored<'a> {
    shape: &'a [usize],
    bytes: Vec<u8>,
}

impl<'a> Stored<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        Self {
            shape: tensor.shape(),
            bytes: tensor.data().iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A verified kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    manifest: Manifest,
    params: Params,
    digest: Digest,
}

impl Kernel {
    /// Opens the artifact with the digest `expected`. Blocking; the file is mapped while it is verified and
    /// nothing refers to it afterwards.
    ///
    /// # Errors
    /// [`ArtifactError::Read`] and everything of [`Kernel::parse`].
    pub fn open(path: impl AsRef<Path>, expected: &Digest) -> Result<Self, ArtifactError> {
        let path = path.as_ref();
        let read = |source| ArtifactError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        check_length(metadata.len())?;
        // SAFETY: a map is undefined behaviour only when the file changes under it. Artifacts are content-addressed:
        // they are written under another name, renamed once complete and never changed in place; and the map lives
        // no longer than this call.
        #[allow(unsafe_code)]
        let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(read)?;
        Self::parse(&bytes, expected)
    }

    /// Verifies and reads the bytes of an artifact.
    ///
    /// # Errors
    /// [`ArtifactError`] says what was refused; the digest is compared before anything is parsed.
    pub fn parse(bytes: &[u8], expected: &Digest) -> Result<Self, ArtifactError> {
        check_length(bytes.len() as u64)?;
        let actual = Digest::of(bytes);
        if actual != *expected {
            return Err(ArtifactError::Corrupt { expected: *expected, actual });
        }
        let format = |source| ArtifactError::Format { source };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let text = header.metadata().as_ref().and_then(|map| map.get(MANIFEST_KEY));
        let manifest = read_manifest(text.ok_or(ArtifactError::NoManifest)?)?;
        manifest.check()?;
        let tensors = SafeTensors::deserialize(bytes).map_err(format)?;
        let params: Params = tensors
            .iter()
            .map(|(name, view)| Ok((name.to_owned(), read_tensor(name, &view)?)))
            .collect::<Result<_, ArtifactError>>()?;
        check_params(&manifest.graph, &params)?;
        Ok(Self { manifest, params, digest: actual })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The computation, in training form.
    pub fn graph(&self) -> &Graph {
        &self.manifest.graph
    }

    /// The parameters as compiled.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The digest under which the kernel is stored.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Runs the probe by the interpreter and says whether it gives what the manifest says. Slow for large kernels.
    ///
    /// # Errors
    /// [`ArtifactError::Probe`] or [`ArtifactError::Graph`] when it cannot be run.
    pub fn verify_probe(&self) -> Result<bool, ArtifactError> {
        Ok(probe(&self.manifest.graph, &self.params)? == self.manifest.probe_digest)
    }
}

fn check_length(found: u64) -> Result<(), ArtifactError> {
    if (1..=ARTIFACT_BYTES_MAX).contains(&found) {
        return Ok(());
    }
    Err(ArtifactError::Length { found, limit: ARTIFACT_BYTES_MAX })
}

/// The format is looked at first: the rest of another format's manifest need not make sense.
fn read_manifest(text: &str) -> Result<Manifest, ArtifactError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let manifest = |source| ArtifactError::Manifest { source };
    let Versioned { format } = serde_json::from_str(text).map_err(manifest)?;
    if format != FORMAT {
        return Err(ArtifactError::Version { found: format });
    }
    serde_json::from_str(text).map_err(manifest)
}

fn read_tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, ArtifactError> {
    if view.dtype() != Dtype::F32 {
        let found = format!("{:?}", view.dtype());
        return Err(parameter_error(name, ParameterProblem::ElementType(found)));
    }
    let (values, _) = view.data().as_chunks::<{ size_of::<f32>() }>();
    let data = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Tensor::new(view.shape(), data).map_err(|source| ArtifactError::Graph { source })
}
