//! What a request asks for, read out of the message and its attributes. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kernel::Digest;
use leyline::ids::BlueprintId;
use leyline::time::unix_ms;
use leyline::wire::{KernelPrefetchRequest, MessagePriority};
use oona::attributes;
use tokio::time::Instant;

use super::queue::Rank;
use crate::job::JobKey;

/// Bytes of the parameters' JSON; a blueprint has a handful.
const PARAMETERS_BYTES_MAX: usize = 4096;
/// Bytes of a site's spelling.
const SITE_BYTES_MAX: usize = 64;
/// A deadline further away is a mistake.
const DEADLINE_MAX: Duration = Duration::from_hours(24);

/// A kernel as somebody asks for it. Equal wants are served by one look and one build.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Want {
    /// The blueprint.
    pub blueprint: BlueprintId,
    /// Parameters as canonical JSON, when the request names some.
    pub parameters: Option<String>,
    /// The site's spelling, when the request names one.
    pub site: Option<String>,
    /// The very artifact, when the request names one; what else the request names does not count then.
    pub digest: Option<Digest>,
}

impl Want {
    /// The blueprint's default artifact.
    pub fn default_of(blueprint: BlueprintId) -> Self {
        Self { blueprint, parameters: None, site: None, digest: None }
    }

    /// Whether the blueprint's default artifact is meant.
    pub fn is_default(&self) -> bool {
        self.parameters.is_none() && self.site.is_none() && self.digest.is_none()
    }

    /// The parameters by name; none when the request names none.
    pub fn parameters(&self) -> BTreeMap<String, f64> {
        // It was written by ourselves.
        self.parameters
            .as_deref()
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default()
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.blueprint)?;
        if let Some(digest) = &self.digest {
            write!(f, " of digest {digest}")?;
        }
        if let Some(site) = &self.site {
            write!(f, " at {site}")?;
        }
        self.parameters.as_ref().map_or(Ok(()), |parameters| write!(f, " with {parameters}"))
    }
}

/// Why no job can be named for a want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// There is no such blueprint.
    Unknown,
    /// There is, but it is not to be had so.
    Refused {
        /// The stable reason: `quarantined`, `incompatible`.
        reason: String,
        /// For people.
        detail: String,
    },
}

type Name = dyn Fn(&Want) -> Result<JobKey, Unfit> + Send + Sync;

/// Says which job makes what a want asks for: the builder's knowledge of midpoints, bounds and sites,
/// without the builder. Asked only for wants that are no default.
#[derive(Clone)]
pub struct Variants(Arc<Name>);

impl Variants {
    /// Wraps the builder's way.
    pub fn new(name: impl Fn(&Want) -> Result<JobKey, Unfit> + Send + Sync + 'static) -> Self {
        Self(Arc::new(name))
    }

    /// Nobody knows variants: only defaults are served.
    pub fn none() -> Self {
        let detail = "this service builds no variants".to_owned();
        let refused = Unfit::Refused { reason: crate::answer::INCOMPATIBLE.to_owned(), detail };
        Self::new(move |_| Err(refused.clone()))
    }

    /// The job that makes it.
    ///
    /// # Errors
    /// [`Unfit`] when there is none, with the reason that the asker is told.
    pub fn job(&self, want: &Want) -> Result<JobKey, Unfit> {
        (self.0)(want)
    }
}

impl fmt::Debug for Variants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Variants")
    }
}

/// A request as it is served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) want: Want,
    pub(crate) rank: Rank,
}

/// An attribute that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attribute {name} {fault}")]
pub(crate) struct Malformed {
    name: &'static str,
    fault: String,
}

/// Reads a request. `now` and `now_unix_ms` are the same moment.
pub(crate) fn read(
    request: &KernelPrefetchRequest,
    given: &BTreeMap<String, String>,
    now: Instant,
    now_unix_ms: u64,
) -> Result<Asked, Malformed> {
    let blueprint = BlueprintId::new(request.blueprint_id.clone());
    let rank = Rank { priority: MessagePriority::Normal, arrived: now, deadline: None };
    let mut asked = Asked { want: Want::default_of(blueprint), rank };
    // The usual request has nothing but Oona's own attributes.
    let prefix = "kernel-";
    let ours = given.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
    for (name, value) in ours {
        match name.as_str() {
            attributes::KERNEL_SITE => asked.want.site = Some(site(value)?),
            attributes::KERNEL_PARAMETERS => asked.want.parameters = Some(parameters(value)?),
            attributes::KERNEL_DIGEST => asked.want.digest = Some(digest(value)?),
            attributes::KERNEL_PRIORITY => asked.rank.priority = priority(value)?,
            attributes::KERNEL_DEADLINE_MS => {
                let issued = given.get(attributes::ISSUED_AT_MS).and_then(|ms| ms.parse().ok());
                let issued = issued.or_else(|| unix_ms(request.issued_at.as_ref()?));
                let waited = now_unix_ms.saturating_sub(issued.unwrap_or(now_unix_ms));
                let left = deadline(value)?.saturating_sub(Duration::from_millis(waited));
                asked.rank.deadline = Some(now + left);
            }
            // Of a newer program; what it means it does not mean here.
            _ => {}
        }
    }
    if asked.want.digest.is_some() {
        (asked.want.parameters, asked.want.site) = (None, None);
    }
    Ok(asked)
}

fn site(value: &str) -> Result<String, Malformed> {
    let fits = (1..=SITE_BYTES_MAX).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_graphic());
    let fault = || format!("is no site; write 1 to {SITE_BYTES_MAX} characters such as vector[64]");
    fits.then(|| value.to_owned())
        .ok_or_else(|| Malformed { name: attributes::KERNEL_SITE, fault: fault() })
}

