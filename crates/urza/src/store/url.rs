//! Where the bucket is and who asks: `URZA_ARTIFACT_URL` and the `AWS_*` settings, typed. Pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use object_store::path::Path;

/// A bucket, and the prefix that every key of the library begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    bucket: String,
    prefix: Path,
}

/// Why a URL of artifacts was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "URZA_ARTIFACT_URL: {problem}; write s3://bucket or s3://bucket/prefix, and the rest as AWS_* settings"
)]
pub struct BucketUrlFault {
    problem: &'static str,
}

impl BucketUrl {
    /// Reads `s3://bucket/prefix`. What else a URL can carry is refused, not dropped: credentials,
    /// a port, options. The refused text is not repeated, for it may hold a password.
    ///
    /// # Errors
    /// [`BucketUrlFault`] says what is wrong and what to write.
    pub fn parse(url: &str) -> Result<Self, BucketUrlFault> {
        let refused = |problem| BucketUrlFault { problem };
        let rest = url.strip_prefix("s3://").ok_or(refused("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('@') {
            return Err(refused("credentials do not belong into it"));
        }
        if rest.contains(['?', '#']) {
            return Err(refused("it carries options"));
        }
        let is_name = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
        };
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_name) {
            return Err(refused(
                "a bucket has 3 to 63 lower-case letters, digits, dots and hyphens",
            ));
        }
        let prefix = Path::parse(prefix.trim_end_matches('/'))
            .map_err(|_| refused("its prefix has an empty, a dot or an unprintable part"))?;
        Ok(Self { bucket: bucket.to_owned(), prefix })
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What every key begins with.
    pub(super) const fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// The key of this name below the prefix.
    pub(super) fn key(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// A key as people and other programs write it.
    pub(super) fn shown(&self, key: &Path) -> String {
        format!("s3://{}/{key}", self.bucket)
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown(&self.prefix).trim_end_matches('/'))
    }
}

/// Who asks, and where.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketAccess {
    /// `AWS_ENDPOINT_URL`: a server that speaks S3, `http://` or `https://`; `None` is Amazon's own.
    pub endpoint: Option<String>,
    /// `AWS_REGION`, `us-east-1`.
    pub region: String,
    /// `AWS_ACCESS_KEY_ID`; without it the machine's own role is asked for (instance metadata).
    pub key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`. Never shown.
    pub secret_key: Option<String>,
    /// `AWS_SESSION_TOKEN`. Never shown.
    pub session_token: Option<String>,
    /// `AWS_CA_BUNDLE`: PEM file of authorities that are trusted beside the system's own.
    pub ca_file: Option<PathBuf>,
}

impl Default for BucketAccess {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            key_id: None,
            secret_key: None,
            session_token: None,
            ca_file: None,
        }
    }
}

impl fmt::Debug for BucketAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketAccess")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("key_id", &self.key_id.as_ref().map(|_| "(hidden)"))
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

/// Settings of the bucket. Defaults stand in [`BucketConfig::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketConfig {
    /// Which bucket, below which prefix.
    pub url: BucketUrl,
    /// Who asks.
    pub access: BucketAccess,
    /// 8 MiB: an artifact larger than this is sent in parts of this size (the service's least is 5 MiB).
    pub part_bytes: usize,
    /// 5 s for a connection.
    pub connect_timeout: Duration,
    /// 20 s without a byte end an attempt.
    pub idle_timeout: Duration,
    /// 120 s for one artifact, attempts and pauses together.
    pub total_timeout: Duration,
    /// 4 attempts after the first, with growing pauses.
    pub retries_max: usize,
    /// 200 ms before the first of them.
    pub backoff: Duration,
}

impl BucketConfig {
    /// The defaults, for this bucket.
    pub fn new(url: BucketUrl, access: BucketAccess) -> Self {
        Self {
            url,
            access,
            part_bytes: 8 << 20,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(20),
            total_timeout: Duration::from_secs(120),
            retries_max: 4,
            backoff: Duration::from_millis(200),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_bucket_and_a_prefix() {
        for (url, bucket, key) in [
            ("s3://kernels", "kernels", "ab/c"),
            ("s3://kernels/", "kernels", "ab/c"),
            ("s3://my.kernels-1/team/a", "my.kernels-1", "team/a/ab/c"),
            ("s3://kernels/team/a/", "kernels", "team/a/ab/c"),
        ] {
            let parsed = BucketUrl::parse(url).unwrap();
            assert_eq!(parsed.bucket(), bucket, "{url}");
            assert_eq!(parsed.key("ab/c").as_ref(), key, "{url}");
            assert_eq!(parsed.to_string(), url.trim_end_matches('/'));
        }
    }

    #[test]
    fn what_is_no_bucket_is_refused_and_not_repeated() {
        for url in [
            "",
            "kernels",
            "file:///srv",
            "https://user:hunter2@host/kernels",
            "s3://",
            "s3://ab",
            "s3://Kernels",
            "s3://key:hunter2@kernels/a",
            "s3://kernels:9000/a",
            "s3://kernels/a?secret=hunter2",
            "s3://kernels/a//b",
            "s3://kernels/../b",
            "s3://kernels/a/./b",
        ] {
            let fault = BucketUrl::parse(url).unwrap_err().to_string();
            assert!(!fault.contains("hunter2"), "{fault}");
        }
    }

    #[test]
    fn credentials_are_never_shown() {
        let access = BucketAccess {
            key_id: Some("AKIA".to_owned()),
            secret_key: Some("hunter2".to_owned()),
            session_token: Some("hunter3".to_owned()),
            ..BucketAccess::default()
        };
        let config = BucketConfig::new(BucketUrl::parse("s3://kernels").unwrap(), access);
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter") && !shown.contains("AKIA"), "{shown}");
    }
}
