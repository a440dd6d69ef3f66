//! What can go wrong, and what the caller should do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kernel::Digest;

use crate::record::RecordId;
use crate::store::BucketFault;

/// Why the library could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory could not be made or is not writable.
    #[error(
        "cannot use directory {path}; make it writable or set URZA_ARTIFACT_DIR and URZA_DATABASE_URL elsewhere"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bucket of the artifacts cannot be used.
    #[error("cannot open the artifact store")]
    Bucket(#[from] BucketFault),
    /// The catalogue was written by a newer version of this program.
    #[error(
        "catalogue {catalogue} has schema version {version}, which this version does not know; use the newer program, have it go back with `weatherlight kernels migrate`, or use another URZA_DATABASE_URL"
    )]
    Newer {
        /// The catalogue's file, or its URL without a password.
        catalogue: String,
        /// The unknown version found in it.
        version: i64,
    },
    /// The schema has no such version.
    #[error("there is no schema version {version}; they are 1 to {newest}")]
    NoSuchVersion {
        /// The version asked for.
        version: i64,
        /// The newest one.
        newest: i64,
    },
    /// The database holds something else, or was left half done.
    #[error(
        "the database {catalogue} is not a catalogue of this program ({problem}); give the catalogue a database of its own in URZA_DATABASE_URL"
    )]
    Foreign {
        /// Its URL without a password.
        catalogue: String,
        /// What was found.
        problem: String,
    },
    /// The server cannot be reached, or lets nobody in.
    #[error(
        "cannot use the database {catalogue}; check that the server runs and that URZA_DATABASE_URL names host, user, password, database and sslmode as it wants them"
    )]
    Unreachable {
        /// Its URL without a password.
        catalogue: String,
        /// What was said.
        source: DatabaseFault,
    },
    /// TLS with the server did not come about.
    #[error(
        "the database {catalogue} cannot be reached in trust: {problem}; behind the question mark of URZA_DATABASE_URL sslrootcert names the PEM file of its authority, sslcert and sslkey the certificate that it may want, and the host must be named as in its certificate"
    )]
    Untrusted {
        /// Its URL without a password.
        catalogue: String,
        /// What is wrong.
        problem: String,
    },
    /// The file is damaged. Opening sets such a catalogue aside and begins an empty one, so this is what remains when
    /// the new one cannot be used either.
    #[error(
        "catalogue {path} is damaged ({problem}) and so is the new one; check the disk or set another URZA_DATABASE_URL"
    )]
    Damaged {
        /// The catalogue's file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// SQLite could not open or migrate the file.
    #[error(
        "cannot open catalogue {catalogue}; check that it is a SQLite file and that its directory is writable; a broken one may be moved away, its kernels are compiled again"
    )]
    Catalogue {
        /// The catalogue's file.
        catalogue: String,
        /// What the database said.
        source: DatabaseFault,
    },
    /// A migration failed.
    #[error("cannot bring catalogue {catalogue} up to date")]
    Migrate {
        /// The catalogue's file, or its URL without a password.
        catalogue: String,
        /// What the migrator said.
        source: DatabaseFault,
    },
}

/// What a database said, as text that can be shown: a damaged file makes SQLite say anything, and not always in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DatabaseFault(String);

impl From<sqlx::Error> for DatabaseFault {
    fn from(error: sqlx::Error) -> Self {
        Self(readable(&error))
    }
}

impl From<sqlx::migrate::MigrateError> for DatabaseFault {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self(readable(&error))
    }
}

/// An error and its sources on one line, whatever bytes they hold.
pub(crate) fn readable(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        // Most wrap the text of their source already.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    // The text may have been made without a check that it is UTF-8.
    let text = String::from_utf8_lossy(text.as_bytes());
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// The database reported an error.
    #[error("the catalogue reported an error")]
    Database(#[source] DatabaseFault),
    /// The database did not answer in time.
    #[error("the catalogue did not answer within {0:?}")]
    TimedOut(Duration),
    /// The server did not answer a moment ago, and is asked again within a second.
    #[error("the catalogue's server does not answer; it is asked again within a second")]
    Away,
}

/// Why a question to the catalogue has no answer. Never means "not found".
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The store did not answer. Ask again later.
    #[error("the library is unavailable; retry")]
    Unavailable(#[from] StoreFault),
    /// A row cannot be read as a record; a person must look at it.
    #[error(
        "catalogue row {id} has an unreadable {column}; remove the row, the forge builds it again"
    )]
    BadRow {
        /// The row.
        id: RecordId,
        /// The column that cannot be read.
        column: &'static str,
    },
}

