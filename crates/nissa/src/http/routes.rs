//! What is answered where.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::guard::{authorise, guard, refuse};
use super::{Http, KernelSource, bus, kernels, live, page, view};
use crate::board::BoardSource;
use crate::bus::BusSource;
use crate::config::HttpConfig;
use crate::control::{ControlRefused, WorkerAction, WorkerControl};
use crate::health::HealthSource;
use crate::log_tail::{LOG_TAIL_LEN_MAX, LogTail};
use crate::metrics::Metrics;
use crate::reload::ReloadPort;

/// The media type of what the encoder writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What handlers read. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) config: Arc<HttpConfig>,
    pub(super) local: IpAddr,
    pub(super) health: HealthSource,
    pub(super) board: BoardSource,
    pub(super) bus: BusSource,
    pub(super) registry: Arc<Registry>,
    pub(super) logs: LogTail,
    pub(super) control: WorkerControl,
    pub(super) reload: ReloadPort,
    pub(super) metrics: Metrics,
    pub(super) kernels: KernelSource,
    pub(super) downloads: Arc<Semaphore>,
    pub(super) subscribers: Arc<Semaphore>,
    pub(super) closing: CancellationToken,
    policy: Arc<str>,
}

/// Which run, and what the asker already has.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Id of a run; the newest if absent or unknown.
    #[serde(default)]
    pub(super) run: Option<String>,
}

