//! Artifacts in a bucket that speaks S3. A key is `prefix/ab/abcdef….safetensors`, its object whole
//! or not there; beside them `library.id`, and `quarantine/` as on disk.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use kernel::Digest;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    RetryConfig,
};
use tokio::time::Instant;

use super::Stored;
use super::arrival::{ArrivalFault, Purpose, receive};
use super::client::{ClientSettings, Connector, client};
use super::fault::BucketFault;
use super::space::WriteFault;
use super::upload::Upload;
use super::url::BucketConfig;
use crate::error::Mismatch;
use crate::files::{Identity, digest_of_name};

/// Names the library, whoever opens it from wherever.
const ID: &str = "library.id";
const QUARANTINE: &str = "quarantine";
/// How long opening may take: a boot waits for it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Parts of one artifact that are sent at a time.
const PARTS_AT_ONCE: usize = 4;
/// A body that is not what it should be is fetched once more: it may have been the way, not the store.
const READS: usize = 2;

/// A bucket.
pub(super) struct Bucket {
    store: AmazonS3,
    config: BucketConfig,
    url: String,
}

/// The client would show what it signs with.
impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why an artifact was not had from a bucket.
#[derive(Debug)]
pub(super) enum GetFault {
    Bucket(BucketFault),
    Mismatch(Mismatch),
    Write(WriteFault),
}

impl From<BucketFault> for GetFault {
    fn from(fault: BucketFault) -> Self {
        Self::Bucket(fault)
    }
}

impl Bucket {
    /// Opens a bucket and says the library's id. Proves that it is there and can be read and written.
    pub(super) async fn open(
        config: BucketConfig,
        seed: &str,
    ) -> Result<(Self, String), BucketFault> {
        let url = config.url.to_string();
        let store = build(&config).map_err(|problem| BucketFault::Unusable {
            url: url.clone(),
            // Made from the settings' names and the endpoint; no answer of a server is in it.
            problem,
        })?;
        let bucket = Self { store, config, url };
        let id = bucket.within(OPEN_TIMEOUT, bucket.id(seed)).await?;
        Ok((bucket, id))
    }

    async fn id(&self, seed: &str) -> Result<String, BucketFault> {
        let key = self.config.url.key(ID);
        if let Some(id) = self.read_id(&key).await? {
            return Ok(id);
        }
        let fresh = Digest::of(format!("{} {seed}", self.url)).to_hex()[..16].to_owned();
        match self.create(&key, fresh.into()).await {
            // Of several that do so at once, one is the first.
            Ok(()) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(self.fault(&key, &error)),
        }
        self.read_id(&key).await?.ok_or_else(|| self.failed("library.id is not there once written"))
    }

    async fn read_id(&self, key: &Path) -> Result<Option<String>, BucketFault> {
        let body = match self.store.get(key).await {
            Ok(found) if found.meta.size <= 64 => found.bytes().await,
            Ok(_) => return Err(self.failed("library.id is not 16 hex digits; remove it")),
            Err(error) => Err(error),
        };
        match body.map_err(|error| self.fault(key, &error)) {
            Ok(body) => {
                let id = String::from_utf8_lossy(&body).trim().to_owned();
                let is_one = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
                if is_one {
                    return Ok(Some(id));
                }
                Err(self.failed("library.id is not 16 hex digits; remove it"))
            }
            Err(BucketFault::NoObject { .. }) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Stores an artifact. What stands there already is read back, and replaced if it is not sound.
    pub(super) async fn put(&self, digest: &Digest, bytes: &Bytes) -> Result<(), BucketFault> {
        let mut pause = self.config.backoff;
        for _ in 0..self.config.retries_max {
            match self.put_once(digest, bytes).await {
                // The client repeats what is surely safe to repeat; by content, everything is.
                Err(BucketFault::Failed { .. } | BucketFault::Garbled { .. }) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF_MAX);
                }
                outcome => return outcome,
            }
        }
        self.put_once(digest, bytes).await
    }

    async fn put_once(&self, digest: &Digest, bytes: &Bytes) -> Result<(), BucketFault> {
        let key = self.key(digest);
        let until = Instant::now() + self.config.total_timeout;
        if self.config.part_bytes < bytes.len() {
            let sound = self.is_sound(digest, bytes.len() as u64);
            if !self.before(until, sound).await? {
                self.put_parts(&key, bytes, until).await?;
            }
            return Ok(());
        }
        self.before(until, self.put_whole(digest, &key, bytes)).await
    }

