//! The library: files and their records, behind one cheap handle.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::Digest;
use leyline::ids::BlueprintId;
use leyline::time::now_unix_ms;
use leyline::wire::BlueprintTier;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cache::{Cache, Cached};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::error::{FetchError, LibraryError, OpenError, Remedy, StoreError};
use crate::job::JobKey;
use crate::lease::{self, Lease};
use crate::measurement::Measurement;
use crate::metrics::{Lookup, Metrics};
use crate::prewarm::Prewarm;
use crate::record::{NewArtifact, Page, Record, RecordId, Role};
use crate::select::Filter;
use crate::store::Store;
use crate::verify::Verified;

/// A catalogue query slower than this is counted.
const SLOW_QUERY: Duration = Duration::from_millis(250);
/// Different artifacts are hashed side by side, the same one only once at a time.
const HASHING_LANES: usize = 16;
/// Artifacts whose use is remembered until it is noted; more are noted with the next use.
const USED_LEN_MAX: usize = 65_536;

/// The artifact library. Cheap to clone; every clone sees the same.
#[derive(Debug, Clone)]
pub struct Library {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    artifacts: Store,
    catalogue: Catalogue,
    // Held for a look or a change in memory, never across a wait.
    cache: Mutex<Cache>,
    verified: Mutex<Verified>,
    hashing: [tokio::sync::Mutex<()>; HASHING_LANES],
    /// When artifacts were last used, as far as not noted in the catalogue yet.
    used: Mutex<HashMap<Digest, u64>>,
    changes: watch::Sender<u64>,
    metrics: Metrics,
}

