//! Where artifact bytes live: a directory, or a bucket with the directory as its verified cache.
//! An artifact's name is its SHA-256 in both, and what is handed out is always a local file.
//!
//! Reading order: [`Store`], `bucket` (S3), `arrival` (how bytes come in), `cache` (what the directory
//! holds of a bucket). What a record says, and which file was hashed before, is the library's business.

mod arrival;
mod bucket;
mod cache;
mod client;
mod fault;
mod space;
mod upload;
mod url;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kernel::Digest;

pub use self::fault::BucketFault;
pub use self::url::{BucketAccess, BucketConfig, BucketUrl, BucketUrlFault};

pub(crate) use self::cache::CacheBound;
pub(crate) use self::client::{ClientSettings, client};
pub(crate) use self::space::WriteFault;

use self::arrival::Purpose;
use self::bucket::{Bucket, GetFault};
use crate::error::{FetchError, OpenError, StoreError};
use crate::files::{Files, Identity};

/// An artifact that stands in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// What its name says it is.
    pub digest: Digest,
    /// How large it is.
    pub bytes: u64,
    /// When it was written.
    pub written: SystemTime,
    /// When it was last used here, as far as known; in a bucket when it was written.
    pub used: SystemTime,
}

/// A store of artifacts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    files: Files,
    bucket: Option<Arc<Bucket>>,
    cached: Arc<CacheBound>,
    id: String,
    /// How long writing or hashing one file may take.
    limit: Duration,
}

impl Store {
    /// Opens a directory, and the bucket where there is one.
    ///
    /// # Errors
    /// [`OpenError`] names the directory or the bucket at fault and what to do.
    pub async fn open(
        directory: &Path,
        bucket: Option<BucketConfig>,
        cache_bytes_max: u64,
        limit: Duration,
    ) -> Result<Self, OpenError> {
        let files = Files::open(directory)
            .map_err(|(path, source)| OpenError::Directory { path, source })?;
        let cached = Arc::new(CacheBound::new(cache_bytes_max));
        let mut store = Self { id: files.id().to_owned(), files, bucket: None, cached, limit };
        if let Some(config) = bucket {
            let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let (bucket, id) = Bucket::open(config, &format!("{} {at:?}", store.id)).await?;
            (store.bucket, store.id) = (Some(Arc::new(bucket)), id);
        }
        Ok(store)
    }

