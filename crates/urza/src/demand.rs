//! The port by which the prefetch worker asks for a build, without knowing who builds.

use leyline::ids::BlueprintId;
use oona::TraceContext;
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait for the builder; the forge coalesces equal ones, so a catalogue fits.
const ORDERS_MAX: usize = 64;

/// Why a build is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyBuild {
    /// The library has no artifact of this blueprint.
    Missing,
    /// The artifact was missing on disk or corrupt, and was quarantined.
    Rebuild,
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildAnswer {
    /// An artifact is in the library now.
    Built,
    /// There is no such blueprint.
    Unknown,
    /// There is, but it is not built for whoever asks (quarantined, not graftable).
    Refused {
        /// Why, as stable text.
        reason: String,
    },
    /// Building failed for good; asking again at once would fail again.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// One order. Dropping `answer` means that the builder stopped before it was done.
#[derive(Debug)]
pub struct BuildOrder {
    /// What to build: the blueprint's default artifact.
    pub blueprint: BlueprintId,
    /// Why.
    pub why: WhyBuild,
    /// The trace of whoever asked first, for what is told of the build.
    pub trace: Option<TraceContext>,
    /// Answered at once when nothing will be built, else when the build has ended.
    pub answer: oneshot::Sender<BuildAnswer>,
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

    /// Orders a build and hands back where its answer arrives. Never waits: `None` when the
    /// builder has too much to do or is gone, in which case asking again later is right.
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
        let (answer, receiver) = oneshot::channel();
        match &self.orders {
            None => drop(answer.send(BuildAnswer::Unknown)),
            Some(orders) => {
                let blueprint = blueprint.clone();
                orders.try_send(BuildOrder { blueprint, why, trace, answer }).ok()?;
            }
        }
        Some(receiver)
    }
}