impl Library {
    /// Opens the library, making directories and catalogue when missing and bringing an older
    /// catalogue up to date.
    ///
    /// # Errors
    /// [`OpenError`] names the file or directory at fault and what to do. A catalogue of a newer
    /// version is refused untouched.
    pub async fn open(config: Config, metrics: Metrics) -> Result<Self, OpenError> {
        let artifacts = Store::open(
            &config.artifact_dir,
            config.bucket.clone(),
            config.artifact_cache_bytes_max,
            config.file_timeout,
        )
        .await?;
        let catalogue = Catalogue::open(&config, artifacts.files().clone()).await?;
        let cache = Cache::new(config.cache_len_max, config.cache_fresh, config.cache_ttl);
        let verified = Verified::new(config.verified_len_max);
        let inner = Inner {
            config,
            artifacts,
            catalogue,
            cache: Mutex::new(cache),
            verified: Mutex::new(verified),
            hashing: Default::default(),
            used: Mutex::default(),
            changes: watch::Sender::new(0),
            metrics,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stores an artifact: file first, durable under its digest, record last. Storing the same
    /// again is safe, heals a corrupt file, and makes a quarantined record active again.
    ///
    /// # Errors
    /// [`StoreError`]; nothing that a reader could see has changed after one.
    pub async fn store(&self, new: NewArtifact) -> Result<Record, StoreError> {
        let inner = &self.inner;
        let (found, max) = (new.bytes.len(), inner.config.artifact_bytes_max);
        if found == 0 || max < found {
            return Err(StoreError::Size { max, found });
        }
        if new.tier == BlueprintTier::Unspecified {
            return Err(StoreError::TierUnspecified);
        }
        new.job.check()?;
        let digest = inner.artifacts.put(new.bytes.clone().into()).await?;
        let record = inner.catalogue.insert(&new, &digest, now_unix_ms()).await?;
        if !inner.artifacts.stands(&digest, record.bytes) {
            // Removed with its earlier record between the two steps; nobody removes it from now on.
            inner.artifacts.put(new.bytes.into()).await?;
        }
        if record.role == Role::Default {
            self.cache(|cache| cache.put(record.clone(), Instant::now()));
        }
        inner.metrics.stored.inc();
        inner.changes.send_modify(|count| *count += 1);
        Ok(record)
    }

    /// The newest active default artifact of a blueprint; `None` when there is none.
    ///
    /// Reads memory first. While the store cannot be asked, a cached record within the TTL stands
    /// in for the answer.
    ///
    /// # Errors
    /// [`LibraryError::Unavailable`] when nobody can tell; never mistaken for "not found".
    pub async fn find(&self, blueprint: &BlueprintId) -> Result<Option<Record>, LibraryError> {
        let started = Instant::now();
        let count = |outcome| self.inner.metrics.looked_up(outcome, started.elapsed());
        let cached = match self.cache(|cache| cache.get(blueprint, started)) {
            Cached::Fresh(record) => {
                count(Lookup::Hit);
                return Ok(Some(record));
            }
            Cached::Aged(record) => Some(record),
            Cached::Expired => {
                count(Lookup::Expired);
                None
            }
            Cached::Absent => None,
        };
        let answer = self.inner.catalogue.find(blueprint).await;
        if SLOW_QUERY < started.elapsed() {
            self.inner.metrics.slow_queries.inc();
        }
        match (answer, cached) {
            (Ok(found), cached) => {
                count(if cached.is_some() && cached == found { Lookup::Hit } else { Lookup::Miss });
                self.remember(blueprint, found.as_ref());
                Ok(found)
            }
            (Err(LibraryError::Unavailable(error)), Some(record)) => {
                tracing::warn!(%blueprint, error = &error as &dyn std::error::Error, "catalogue unavailable, cached record used");
                count(Lookup::Conservative);
                Ok(Some(record))
            }
            (Err(error), _) => {
                count(Lookup::Error);
                Err(error)
            }
        }
    }

    /// The newest active artifact of exactly this job.
    ///
    /// # Errors
    /// [`LibraryError::Unavailable`] when nobody can tell.
    pub async fn find_job(&self, job: &JobKey) -> Result<Option<Record>, LibraryError> {
        self.inner.catalogue.find_job(job).await
    }

    /// The newest record of the artifact with this digest; an active one before a quarantined one.
    ///
    /// # Errors
    /// [`LibraryError::Unavailable`] when nobody can tell.
    pub async fn find_digest(&self, digest: &Digest) -> Result<Option<Record>, LibraryError> {
        self.inner.catalogue.find_digest(digest).await
    }

    /// How long reading or hashing one artifact may take.
    pub(crate) fn file_timeout(&self) -> Duration {
        self.inner.config.file_timeout
    }

    /// One page of all records, quarantined ones included, in the order of storing.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub async fn list(&self, page: Page) -> Result<Vec<Record>, LibraryError> {
        self.inner.catalogue.select(&Filter::default(), page).await
    }

    /// One page of the records that a filter wants, in the order of storing.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub async fn select(&self, filter: &Filter, page: Page) -> Result<Vec<Record>, LibraryError> {
        self.inner.catalogue.select(filter, page).await
    }