/// Why an artifact was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The tier is unspecified. It decides how a kernel is handled, so it is never guessed.
    #[error("an artifact needs the tier of its blueprint")]
    TierUnspecified,
    /// The job cannot be keyed.
    #[error(transparent)]
    Job(#[from] crate::job::JobKeyError),
    /// The extras cannot be kept.
    #[error(transparent)]
    Extras(#[from] crate::extras::ExtrasError),
    /// The lease cannot be taken.
    #[error(transparent)]
    Lease(#[from] crate::lease::LeaseTermsError),
    /// The tag cannot be set.
    #[error(transparent)]
    Tag(#[from] crate::select::TagError),
    /// There is no record of this job with this digest any more.
    #[error("the artifact is no longer in the catalogue; store it again")]
    Forgotten,
    /// The artifact has no bytes, or more than the library takes.
    #[error("an artifact has 1 to {max} bytes, this one has {found}")]
    Size {
        /// The bound, `Config::artifact_bytes_max`.
        max: usize,
        /// Bytes of the artifact.
        found: usize,
    },
    /// The file could not be written.
    #[error("cannot write artifact {path}; check space and rights of URZA_ARTIFACT_DIR")]
    Write {
        /// The file or directory at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for it. Nothing of it was left behind.
    #[error(
        "no room in {directory}: the artifact has {wanted} bytes, {free} are free there; make room or set URZA_ARTIFACT_DIR elsewhere, then store it again"
    )]
    Full {
        /// The directory.
        directory: PathBuf,
        /// Bytes of the artifact.
        wanted: u64,
        /// Bytes that the file system has left; more than `wanted` when a quota or a limit of the
        /// process is what is used up.
        free: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The bucket did not take it.
    #[error("the artifact is not stored")]
    Bucket(#[from] BucketFault),
    /// Writing took too long.
    #[error("writing the artifact took longer than {0:?}; retry")]
    TimedOut(Duration),
    /// The file is durable but its record is not; storing again is safe and completes it.
    #[error("the artifact is stored but not catalogued; store it again")]
    Catalogue(#[from] LibraryError),
}

/// Why the library could not hand out an artifact that it has a record of.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The record stands, the file does not.
    #[error("artifact {path} does not exist")]
    NotFound {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file is not what its name says.
    #[error("artifact {path} is not the file of digest {expected}: {found}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The digest of the record.
        expected: Digest,
        /// How it differs.
        found: Mismatch,
    },
    /// The file could not be read.
    #[error("cannot read artifact {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is in the bucket, and there is no room for it here.
    #[error(
        "no room in {directory}: the artifact has {wanted} bytes, {free} are free there; make room or set URZA_ARTIFACT_DIR elsewhere"
    )]
    Full {
        /// The directory.
        directory: PathBuf,
        /// Bytes of the artifact.
        wanted: u64,
        /// Bytes that the file system has left.
        free: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The bucket did not hand it out.
    #[error("the artifact cannot be fetched")]
    Bucket(#[from] BucketFault),
    /// Hashing took too long.
    #[error("verifying artifact {path} took longer than {limit:?}")]
    TimedOut {
        /// The file.
        path: PathBuf,
        /// `Config::file_timeout`.
        limit: Duration,
    },
}

/// How a file differs from its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// Another number of bytes; it was not even hashed.
    Size(u64),
    /// Other contents.
    Digest(Digest),
    /// Not a regular file.
    Kind,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size(bytes) => write!(f, "it has {bytes} bytes"),
            Self::Digest(digest) => write!(f, "it hashes to {digest}"),
            Self::Kind => f.write_str("it is not a regular file"),
        }
    }
}

/// What the caller should do about a [`FetchError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Have it built again.
    Compile,
    /// Put it into quarantine, then have it built again.
    Quarantine,
    /// Ask again later.
    Retry,
}

impl FetchError {
    /// Decided here, once, so that every caller reacts alike.
    pub const fn remedy(&self) -> Remedy {
        match self {
            Self::NotFound { .. } => Remedy::Compile,
            Self::Corrupt { .. } => Remedy::Quarantine,
            Self::Read { .. } | Self::TimedOut { .. } | Self::Full { .. } | Self::Bucket(_) => {
                Remedy::Retry
            }
        }
    }
}
