//! Opening an artifact that the library has announced. Blocking.

use std::fs::File;
use std::path::{Path, PathBuf};

use kernel::Digest;
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

/// What was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) parameters: Vec<String>,
}

/// Opens an artifact, having verified its digest.
pub(crate) fn open(promise: &Promise, shape: &[usize]) -> Result<Opened, FetchFailure> {
    let _ = (shape, promise.guard_digest);
    verify(&promise.path, &promise.digest)?;
    Ok(Opened { parameters: Vec::new() })
}

fn verify(path: &Path, digest: &Digest) -> Result<(), FetchFailure> {
    let opened = |error: std::io::Error| FetchFailure::OpenFailed { detail: error.to_string() };
    let actual = Digest::of_reader(File::open(path).map_err(opened)?).map_err(opened)?;
    if actual == *digest { Ok(()) } else { Err(FetchFailure::ChecksumMismatch) }
}
