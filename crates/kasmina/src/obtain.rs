//! From an answer to an opened kernel: by the path where it can be read here, else over HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernel::Digest;
use kernel::artifact::Kernel;
use kernel::signature::{Signature, SignatureError, TrustedKeys};
use leyline::wire::KernelArtifactReady;
use tokio::sync::OnceCell;
use urza::fetch::{FetchFault, Fetcher, FetcherConfig};

use crate::fetch::{FetchFailure, FetchOrder};
use crate::open::{self, Promise};
use crate::replies::Beside;

/// How long opening and hashing one artifact may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Where kernels come from. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    config: Option<FetcherConfig>,
    trusted: Option<Arc<TrustedKeys>>,
    /// Made when the first kernel is to be fetched: most trainers see the library's directory.
    fetcher: Arc<OnceCell<Fetcher>>,
}

/// A kernel in hand, and the file it was read from.
#[derive(Debug)]
pub(crate) struct Obtained {
    pub(crate) kernel: Kernel,
    pub(crate) path: PathBuf,
}

impl Source {
    pub(crate) fn new(config: Option<FetcherConfig>, trusted: Option<TrustedKeys>) -> Self {
        Self { config, trusted: trusted.map(Arc::new), fetcher: Arc::default() }
    }

    /// Opens what an answer promises. What is not on this machine, or is another file here, is
    /// fetched, if the answer says from where.
    pub(crate) async fn obtain(
        &self,
        order: &FetchOrder,
        ready: &KernelArtifactReady,
        beside: Beside,
    ) -> Result<Obtained, FetchFailure> {
        let url = beside.url.filter(|_| self.config.is_some());
        let promise = Promise::read(ready, url)?;
        if let Some(trusted) = &self.trusted {
            vouched(trusted, &promise.digest, beside.signature.as_deref())?;
        }
        let found = match &promise.path {
            Some(path) => open_at(path.clone(), &promise, order).await,
            None => Err(FetchFailure::ArtifactNotFound),
        };
        match (found, &promise.url) {
            (
                Err(
                    FetchFailure::ArtifactNotFound
                    | FetchFailure::Unreadable
                    | FetchFailure::ChecksumMismatch,
                ),
                Some(url),
            ) => {
                let fetching = self.fetch(url, &promise);
                let path = fetching.await.map_err(failure)?;
                open_at(path, &promise, order).await
            }
            (found, _) => found,
        }
    }

    async fn fetch(&self, url: &str, promise: &Promise) -> Result<PathBuf, FetchFault> {
        let opening = || async {
            let Some(config) = self.config.clone() else {
                let problem = "no directory to fetch into is set".to_owned();
                return Err(FetchFault::Setting { problem });
            };
            let limit = OPEN_TIMEOUT;
            let opening = tokio::task::spawn_blocking(move || Fetcher::open(config));
            match tokio::time::timeout(limit, opening).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(_)) | Err(_) => Err(FetchFault::TimedOut { limit }),
            }
        };
        self.fetcher.get_or_try_init(opening).await?.fetch(url, &promise.digest).await
    }
}

/// Whether somebody whose word is taken vouches for the artifact with this digest: told by the digest alone, so nothing
/// of an artifact that nobody vouches for is read or fetched.
fn vouched(
    trusted: &TrustedKeys,
    digest: &Digest,
    signature: Option<&str>,
) -> Result<(), FetchFailure> {
    let untrusted = |detail: String| FetchFailure::Untrusted { detail };
    let Some(text) = signature else {
        return Err(untrusted(
            "the kernel is not signed; set TEZZERET_SIGNING_KEY_FILE where it is made".to_owned(),
        ));
    };
    let signature: Signature =
        text.parse().map_err(|error: SignatureError| untrusted(error.to_string()))?;
    trusted.verify(digest, &signature).map_err(|error| untrusted(error.to_string()))
}

/// Opens a file beside the runtime.
async fn open_at(
    path: PathBuf,
    promise: &Promise,
    order: &FetchOrder,
) -> Result<Obtained, FetchFailure> {
    let (promise, opened) = (promise.clone(), path.clone());
    let FetchOrder { blueprint, shape, .. } = order.clone();
    let opening =
        tokio::task::spawn_blocking(move || open::open(&opened, &promise, &blueprint, &shape));
    let failed = |detail: &str| FetchFailure::OpenFailed { detail: detail.to_owned() };
    let kernel = tokio::time::timeout(OPEN_TIMEOUT, opening)
        .await
        .map_err(|_| failed("opening took too long"))?
        .map_err(|_| failed("opening was broken off"))??;
    Ok(Obtained { kernel, path })
}

/// What can be had by asking again is told apart: the library finds it out at the next request.
fn failure(fault: FetchFault) -> FetchFailure {
    match fault {
        FetchFault::Missing { .. } => FetchFailure::ArtifactNotFound,
        FetchFault::Corrupt { .. } => FetchFailure::ChecksumMismatch,
        fault => FetchFailure::DownloadFailed {
            may_pass: fault.is_retryable(),
            fault: fault.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use kernel::signature::SigningKey;

    use super::*;

    #[test]
    fn a_server_that_is_not_trusted_is_told_with_what_to_do_and_not_asked_again() {
        let problem = "its certificate has expired".to_owned();
        let told = failure(FetchFault::Untrusted { problem });
        let FetchFailure::DownloadFailed { may_pass: false, fault } = &told else {
            panic!("{told:?}")
        };
        assert!(fault.contains("expired") && fault.contains("KASMINA_KERNEL_CA_FILE"), "{fault}");
    }

    #[test]
    fn only_a_trusted_signature_of_this_very_kernel_counts() {
        let [ours, theirs] = [0, 1].map(|_| SigningKey::generate().unwrap());
        let trusted = TrustedKeys::from_pem(&ours.public_pem).unwrap();
        let sign = |key: &str, text: &str| {
            SigningKey::from_pem(key).unwrap().sign(&Digest::of(text)).to_string()
        };
        let digest = Digest::of("kernel");
        let good = sign(&ours.secret_pem, "kernel");
        assert_eq!(vouched(&trusted, &digest, Some(&good)), Ok(()));
        let others = sign(&theirs.secret_pem, "kernel");
        let elsewhere = sign(&ours.secret_pem, "another");
        for bad in [None, Some(""), Some(&others[..]), Some(&elsewhere), Some(&good[..40])] {
            let found = vouched(&trusted, &digest, bad);
            assert!(matches!(found, Err(FetchFailure::Untrusted { .. })), "{bad:?}: {found:?}");
        }
    }
}
