//! Opening an artifact that the library has announced. Blocking.

use std::io;
use std::path::PathBuf;

use kernel::Digest;
use kernel::artifact::{ArtifactError, Kernel};
use leyline::ids::BlueprintId;
use leyline::wire::KernelArtifactReady;

use crate::fetch::FetchFailure;

/// What an answer promises, in types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) guard_digest: Digest,
}

impl Promise {
    /// Reads an answer.
    ///
    /// # Errors
    /// The reference is no absolute path, or a digest is none.
    pub(crate) fn read(ready: &KernelArtifactReady) -> Result<Self, FetchFailure> {
        let failed = |detail: &str| FetchFailure::OpenFailed { detail: detail.to_owned() };
        let path = PathBuf::from(&ready.artifact_ref);
        if !path.is_absolute() {
            return Err(failed("the artifact reference is no absolute path"));
        }
        let digest = ready.checksum.parse().map_err(|_| failed("the checksum is no SHA-256"))?;
        let guard_digest =
            ready.guard_digest.parse().map_err(|_| failed("the guard digest is no SHA-256"))?;
        Ok(Self { path, digest, guard_digest })
    }
}

/// Opens an artifact: its digest is verified before anything of it is read, its guard must be the
/// announced one, its blueprint the wanted one, and its shapes those of the slot.
pub(crate) fn open(
    promise: &Promise,
    blueprint: &BlueprintId,
    shape: &[usize],
) -> Result<Kernel, FetchFailure> {
    let kernel = Kernel::open(&promise.path, &promise.digest).map_err(failure)?;
    let manifest = kernel.manifest();
    if manifest.guard_digest != promise.guard_digest {
        return Err(FetchFailure::GuardMismatch);
    }
    if manifest.blueprint != blueprint.as_str() {
        return Err(FetchFailure::BlueprintMismatch);
    }
    if fits(&kernel, shape) { Ok(kernel) } else { Err(FetchFailure::IncompatibleSite) }
}

/// Whether the kernel takes and gives what flows through the slot, whatever the batch.
fn fits(kernel: &Kernel, shape: &[usize]) -> bool {
    let batched: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
    let graph = kernel.graph();
    let gives = match graph.outputs() {
        [output] => graph.shape(output.node).iter().skip(1).eq(shape),
        _ => false,
    };
    gives && kernel.manifest().guard.check(&[&batched]).is_ok()
}

/// What can be had by asking again is told apart: the library finds it out at the next request.
fn failure(error: ArtifactError) -> FetchFailure {
    match error {
        ArtifactError::Corrupt { .. } | ArtifactError::Length { .. } => {
            FetchFailure::ChecksumMismatch
        }
        ArtifactError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            FetchFailure::ArtifactNotFound
        }
        other => FetchFailure::OpenFailed { detail: other.to_string() },
    }
}
