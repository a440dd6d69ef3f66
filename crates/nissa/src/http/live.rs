//! Live updates: server-sent events, each a whole view with only the history that is new.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout};

use super::guard::refuse;
use super::routes::{Shared, Wanted};
use super::view::{self, Seen};
use crate::board::BoardSource;
use crate::health::HealthSource;
use crate::labels::Refusal;
use crate::metrics::Metrics;

/// Shortest time between two events. Faster than the eye, and a reader costs little.
const PACE: Duration = Duration::from_millis(400);
/// Longest time between two events. A page that hears nothing for several of these knows that the
/// connection is lost, also when no packet says so.
const PULSE: Duration = Duration::from_secs(2);

/// `GET /v1/events`.
pub(super) async fn events(State(shared): State<Shared>, Query(wanted): Query<Wanted>) -> Response {
    let Ok(permit) = shared.subscribers.clone().try_acquire_owned() else {
        return refuse(&shared, Refusal::Subscribers);
    };
    let reader = Reader {
        board: shared.board.clone(),
        health: shared.health.clone(),
        seen: Seen::nothing(wanted.run),
        next: Instant::now(),
        _place: Place::new(permit, shared.metrics.clone()),
        shared,
    };
    Sse::new(stream::unfold(reader, |mut reader| async move {
        let event = reader.next_event().await?;
        Some((Ok::<_, Infallible>(event), reader))
    }))
    .into_response()
}

struct Reader {
    shared: Shared,
    board: BoardSource,
    health: HealthSource,
    seen: Seen,
    next: Instant,
    _place: Place,
}

impl Reader {
    /// Waits for a change, no longer than [`PULSE`] and no shorter than [`PACE`]; `None` when the
    /// worker stops.
    async fn next_event(&mut self) -> Option<Event> {
        let closing = self.shared.closing.clone();
        closing.run_until_cancelled(self.wait()).await?;
        self.board.mark_unchanged();
        self.health.mark_unchanged();
        self.next = Instant::now() + PACE;
        let view = view::state(&self.shared, &self.seen);
        self.seen = view.seen;
        Some(Event::default().event("state").data(view.body))
    }

    async fn wait(&mut self) {
        sleep_until(self.next).await;
        if self.seen.is_nothing() {
            return;
        }
        let changed = async {
            tokio::select! {
                changed = self.board.changed() => changed.is_ok(),
                changed = self.health.changed() => changed.is_ok(),
            }
        };
        match timeout(PULSE, changed).await {
            Ok(true) | Err(_) => {}
            // A writer is gone for good: what is left is the pulse.
            Ok(false) => tokio::time::sleep(PULSE).await,
        }
    }
}

/// A subscriber's place, given back when its connection ends.
struct Place {
    metrics: Metrics,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, metrics: Metrics) -> Self {
        metrics.subscribed();
        Self { metrics, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.unsubscribed();
    }
}
