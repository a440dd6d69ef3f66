//! Opening an artifact that the library has announced. Blocking.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use kernel::Digest;
use kernel::artifact::{ArtifactError, Kernel};
use kernel::guard::{GuardMismatch, GuardSpec};
use leyline::ids::BlueprintId;
use leyline::wire::KernelArtifactReady;

use crate::fetch::FetchFailure;

/// What an answer promises, in types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Where it is on the library's machine, and perhaps on this one.
    pub(crate) path: Option<PathBuf>,
    /// Where it can be had from elsewhere.
    pub(crate) url: Option<String>,
    pub(crate) digest: Digest,
    pub(crate) guard_digest: Digest,
}

impl Promise {
    /// Reads an answer, and the URL that came with it.
    ///
    /// # Errors
    /// The reference is no plain absolute path and no URL came, or a digest is none.
    pub(crate) fn read(
        ready: &KernelArtifactReady,
        url: Option<String>,
    ) -> Result<Self, FetchFailure> {
        let failed = |detail: &str| FetchFailure::OpenFailed { detail: detail.to_owned() };
        let path = Some(PathBuf::from(&ready.artifact_ref)).filter(|path| is_plain(path));
        if path.is_none() && url.is_none() {
            return Err(failed("the artifact reference is no absolute path"));
        }
        let digest = ready.checksum.parse().map_err(|_| failed("the checksum is no SHA-256"))?;
        let guard_digest =
            ready.guard_digest.parse().map_err(|_| failed("the guard digest is no SHA-256"))?;
        Ok(Self { path, url, digest, guard_digest })
    }
}

/// Absolute, and nothing in it that leads back up.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && !path.as_os_str().as_encoded_bytes().contains(&0)
}

/// Opens what a reference names: a regular file, and nothing that a link at its end leads to. The
/// opening of a pipe does not wait for a writer.
fn regular(path: &Path) -> Result<File, ArtifactError> {
    let read = |source| ArtifactError::Read { path: path.to_owned(), source };
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = flags.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(read)?;
    if file.metadata().map_err(read)?.is_file() {
        return Ok(file);
    }
    Err(read(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")))
}

/// Opens an artifact: its digest is verified before anything of it is read, its guard must be the
/// announced one, its blueprint the wanted one, and its shapes those of the slot.
pub(crate) fn open(
    path: &Path,
    promise: &Promise,
    blueprint: &BlueprintId,
    shape: &[usize],
) -> Result<Kernel, FetchFailure> {
    let file = regular(path).map_err(failure)?;
    let kernel = Kernel::of_file(file, path, &promise.digest).map_err(failure)?;
    let manifest = kernel.manifest();
    if manifest.guard_digest != promise.guard_digest {
        return Err(FetchFailure::GuardMismatch);
    }
    if manifest.blueprint != blueprint.as_str() {
        return Err(FetchFailure::BlueprintMismatch);
    }
    fits(&kernel, shape)?;
    Ok(kernel)
}

/// Whether the kernel takes and gives what flows through the slot, whatever the batch.
///
/// # Errors
/// [`FetchFailure::IncompatibleSite`], [`FetchFailure::IncompatibleInput`]
pub(crate) fn fits(kernel: &Kernel, shape: &[usize]) -> Result<(), FetchFailure> {
    let graph = kernel.graph();
    let gives = match graph.outputs() {
        [output] => graph.shape(output.node).iter().skip(1).eq(shape),
        _ => false,
    };
    if !gives {
        return Err(FetchFailure::IncompatibleSite);
    }
    admits(&kernel.manifest().guard, shape)
}

/// Whether a guard lets in what flows through a slot: contiguous numbers of the engine's one type, detached from the
/// host.
fn admits(guard: &GuardSpec, shape: &[usize]) -> Result<(), FetchFailure> {
    let batched: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
    guard.check(&[&batched]).map_err(|mismatch| match mismatch {
        GuardMismatch::Count { .. } | GuardMismatch::Shape { .. } => FetchFailure::IncompatibleSite,
        GuardMismatch::Index { .. }
        | GuardMismatch::Dtype { .. }
        | GuardMismatch::Stride { .. }
        | GuardMismatch::RequiresGrad { .. } => FetchFailure::IncompatibleInput(mismatch),
    })
}

/// What can be had by asking again is told apart: the library finds it out at the next request.
fn failure(error: ArtifactError) -> FetchFailure {
    match error {
        ArtifactError::Corrupt { .. } | ArtifactError::Length { .. } => {
            FetchFailure::ChecksumMismatch
        }
        ArtifactError::Read { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => FetchFailure::ArtifactNotFound,
            io::ErrorKind::PermissionDenied => FetchFailure::Unreadable,
            _ => FetchFailure::OpenFailed { detail: format!("cannot read it: {source}") },
        },
        // A guard that is not its own graph's is no guard, whatever the answer says.
        other if other.is_of_guard() => FetchFailure::GuardMismatch,
        other => FetchFailure::OpenFailed { detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a guard for `vector[32]` of which one thing was changed.
    fn changed(change: fn(&mut serde_json::Value)) -> Result<(), FetchFailure> {
        let guard = GuardSpec::of_shapes([&[8, 32][..]]);
        let mut value = serde_json::to_value(guard).unwrap();
        change(&mut value);
        admits(&serde_json::from_value(value).unwrap(), &[32])
    }

    #[test]
    fn a_guard_that_is_wrong_by_one_thing_lets_nothing_in() {
        assert_eq!(changed(|_| {}), Ok(()));
        assert_eq!(changed(|guard| guard[0]["shape"][0] = 64.into()), Ok(()), "the batch is free");
        let site: [fn(&mut serde_json::Value); 3] = [
            |guard| guard[0]["shape"][1] = 16.into(),
            |guard| guard[0]["shape"] = serde_json::json!([8, 32, 1]),
            |guard| *guard = serde_json::json!([guard[0], guard[0]]),
        ];
        for change in site {
            assert_eq!(changed(change), Err(FetchFailure::IncompatibleSite));
        }
        let input: [fn(&mut serde_json::Value); 4] = [
            |guard| guard[0]["dtype"] = "float16".into(),
            |guard| guard[0]["stride"] = serde_json::json!([1, 8]),
            |guard| guard[0]["requires_grad"] = true.into(),
            |guard| guard[0]["index"] = 1.into(),
        ];
        for change in input {
            let failure = changed(change).unwrap_err();
            assert_eq!(failure.to_string(), "incompatible_input", "{failure:?}");
        }
    }
}
