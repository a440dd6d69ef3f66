//! Kernels by their digest, for trainers that do not share the library's directory: whole or in part,
//! with the forge's signature and the manifest beside them.
//!
//! What a client asks for is a digest and nothing else: it is parsed before anything is looked up, and
//! no path is ever made of what came from outside.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, RANGE, RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use kernel::Digest;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use urza::{DownloadFault, Library};

use super::guard::{authorise_download, refuse};
use super::routes::Shared;
use crate::labels::Refusal;

/// Bytes read at a time: what one connection holds in memory.
const PIECE_BYTES: u64 = 256 * 1024;
/// A client that takes less than this for long is dropped, however regularly it takes something.
const BYTES_PER_SECOND_MIN: u64 = 16 * 1024;
/// What it has beyond that, for a slow start.
const PATIENCE: Duration = Duration::from_secs(60);
/// A digest names the same bytes for ever; what needs a token stays in the client's own cache.
const IMMUTABLE: &str = "private, max-age=31536000, immutable";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// `/kernels/{sha256}` and `/kernels/{sha256}.sig`.
pub(super) async fn kernel(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let signed = name.strip_suffix(".sig");
    let (library, digest) = match asked(&shared, &headers, signed.unwrap_or(&name)) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    match signed {
        Some(_) => signature(&library, &digest).await,
        None => artifact(&shared, &library, &digest, &method, &headers).await,
    }
}

/// `/kernels/{sha256}/manifest`.
pub(super) async fn manifest(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let (library, digest) = match asked(&shared, &headers, &name) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    match library.manifest(&digest).await {
        Ok(manifest) => ([(CONTENT_TYPE, "application/json")], manifest).into_response(),
        Err(fault) => failed(&fault),
    }
}

/// Who asks, and for what.
fn asked(
    shared: &Shared,
    headers: &HeaderMap,
    name: &str,
) -> Result<(Library, Digest), Box<Response>> {
    if let Err(reason) = authorise_download(&shared.config, headers) {
        return Err(Box::new(refuse(shared, reason)));
    }
    let Ok(digest) = name.parse() else {
        let body = json!({ "error": "a kernel is named by its SHA-256, 64 lower-case hex digits" });
        return Err(Box::new((StatusCode::BAD_REQUEST, Json(body)).into_response()));
    };
    match shared.kernels.borrow().clone() {
        Some(library) => Ok((library, digest)),
        None => {
            let body = json!({ "error": "the library is not open yet; try again" });
            let later = [(RETRY_AFTER, "2")];
            let answer = (StatusCode::SERVICE_UNAVAILABLE, later, Json(body));
            Err(Box::new(answer.into_response()))
        }
    }
}

async fn signature(library: &Library, digest: &Digest) -> Response {
    let record = match library.offered(digest).await {
        Ok(record) => record,
        Err(fault) => return failed(&fault),
    };
    match record.extras.get(urza::SIGNATURE) {
        Some(signature) => Json(signature).into_response(),
        None => {
            let body = json!({ "error": "this artifact is not signed" });
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
    }
}

async fn artifact(
    shared: &Shared,
    library: &Library,
    digest: &Digest,
    method: &Method,
    headers: &HeaderMap,
) -> Response {
    let Ok(permit) = Arc::clone(&shared.downloads).try_acquire_owned() else {
        return refuse(shared, Refusal::Downloads);
    };
    let download = match library.download(digest).await {
        Ok(download) => download,
        Err(fault) => return failed(&fault),
    };
    let bytes = download.record.bytes;
    let etag = format!("\"{digest}\"");
    let whole = format!("sha-256=:{}:", STANDARD.encode(digest.as_bytes()));
    let common = [
        (ETAG, etag.clone()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CACHE_CONTROL, IMMUTABLE.to_owned()),
        (REPR_DIGEST, whole.clone()),
    ];
    if matches_any(headers, &IF_NONE_MATCH, &etag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let part = match wanted(method, headers, &etag, bytes) {
        Wanted::Whole => None,
        Wanted::Part(part) => Some(part),
        Wanted::Nowhere => {
            let range = [(CONTENT_RANGE, format!("bytes */{bytes}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, common, range).into_response();
        }
    };
    let sent = part.clone().unwrap_or(0..bytes);
    let described = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, (sent.end - sent.start).to_string()),
    ];
    match part {
        None => {
            let body = body(method, download.file, sent, permit);
            (common, described, [(CONTENT_DIGEST, whole)], body).into_response()
        }
        Some(part) => {
            let range = format!("bytes {}-{}/{bytes}", part.start, part.end - 1);
            let body = body(method, download.file, sent, permit);
            (StatusCode::PARTIAL_CONTENT, common, described, [(CONTENT_RANGE, range)], body)
                .into_response()
        }
    }
}

/// What an answer is made of: pieces of the file, each read on a thread that may wait for the disk.
fn body(method: &Method, file: File, sent: Range<u64>, permit: OwnedSemaphorePermit) -> Body {
    if method == Method::HEAD {
        return Body::empty();
    }
    let patience = PATIENCE + Duration::from_secs((sent.end - sent.start) / BYTES_PER_SECOND_MIN);
    let sending = Sending {
        file: Arc::new(file),
        left: sent,
        end: Instant::now() + patience,
        _permit: permit,
    };
    Body::from_stream(stream::try_unfold(sending, Sending::next))
}

struct Sending {
    file: Arc<File>,
    left: Range<u64>,
    end: Instant,
    /// One of the downloads that may run at once; given back when the answer ends, however it does.
    _permit: OwnedSemaphorePermit,
}

impl Sending {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        if self.end <= Instant::now() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
        }
        let (at, file) = (self.left.start, Arc::clone(&self.file));
        let count = PIECE_BYTES.min(self.left.end - at);
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; count as usize];
            file.read_exact_at(&mut piece, at).map(|()| piece)
        });
        let piece = reading.await.map_err(io::Error::other)??;
        self.left.start += count;
        Ok(Some((piece.into(), self)))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    /// Behind the end.
    Nowhere,
}

