//! Why a bucket did not do what was asked. Each text says what to do; none repeats what the server
//! sent verbatim, for a server may echo signed headers.

use std::error::Error as _;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use crate::trust;

/// Why a bucket did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BucketFault {
    /// The access settings cannot be used.
    #[error(
        "bucket {url} cannot be asked: {problem}; check AWS_ENDPOINT_URL and the other AWS_* settings"
    )]
    Unusable {
        /// The bucket.
        url: String,
        /// What is wrong with them.
        problem: String,
    },
    /// There is no such bucket.
    #[error("bucket {url} does not exist; make it, or correct URZA_ARTIFACT_URL and AWS_REGION")]
    NoBucket {
        /// The bucket.
        url: String,
    },
    /// The server does not accept the credentials, or they do not allow this.
    #[error(
        "bucket {url} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and that they may read, write, list and delete there"
    )]
    Refused {
        /// The bucket.
        url: String,
        /// The server's word for it.
        code: String,
    },
    /// Nobody answers.
    #[error("bucket {url} cannot be reached; check AWS_ENDPOINT_URL and the network, then retry")]
    Unreachable {
        /// The bucket.
        url: String,
        /// What the connection said.
        source: std::io::Error,
    },
    /// TLS with the server did not come about.
    #[error(
        "bucket {url} cannot be reached in trust: {problem}; set AWS_CA_BUNDLE to the PEM file of the server's authority, or correct AWS_ENDPOINT_URL"
    )]
    Untrusted {
        /// The bucket.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// No answer in time, in spite of retries.
    #[error("bucket {url} did not answer within {limit:?}; retry")]
    TimedOut {
        /// The bucket.
        url: String,
        /// The bound.
        limit: Duration,
    },
    /// What was sent did not arrive as it was sent.
    #[error("bucket {url} received other bytes than were sent ({code}); retry")]
    Garbled {
        /// The bucket.
        url: String,
        /// The server's word for it.
        code: String,
    },
    /// The server failed, in spite of retries.
    #[error("bucket {url} failed ({code}); retry, and see the server's own log")]
    Failed {
        /// The bucket.
        url: String,
        /// The server's word for it, or what kind of failure it was.
        code: String,
    },
    /// There is no such object.
    #[error("object {key} does not exist")]
    NoObject {
        /// The object.
        key: String,
    },
}

impl BucketFault {
    /// Reads what the client reports. `key` is the object that was asked for.
    pub(super) fn read(url: &str, key: &str, error: &object_store::Error) -> Self {
        let said = chain(error);
        let code = code(&said);
        let url = url.to_owned();
        if let Some(problem) = trust::problem(error) {
            return Self::Untrusted { url, problem };
        }
        match (error, code.as_deref()) {
            (_, Some("NoSuchBucket")) => Self::NoBucket { url },
            (_, Some(code @ ("BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch"))) => {
                Self::Garbled { url, code: code.to_owned() }
            }
            (object_store::Error::NotFound { .. }, _) => Self::NoObject { key: key.to_owned() },
            (
                object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. },
                code,
            ) => Self::Refused { url, code: code.unwrap_or("refused").to_owned() },
            (
                _,
                Some(
                    code @ ("InvalidAccessKeyId"
                    | "SignatureDoesNotMatch"
                    | "AccessDenied"
                    | "ExpiredToken"
                    | "InvalidToken"
                    | "NotSignedUp"),
                ),
            ) => Self::Refused { url, code: code.to_owned() },
            (_, Some(code)) => Self::Failed { url, code: code.to_owned() },
            (_, None) => match transport(error) {
                Some(HttpErrorKind::Connect) => {
                    let source = std::io::Error::from(std::io::ErrorKind::NotConnected);
                    Self::Unreachable { url, source }
                }
                Some(HttpErrorKind::Timeout) => Self::Failed { url, code: "timed out".to_owned() },
                Some(
                    HttpErrorKind::Interrupted | HttpErrorKind::Request | HttpErrorKind::Decode,
                ) => Self::Failed { url, code: "the connection broke".to_owned() },
                Some(_) | None => {
                    let code = status(&said).unwrap_or_else(|| "no usable answer".to_owned());
                    Self::Failed { url, code }
                }
            },
        }
    }
}

/// What kind of failure of the connection is behind it.
fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        cause = error.source();
    }
    None
}

fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push('\n');
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The `<Code>` of an answer in S3's XML; a word of letters and digits, nothing else.
fn code(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}

/// The status line's number, when there was nothing more to it.
fn status(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("status code: ")?;
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (number.len() == 3).then(|| format!("status {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(said: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: said.to_owned().into() }
    }

    #[test]
    fn only_the_servers_word_is_kept() {
        let said = "Server returned: <Error><Code>SignatureDoesNotMatch</Code><CanonicalRequest>x-amz-security-token:hunter2</CanonicalRequest></Error>";
        let fault = BucketFault::read("s3://kernels", "k", &generic(said));
        assert!(matches!(fault, BucketFault::Refused { .. }), "{fault:?}");
        assert!(!format!("{fault:?} {fault}").contains("hunter2"));
        let fault = BucketFault::read("s3://kernels", "k", &generic("<Code>a secret</Code>"));
        assert!(!format!("{fault:?}").contains("secret"), "{fault:?}");
    }

    #[test]
    fn a_bare_status_is_told() {
        let fault = BucketFault::read("s3://kernels", "k", &generic("non-2xx status code: 503: "));
        assert!(fault.to_string().contains("status 503"), "{fault}");
    }
}