    async fn put_whole(
        &self,
        digest: &Digest,
        key: &Path,
        bytes: &Bytes,
    ) -> Result<(), BucketFault> {
        match self.create(key, bytes.clone().into()).await {
            Ok(()) => return Ok(()),
            Err(Error::AlreadyExists { .. } | Error::NotImplemented { .. }) => {}
            Err(error) => return Err(self.fault(key, &error)),
        }
        if self.is_sound(digest, bytes.len() as u64).await? {
            return Ok(());
        }
        let replaced = self.store.put(key, bytes.clone().into()).await;
        replaced.map(drop).map_err(|error| self.fault(key, &error))
    }

    async fn create(&self, key: &Path, payload: PutPayload) -> object_store::Result<()> {
        let options = PutOptions::from(PutMode::Create);
        self.store.put_opts(key, payload, options).await.map(drop)
    }

    /// Sends the parts, each with its checksum. Whatever breaks it off, the server is told to drop them.
    async fn put_parts(
        &self,
        key: &Path,
        bytes: &Bytes,
        until: Instant,
    ) -> Result<(), BucketFault> {
        let fault = |error: Error| self.fault(key, &error);
        let begun = async { self.store.create_multipart(key).await.map_err(fault) };
        let id = self.before(until, begun).await?;
        let upload = Upload::begun(&self.store, key, id, self.config.idle_timeout);
        let sent = self.before(until, async {
            let step = self.config.part_bytes;
            let parts = (0..bytes.len()).step_by(step).enumerate().map(|(at, from)| {
                let part = bytes.slice(from..bytes.len().min(from + step));
                self.store.put_part(key, &upload.id, at, part.into())
            });
            let parts = futures_util::stream::iter(parts).buffered(PARTS_AT_ONCE);
            let parts: Vec<PartId> = parts.try_collect().await.map_err(fault)?;
            self.store.complete_multipart(key, &upload.id, parts).await.map_err(fault)
        });
        match sent.await {
            Ok(_) => upload.complete(),
            Err(fault) => {
                upload.abort().await;
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Brings an artifact here, or only hashes it.
    pub(super) async fn get(
        &self,
        digest: &Digest,
        bytes: u64,
        purpose: &Purpose,
    ) -> Result<Option<Identity>, GetFault> {
        let getting = async {
            for _ in 1..READS {
                match self.get_once(digest, bytes, purpose.clone()).await {
                    Err(GetFault::Mismatch(Mismatch::Digest(_))) => {}
                    outcome => return outcome,
                }
            }
            self.get_once(digest, bytes, purpose.clone()).await
        };
        match tokio::time::timeout(self.config.total_timeout, getting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.timed_out(self.config.total_timeout).into()),
        }
    }

    async fn get_once(
        &self,
        digest: &Digest,
        bytes: u64,
        purpose: Purpose,
    ) -> Result<Option<Identity>, GetFault> {
        let key = self.key(digest);
        let found = self.store.get(&key).await.map_err(|error| self.fault(&key, &error))?;
        if found.meta.size != bytes {
            return Err(GetFault::Mismatch(Mismatch::Size(found.meta.size)));
        }
        // A connection that breaks in mid-body is taken up again where it broke, by the client.
        match receive(purpose, *digest, bytes, found.into_stream()).await {
            Ok(identity) => Ok(identity),
            Err(ArrivalFault::Source(error)) => Err(self.fault(&key, &error).into()),
            Err(ArrivalFault::Mismatch(mismatch)) => Err(GetFault::Mismatch(mismatch)),
            Err(ArrivalFault::Write(fault)) => Err(GetFault::Write(fault)),
            Err(ArrivalFault::Ending) => Err(self.failed("this process is ending").into()),
        }
    }

    /// Whether an object stands there and is what its name says. `false` when there is none.
    pub(super) async fn is_sound(&self, digest: &Digest, bytes: u64) -> Result<bool, BucketFault> {
        match self.get(digest, bytes, &Purpose::Check).await {
            Ok(_) => Ok(true),
            Err(
                GetFault::Mismatch(_)
                | GetFault::Write(_)
                | GetFault::Bucket(BucketFault::NoObject { .. }),
            ) => Ok(false),
            Err(GetFault::Bucket(fault)) => Err(fault),
        }
    }

    /// Moves an object that is not what its name says out of the way.
    pub(super) async fn quarantine(&self, digest: &Digest, at_ms: u64) -> Result<(), BucketFault> {
        let key = self.key(digest);
        let aside = self.config.url.key(&format!("{QUARANTINE}/{digest}-{at_ms}.safetensors"));
        let moving = async {
            self.store.copy(&key, &aside).await?;
            self.store.delete(&key).await
        };
        let moving = async {
            match moving.await.map_err(|error| self.fault(&key, &error)) {
                Err(BucketFault::NoObject { .. }) => Ok(()),
                outcome => outcome,
            }
        };
        self.within(self.config.total_timeout, moving).await
    }

    /// Removes an object; also when there is none.
    pub(super) async fn remove(&self, digest: &Digest) -> Result<(), BucketFault> {
        let key = self.key(digest);
        let removing = async {
            match self.store.delete(&key).await.map_err(|error| self.fault(&key, &error)) {
                Err(BucketFault::NoObject { .. }) => Ok(()),
                outcome => outcome,
            }
        };
        self.within(self.config.total_timeout, removing).await
    }

    /// The artifacts that stand there, as [`crate::files::Files::list`] says it.
    pub(super) async fn list(
        &self,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<Stored>, BucketFault> {
        let root = self.config.url.prefix().clone();
        let fault = |error: Error| self.fault(&root, &error);
        let listing = async {
            let mut objects = match after {
                Some(after) => self.store.list_with_offset(Some(&root), &self.key(after)),
                None => self.store.list(Some(&root)),
            };
            let mut found = Vec::new();
            while found.len() < limit
                && let Some(object) = objects.next().await.transpose().map_err(fault)?
            {
                let name = object.location.filename();
                let Some(digest) = name.and_then(digest_of_name) else { continue };
                if object.location == self.key(&digest) {
                    let written = SystemTime::from(object.last_modified);
                    found.push(Stored { digest, bytes: object.size, written, used: written });
                }
            }
            Ok(found)
        };
        self.within(self.config.total_timeout, listing).await
    }

    /// Where an artifact is, for people and other programs.
    pub(super) fn shown(&self, digest: &Digest) -> String {
        self.config.url.shown(&self.key(digest))
    }

    fn key(&self, digest: &Digest) -> Path {
        let hex = digest.to_hex();
        self.config.url.key(&format!("{}/{hex}.safetensors", &hex[..2]))
    }

    fn fault(&self, key: &Path, error: &Error) -> BucketFault {
        BucketFault::read(&self.url, &self.config.url.shown(key), error)
    }

    fn failed(&self, code: &str) -> BucketFault {
        BucketFault::Failed { url: self.url.clone(), code: code.to_owned() }
    }

    fn timed_out(&self, limit: Duration) -> BucketFault {
        BucketFault::TimedOut { url: self.url.clone(), limit }
    }

    async fn before<T>(
        &self,
        until: Instant,
        work: impl Future<Output = Result<T, BucketFault>>,
    ) -> Result<T, BucketFault> {
        let limit = self.config.total_timeout;
        tokio::time::timeout_at(until, work).await.unwrap_or_else(|_| Err(self.timed_out(limit)))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, BucketFault>>,
    ) -> Result<T, BucketFault> {
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(self.timed_out(limit)))
    }
}

fn build(config: &BucketConfig) -> Result<AmazonS3, String> {
    let access = &config.access;
    let client = client(ClientSettings {
        connect: config.connect_timeout,
        idle: config.idle_timeout,
        ca_file: access.ca_file.as_deref(),
    });
    let client = client.map_err(|fault| fault.to_string())?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(config.url.bucket())
        .with_region(&access.region)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_http_connector(Connector(client))
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: config.backoff,
                max_backoff: BACKOFF_MAX,
                base: 2.0,
            },
            max_retries: config.retries_max,
            retry_timeout: config.total_timeout,
        });
    if let Some(endpoint) = &access.endpoint {
        let is_http = endpoint.starts_with("http://");
        if !is_http && !endpoint.starts_with("https://") {
            return Err("the endpoint begins with neither http:// nor https://".to_owned());
        }
        builder = builder.with_endpoint(endpoint).with_allow_http(is_http);
    }
    match (&access.key_id, &access.secret_key) {
        (Some(id), Some(secret)) => {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => {
            return Err("of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is missing".to_owned());
        }
    }
    if let Some(token) = &access.session_token {
        builder = builder.with_token(token);
    }
    builder.build().map_err(|_| "the settings do not fit together".to_owned())
}