fn digest(value: &str) -> Result<Digest, Malformed> {
    let fault = || "is no SHA-256 in hex".to_owned();
    value.parse().map_err(|_| Malformed { name: attributes::KERNEL_DIGEST, fault: fault() })
}

fn parameters(value: &str) -> Result<String, Malformed> {
    let malformed = |fault: String| Malformed { name: attributes::KERNEL_PARAMETERS, fault };
    if value.len() > PARAMETERS_BYTES_MAX {
        return Err(malformed(format!("is longer than {PARAMETERS_BYTES_MAX} bytes")));
    }
    let read: BTreeMap<String, f64> = serde_json::from_str(value)
        .map_err(|error| malformed(format!("is no JSON object of numbers: {error}")))?;
    Ok(serde_json::to_string(&read)
        .unwrap_or_else(|_| unreachable!("a map of names to numbers is always JSON")))
}

fn deadline(value: &str) -> Result<Duration, Malformed> {
    let read = value.parse().ok().map(Duration::from_millis);
    read.filter(|deadline| *deadline <= DEADLINE_MAX).ok_or_else(|| Malformed {
        name: attributes::KERNEL_DEADLINE_MS,
        fault: format!("is no number of milliseconds up to {}", DEADLINE_MAX.as_millis()),
    })
}

fn priority(value: &str) -> Result<MessagePriority, Malformed> {
    Ok(match value {
        "critical" => MessagePriority::Critical,
        "high" => MessagePriority::High,
        "normal" => MessagePriority::Normal,
        "low" => MessagePriority::Low,
        _ => {
            let fault = "is none of critical, high, normal, low".to_owned();
            return Err(Malformed { name: attributes::KERNEL_PRIORITY, fault });
        }
    })
}

#[cfg(test)]
mod tests {
    use leyline::time::timestamp;

    use super::*;

    fn request() -> KernelPrefetchRequest {
        KernelPrefetchRequest {
            request_id: "r".to_owned(),
            blueprint_id: "BP009".to_owned(),
            training_run_id: "run".to_owned(),
            issued_at: Some(timestamp(1_000_000)),
        }
    }

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn read_at(pairs: &[(&str, &str)], now: Instant, now_unix_ms: u64) -> Result<Asked, Malformed> {
        read(&request(), &given(pairs), now, now_unix_ms)
    }

    #[test]
    fn a_request_without_attributes_wants_the_default() {
        let now = Instant::now();
        let asked = read_at(&[("oona-id", "x"), ("kernel-colour", "red")], now, 1_000_000).unwrap();
        assert!(asked.want.is_default());
        let rank = Rank { priority: MessagePriority::Normal, arrived: now, deadline: None };
        assert_eq!((asked.want.blueprint.as_str(), asked.rank), ("BP009", rank));
    }

    #[test]
    fn a_digest_names_one_artifact() {
        let digest = Digest::of("kernel");
        let pairs = [("kernel-digest", &*digest.to_hex())];
        let want = read_at(&pairs, Instant::now(), 0).unwrap().want;
        assert!(!want.is_default());
        assert_eq!(want.digest, Some(digest));
        assert_eq!(want.to_string(), format!("BP009 of digest {digest}"));
    }

    #[test]
    fn equal_parameters_are_one_want_however_they_are_written() {
        let now = Instant::now();
        let want = |json| read_at(&[("kernel-parameters", json)], now, 0).unwrap().want;
        let one = want(r#"{"b": 2, "a": 0.50}"#);
        assert_eq!(one, want(r#"{"a":5e-1,"b":2.0}"#));
        assert_eq!(one.parameters.as_deref(), Some(r#"{"a":0.5,"b":2.0}"#));
        assert_eq!(one.parameters()["b"], 2.0);
        assert_eq!(one.to_string(), r#"BP009 with {"a":0.5,"b":2.0}"#);
    }

    #[test]
    fn a_deadline_counts_from_the_issue() {
        let now = Instant::now();
        let deadline =
            |pairs: &[(&str, &str)], unix_ms| read_at(pairs, now, unix_ms).unwrap().rank.deadline;
        let after = |ms| Some(now + Duration::from_millis(ms));
        let pairs = [("kernel-deadline-ms", "5000")];
        assert_eq!(deadline(&pairs, 1_002_000), after(3000));
        assert_eq!(deadline(&pairs, 1_009_000), after(0), "over");
        let signed = [("kernel-deadline-ms", "5000"), ("oona-issued-at-ms", "1001000")];
        assert_eq!(deadline(&signed, 1_002_000), after(4000));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let now = Instant::now();
        let long = format!("{{\"a\":{}1}}", " ".repeat(PARAMETERS_BYTES_MAX));
        for (name, value) in [
            ("kernel-site", ""),
            ("kernel-site", "vector [64]"),
            ("kernel-parameters", "[1]"),
            ("kernel-parameters", r#"{"a": "one"}"#),
            ("kernel-parameters", r#"{"a": NaN}"#),
            ("kernel-parameters", r#"{"a": 1e999}"#),
            ("kernel-parameters", &long),
            ("kernel-deadline-ms", "-1"),
            ("kernel-deadline-ms", "86400001"),
            ("kernel-priority", "HIGH"),
            ("kernel-digest", ""),
            ("kernel-digest", "3fa9c1d2"),
        ] {
            let error = read_at(&[(name, value)], now, 0).unwrap_err().to_string();
            assert!(error.starts_with(&format!("attribute {name} is ")), "{value}: {error}");
        }
    }
}
