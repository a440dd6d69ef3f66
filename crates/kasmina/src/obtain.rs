//! From an answer to an opened kernel: by the path where it can be read here, else over HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernel::artifact::Kernel;
use leyline::wire::KernelArtifactReady;
use tokio::sync::OnceCell;
use urza::fetch::{FetchFault, Fetcher, FetcherConfig};

use crate::fetch::{FetchFailure, FetchOrder};
use crate::open::{self, Promise};

/// How long opening and hashing one artifact may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Where kernels come from. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    config: Option<FetcherConfig>,
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
    pub(crate) fn new(config: Option<FetcherConfig>) -> Self {
        Self { config, fetcher: Arc::default() }
    }

    /// Opens what an answer promises. What is not on this machine, or is another file here, is
    /// fetched, if the answer says from where.
    pub(crate) async fn obtain(
        &self,
        order: &FetchOrder,
        ready: &KernelArtifactReady,
        url: Option<String>,
    ) -> Result<Obtained, FetchFailure> {
        let url = url.filter(|_| self.config.is_some());
        let promise = Promise::read(ready, url)?;
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
