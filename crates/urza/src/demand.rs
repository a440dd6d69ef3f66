//! The port by which the prefetch worker asks for a build, without knowing who builds.

use std::collections::BTreeMap;

use leyline::ids::BlueprintId;
use leyline::wire::MessagePriority;
use oona::TraceContext;
use tokio::sync::{mpsc, oneshot};

use crate::record::Record;

/// Orders that may wait for the builder; the forge coalesces equal ones, so a catalogue fits.
const ORDERS_MAX: usize = 64;

/// Why a build is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyBuild {
    /// The library has no such artifact.
    Missing,
    /// The artifact was missing on disk or corrupt, and was quarantined.
    Rebuild,
    /// The artifact stands, but its latencies are another machine's: they are to be measured here.
    Unmeasured,
}

/// What is to be built, for whom and by when.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildRequest {
    /// The blueprint.
    pub blueprint: BlueprintId,
    /// Values by parameter. Those that are not named take their midpoint, so that none at all means the midpoints.
    pub parameters: BTreeMap<String, f64>,
    /// The site in the builder's spelling (`vector[64]`); `None` means the builder's own.
    pub site: Option<String>,
    /// Why.
    pub why: WhyBuild,
    /// The more urgent goes first.
    pub priority: MessagePriority,
    /// When whoever asks stops waiting, in Unix milliseconds: of equally urgent ones the earlier goes first. The build
    /// is done all the same.
    pub deadline_ms: Option<u64>,
    /// The trace of whoever asked first, for what is told of the build.
    pub trace: Option<TraceContext>,
}

impl BuildRequest {
    /// The blueprint's default artifact, at normal priority.
    pub fn of(blueprint: BlueprintId, why: WhyBuild) -> Self {
        Self {
            blueprint,
            parameters: BTreeMap::new(),
            site: None,
            why,
            priority: MessagePriority::Normal,
            deadline_ms: None,
            trace: None,
        }
    }
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq)]
pub enum BuildAnswer {
    /// This artifact is in the library now.
    Built(Box<Record>),
    /// There is no such blueprint.
    Unknown,
    /// There is, but it is not built for whoever asks.
    Refused {
        /// Why, as stable text: `quarantined`, or `incompatible` when parameters or site do not fit.
        reason: String,
    },
    /// Building failed for good; asking again at once would fail again.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// That an order was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It will be carried out even if this process is killed now: whoever asked may be told `compiling`.
    Durably,
    /// It will be carried out by this process or not at all: its queue cannot be written.
    InMemory,
}

/// One order. Dropping `answer` means that the builder stopped before it was done.
#[derive(Debug)]
pub struct BuildOrder {
    /// What to build.
    pub request: BuildRequest,
    /// Answered once it stands in the builder's queue; dropped when it never will.
    pub queued: oneshot::Sender<Queued>,
    /// Answered at once when nothing will be built, else when the build has ended.
    pub answer: oneshot::Sender<BuildAnswer>,
}

/// The asker's side of an order.
#[derive(Debug)]
pub struct Placed {
    /// Arrives within milliseconds; an error when the order is answered without being queued (it is there already, or
    /// refused) or the builder is gone.
    pub queued: oneshot::Receiver<Queued>,
    /// Arrives when the build has ended; an error when the builder stopped before.
    pub answer: oneshot::Receiver<BuildAnswer>,
}

/// The asking end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Demand {
    orders: Option<mpsc::Sender<BuildOrder>>,
}

impl Demand {
    /// A port and the orders that come out of it.
    pub fn channel() -> (Self, mpsc::Receiver<BuildOrder>) {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        (Self { orders: Some(orders) }, receiver)
    }

    /// A port with nobody behind it: every blueprint is unknown.
    pub const fn nobody() -> Self {
        Self { orders: None }
    }

    /// Orders a build. Never waits: `None` when the builder has too much to do or is gone, in which case asking again
    /// later is right.
    pub fn place(&self, request: BuildRequest) -> Option<Placed> {
        let (queued, is_queued) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        match &self.orders {
            None => drop(answer.send(BuildAnswer::Unknown)),
            Some(orders) => orders.try_send(BuildOrder { request, queued, answer }).ok()?,
        }
        Some(Placed { queued: is_queued, answer: answered })
    }

    /// Orders a blueprint's default artifact and hands back where the answer arrives.
    pub fn order(
        &self,
        blueprint: &BlueprintId,
        why: WhyBuild,
    ) -> Option<oneshot::Receiver<BuildAnswer>> {
        self.order_within(blueprint, why, None)
    }

    /// The same on behalf of a request that belongs to a trace.
    pub fn order_within(
        &self,
        blueprint: &BlueprintId,
        why: WhyBuild,
        trace: Option<TraceContext>,
    ) -> Option<oneshot::Receiver<BuildAnswer>> {
        let request = BuildRequest { trace, ..BuildRequest::of(blueprint.clone(), why) };
        self.place(request).map(|placed| placed.answer)
    }
}
