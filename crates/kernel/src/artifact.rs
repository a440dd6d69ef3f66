//! The artifact: one safetensors file that holds a kernel's parameters and, in its metadata, a manifest.
//!
//! A kernel is data. Opening one verifies its digest, parses, and checks everything against everything else; it
//! executes nothing. What was written by [`write_bytes`] is a function of the manifest and the parameters only, so
//! that the same job gives the same file and the same digest.
//!
//! [`Verified::open`] looks at every byte (digest, manifest, finite values); after that [`Verified::load`] reads the
//! header alone and leaves the values in the file. What is large stays there until it is changed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};

use crate::canonical::to_canonical_json;
use crate::cost::Cost;
use crate::digest::Digest;
use crate::error::{GraphError, RunError};
use crate::graph::Graph;
use crate::guard::GuardSpec;
use crate::mapping::Mapping;
use crate::probe::probe_digest;
use crate::tensor::{Params, Tensor};

/// Version of the file format this engine writes. It reads this one and [`FORMAT_OLDEST`].
pub const FORMAT: u32 = 2;
/// Oldest version this engine reads: without a host, a job and tolerances of operators.
pub const FORMAT_OLDEST: u32 = 1;
/// Host of a kernel that fits any host with such a site.
pub const ANY_HOST: &str = "any";
/// Files below this many bytes are copied and closed: a map costs a file descriptor and page faults.
const MAP_BYTES_MIN: u64 = 1024 * 1024;
/// Largest artifact, in bytes. The largest template has some ten million parameters, 40 MB.
pub const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most memory that one forward pass of a kernel may need, in bytes, as [`Cost::bytes`] counts it: 4 GiB. A graph of
/// a few hundred characters can ask for any amount.
pub const RUN_BYTES_MAX: u64 = 4 << 30;
/// The parts of a manifest that say what a kernel may be given, as [`ArtifactError::Contradiction`] names them.
const GUARD: &str = "guard";
const GUARD_DIGEST: &str = "guard digest";
/// Key of the manifest in the file's metadata.
const MANIFEST_KEY: &str = "esper.manifest";

/// What a kernel is, apart from the values of its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`] at the time of writing.
    pub format: u32,
    /// Network it was built for, [`ANY_HOST`] where that is open.
    #[serde(default = "any_host")]
    pub host: String,
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
    /// The same for single operators, by the name that the manifest has for them, where it was recorded.
    #[serde(default)]
    pub tolerances: BTreeMap<String, f32>,
    /// Digest of the interpreter's outputs for the probe inputs, of the graph in inference form.
    pub probe_digest: Digest,
    /// Who made it.
    pub provenance: Provenance,
}

fn any_host() -> String {
    ANY_HOST.to_owned()
}

/// Who made a kernel, and out of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of the tensor engine.
    pub engine: String,
    /// Version of the forge: its templates and starting weights. Empty when none was told.
    #[serde(default)]
    pub forge: String,
    /// Digest of the job it is the result of. The same job gives the same file.
    #[serde(default)]
    pub job: Option<Digest>,
}