    /// 16 hex digits, the same for every process that has this directory or this bucket.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the file of this digest stands on this machine, once it does; an absolute path.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.files.path(digest)
    }

    pub(crate) const fn files(&self) -> &Files {
        &self.files
    }

    /// Stores an artifact under its digest, durable when this returns; in a bucket first, where there
    /// is one. Storing it again is safe, by however many at once, and heals what was not sound.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of it was left behind. Trying again is safe.
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        let hashed = bytes.clone();
        let digest = blocking(self.limit, move || Digest::of(&hashed)).await;
        let digest = digest.ok_or(StoreError::TimedOut(self.limit))?;
        let Some(bucket) = &self.bucket else {
            self.write(digest, bytes).await?;
            return Ok(digest);
        };
        bucket.put(&digest, &bytes).await?;
        self.make_room(bytes.len() as u64).await;
        if let Err(error) = self.write(digest, bytes).await {
            // It is safe where it is; whoever wants it here meets the same fault and is told.
            tracing::warn!(artifact = %digest, error = &error as &dyn std::error::Error, "artifact stored in the bucket but not cached here");
        }
        Ok(digest)
    }

    async fn write(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
        let files = self.files.clone();
        let written = blocking(self.limit, move || files.write(&digest, &bytes)).await;
        match written.ok_or(StoreError::TimedOut(self.limit))? {
            Ok(_) => Ok(()),
            Err(WriteFault::Io { path, source }) => Err(StoreError::Write { path, source }),
            Err(WriteFault::Full { directory, wanted, free, source }) => {
                Err(StoreError::Full { directory, wanted, free, source })
            }
        }
    }

    /// Brings an artifact here if need be, proves it by hashing, and hands out its path. What is not
    /// sound here is had from the bucket again, where there is one.
    ///
    /// # Errors
    /// [`FetchError`], with [`FetchError::remedy`] saying what to do.
    pub async fn fetch(&self, digest: &Digest, bytes: u64) -> Result<PathBuf, FetchError> {
        self.prove(digest, bytes).await.map(|_| self.path(digest))
    }

    /// Which file stands here now. `None`: it is not here, or not whole, but the bucket may have it.
    pub(crate) fn here(
        &self,
        digest: &Digest,
        bytes: u64,
    ) -> Result<Option<(PathBuf, Identity)>, FetchError> {
        match (self.files.identify(digest, bytes), &self.bucket) {
            (Ok(found), bucket) => {
                if bucket.is_some() {
                    self.cached.used(&self.files, digest);
                }
                Ok(Some(found))
            }
            (Err(FetchError::NotFound { .. } | FetchError::Corrupt { .. }), Some(_)) => Ok(None),
            (Err(fault), _) => Err(fault),
        }
    }

    /// Whether a file of this digest stands where it was just stored. Looks at the directory only: what a bucket has
    /// taken is not asked for again.
    pub(crate) fn stands(&self, digest: &Digest, bytes: u64) -> bool {
        self.bucket.is_some() || self.files.identify(digest, bytes).is_ok()
    }

    /// As [`Store::fetch`], and says which file it hashed.
    pub(crate) async fn prove(&self, digest: &Digest, bytes: u64) -> Result<Identity, FetchError> {
        let (files, digest) = (self.files.clone(), *digest);
        let found = blocking(self.limit, move || {
            files.identify(&digest, bytes).and_then(|_| files.verify(&digest))
        });
        let timed_out = || FetchError::TimedOut { path: self.path(&digest), limit: self.limit };
        let found = found.await.ok_or_else(timed_out)?;
        let Some(bucket) = &self.bucket else { return found };
        match found {
            Ok(identity) => {
                self.cached.used(&self.files, &digest);
                return Ok(identity);
            }
            Err(FetchError::NotFound { .. }) => {}
            Err(FetchError::Corrupt { found, .. }) => {
                tracing::warn!(artifact = %digest, %found, "cached artifact is not sound, fetched anew");
                let files = self.files.clone();
                let at_ms = leyline::time::now_unix_ms();
                let moving = blocking(self.limit, move || files.quarantine(&digest, at_ms));
                let moved = moving.await.ok_or_else(timed_out)?;
                moved.map_err(|source| FetchError::Read { path: self.path(&digest), source })?;
            }
            Err(fault) => return Err(fault),
        }
        self.make_room(bytes).await;
        self.bring(bucket, &digest, bytes).await
    }

    async fn bring(
        &self,
        bucket: &Bucket,
        digest: &Digest,
        bytes: u64,
    ) -> Result<Identity, FetchError> {
        let shown = || PathBuf::from(bucket.shown(digest));
        match bucket.get(digest, bytes, &Purpose::Keep(self.files.clone())).await {
            Ok(Some(identity)) => {
                self.cached.used(&self.files, digest);
                Ok(identity)
            }
            Ok(None) => Err(FetchError::NotFound { path: shown() }),
            Err(GetFault::Bucket(BucketFault::NoObject { .. })) => {
                Err(FetchError::NotFound { path: shown() })
            }
            Err(GetFault::Bucket(fault)) => Err(fault.into()),
            Err(GetFault::Mismatch(found)) => {
                Err(FetchError::Corrupt { path: shown(), expected: *digest, found })
            }
            Err(GetFault::Write(WriteFault::Io { path, source })) => {
                Err(FetchError::Read { path, source })
            }
            Err(GetFault::Write(WriteFault::Full { directory, wanted, free, source })) => {
                Err(FetchError::Full { directory, wanted, free, source })
            }
        }
    }

    /// Proves what is stored, whatever was proven before: the file, and the object where there is a
    /// bucket, which is what counts there.
    ///
    /// # Errors
    /// [`FetchError`]
    pub(crate) async fn scrub(
        &self,
        digest: &Digest,
        bytes: u64,
    ) -> Result<Option<Identity>, FetchError> {
        let Some(bucket) = &self.bucket else {
            return self.prove(digest, bytes).await.map(Some);
        };
        match bucket.get(digest, bytes, &Purpose::Check).await {
            Ok(_) => {}
            Err(GetFault::Bucket(BucketFault::NoObject { key })) => {
                return Err(FetchError::NotFound { path: key.into() });
            }
            Err(GetFault::Bucket(fault)) => return Err(fault.into()),
            Err(GetFault::Mismatch(found)) => {
                let path = bucket.shown(digest).into();
                return Err(FetchError::Corrupt { path, expected: *digest, found });
            }
            // Nothing is written by a check.
            Err(GetFault::Write(_)) => {}
        }
        // Only what is here already: a scrub is no reason to fill the cache.
        match self.files.identify(digest, bytes) {
            Err(FetchError::NotFound { .. }) => Ok(None),
            Ok(_) | Err(_) => self.prove(digest, bytes).await.map(Some),
        }
    }

    /// Moves what is not sound out of the way, here and in the bucket. `true` when a sound artifact
    /// stands there (again): another writer may have put it back meanwhile.
    ///
    /// # Errors
    /// [`FetchError`] when it could not be moved.
    pub async fn quarantine(
        &self,
        digest: &Digest,
        bytes: u64,
        at_ms: u64,
    ) -> Result<bool, FetchError> {
        let (files, digest) = (self.files.clone(), *digest);
        let moving = blocking(self.limit, move || {
            let moved = files.quarantine(&digest, at_ms);
            // What stands there now decides.
            moved.map(|_| files.identify(&digest, bytes).is_ok())
        });
        let timed_out = || FetchError::TimedOut { path: self.path(&digest), limit: self.limit };
        let moved = moving.await.ok_or_else(timed_out)?;
        let sound =
            moved.map_err(|source| FetchError::Read { path: self.path(&digest), source })?;
        let Some(bucket) = &self.bucket else { return Ok(sound) };
        if bucket.is_sound(&digest, bytes).await? {
            return Ok(true);
        }
        bucket.quarantine(&digest, at_ms).await?;
        Ok(false)
    }

    /// Removes an artifact for good: object first, then file. Readers keep what they opened.
    ///
    /// # Errors
    /// [`FetchError`]; removing again is safe.
    pub async fn remove(&self, digest: &Digest) -> Result<(), FetchError> {
        if let Some(bucket) = &self.bucket {
            bucket.remove(digest).await?;
        }
        let (files, digest) = (self.files.clone(), *digest);
        let removed = blocking(self.limit, move || files.remove(&digest)).await;
        let timed_out = || FetchError::TimedOut { path: self.path(&digest), limit: self.limit };
        let removed = removed.ok_or_else(timed_out)?;
        removed.map(drop).map_err(|source| FetchError::Read { path: self.path(&digest), source })
    }

    /// What is stored, in the order of digests: at most `limit` artifacts behind `after`. With a
    /// bucket, what is there; the cache is not listed.
    ///
    /// # Errors
    /// [`FetchError`]
    pub async fn list(
        &self,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<Stored>, FetchError> {
        if let Some(bucket) = &self.bucket {
            return Ok(bucket.list(after.as_ref(), limit).await?);
        }
        let files = self.files.clone();
        let listed = blocking(self.limit, move || files.list(after.as_ref(), limit)).await;
        let path = || self.files.root().to_owned();
        let listed =
            listed.ok_or_else(|| FetchError::TimedOut { path: path(), limit: self.limit })?;
        listed.map_err(|source| FetchError::Read { path: path(), source })
    }

    /// Removes temporary files that no running writer can still need, and says how many. What a
    /// broken upload left in a bucket is not seen from here: a life-cycle rule of the bucket removes it.
    ///
    /// # Errors
    /// What the system said.
    pub async fn collect_orphans(&self, older_than: Duration) -> std::io::Result<u64> {
        let files = self.files.clone();
        blocking(self.limit, move || files.collect_orphans(older_than))
            .await
            .unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// Says which artifacts must stay here, whatever room is wanted: those under a lease.
    pub fn protect(&self, leased: HashSet<Digest>) {
        self.cached.protect(leased);
    }

    /// Removes from the cache what was used least recently until `wanted` bytes fit under the bound,
    /// and says how many files went. Without a bucket nothing is removed: there it is no cache.
    pub async fn make_room(&self, wanted: u64) -> usize {
        if self.bucket.is_none() {
            return 0;
        }
        let (files, cached) = (self.files.clone(), Arc::clone(&self.cached));
        match blocking(self.limit, move || cached.make_room(&files, wanted)).await {
            Some(Ok(removed)) => removed,
            Some(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cache of artifacts not looked through"
                );
                0
            }
            None => 0,
        }
    }
}

/// Runs blocking work beside the runtime; `None` when it took longer than `limit` (it then goes on
/// unobserved, and every such work here is safe to repeat) or the runtime is ending.
pub(crate) async fn blocking<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Err(_) => None,
        Ok(Ok(outcome)) => Some(outcome),
        Ok(Err(join)) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
