//! Requests for kernels and their answers, joined by request id.

use std::collections::VecDeque;

use leyline::wire::{
    KernelArtifactError, KernelArtifactReady, KernelCatalogUpdate, KernelPrefetchRequest,
};
use serde::Serialize;

/// Requests kept. Beyond it the oldest goes, answered or not; the totals keep counting it.
const REQUESTS_MAX: usize = 256;

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// No answer yet.
    Waiting,
    /// The kernel is there.
    Ready,
    /// There is none; the reason says why.
    Error,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// The blueprint asked for.
    pub blueprint: String,
    /// Where it stands.
    pub state: RequestState,
    /// Why there is no kernel.
    pub reason: Option<String>,
    /// When it was sent, Unix milliseconds; `None` if only its answer was seen.
    pub asked_ms: Option<u64>,
    /// When its answer was sent, Unix milliseconds.
    pub answered_ms: Option<u64>,
    /// Latency of the kernel as prewarmed, 95th percentile, in milliseconds.
    pub prewarm_p95_ms: Option<f32>,
}

impl Request {
    /// Milliseconds from request to answer.
    pub fn latency_ms(&self) -> Option<u64> {
        Some(self.answered_ms?.saturating_sub(self.asked_ms?))
    }
}

/// The newest compiled kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compiled {
    /// Its blueprint.
    pub blueprint: String,
    /// Milliseconds it took to compile.
    pub compile_ms: f32,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Kernels {
    /// Requests seen.
    pub requested: u64,
    /// Kernels handed out.
    pub ready: u64,
    /// Requests refused.
    pub errors: u64,
    /// Catalogue updates seen.
    pub compiled: u64,
    /// The newest of them.
    pub last_compiled: Option<Compiled>,
    requests: VecDeque<Request>,
}

impl Kernels {
    pub(super) fn asked(&mut self, request: &KernelPrefetchRequest, sent_ms: u64) {
        let entry = self.entry(&request.request_id, &request.blueprint_id);
        // A request delivered again counts once.
        if entry.asked_ms.replace(sent_ms).is_none() {
            self.requested += 1;
        }
    }

    pub(super) fn is_ready(&mut self, ready: &KernelArtifactReady, sent_ms: u64) {
        let entry = self.entry(&ready.request_id, &ready.blueprint_id);
        entry.state = RequestState::Ready;
        entry.reason = None;
        entry.prewarm_p95_ms = Some(ready.prewarm_p95_ms);
        if entry.answered_ms.replace(sent_ms).is_none() {
            self.ready += 1;
        }
    }

    pub(super) fn failed(&mut self, error: &KernelArtifactError, sent_ms: u64) {
        let entry = self.entry(&error.request_id, &error.blueprint_id);
        entry.state = RequestState::Error;
        entry.reason = Some(error.reason.clone());
        if entry.answered_ms.replace(sent_ms).is_none() {
            self.errors += 1;
        }
    }

    pub(super) fn was_compiled(&mut self, update: &KernelCatalogUpdate) {
        self.compiled += 1;
        self.last_compiled = Some(Compiled {
            blueprint: update.blueprint_id.clone(),
            compile_ms: update.compile_ms,
        });
    }

    /// The requests kept, oldest first.
    pub fn requests(&self) -> impl DoubleEndedIterator<Item = &Request> {
        self.requests.iter()
    }

    /// Kept requests without an answer.
    pub fn waiting(&self) -> usize {
        self.requests.iter().filter(|request| request.state == RequestState::Waiting).count()
    }

    /// Latency in milliseconds below which this share of the kept, answered requests lies, by
    /// linear interpolation at position (n - 1) · share; `None` without any.
    pub fn latency_ms(&self, share: f64) -> Option<f64> {
        let mut latencies: Vec<u64> =
            self.requests.iter().filter_map(Request::latency_ms).collect();
        latencies.sort_unstable();
        let position = latencies.len().checked_sub(1)? as f64 * share.clamp(0.0, 1.0);
        let (below, above) = (position.floor(), position.ceil());
        let at = |index: f64| latencies.get(index as usize).map(|latency| *latency as f64);
        Some(at(below)? + (at(above)? - at(below)?) * (position - below))
    }

    /// The entry of a request. The answer may be read before the request: they are on streams of
    /// their own.
    fn entry(&mut self, id: &str, blueprint: &str) -> &mut Request {
        let index = self.requests.iter().rposition(|request| request.id == id);
        let index = index.unwrap_or_else(|| {
            if self.requests.len() == REQUESTS_MAX {
                self.requests.pop_front();
            }
            self.requests.push_back(Request {
                id: id.to_owned(),
                blueprint: blueprint.to_owned(),
                state: RequestState::Waiting,
                reason: None,
                asked_ms: None,
                answered_ms: None,
                prewarm_p95_ms: None,
            });
            self.requests.len() - 1
        });
        &mut self.requests[index]
    }
}