impl Provenance {
    /// This engine, for nobody's job.
    pub fn current() -> Self {
        Self { engine: env!("CARGO_PKG_VERSION").to_owned(), forge: String::new(), job: None }
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
    #[error(
        "the kernel has format {found}, this engine reads {FORMAT_OLDEST} to {FORMAT}; compile it again"
    )]
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
    /// One pass would need more than [`RUN_BYTES_MAX`].
    #[error("one pass of the kernel needs {found} bytes; at most {RUN_BYTES_MAX} are accepted")]
    TooCostly {
        /// Bytes of one pass.
        found: u64,
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

impl ArtifactError {
    /// Whether the manifest's guard is not that of its graph, or its digest not that of the guard.
    pub fn is_of_guard(&self) -> bool {
        matches!(self, Self::Contradiction { field: GUARD | GUARD_DIGEST })
    }
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
            host: any_host(),
            blueprint: blueprint.to_owned(),
            parameters,
            site,
            guard_digest: guard.digest(),
            guard,
            cost: Cost::of(&graph),
            tolerance,
            tolerances: BTreeMap::new(),
            probe_digest: probe(&graph, params)?,
            provenance: Provenance::current(),
            graph,
        })
    }

    /// The same manifest of a kernel for one network.
    #[must_use]
    pub fn for_host(self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self }
    }

    /// The same manifest with the forge and the job it came from.
    #[must_use]
    pub fn made_by(self, forge: &str, job: Digest) -> Self {
        let provenance = Provenance { forge: forge.to_owned(), job: Some(job), ..self.provenance };
        Self { provenance, ..self }
    }

    /// The same manifest with the tolerances its operators were checked against.
    #[must_use]
    pub fn with_tolerances(self, tolerances: BTreeMap<String, f32>) -> Self {
        Self { tolerances, ..self }
    }

    /// Whether the parts agree with the graph. Executes nothing.
    fn check(&self) -> Result<(), ArtifactError> {
        refuse_stress(&self.graph)?;
        let is_sound = |tolerance: &f32| tolerance.is_finite() && *tolerance >= 0.0;
        let is_tolerance = is_sound(&self.tolerance) && self.tolerances.values().all(is_sound);
        let parts = [
            (self.guard == GuardSpec::of_graph(&self.graph), GUARD),
            (self.guard_digest == self.guard.digest(), GUARD_DIGEST),
            (self.cost == Cost::of(&self.graph), "cost"),
            (is_tolerance, "tolerance"),
            (!self.blueprint.is_empty(), "blueprint"),
            (!self.host.is_empty(), "host"),
        ];
        match parts.iter().find(|(holds, _)| !holds) {
            Some(&(_, field)) => Err(ArtifactError::Contradiction { field }),
            None if RUN_BYTES_MAX < self.cost.bytes => {
                Err(ArtifactError::TooCostly { found: self.cost.bytes })
            }
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
    check_shapes(graph, params)?;
    match params.iter().find(|(_, tensor)| !tensor.is_finite()) {
        Some((name, _)) => Err(parameter_error(name, ParameterProblem::NotFinite)),
        None => Ok(()),
    }
}

/// Exactly the graph's parameters, each of its shape.
fn check_shapes(graph: &Graph, params: &Params) -> Result<(), ArtifactError> {
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

/// An artifact of which every byte was looked at, and which stays open.
#[derive(Debug)]
pub struct Verified {
    bytes: Bytes,
    digest: Digest,
}

#[derive(Debug)]
enum Bytes {
    Read(Vec<u8>),
    Mapped(Arc<Mapping>),
}

impl Verified {
    /// Opens the artifact at `path` and looks at all of it. Blocking, as long as hashing takes.
    ///
    /// # Errors
    /// [`ArtifactError`] says what was refused; the digest is compared before anything is parsed.
    pub fn open(path: impl AsRef<Path>, expected: &Digest) -> Result<Self, ArtifactError> {
        let path = path.as_ref();
        let file = File::open(path);
        let file = file.map_err(|source| ArtifactError::Read { path: path.to_owned(), source })?;
        Ok(Self::check(file, path, expected)?.0)
    }

    /// Makes a kernel of it. The values stay where they are, so a large kernel takes as long as a small one.
    ///
    /// # Errors
    /// None in practice: it was loaded once when it was verified.
    pub fn load(&self) -> Result<Kernel, ArtifactError> {
        match &self.bytes {
            Bytes::Read(bytes) => read_kernel(bytes, self.digest, &read_tensor),
            Bytes::Mapped(mapping) => read_kernel(mapping.bytes(), self.digest, &|name, view| {
                map_tensor(name, view, mapping)
            }),
        }
    }

    fn check(file: File, path: &Path, expected: &Digest) -> Result<(Self, Kernel), ArtifactError> {
        let read = |source| ArtifactError::Read { path: path.to_owned(), source };
        let bytes = Bytes::of_file(file).map_err(read)?;
        let digest = verify(bytes.as_slice(), expected)?;
        let verified = Self { bytes, digest };
        let kernel = verified.load()?;
        check_params(kernel.graph(), &kernel.params)?;
        Ok((verified, kernel))
    }
}

impl Bytes {
    /// The whole of a file. How long it may be is for [`verify`] to say: a map costs nothing for its length.
    fn of_file(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() < MAP_BYTES_MIN {
            let mut bytes = Vec::with_capacity(metadata.len() as usize);
            file.take(MAP_BYTES_MIN).read_to_end(&mut bytes)?;
            return Ok(Self::Read(bytes));
        }
        Ok(Self::Mapped(Arc::new(Mapping::new(file)?)))
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(mapping) => mapping.bytes(),
        }
    }
}

fn verify(bytes: &[u8], expected: &Digest) -> Result<Digest, ArtifactError> {
    check_length(bytes.len() as u64)?;
    let actual = Digest::of(bytes);
    if actual != *expected {
        return Err(ArtifactError::Corrupt { expected: *expected, actual });
    }
    Ok(actual)
}

/// Reads verified bytes; `tensor` takes the values.
fn read_kernel(
    bytes: &[u8],
    digest: Digest,
    tensor: &dyn Fn(&str, &TensorView<'_>) -> Result<Tensor, ArtifactError>,
) -> Result<Kernel, ArtifactError> {
    let format = |source| ArtifactError::Format { source };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
    let text = header.metadata().as_ref().and_then(|map| map.get(MANIFEST_KEY));
    let manifest = read_manifest(text.ok_or(ArtifactError::NoManifest)?)?;
    manifest.check()?;
    let tensors = SafeTensors::deserialize(bytes).map_err(format)?;
    let params: Params = tensors
        .iter()
        .map(|(name, view)| Ok((name.to_owned(), tensor(name, &view)?)))
        .collect::<Result<_, ArtifactError>>()?;
    check_shapes(&manifest.graph, &params)?;
    Ok(Kernel { manifest, params, digest })
}

/// A verified kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    manifest: Manifest,
    params: Params,
    digest: Digest,
}

impl Kernel {
    /// Opens the artifact at `path` with the digest `expected` and looks at all of it. Blocking.
    ///
    /// # Errors
    /// [`ArtifactError`] says what was refused; the digest is compared before anything is parsed.
    pub fn open(path: impl AsRef<Path>, expected: &Digest) -> Result<Self, ArtifactError> {
        let path = path.as_ref();
        let file = File::open(path);
        let file = file.map_err(|source| ArtifactError::Read { path: path.to_owned(), source })?;
        Self::of_file(file, path, expected)
    }

    /// As [`Kernel::open`], of a file that the caller has opened; `path` is for messages.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn of_file(file: File, path: &Path, expected: &Digest) -> Result<Self, ArtifactError> {
        Ok(Verified::check(file, path, expected)?.1)
    }

    /// Verifies and reads the bytes of an artifact.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn parse(bytes: &[u8], expected: &Digest) -> Result<Self, ArtifactError> {
        let digest = verify(bytes, expected)?;
        let kernel = read_kernel(bytes, digest, &read_tensor)?;
        check_params(kernel.graph(), &kernel.params)?;
        Ok(kernel)
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
    if !(FORMAT_OLDEST..=FORMAT).contains(&format) {
        return Err(ArtifactError::Version { found: format });
    }
    serde_json::from_str(text).map_err(manifest)
}

fn read_tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, ArtifactError> {
    check_element_type(name, view)?;
    let (values, _) = view.data().as_chunks::<{ size_of::<f32>() }>();
    let data = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Tensor::new(view.shape(), data).map_err(|source| ArtifactError::Graph { source })
}

/// The tensor where it lies in the file, or a copy where it does not lie so that it could be used there.
fn map_tensor(
    name: &str,
    view: &TensorView<'_>,
    mapping: &Arc<Mapping>,
) -> Result<Tensor, ArtifactError> {
    check_element_type(name, view)?;
    match mapping.range_of(view.data()) {
        Some(range) => Tensor::mapped(view.shape(), mapping, range)
            .map_err(|source| ArtifactError::Graph { source }),
        None => read_tensor(name, view),
    }
}

fn check_element_type(name: &str, view: &TensorView<'_>) -> Result<(), ArtifactError> {
    if view.dtype() == Dtype::F32 {
        return Ok(());
    }
    let found = format!("{:?}", view.dtype());
    Err(parameter_error(name, ParameterProblem::ElementType(found)))
}
