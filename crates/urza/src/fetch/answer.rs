//! What a server said: how the body goes on, or why there is none. Pure.

use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};

use super::fault::FetchFault;

/// How a body fits behind what is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Body {
    /// Where it begins: at what is here, or at 0.
    pub(super) from: u64,
    /// How large the whole is, if the server says.
    pub(super) total: Option<u64>,
}

/// Why there is no body to take.
#[derive(Debug)]
pub(super) enum NoBody {
    /// Asking again does not help.
    Never(FetchFault),
    /// Later, perhaps; the server may have said when.
    Later(FetchFault, Option<Duration>),
    /// From the beginning.
    Anew(FetchFault),
}

/// Reads an answer to a request for what follows the first `here` bytes.
pub(super) fn read(
    status: StatusCode,
    headers: &HeaderMap,
    length: Option<u64>,
    here: u64,
    bytes_max: u64,
) -> Result<Body, NoBody> {
    let number = status.as_u16();
    let fault = |detail| FetchFault::Status { status: number, detail };
    let body = match number {
        200 => Body { from: 0, total: length },
        206 => match headers.get(CONTENT_RANGE).and_then(|value| range(value.to_str().ok()?)) {
            Some((from, total)) if from == here => Body { from, total: Some(total) },
            _ => return Err(NoBody::Anew(fault(" and another range than was asked for"))),
        },
        416 => return Err(NoBody::Anew(fault(" to a range of its own"))),
        401 | 403 => return Err(NoBody::Never(FetchFault::Refused { status: number })),
        404 | 410 => return Err(NoBody::Never(FetchFault::Missing { status: number })),
        300..=399 => return Err(NoBody::Never(fault(", a redirect, which is not followed"))),
        408 | 429 | 500..=599 => {
            let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let pause = seconds.and_then(|text| text.parse().ok()).map(Duration::from_secs);
            return Err(NoBody::Later(fault(""), pause));
        }
        _ => return Err(NoBody::Never(fault(""))),
    };
    match body.total {
        Some(bytes) if bytes_max < bytes => {
            Err(NoBody::Never(FetchFault::TooLarge { bytes, max: bytes_max }))
        }
        _ => Ok(body),
    }
}

/// First byte and size of the whole in `bytes FIRST-LAST/TOTAL`.
fn range(text: &str) -> Option<(u64, u64)> {
    let (part, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last, total): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last < total).then_some((first, total))
}

/// Reads a reference. It must be plain `http` or `https`, without credentials, options or fragment.
pub(super) fn url(text: &str) -> Result<Url, FetchFault> {
    let refused = |problem| FetchFault::Url { problem };
    let url = Url::parse(text).map_err(|_| refused("it is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused("it is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("it carries credentials; set KASMINA_KERNEL_TOKEN instead"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused("it carries options"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn answered(status: u16, range: Option<&str>, length: u64) -> Result<Body, NoBody> {
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            headers.insert(CONTENT_RANGE, HeaderValue::from_str(range).unwrap());
        }
        read(StatusCode::from_u16(status).unwrap(), &headers, Some(length), 10, 100)
    }

    #[test]
    fn a_body_goes_on_only_where_the_part_ends() {
        assert_eq!(answered(200, None, 50).unwrap(), Body { from: 0, total: Some(50) });
        let gone_on = answered(206, Some("bytes 10-49/50"), 40).unwrap();
        assert_eq!(gone_on, Body { from: 10, total: Some(50) });
        for range in [None, Some("bytes 0-49/50"), Some("bytes 10-60/50"), Some("bytes 10-49/*")] {
            assert!(matches!(answered(206, range, 40), Err(NoBody::Anew(_))), "{range:?}");
        }
        assert!(matches!(answered(416, Some("bytes */5"), 0), Err(NoBody::Anew(_))));
    }

    #[test]
    fn what_is_too_large_is_not_begun() {
        for answer in [answered(200, None, 101), answered(206, Some("bytes 10-100/101"), 91)] {
            let Err(NoBody::Never(FetchFault::TooLarge { bytes: 101, max: 100 })) = answer else {
                panic!("{answer:?}")
            };
        }
    }

    #[test]
    fn what_helps_is_told_apart() {
        for status in [301, 400, 401, 403, 404, 410, 418] {
            assert!(matches!(answered(status, None, 0), Err(NoBody::Never(_))), "{status}");
        }
        for status in [408, 429, 500, 503] {
            assert!(matches!(answered(status, None, 0), Err(NoBody::Later(..))), "{status}");
        }
    }

    #[test]
    fn only_plain_urls() {
        url("http://127.0.0.1:9100/kernels/ab").unwrap();
        url("https://forge.example/esper/kernels/ab").unwrap();
        for text in [
            "",
            "/srv/ab",
            "file:///etc/passwd",
            "ftp://host/ab",
            "http://user:hunter2@host/ab",
            "http://host/ab?token=hunter2",
            "http://host/ab#x",
        ] {
            let fault = url(text).unwrap_err();
            assert!(!fault.to_string().contains("hunter2"), "{fault}");
        }
    }
}
