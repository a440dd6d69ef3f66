//! Who is refused before a handler sees the request, and what every answer carries.

use std::net::IpAddr;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, HOST, ORIGIN,
    REFERRER_POLICY, RETRY_AFTER, TRANSFER_ENCODING, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::time::timeout;

use super::routes::Shared;
use crate::config::HttpConfig;
use crate::labels::{Answer, Endpoint, Refusal};

/// No request has a body that anybody reads; a small one is tolerated.
const BODY_BYTES_MAX: u64 = 4096;

/// Headers that every answer carries. The page's own policy replaces the first.
const HEADERS: [(HeaderName, &str); 7] = [
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Refuses, bounds, completes and counts every request.
pub(super) async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let endpoint = endpoint(request.uri());
    let refused = refusal(&shared, request.method(), request.uri(), request.headers());
    let mut response = match refused {
        Some(reason) => refuse(&shared, reason),
        None => match timeout(shared.config.request_timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => refuse(&shared, Refusal::TimedOut),
        },
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    shared.metrics.answered(endpoint, Answer::from(response.status()));
    response
}

/// Answers with the reason, and counts it.
pub(super) fn refuse(shared: &Shared, reason: Refusal) -> Response {
    shared.metrics.refused(reason);
    let (status, text) = match reason {
        Refusal::Host => (
            StatusCode::MISDIRECTED_REQUEST,
            "this host name is not served; ask for localhost or an address",
        ),
        Refusal::CrossSite => (StatusCode::FORBIDDEN, "requests from other sites are refused"),
        Refusal::NoToken => (StatusCode::UNAUTHORIZED, "send `Authorization: Bearer TOKEN`"),
        Refusal::BadToken => (StatusCode::FORBIDDEN, "this is not the token"),
        Refusal::ChangesOff => {
            (StatusCode::FORBIDDEN, "changes are off: the service was started without a token")
        }
        Refusal::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "no answer in time; try again"),
        Refusal::Subscribers => {
            (StatusCode::SERVICE_UNAVAILABLE, "too many live readers; poll /v1/state")
        }
        Refusal::Downloads => {
            (StatusCode::SERVICE_UNAVAILABLE, "too many downloads at once; try again")
        }
        Refusal::Body => (StatusCode::PAYLOAD_TOO_LARGE, "no request here has a body"),
    };
    let mut response = (status, Json(json!({ "error": text, "reason": reason }))).into_response();
    let headers = response.headers_mut();
    if reason == Refusal::NoToken {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if reason == Refusal::Downloads {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if reason == Refusal::Subscribers {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("10"));
    }
    response
}

/// Whether a request may change something.
pub(super) fn authorise(config: &HttpConfig, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = config.token.in_force() else { return Err(Refusal::ChangesOff) };
    let claimed = claimed(headers).ok_or(Refusal::NoToken)?;
    if token.matches(claimed) { Ok(()) } else { Err(Refusal::BadToken) }
}

/// Whether a request may have kernels: everybody while no token is set, else who has that of
/// trainers, or that of operators.
pub(super) fn authorise_download(config: &HttpConfig, headers: &HeaderMap) -> Result<(), Refusal> {
    let tokens = [config.kernel_token.in_force(), config.token.in_force()];
    if tokens.iter().all(Option::is_none) {
        return Ok(());
    }
    let claimed = claimed(headers).ok_or(Refusal::NoToken)?;
    // Each is compared, so that the time does not tell which it was.
    let matches = tokens.iter().flatten().filter(|token| token.matches(claimed)).count();
    if matches > 0 { Ok(()) } else { Err(Refusal::BadToken) }
}

/// The token that a request shows.
fn claimed(headers: &HeaderMap) -> Option<&[u8]> {
    match headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(rest.trim_ascii()),
        _ => None,
    }
}

fn refusal(shared: &Shared, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Refusal> {
    let host = headers.get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
    if let Some(host) = &host
        && shared.local.is_loopback()
        && !is_own_name(host_name(host), &shared.config.hosts)
    {
        return Some(Refusal::Host);
    }
    if is_cross_site(method, uri, headers, host.as_deref()) {
        return Some(Refusal::CrossSite);
    }
    // How long such a body is shows only when all of it was read.
    if headers.contains_key(TRANSFER_ENCODING) {
        return Some(Refusal::Body);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|text| text.to_str().ok());
    let length: u64 = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    (length > BODY_BYTES_MAX).then_some(Refusal::Body)
}

/// A web site can make its own name point to this machine and then read, as the same origin,
/// whatever listens here; so a loopback listener answers only to names that are its own.
fn is_own_name(name: &str, allowed: &[String]) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || allowed.iter().any(|host| host.eq_ignore_ascii_case(name))
}

/// The host without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a browser sent this on behalf of another site. Following a link to the page is allowed.
fn is_cross_site(method: &Method, uri: &Uri, headers: &HeaderMap, host: Option<&str>) -> bool {
    let header = |name: &str| headers.get(name).map(|value| value.as_bytes());
    let follows_link =
        method == Method::GET && uri.path() == "/" && header("sec-fetch-mode") == Some(b"navigate");
    let foreign_fetch =
        header("sec-fetch-site").is_some_and(|site| site != b"same-origin" && site != b"none");
    if foreign_fetch && !follows_link {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let own = origin.split_once("://").map(|(_, authority)| authority);
    own.is_none() || own != host
}

fn endpoint(uri: &Uri) -> Endpoint {
    match uri.path() {
        "/" => Endpoint::Page,
        "/livez" => Endpoint::Live,
        "/readyz" => Endpoint::Ready,
        "/healthz" => Endpoint::Health,
        "/metrics" => Endpoint::Metrics,
        "/metrics/summary" => Endpoint::Summary,
        "/v1/state" => Endpoint::State,
        "/v1/sources" => Endpoint::Sources,
        "/v1/events" => Endpoint::Events,
        "/v1/logs" => Endpoint::Logs,
        path if path.starts_with("/v1/bus/") => Endpoint::Bus,
        path if path == "/v1/dlq" || path.starts_with("/v1/dlq/") => Endpoint::DeadLetters,
        path if path.starts_with("/kernels/") => Endpoint::Kernels,
        "/v1/reload" => Endpoint::Reload,
        path if path.starts_with("/v1/workers/") => Endpoint::Restart,
        _ => Endpoint::Unknown,
    }
}
