//! Settings of the library.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::{BucketConfig, BucketUrlFault};

/// Where the catalogue stands: `URZA_DATABASE_URL`, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogueUrl {
    /// A SQLite file. It and its directory are made when missing.
    Sqlite(PathBuf),
    /// A database of a PostgreSQL server.
    Postgres(PostgresUrl),
}

/// `postgres://user:password@host:port/database?sslmode=...`. Shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

impl PostgresUrl {
    /// What may stand behind the question mark.
    const OPTIONS: [&str; 15] = [
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "options",
    ];

    const MODE: [&str; 2] = ["sslmode", "ssl-mode"];
    const ROOT: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
    const CERTIFICATE: [&str; 2] = ["sslcert", "ssl-cert"];
    const KEY: [&str; 2] = ["sslkey", "ssl-key"];

    fn parse(url: &str) -> Result<Self, ConfigFault> {
        let query = url.split_once('?').map_or("", |(_, query)| query);
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, _) = option.split_once('=').unwrap_or((option, ""));
            let is_setting = name.starts_with("options[") && name.ends_with(']');
            if name == "password" {
                return Err(ConfigFault::PasswordOption);
            }
            if !is_setting && !Self::OPTIONS.contains(&name) {
                return Err(ConfigFault::UnknownOption { name: name.to_owned() });
            }
        }
        let parsed: Result<sqlx::postgres::PgConnectOptions, _> = url.parse();
        if let Err(error) = parsed {
            let problem = crate::error::readable(&error);
            return Err(ConfigFault::Postgres { url: shown(url), problem });
        }
        let url = Self(url.to_owned());
        let mode = url.option(&Self::MODE);
        let checks = matches!(mode.as_deref(), Some("verify-ca" | "verify-full"));
        // The driver would pass over it, and whoever named an authority thinks that it counts.
        if url.option(&Self::ROOT).is_some() && !checks {
            return Err(ConfigFault::RootUnused);
        }
        if url.option(&Self::CERTIFICATE).is_some() != url.option(&Self::KEY).is_some() {
            return Err(ConfigFault::HalfCertificate);
        }
        Ok(url)
    }

    /// An option by any of its spellings; the last one counts, as for the driver.
    fn option(&self, spellings: &[&str]) -> Option<String> {
        let url = reqwest::Url::parse(&self.0).ok()?;
        let named = url.query_pairs().filter(|(name, _)| spellings.contains(&name.as_ref()));
        named.last().map(|(_, value)| value.into_owned())
    }

    /// What is wrong with the first file that it names and that cannot be read, by name, which the driver does not
    /// say. Blocks.
    pub(crate) fn unreadable_file(&self) -> Option<String> {
        let files = [&Self::ROOT[..], &Self::CERTIFICATE, &Self::KEY];
        files.iter().filter_map(|spellings| self.option(spellings)).find_map(|path| {
            let error = std::fs::read(&path).err()?;
            Some(format!("{path} cannot be read ({error})"))
        })
    }

    /// With its password, for the driver alone.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a catalogue URL was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// A PostgreSQL URL that cannot be read.
    #[error(
        "{url:?} is no PostgreSQL URL ({problem}); write postgres://user:password@host:5432/database?sslmode=verify-full"
    )]
    Postgres {
        /// The text as given, without what might be a password.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A password where it would be shown.
    #[error(
        "the password stands in postgres://user:password@host/database, not behind the question mark"
    )]
    PasswordOption,
    /// An authority that nothing would be checked against.
    #[error(
        "the catalogue URL names an authority in sslrootcert that is not used; write sslmode=verify-full beside it"
    )]
    RootUnused,
    /// A client certificate without its key, or a key without its certificate.
    #[error("of sslcert and sslkey in the catalogue URL one is missing")]
    HalfCertificate,
    /// An option that would be ignored.
    #[error(
        "the catalogue URL carries the unknown option {name}; sslmode, sslrootcert, sslcert, sslkey, host, port, dbname, user and options are known"
    )]
    UnknownOption {
        /// Its name.
        name: String,
    },
    /// A catalogue in memory would forget every artifact at the next start.
    #[error(
        "the catalogue must be a file; write sqlite:///./var/urza/catalog.db instead of an in-memory URL"
    )]
    InMemory,
    /// Neither a known scheme nor a path behind it.
    #[error(
        "{url:?} is no catalogue URL; write sqlite:///./relative/path.db, sqlite:////absolute/path.db or postgres://user:password@host:5432/database"
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
            "postgres" | "postgresql" => return PostgresUrl::parse(url).map(Self::Postgres),
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

    /// The file of the catalogue, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            Self::Postgres(_) => None,
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
        assert_eq!(
            CatalogueUrl::parse("postgres://h/db?pool=9"),
            Err(ConfigFault::UnknownOption { name: "pool".to_owned() })
        );
        assert_eq!(
            CatalogueUrl::parse("postgres://h/db?user=u&password=hunter2"),
            Err(ConfigFault::PasswordOption)
        );
        for mode in ["", "&sslmode=prefer", "&sslmode=require", "&ssl-mode=disable"] {
            let url = format!("postgres://h/db?sslrootcert=ca.pem{mode}");
            assert_eq!(CatalogueUrl::parse(&url), Err(ConfigFault::RootUnused), "{url}");
        }
        for half in ["sslcert=c.pem", "ssl-key=c.key"] {
            let url = format!("postgres://h/db?sslmode=require&{half}");
            assert_eq!(CatalogueUrl::parse(&url), Err(ConfigFault::HalfCertificate), "{url}");
        }
        CatalogueUrl::parse("postgres://h/db?ssl-ca=ca.pem&sslmode=verify-ca").unwrap();
        let both = "postgres://%2Frun/db?sslmode=require&sslcert=c.pem&ssl-key=c.key";
        CatalogueUrl::parse(both).unwrap();
        for url in ["postgres://h:port/db", "postgres://u:hunter2@h/db?sslmode=perhaps"] {
            let fault = CatalogueUrl::parse(url).unwrap_err();
            assert!(matches!(fault, ConfigFault::Postgres { .. }), "{fault}");
            assert!(!fault.to_string().contains("hunter2"), "{fault}");
        }
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
        let url = "postgresql://urza:hunter2@db.example:5433/kernels?sslmode=verify-full";
        let CatalogueUrl::Postgres(url) = CatalogueUrl::parse(url).unwrap() else { panic!() };
        let shown = "postgresql://(hidden)@db.example:5433/kernels?sslmode=verify-full";
        assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
    }
}