    /// The record of a row.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub async fn by_id(&self, id: RecordId) -> Result<Option<Record>, LibraryError> {
        self.inner.catalogue.by_id(id).await
    }

    /// What was made in an artifact's place, first ones first.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub async fn children(&self, record: &Record) -> Result<Vec<Record>, LibraryError> {
        self.inner.catalogue.children(record).await
    }

    /// The tags of records, by record, as written.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub async fn tags(
        &self,
        records: &[Record],
    ) -> Result<BTreeMap<RecordId, Vec<String>>, LibraryError> {
        self.inner.catalogue.tags(records).await
    }

    /// Adds a tag. Tags are found without regard to case; one that differs in case is replaced.
    ///
    /// # Errors
    /// [`StoreError::Tag`], [`StoreError::Forgotten`], [`StoreError::Catalogue`]
    pub async fn add_tag(&self, record: &Record, tag: &str) -> Result<(), StoreError> {
        self.inner.catalogue.add_tag(record, tag).await
    }

    /// Removes a tag in whatever case, and says whether it was there.
    ///
    /// # Errors
    /// [`StoreError::Tag`], [`StoreError::Catalogue`]
    pub async fn remove_tag(&self, record: &Record, tag: &str) -> Result<bool, StoreError> {
        self.inner.catalogue.remove_tag(record, tag).await
    }

    /// Pins an artifact: it is kept whatever room is wanted and however old it is.
    ///
    /// # Errors
    /// [`StoreError::Forgotten`], [`StoreError::Catalogue`]
    pub async fn pin(&self, record: &Record) -> Result<(), StoreError> {
        self.set_pinned(record, true).await
    }

    /// Lets a pinned artifact go.
    ///
    /// # Errors
    /// [`StoreError::Forgotten`], [`StoreError::Catalogue`]
    pub async fn unpin(&self, record: &Record) -> Result<(), StoreError> {
        self.set_pinned(record, false).await
    }

    async fn set_pinned(&self, record: &Record, pinned: bool) -> Result<(), StoreError> {
        let known = self.inner.catalogue.set_pinned(record, pinned).await?;
        self.cache(|cache| cache.remove(&record.job.blueprint));
        if known { Ok(()) } else { Err(StoreError::Forgotten) }
    }

    /// Takes a lease on an artifact, or renews it: while it is renewed within `ttl`, the artifact is not removed,
    /// here or by any process that shares the catalogue. A holder has one lease on an artifact.
    ///
    /// # Errors
    /// [`StoreError::Lease`] for terms that cannot be kept, [`StoreError::Forgotten`] when there is no such artifact,
    /// [`StoreError::Catalogue`] when the store did not answer: renew again well within `ttl`.
    pub async fn lease(
        &self,
        digest: &Digest,
        holder: &str,
        purpose: &str,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        lease::check(holder, purpose, ttl)?;
        let known = self.inner.catalogue.lease(digest, holder, purpose, ttl).await?;
        if known { Ok(()) } else { Err(StoreError::Forgotten) }
    }

    /// Takes or renews leases of several holders in one step, and hands back those of artifacts that there are not.
    /// The terms are checked before.
    pub(crate) async fn lease_all(
        &self,
        pairs: &[(Digest, String)],
        purpose: &str,
        ttl: Duration,
    ) -> Result<Vec<(Digest, String)>, LibraryError> {
        self.inner.catalogue.lease_all(pairs, purpose, ttl).await
    }

    /// Tells the cache of a bucket what is under a lease, so that it stays here.
    ///
    /// # Errors
    /// [`LibraryError`]; the cache goes by what it was told before.
    pub async fn protect_leased(&self) -> Result<(), LibraryError> {
        let leased = self.inner.catalogue.leased().await?;
        self.inner.metrics.leased.set(i64::try_from(leased.len()).unwrap_or(i64::MAX));
        self.inner.artifacts.protect(leased);
        Ok(())
    }

    /// Renews every lease of a holder in one step, and says how many it has: the heartbeat of whoever holds several.
    ///
    /// # Errors
    /// [`LibraryError`]; renew again well within the time to live.
    pub async fn renew_leases(&self, holder: &str) -> Result<u64, LibraryError> {
        self.inner.catalogue.renew(holder).await
    }

    /// Gives a lease back, or with no digest all of a holder; says how many there were.
    ///
    /// # Errors
    /// [`LibraryError`]; a lease that is not given back ends by itself.
    pub async fn release(
        &self,
        digest: Option<&Digest>,
        holder: &str,
    ) -> Result<u64, LibraryError> {
        self.inner.catalogue.release(digest, holder).await
    }

    /// The leases on an artifact, or on all.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub async fn leases(&self, digest: Option<&Digest>) -> Result<Vec<Lease>, LibraryError> {
        self.inner.catalogue.leases(digest).await
    }

    /// What every machine has measured of an artifact: machine, engine, figures.
    ///
    /// # Errors
    /// [`LibraryError`]
    pub async fn measurements(
        &self,
        digest: &Digest,
    ) -> Result<Vec<(String, String, Measurement)>, LibraryError> {
        self.inner.catalogue.measurements(digest).await
    }

    /// Notes in the catalogue what this process has used since the last call. Not for the path of a request.
    ///
    /// # Errors
    /// [`LibraryError`]; what could not be noted is noted the next time.
    pub async fn note_used(&self) -> Result<(), LibraryError> {
        let used: Vec<(Digest, u64)> = lock(&self.inner.used).drain().collect();
        if used.is_empty() {
            return Ok(());
        }
        let noted = self.inner.catalogue.set_used(&used).await;
        if noted.is_err() {
            let mut later = lock(&self.inner.used);
            for (digest, at_ms) in used {
                later.entry(digest).or_insert(at_ms);
            }
        }
        noted
    }

    pub(crate) fn artifact_bytes_max(&self) -> u64 {
        self.inner.config.artifact_bytes_max as u64
    }

    /// Records came in from elsewhere: what is in memory is read again, and whoever waits looks again.
    pub(crate) fn changed_by_import(&self) {
        self.cache(Cache::clear);
        self.inner.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.inner.catalogue
    }

    pub(crate) fn artifacts(&self) -> &Store {
        &self.inner.artifacts
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Forgets in memory what was removed.
    pub(crate) fn forgotten(&self, record: &Record) {
        self.cache(|cache| cache.remove_digest(&record.digest));
    }

    /// Remembers that an artifact is used now; in memory only.
    fn used(&self, digest: &Digest) {
        let mut used = lock(&self.inner.used);
        if used.len() < USED_LEN_MAX || used.contains_key(digest) {
            used.insert(*digest, now_unix_ms());
        }
    }

    /// Proves that the file of a record is what the record says, and hands out its path. A file is
    /// hashed once for each identity (device, inode, size, time of change) it ever has.
    ///
    /// # Errors
    /// [`FetchError`], with [`FetchError::remedy`] saying what to do.
    pub async fn verify(&self, record: &Record) -> Result<PathBuf, FetchError> {
        self.used(&record.digest);
        let lane = usize::from(record.digest.as_bytes()[0]) % HASHING_LANES;
        if let Some(path) = self.proven(record)? {
            return Ok(path);
        }
        let _one_at_a_time = self.inner.hashing[lane].lock().await;
        if let Some(path) = self.proven(record)? {
            return Ok(path);
        }
        self.hash(record).await
    }

    /// Proves it by hashing, whatever was proven before.
    ///
    /// # Errors
    /// [`FetchError`]
    pub async fn scrub(&self, record: &Record) -> Result<PathBuf, FetchError> {
        self.inner.metrics.verifications.inc();
        if let Some(identity) = self.inner.artifacts.scrub(&record.digest, record.bytes).await? {
            lock(&self.inner.verified).insert(identity, record.digest);
        }
        Ok(self.inner.artifacts.path(&record.digest))
    }

    /// The path, if this very file was hashed before. Looks at the file's metadata only.
    fn proven(&self, record: &Record) -> Result<Option<PathBuf>, FetchError> {
        let here = self.inner.artifacts.here(&record.digest, record.bytes)?;
        let Some((path, identity)) = here else { return Ok(None) };
        let verified = lock(&self.inner.verified);
        Ok(verified.holds(&identity, &record.digest).then_some(path))
    }

    async fn hash(&self, record: &Record) -> Result<PathBuf, FetchError> {
        self.inner.metrics.verifications.inc();
        let identity = self.inner.artifacts.prove(&record.digest, record.bytes).await?;
        lock(&self.inner.verified).insert(identity, record.digest);
        Ok(self.inner.artifacts.path(&record.digest))
    }

    /// Takes an artifact out of offer after [`Library::verify`] has refused it: the file (if there
    /// is one, and it is truly not what its name says) moves to the quarantine directory, its
    /// records are marked. Nothing is deleted. A fault whose remedy is to retry changes nothing.
    ///
    /// # Errors
    /// [`LibraryError::Unavailable`] when the records could not be marked; doing it again is safe.
    pub async fn quarantine(
        &self,
        record: &Record,
        fault: &FetchError,
    ) -> Result<(), LibraryError> {
        if fault.remedy() == Remedy::Retry {
            return Ok(());
        }
        let (digest, now_ms) = (record.digest, now_unix_ms());
        let moving = self.inner.artifacts.quarantine(&digest, record.bytes, now_ms);
        let sound = moving.await.unwrap_or_else(|error| {
            tracing::error!(artifact = %digest, error = &error as &dyn std::error::Error, "corrupt artifact not moved to quarantine");
            false
        });
        self.cache(|cache| cache.remove_digest(&digest));
        if sound {
            return Ok(());
        }
        self.inner.metrics.integrity_failures.inc();
        tracing::error!(blueprint = %record.job.blueprint, artifact = %digest, %fault, "artifact quarantined");
        self.inner.catalogue.quarantine(&digest, &fault.to_string(), now_ms).await?;
        Ok(())
    }

    /// Replaces the measured latencies of a record.
    ///
    /// # Errors
    /// [`LibraryError::Unavailable`]
    pub async fn set_prewarm(
        &self,
        record: &Record,
        prewarm: &Prewarm,
    ) -> Result<(), LibraryError> {
        self.inner.catalogue.set_prewarm(record, prewarm).await?;
        self.cache(|cache| cache.remove(&record.job.blueprint));
        Ok(())
    }

    /// Sets one extra of an artifact's record; `null` removes it. Others of its extras stay, whoever sets them meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Extras`] when it cannot be kept, [`StoreError::Forgotten`] when the record is gone,
    /// [`StoreError::Catalogue`] when the store did not answer.
    pub async fn set_extra(
        &self,
        record: &Record,
        name: &str,
        value: &serde_json::Value,
    ) -> Result<(), StoreError> {
        self.inner.catalogue.set_extra(record, name, value).await?;
        self.cache(|cache| cache.remove(&record.job.blueprint));
        Ok(())
    }

    /// What a machine has measured of an artifact with an engine; `None` when it has not.
    ///
    /// # Errors
    /// [`LibraryError::Unavailable`] when nobody can tell.
    pub async fn measurement(
        &self,
        digest: &Digest,
        machine: &str,
        engine: &str,
    ) -> Result<Option<Measurement>, LibraryError> {
        self.inner.catalogue.measurement(digest, machine, engine).await
    }

    /// Keeps what a machine has measured of an artifact, in place of what it measured before. Samples that are not
    /// finite and above zero are dropped, and all but the last [`crate::SAMPLES_MAX`].
    ///
    /// # Errors
    /// [`LibraryError::Unavailable`]
    pub async fn set_measurement(
        &self,
        digest: &Digest,
        machine: &str,
        engine: &str,
        measured: &Measurement,
    ) -> Result<(), LibraryError> {
        self.inner.catalogue.set_measurement(digest, machine, engine, measured).await
    }

    /// Names the artifact directory: the same for every process that works on it, by whatever path.
    pub fn id(&self) -> &str {
        self.inner.artifacts.id()
    }

    /// Goes up at each store by this process. For whoever waits for an artifact.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Drops this process's cached records older than the TTL.
    pub(crate) fn expire_cache(&self) {
        let now = Instant::now();
        self.cache(|cache| cache.expire(now));
    }

    /// Drops abandoned temporary files; files and rows of artifacts stay.
    pub(crate) async fn tidy(&self, orphans_older_than: Duration) -> std::io::Result<u64> {
        let removed = self.inner.artifacts.collect_orphans(orphans_older_than).await?;
        self.inner.artifacts.make_room(0).await;
        self.inner.metrics.orphans.inc_by(removed);
        Ok(removed)
    }

    /// Closes the catalogue; later calls report it unavailable.
    pub async fn close(&self) {
        self.inner.catalogue.close().await;
    }

    fn remember(&self, blueprint: &BlueprintId, found: Option<&Record>) {
        let evicted = self.cache(|cache| match found {
            Some(record) => cache.put(record.clone(), Instant::now()),
            None => {
                cache.remove(blueprint);
                false
            }
        });
        self.inner.metrics.evictions.inc_by(u64::from(evicted));
    }

    fn cache<T>(&self, act: impl FnOnce(&mut Cache) -> T) -> T {
        let mut cache = lock(&self.inner.cache);
        let outcome = act(&mut cache);
        self.inner.metrics.cache_records.set(cache.len() as i64);
        outcome
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
