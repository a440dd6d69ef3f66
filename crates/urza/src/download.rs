//! Artifacts for whoever asks by digest alone, over HTTP: looked up, verified, opened.

use std::fs::File;

use kernel::Digest;
use kernel::artifact::{ArtifactError, Kernel};
use kernel::to_canonical_json;

use crate::error::{FetchError, LibraryError, Remedy};
use crate::files;
use crate::library::Library;
use crate::record::{Record, RecordState};
use crate::store::blocking;

/// The record's extra that holds the forge's signature.
pub const SIGNATURE: &str = "signature";

/// The attribute of a ready answer's envelope that says where the kernel can be had over HTTP.
pub const KERNEL_URL: &str = "kernel-url";

/// The attribute of a ready answer's envelope that holds the forge's signature of the kernel.
pub const KERNEL_SIGNATURE: &str = "kernel-signature";

/// The attribute of a ready answer's envelope that says what must run the kernel, as [`crate::EXECUTION`] has it: `plan`,
/// also when it is absent, or `interpreter`.
pub const KERNEL_EXECUTION: &str = "kernel-execution";

/// A verified artifact, open for reading.
#[derive(Debug)]
pub struct Download {
    /// What is known of it.
    pub record: Record,
    /// Its file. What is removed or replaced meanwhile stays readable here.
    pub file: File,
}

/// Why there is nothing to download.
#[derive(Debug, thiserror::Error)]
pub enum DownloadFault {
    /// No artifact has this digest.
    #[error(
        "no artifact has the digest {0}; ask for the kernel again, its answer names the digest"
    )]
    Unknown(Digest),
    /// It was found missing or corrupt, and taken out of offer.
    #[error("artifact {0} was taken out of offer; ask for the kernel again, another is built")]
    Quarantined(Digest),
    /// Nobody can tell just now.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// It cannot be handed out just now.
    #[error(transparent)]
    Fetch(FetchError),
    /// It is what its digest says, and not a kernel.
    #[error("artifact {digest} has no manifest that can be read")]
    NoManifest {
        /// Its digest.
        digest: Digest,
        /// What was found.
        source: ArtifactError,
    },
}

impl Library {
    /// The record of the artifact with this digest: an active one before a quarantined one.
    ///
    /// # Errors
    /// [`DownloadFault::Unknown`] when there is none, [`DownloadFault::Quarantined`] when there is no
    /// active one, [`DownloadFault::Library`] when nobody can tell.
    pub async fn offered(&self, digest: &Digest) -> Result<Record, DownloadFault> {
        let record = self.find_digest(digest).await?.ok_or(DownloadFault::Unknown(*digest))?;
        match record.state {
            RecordState::Active => Ok(record),
            RecordState::Quarantined { .. } => Err(DownloadFault::Quarantined(*digest)),
        }
    }

    /// Verifies the artifact with this digest and opens its file. One that is found corrupt is put
    /// into quarantine.
    ///
    /// # Errors
    /// [`DownloadFault`]
    pub async fn download(&self, digest: &Digest) -> Result<Download, DownloadFault> {
        let record = self.offered(digest).await?;
        let path = match self.verify(&record).await {
            Ok(path) => path,
            Err(fault) if fault.remedy() == Remedy::Retry => {
                return Err(DownloadFault::Fetch(fault));
            }
            Err(fault) => {
                self.quarantine(&record, &fault).await?;
                return Err(DownloadFault::Quarantined(*digest));
            }
        };
        let limit = self.file_timeout();
        let (opening, bytes) = (path.clone(), record.bytes);
        let opened = blocking(limit, move || files::open_regular(&opening, bytes)).await;
        match opened {
            Some(Ok(file)) => Ok(Download { record, file }),
            Some(Err(fault)) => Err(DownloadFault::Fetch(fault)),
            None => Err(DownloadFault::Fetch(FetchError::TimedOut { path, limit })),
        }
    }

    /// The manifest of the artifact with this digest, as the canonical JSON that stands in it.
    ///
    /// # Errors
    /// [`DownloadFault`]
    pub async fn manifest(&self, digest: &Digest) -> Result<String, DownloadFault> {
        let Download { record, .. } = self.download(digest).await?;
        let (path, digest, limit) = (record.path.clone(), *digest, self.file_timeout());
        let reading = blocking(limit, move || {
            let kernel = Kernel::open(&path, &digest)?;
            to_canonical_json(kernel.manifest())
                .map_err(|source| ArtifactError::Manifest { source })
        });
        match reading.await {
            Some(Ok(manifest)) => Ok(manifest),
            Some(Err(source)) => Err(DownloadFault::NoManifest { digest, source }),
            None => Err(DownloadFault::Fetch(FetchError::TimedOut { path: record.path, limit })),
        }
    }
}

/// Where the artifact of this digest can be had over HTTP, below a service's public URL.
pub fn kernel_url(public_url: &str, digest: &Digest) -> String {
    format!("{}/kernels/{digest}", public_url.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_one_slash_whatever_was_set() {
        let digest = Digest::of("kernel");
        let expected = format!("https://forge.example/esper/kernels/{digest}");
        assert_eq!(kernel_url("https://forge.example/esper", &digest), expected);
        assert_eq!(kernel_url("https://forge.example/esper/", &digest), expected);
    }
}
