//! Kernels from another machine: by digest, over HTTP, into a directory of this one.
//!
//! Reading order: [`Fetcher`] (one download of a digest at a time, cached and verified), `download` (its
//! attempts), `answer` (what a server said), `part` (what has come so far, and is gone on with after a
//! broken connection or a new start), [`FetchFault`].

mod answer;
mod config;
mod download;
mod fault;
mod part;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use kernel::Digest;
use reqwest::header::HeaderValue;

pub use self::config::FetcherConfig;
pub use self::fault::FetchFault;

use self::download::Download;
use crate::files::{Files, Identity};
use crate::store::{CacheBound, ClientSettings, blocking, client};
use crate::verify::Verified;

/// A part that nobody has gone on with for this long is removed.
const PART_AGE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Files whose digest is known to match.
const VERIFIED_LEN_MAX: usize = 1024;

/// Fetches kernels. Cheap to clone; every clone shares downloads and directory.
#[derive(Debug, Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: FetcherConfig,
    files: Files,
    client: reqwest::Client,
    authorization: Option<HeaderValue>,
    cached: Arc<CacheBound>,
    // Each is held for a look or a change in memory, never across a wait.
    verified: Mutex<Verified>,
    running: Mutex<HashMap<Digest, WeakShared<Running>>>,
}

type Outcome = Result<PathBuf, FetchFault>;
type Running = BoxFuture<'static, Outcome>;

impl Fetcher {
    /// Makes the directory and the client. Asks nobody yet.
    ///
    /// # Errors
    /// [`FetchFault::Disk`] when the directory cannot be used, [`FetchFault::Setting`] for a token that
    /// cannot stand in a header or a file of authorities that cannot be used.
    pub fn open(config: FetcherConfig) -> Result<Self, FetchFault> {
        let files = Files::open(&config.directory)
            .map_err(|(path, source)| FetchFault::disk(path, source))?;
        if let Err(error) = files.collect_orphans(PART_AGE_MAX) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "old parts of kernels not removed"
            );
        }
        let setting = |problem: &str| FetchFault::Setting { problem: problem.to_owned() };
        let authorization = match &config.token {
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| setting("the token has a character that no header can carry"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let client = client(ClientSettings {
            connect: config.connect_timeout,
            idle: config.idle_timeout,
            ca_file: config.ca_file.as_deref(),
        });
        let client = client.map_err(|fault| setting(&fault.to_string()))?;
        let inner = Inner {
            cached: Arc::new(CacheBound::new(config.cache_bytes_max)),
            config,
            files,
            client,
            authorization,
            verified: Mutex::new(Verified::new(VERIFIED_LEN_MAX)),
            running: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The path of the file of this digest, here already or fetched from `url`. Its contents are
    /// verified. Asked for by several at once, it is fetched once.
    ///
    /// # Errors
    /// [`FetchFault`]; what has come so far is kept, and the next call goes on from there.
    pub async fn fetch(&self, url: &str, digest: &Digest) -> Result<PathBuf, FetchFault> {
        if let Some(path) = self.inner.proven(digest) {
            return Ok(path);
        }
        self.shared(url, digest).await
    }

    fn shared(&self, url: &str, digest: &Digest) -> Shared<Running> {
        let mut running = lock(&self.inner.running);
        running.retain(|_, one| one.upgrade().is_some_and(|one| one.peek().is_none()));
        if let Some(one) = running.get(digest).and_then(WeakShared::upgrade) {
            return one;
        }
        let (inner, url, digest) = (Arc::clone(&self.inner), url.to_owned(), *digest);
        let limit = inner.config.total_timeout;
        let fetching = async move {
            let fetching = inner.fetch(&url, &digest);
            tokio::time::timeout(limit, fetching)
                .await
                .unwrap_or(Err(FetchFault::TimedOut { limit }))
        };
        let one = fetching.boxed().shared();
        if let Some(weak) = one.downgrade() {
            running.insert(digest, weak);
        }
        one
    }
}

impl Inner {
    /// The path, if this very file was hashed before.
    fn proven(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.files.path(digest);
        let metadata = std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        let holds = lock(&self.verified).holds(&Identity::of(&metadata), digest);
        holds.then(|| {
            self.cached.used(&self.files, digest);
            path
        })
    }

    async fn fetch(&self, url: &str, digest: &Digest) -> Outcome {
        if !self.is_here(digest).await? {
            let identity = Download::open(self, url, *digest).await?.run().await?;
            lock(&self.verified).insert(identity, *digest);
        }
        self.cached.used(&self.files, digest);
        Ok(self.files.path(digest))
    }

    /// Whether a sound file is here; one that is not is moved out of the way.
    async fn is_here(&self, digest: &Digest) -> Result<bool, FetchFault> {
        let (files, named) = (self.files.clone(), *digest);
        let found = self.on_disk(move || {
            let path = files.path(&named);
            match std::fs::symlink_metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(|error| FetchFault::disk(path, error))?,
            };
            if let Ok(identity) = files.verify(&named) {
                return Ok(Some(identity));
            }
            let moved = files.quarantine(&named, leyline::time::now_unix_ms());
            moved.map_err(|error| FetchFault::disk(files.path(&named), error))?;
            Ok(None)
        });
        let Some(identity) = found.await? else { return Ok(false) };
        lock(&self.verified).insert(identity, *digest);
        Ok(true)
    }

    async fn make_room(&self, wanted: u64) -> Result<(), FetchFault> {
        let (files, cached) = (self.files.clone(), Arc::clone(&self.cached));
        let root = files.root().to_owned();
        let made = self.on_disk(move || {
            cached.make_room(&files, wanted).map_err(|error| FetchFault::disk(root, error))
        });
        made.await.map(drop)
    }

    /// Runs what waits for the disk beside the runtime.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FetchFault> + Send + 'static,
    ) -> Result<T, FetchFault> {
        let limit = self.config.total_timeout;
        blocking(limit, work).await.unwrap_or(Err(FetchFault::TimedOut { limit }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
