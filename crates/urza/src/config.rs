//! Settings of the library.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::{BucketConfig, BucketUrlFault};

/// Where the catalogue stands: `URZA_DATABASE_URL`, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogueUrl {
    /// A SQLite file. It and its directory are made when missing.
    Sqlite(PathBuf),
}

/// Why a catalogue URL was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// PostgreSQL is part of the contract, not of this version.
    #[error(
        "PostgreSQL catalogues arrive with the kernel issue; use sqlite:///./var/urza/catalog.db until then"
    )]
    PostgresNotYet,
    /// A catalogue in memory would forget every artifact at the next start.
    #[error(
        "the catalogue must be a file; write sqlite:///./var/urza/catalog.db instead of an in-memory URL"
    )]
    InMemory,
    /// Neither a known scheme nor a path behind it.
    #[error(
        "{url:?} is no catalogue URL; write sqlite:///./relative/path.db or sqlite:////absolute/path.db"
    )]
    Unreadable {
        /// The text as given, without what might be a password.
        url: String,
    },
    /// The bucket's URL cannot be used.
    #[error(transparent)]
    Bucket(#[from] BucketUrlFault),
    /// Connection options in the URL are not understood, so they are not silently dropped.
    #[error(
        "the catalogue URL carries options (?...); remove them, URZA_* settings cover what can be set"
    )]
    Options,
}

impl CatalogueUrl {
    /// Reads a catalogue URL.
    ///
    /// `sqlite://path` takes the text as it stands. With a third slash the programs that came
    /// before meant a relative path when it starts with a dot (`sqlite:///./var/urza/catalog.db`);
    /// otherwise the path is absolute (`sqlite:///srv/catalog.db`, and with four slashes the same).
    ///
    /// # Errors
    /// [`ConfigFault`] names what is wrong and what to write instead.
    pub fn parse(url: &str) -> Result<Self, ConfigFault> {
        let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
        match scheme {
            "postgres" | "postgresql" => return Err(ConfigFault::PostgresNotYet),
            "sqlite" => {}
            _ => return Err(ConfigFault::Unreadable { url: shown(url) }),
        }
        if rest.contains(":memory:") || rest.contains("mode=memory") {
            return Err(ConfigFault::InMemory);
        }
        if rest.contains('?') {
            return Err(ConfigFault::Options);
        }
        let path = rest.strip_prefix("//").unwrap_or(rest);
        let path = match path.strip_prefix('/') {
            Some(relative) if relative.starts_with("./") || relative.starts_with("../") => relative,
            Some(absolute) if absolute.starts_with('/') => absolute,
            _ => path,
        };
        if path.is_empty() || path.ends_with('/') || path.contains('\0') {
            return Err(ConfigFault::Unreadable { url: shown(url) });
        }
        Ok(Self::Sqlite(PathBuf::from(path)))
    }

    /// The file of the catalogue.
    pub fn path(&self) -> &Path {
        match self {
            Self::Sqlite(path) => path,
        }
    }
}

/// A refused URL may hold a password between `//` and `@`.
fn shown(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(start), Some(end)) if start + 3 < end => {
            format!("{}://(hidden){}", &url[..start], &url[end..])
        }
        _ => url.to_owned(),
    }
}

/// Settings of one library. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `URZA_DATABASE_URL`, `sqlite:///./var/urza/catalog.db`.
    pub catalogue: CatalogueUrl,
    /// `URZA_ARTIFACT_DIR`, `./var/urza/artifacts`. Made when missing; must be on one file system.
    pub artifact_dir: PathBuf,
    /// `URZA_ARTIFACT_URL` with the `AWS_*` settings, none: where artifacts live. With a bucket the
    /// directory is its verified cache.
    pub bucket: Option<BucketConfig>,
    /// `URZA_ARTIFACT_CACHE_MAX_BYTES`, 10 GiB: how much of the bucket the directory holds. What is in
    /// use is kept in any case. Without a bucket nothing is removed for it.
    pub artifact_cache_bytes_max: u64,
    /// `URZA_CACHE_TTL_SECONDS`, unset. A cached record older than this is dropped from the cache,
    /// also when the store cannot be asked. It never touches a file or a row.
    pub cache_ttl: Option<Duration>,
    /// 128 records. More than the catalogue of blueprints, so that a lookup seldom leaves memory.
    pub cache_len_max: usize,
    /// 1 s: a cached record is read again after this, so that what another process stored shows.
    pub cache_fresh: Duration,
    /// 1024 files whose digest is known to match; beyond that the oldest is hashed again.
    pub verified_len_max: usize,
    /// 100 MiB, the contract's bound on a kernel. A larger artifact is refused when stored.
    pub artifact_bytes_max: usize,
    /// 2 s: how long SQLite waits for a writer of another process.
    pub busy_timeout: Duration,
    /// 3 s: how long a catalogue query may take before the store counts as unavailable.
    pub query_timeout: Duration,
    /// 60 s: how long hashing or writing one artifact may take.
    pub file_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self::at(Path::new("./var/urza"))
    }
}

impl Config {
    /// The defaults, with the catalogue and the artifacts below `root`.
    pub fn at(root: &Path) -> Self {
        Self {
            catalogue: CatalogueUrl::Sqlite(root.join("catalog.db")),
            artifact_dir: root.join("artifacts"),
            bucket: None,
            artifact_cache_bytes_max: 10 << 30,
            cache_ttl: None,
            cache_len_max: 128,
            cache_fresh: Duration::from_secs(1),
            verified_len_max: 1024,
            artifact_bytes_max: 100 << 20,
            busy_timeout: Duration::from_secs(2),
            query_timeout: Duration::from_secs(3),
            file_timeout: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_of_a_path() {
        for (url, path) in [
            ("sqlite:///./var/urza/catalog.db", "./var/urza/catalog.db"),
            ("sqlite:///../catalog.db", "../catalog.db"),
            ("sqlite:////srv/urza/catalog.db", "/srv/urza/catalog.db"),
            ("sqlite:///srv/urza/catalog.db", "/srv/urza/catalog.db"),
            ("sqlite://var/catalog.db", "var/catalog.db"),
            ("sqlite:catalog.db", "catalog.db"),
        ] {
            assert_eq!(CatalogueUrl::parse(url), Ok(CatalogueUrl::Sqlite(path.into())), "{url}");
        }
    }

    #[test]
    fn what_is_refused_and_why() {
        assert_eq!(CatalogueUrl::parse("postgres://u:p@h/db"), Err(ConfigFault::PostgresNotYet));
        assert_eq!(CatalogueUrl::parse("postgresql://h/db"), Err(ConfigFault::PostgresNotYet));
        assert_eq!(CatalogueUrl::parse("sqlite::memory:"), Err(ConfigFault::InMemory));
        assert_eq!(CatalogueUrl::parse("sqlite:///a.db?mode=ro"), Err(ConfigFault::Options));
        for url in ["", "sqlite://", "sqlite:///dir/", "catalog.db", "file:///a.db"] {
            assert!(
                matches!(CatalogueUrl::parse(url), Err(ConfigFault::Unreadable { .. })),
                "{url}"
            );
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let fault = CatalogueUrl::parse("mysql://user:hunter2@host/db").unwrap_err();
        assert!(!fault.to_string().contains("hunter2"), "{fault}");
    }
}
