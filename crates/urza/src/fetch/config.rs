//! Settings of the fetcher.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of one fetcher. Defaults stand in [`FetcherConfig::at`].
#[derive(Clone, PartialEq, Eq)]
pub struct FetcherConfig {
    /// `KASMINA_KERNEL_CACHE_DIR`: where fetched kernels are kept. Several processes may share it.
    pub directory: PathBuf,
    /// `KASMINA_KERNEL_TOKEN`: what is shown to the server. Never shown otherwise.
    pub token: Option<String>,
    /// `KASMINA_KERNEL_CA_FILE`: PEM file of authorities that are trusted beside the system's own.
    pub ca_file: Option<PathBuf>,
    /// 100 MiB, the contract's bound on a kernel: a larger one is refused before and while it comes.
    pub bytes_max: u64,
    /// 10 GiB: how much the directory holds; what was used least recently goes first.
    pub cache_bytes_max: u64,
    /// 5 s for a connection.
    pub connect_timeout: Duration,
    /// 15 s without a byte end an attempt.
    pub idle_timeout: Duration,
    /// 150 s for one kernel, attempts and pauses together.
    pub total_timeout: Duration,
    /// 6 attempts that bring nothing; one that brings something is not counted.
    pub attempts_max: NonZeroU32,
    /// 200 ms before the second attempt; doubled for each more, up to 5 s, each somewhat at random.
    pub backoff: Duration,
}

impl FetcherConfig {
    /// The defaults, for this directory.
    pub fn at(directory: PathBuf) -> Self {
        Self {
            directory,
            token: None,
            ca_file: None,
            bytes_max: 100 << 20,
            cache_bytes_max: 10 << 30,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
            total_timeout: Duration::from_secs(150),
            attempts_max: NonZeroU32::MIN.saturating_add(5),
            backoff: Duration::from_millis(200),
        }
    }
}

impl fmt::Debug for FetcherConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetcherConfig")
            .field("directory", &self.directory)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("ca_file", &self.ca_file)
            .field("bytes_max", &self.bytes_max)
            .field("cache_bytes_max", &self.cache_bytes_max)
            .finish_non_exhaustive()
    }
}