/// Which bytes are wanted. A range that cannot be read, several ranges, or a range of another
/// artifact than this (`If-Range`) are answered with the whole, as RFC 9110 (section 14.2) allows.
fn wanted(method: &Method, headers: &HeaderMap, etag: &str, bytes: u64) -> Wanted {
    if method != Method::GET {
        return Wanted::Whole;
    }
    let Some(range) = headers.get(RANGE).and_then(|value| value.to_str().ok()) else {
        return Wanted::Whole;
    };
    let is_of_another = headers.get(IF_RANGE).is_some_and(|value| value != etag);
    match range.split_once('=') {
        Some((unit, range)) if unit.trim().eq_ignore_ascii_case("bytes") && !is_of_another => {
            part(range.trim(), bytes)
        }
        _ => Wanted::Whole,
    }
}

/// `FIRST-LAST`, `FIRST-` or `-COUNT`.
fn part(range: &str, bytes: u64) -> Wanted {
    let number = |text: &str| -> Option<u64> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than fit are a place behind every end.
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let Some((first, last)) = range.split_once('-') else { return Wanted::Whole };
    let found = match (first, last) {
        ("", last) => number(last).map(|count| bytes.saturating_sub(count)..bytes),
        (first, "") => number(first).map(|first| first..bytes),
        (first, last) => number(first).zip(number(last)).and_then(|(first, last)| {
            (first <= last).then(|| first..last.saturating_add(1).min(bytes))
        }),
    };
    match found {
        None => Wanted::Whole,
        Some(part) if part.is_empty() => Wanted::Nowhere,
        Some(part) => Wanted::Part(part),
    }
}

fn matches_any(headers: &HeaderMap, name: &HeaderName, etag: &str) -> bool {
    let tags = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    tags.flat_map(|tags| tags.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
    })
}

fn failed(fault: &DownloadFault) -> Response {
    let status = match fault {
        DownloadFault::Unknown(_) => StatusCode::NOT_FOUND,
        DownloadFault::Quarantined(_) => StatusCode::GONE,
        DownloadFault::Library(_) | DownloadFault::Fetch(_) => StatusCode::SERVICE_UNAVAILABLE,
        DownloadFault::NoManifest { .. } => StatusCode::UNPROCESSABLE_ENTITY,
    };
    if status == StatusCode::SERVICE_UNAVAILABLE {
        tracing::warn!(error = fault as &dyn std::error::Error, "kernel not handed out");
        // Paths and what the system said stay here.
        let body = json!({ "error": "the kernel cannot be handed out now; try again" });
        return (status, [(RETRY_AFTER, HeaderValue::from_static("2"))], Json(body))
            .into_response();
    }
    (status, Json(json!({ "error": fault.to_string() }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("0-0", Wanted::Part(0..1)),
            ("0-99", Wanted::Part(0..100)),
            ("0-100", Wanted::Part(0..100)),
            ("99-", Wanted::Part(99..100)),
            ("10-19", Wanted::Part(10..20)),
            ("-1", Wanted::Part(99..100)),
            ("-1000", Wanted::Part(0..100)),
            ("0-99999999999999999999999999", Wanted::Part(0..100)),
            ("100-", Wanted::Nowhere),
            ("100-200", Wanted::Nowhere),
            ("-0", Wanted::Nowhere),
            ("99999999999999999999999999-", Wanted::Nowhere),
            ("20-10", Wanted::Whole),
            ("", Wanted::Whole),
            ("-", Wanted::Whole),
            ("a-b", Wanted::Whole),
            ("+1-2", Wanted::Whole),
            ("0-1,3-4", Wanted::Whole),
        ] {
            assert_eq!(part(range, 100), expected, "{range}");
        }
    }
}
