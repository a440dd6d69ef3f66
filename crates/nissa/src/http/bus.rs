//! The bus over HTTP, for a process that holds the embedded log alone: what stands on it, how it is,
//! and its dead letters. Looking needs no token, as for everything else that is shown here; raw
//! fields, replaying and purging need the token of changes.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use oona::{BadEntryId, Bus, BusError, EntryId, ReplayError, Stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::guard::{authorise, refuse};
use super::routes::Shared;
use crate::bus::{self, BadPlaces, LetterQuery, Places};
use crate::labels::Refusal;

/// What of the bus is asked for.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Places to read behind; absent for the ends as they are now.
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    count: Option<usize>,
    /// How long to wait for something.
    #[serde(default)]
    wait_ms: u64,
}

/// Which dead letter.
#[derive(Debug, Deserialize)]
pub(super) struct One {
    id: String,
}

/// How to show it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct How {
    #[serde(default)]
    raw: bool,
}

/// Why something is not answered.
enum Told {
    Refused(Refusal),
    Said(StatusCode, String),
}

impl Told {
    fn said(status: StatusCode, error: &dyn std::error::Error) -> Self {
        Self::Said(status, error.to_string())
    }

    fn log(error: &BusError) -> Self {
        Self::said(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

/// `GET /v1/bus/streams`.
pub(super) async fn streams(State(shared): State<Shared>) -> Response {
    let look = async { bus::standing(&open(&shared)?).await.map_err(|error| Told::log(&error)) };
    finish(&shared, look.await)
}

/// `GET /v1/bus/entries`.
pub(super) async fn entries(
    State(shared): State<Shared>,
    Query(wanted): Query<Wanted>,
) -> Response {
    // A worker that stops does not wait for somebody who only looks.
    let looked = shared.closing.clone().run_until_cancelled(look(&shared, &wanted)).await;
    let closing = || Told::Said(StatusCode::SERVICE_UNAVAILABLE, "the service stops".to_owned());
    finish(&shared, looked.unwrap_or_else(|| Err(closing())))
}

async fn look(shared: &Shared, wanted: &Wanted) -> Result<bus::EntriesView, Told> {
    let bus = open(shared)?;
    let Some(after) = &wanted.after else {
        let ends = Places::ends(&bus, &Stream::ALL).await.map_err(|error| Told::log(&error))?;
        return Ok(bus::EntriesView { entries: Vec::new(), after: ends.to_string() });
    };
    let places: Places =
        after.parse().map_err(|error: BadPlaces| Told::said(StatusCode::BAD_REQUEST, &error))?;
    let count = wanted.count.unwrap_or(bus::ENTRIES_MAX);
    let wait = Duration::from_millis(wanted.wait_ms);
    bus::watch(&bus, &places, count, wait).await.map_err(|error| Told::log(&error))
}

/// `GET /v1/dlq`.
pub(super) async fn letters(
    State(shared): State<Shared>,
    Query(query): Query<LetterQuery>,
) -> Response {
    let look = async {
        let bus = open(&shared)?;
        let read = query.read();
        let (filter, after) = read.map_err(|error| Told::said(StatusCode::BAD_REQUEST, &error))?;
        let count = query.count.unwrap_or(bus::LETTERS_MAX);
        bus::letters(&bus, &filter, after, count).await.map_err(|error| Told::log(&error))
    };
    finish(&shared, look.await)
}

/// `GET /v1/dlq/{id}`.
pub(super) async fn letter(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Query(how): Query<How>,
    headers: HeaderMap,
) -> Response {
    let look = async {
        if how.raw {
            authorise(&shared.config, &headers).map_err(Told::Refused)?;
        }
        let (bus, id) = (open(&shared)?, place(&id)?);
        let found = bus::letter(&bus, id, how.raw).await;
        let found = found.map_err(|error| Told::said(StatusCode::SERVICE_UNAVAILABLE, &error))?;
        let absent = ReplayError::NotFound { id };
        found.ok_or_else(|| Told::said(StatusCode::NOT_FOUND, &absent))
    };
    finish(&shared, look.await)
}

/// `POST /v1/dlq/replay?id=`.
pub(super) async fn replay(
    State(shared): State<Shared>,
    Query(one): Query<One>,
    headers: HeaderMap,
) -> Response {
    let change = async {
        let (bus, id) = may_change(&shared, &one, &headers)?;
        bus::replay(&bus, id).await.map_err(|error| {
            let status = match &error {
                ReplayError::NotFound { .. } => StatusCode::NOT_FOUND,
                ReplayError::Log(_) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::CONFLICT,
            };
            Told::said(status, &error)
        })
    };
    finish(&shared, change.await)
}

/// `POST /v1/dlq/purge?id=`.
pub(super) async fn purge(
    State(shared): State<Shared>,
    Query(one): Query<One>,
    headers: HeaderMap,
) -> Response {
    let change = async {
        let (bus, id) = may_change(&shared, &one, &headers)?;
        bus::purge(&bus, id).await.map_err(|error| Told::log(&error))
    };
    finish(&shared, change.await)
}

fn may_change(shared: &Shared, one: &One, headers: &HeaderMap) -> Result<(Bus, EntryId), Told> {
    authorise(&shared.config, headers).map_err(|reason| {
        tracing::warn!(%reason, "change of dead letters refused");
        Told::Refused(reason)
    })?;
    Ok((open(shared)?, place(&one.id)?))
}

fn open(shared: &Shared) -> Result<Bus, Told> {
    let bus = shared.bus.borrow().clone();
    let closed = || "the bus is not open yet; see /readyz".to_owned();
    bus.ok_or_else(|| Told::Said(StatusCode::SERVICE_UNAVAILABLE, closed()))
}

fn place(text: &str) -> Result<EntryId, Told> {
    let place: Result<EntryId, BadEntryId> = text.parse();
    place.map_err(|error| Told::said(StatusCode::BAD_REQUEST, &error))
}

fn finish(shared: &Shared, result: Result<impl Serialize, Told>) -> Response {
    match result {
        Ok(view) => Json(view).into_response(),
        Err(Told::Refused(reason)) => refuse(shared, reason),
        Err(Told::Said(status, text)) => (status, Json(json!({ "error": text }))).into_response(),
    }
}