pub(super) fn router(http: &Http, local: IpAddr, closing: CancellationToken) -> Router {
    let shared = Shared {
        subscribers: Arc::new(Semaphore::new(http.config.subscribers_max.get())),
        downloads: Arc::new(Semaphore::new(http.config.downloads_max.get())),
        config: http.config.clone(),
        local,
        health: http.health.clone(),
        board: http.board.clone(),
        bus: http.bus.clone(),
        kernels: http.kernels.clone(),
        registry: http.registry.clone(),
        logs: http.logs.clone(),
        control: http.control.clone(),
        reload: http.reload.clone(),
        metrics: http.metrics.clone(),
        closing,
        policy: page::content_security_policy().into(),
    };
    Router::new()
        .route("/", get(page))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/metrics/summary", get(summary))
        .route("/v1/state", get(state))
        .route("/v1/sources", get(sources))
        .route("/v1/events", get(live::events))
        .route("/v1/bus/streams", get(bus::streams))
        .route("/v1/bus/entries", get(bus::entries))
        .route("/v1/dlq", get(bus::letters))
        .route("/v1/dlq/replay", post(bus::replay))
        .route("/v1/dlq/purge", post(bus::purge))
        .route("/v1/dlq/{id}", get(bus::letter))
        .route("/v1/logs", get(logs))
        .route("/v1/workers/{name}/restart", post(restart))
        .route("/v1/workers/{name}/park", post(park))
        .route("/v1/reload", post(reload))
        .route("/kernels/{name}", get(kernels::kernel))
        .route("/kernels/{name}/manifest", get(kernels::manifest))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

async fn page(State(shared): State<Shared>) -> Response {
    ([(CONTENT_SECURITY_POLICY, shared.policy.as_ref())], Html(page::PAGE)).into_response()
}

/// 200 as long as work moves: the supervisor's loop turns, and no critical worker hangs.
async fn livez(State(shared): State<Shared>) -> Response {
    let (age, hung) = {
        let health = shared.health.borrow();
        (health.age(), health.hung.clone())
    };
    let alive = age <= shared.config.liveness_age_max && hung.is_empty();
    let body = json!({ "alive": alive, "age_ms": view::millis(age), "hung": hung });
    (status(alive), Json(body)).into_response()
}

/// 200 when everything critical runs, else 503 with the reasons.
async fn readyz(State(shared): State<Shared>) -> Response {
    let health = shared.health.borrow().clone();
    let mut reasons = health.reasons.clone();
    if health.age() > shared.config.liveness_age_max {
        reasons.push(format!("the supervisor has not reported for {} s", health.age().as_secs()));
    }
    let ready = health.ready && reasons.is_empty();
    (status(ready), Json(json!({ "ready": ready, "reasons": reasons }))).into_response()
}

/// The whole picture. Always 200: its body tells, and `/readyz` is for probes.
async fn healthz(State(shared): State<Shared>) -> Response {
    let health = shared.health.borrow().clone();
    let active = shared.board.borrow().alerts.active().count();
    Json(view::HealthView::new(&health, active)).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "a metric cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn summary(State(shared): State<Shared>) -> Response {
    let board = shared.board.borrow().clone();
    Json(view::summary(&board)).into_response()
}

async fn state(State(shared): State<Shared>, Query(wanted): Query<Wanted>) -> Response {
    let seen = view::Seen::nothing(wanted.run);
    let body = view::state(&shared, &seen).body;
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn sources(State(shared): State<Shared>) -> Response {
    let board = shared.board.borrow().clone();
    let sources: std::collections::BTreeMap<_, _> = board.sources.iter().collect();
    Json(sources).into_response()
}

/// From which line of the log on.
#[derive(Debug, Deserialize)]
struct After {
    /// Number of the last line that the asker has.
    #[serde(default)]
    after: u64,
}

/// The newest lines of the log, to holders of the token: a line may say what a page should not.
async fn logs(
    State(shared): State<Shared>,
    Query(After { after }): Query<After>,
    headers: HeaderMap,
) -> Response {
    if let Err(reason) = authorise(&shared.config, &headers) {
        return refuse(&shared, reason);
    }
    let found = shared.logs.after(after, LOG_TAIL_LEN_MAX);
    // Each line is a JSON object already.
    let body = format!("{{\"last\":{},\"lines\":[{}]}}", found.last, found.lines.join(","));
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn restart(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    change(shared, name, &headers, WorkerAction::Restart).await
}

async fn park(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    change(shared, name, &headers, WorkerAction::Park).await
}

/// Hands an operator's wish on to the supervisor, and its answer back.
async fn change(
    shared: Shared,
    name: String,
    headers: &HeaderMap,
    action: WorkerAction,
) -> Response {
    let asked = match action {
        WorkerAction::Restart => "restart",
        WorkerAction::Park => "park",
    };
    if let Err(reason) = authorise(&shared.config, headers) {
        tracing::warn!(worker = %name, %reason, asked, "change of a worker refused");
        return refuse(&shared, reason);
    }
    match shared.control.ask(name.clone(), action).await {
        Ok(()) => {
            (StatusCode::ACCEPTED, Json(json!({ "worker": name, "asked": asked }))).into_response()
        }
        Err(refused) => {
            let status = match refused {
                ControlRefused::UnknownWorker { .. } => StatusCode::NOT_FOUND,
                ControlRefused::Stopping => StatusCode::SERVICE_UNAVAILABLE,
                ControlRefused::Critical { .. } => StatusCode::CONFLICT,
            };
            (status, Json(json!({ "error": refused.to_string() }))).into_response()
        }
    }
}

/// Has the settings read again: 200 with what became of each changed one, 422 with every fault.
async fn reload(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    if let Err(reason) = authorise(&shared.config, &headers) {
        tracing::warn!(%reason, "reload refused");
        return refuse(&shared, reason);
    }
    match shared.reload.ask().await {
        Ok(report) if report.applied => Json(report).into_response(),
        Ok(report) => (StatusCode::UNPROCESSABLE_ENTITY, Json(report)).into_response(),
        Err(gone) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": gone.to_string() })))
            .into_response(),
    }
}

async fn unknown() -> Response {
    let paths = "/ /livez /readyz /healthz /metrics /metrics/summary /v1/state /v1/sources \
                 /v1/events /v1/bus/streams /v1/bus/entries /v1/dlq /v1/logs /kernels/SHA256";
    let body = json!({ "error": "there is nothing here", "paths": paths });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
