//! One request to the collector, bounded in size and time.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::config::Config;
use super::wire::Response;

/// How long one request may take, from the name's resolution to the answer's last byte.
const POST_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The longest wait that a collector may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Why telemetry did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    #[error("the collector cannot be reached")]
    Unreachable(#[source] Box<dyn Error + Send + Sync>),
    #[error("the collector did not answer within {} s", POST_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the collector has no time ({status})")]
    Busy { status: StatusCode, retry_after: Option<Duration> },
    #[error("the collector refused it ({status}); is OTEL_EXPORTER_OTLP_ENDPOINT its HTTP port?")]
    Refused { status: StatusCode },
}

impl PostError {
    /// Whether sending the same again may help.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut | Self::Busy { .. } => true,
            Self::Refused { .. } => false,
        }
    }

    /// How long the collector asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            Self::Unreachable(_) | Self::TimedOut | Self::Refused { .. } => None,
        }
    }
}

/// Posts a message; returns how many of its parts the collector rejected.
pub(super) async fn post(config: &Config, path: &str, body: Vec<u8>) -> Result<u64, PostError> {
    let posting = connect_and_exchange(config, path, body);
    tokio::time::timeout(POST_TIMEOUT, posting).await.map_err(|_| PostError::TimedOut)?
}

async fn connect_and_exchange(
    config: &Config,
    path: &str,
    body: Vec<u8>,
) -> Result<u64, PostError> {
    let endpoint = &config.endpoint;
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
    let stream = stream.await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let request = request(config, path, body).map_err(unreachable)?;
    match &config.tls {
        None => exchange(TokioIo::new(stream), request).await,
        Some(tls) => {
            let name = ServerName::try_from(endpoint.host.clone()).map_err(unreachable)?;
            let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
            exchange(TokioIo::new(stream.map_err(unreachable)?), request).await
        }
    }
}

fn unreachable(error: impl Into<Box<dyn Error + Send + Sync>>) -> PostError {
    PostError::Unreachable(error.into())
}

fn request(
    config: &Config,
    path: &str,
    body: Vec<u8>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let endpoint = &config.endpoint;
    let host = if endpoint.host.contains(':') {
        format!("[{}]:{}", endpoint.host, endpoint.port)
    } else {
        format!("{}:{}", endpoint.host, endpoint.port)
    };
    let mut request = Request::post(format!("{}{path}", endpoint.path))
        .header(HOST, host)
        .header(USER_AGENT, concat!("weatherlight/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/x-protobuf")
        .header(CONNECTION, "close");
    for (name, value) in &config.headers {
        request = request.header(name, value);
    }
    request.body(Full::new(body.into()))
}

/// Sends the request and reads the answer; the connection is driven by the same future.
async fn exchange<S: Read + Write + Unpin>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<u64, PostError> {
    let (mut sender, connection) = http1::handshake(stream).await.map_err(unreachable)?;
    let answering = std::pin::pin!(async {
        let answer = sender.send_request(request).await.map_err(unreachable)?;
        let status = answer.status();
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| {
            let seconds = value.to_str().ok()?.parse().ok()?;
            Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
        });
        if is_busy(status) {
            return Err(PostError::Busy { status, retry_after });
        }
        if !status.is_success() {
            return Err(PostError::Refused { status });
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(unreachable)?.to_bytes();
        // An answer that says nothing, or not in protobuf, rejects nothing.
        let rejected = Response::decode(body).ok().and_then(|answer| answer.partial_success);
        Ok(rejected.map_or(0, |partial| partial.rejected.try_into().unwrap_or(0)))
    });
    match select(answering, std::pin::pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // The connection is through; what it read is still to be taken.
        Either::Right((_, answering)) => answering.await,
    }
}

/// What the specification calls retryable.
fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}
