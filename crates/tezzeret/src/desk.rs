//! Where orders are handed in and progress is posted. It outlives the worker: a forge that the supervisor starts
//! again finds at the same desk what was ordered meanwhile.

use std::sync::Arc;

use leyline::ids::BlueprintId;
use oona::TraceContext;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch};
use urza::{BuildAnswer, BuildOrder, Demand, Record};

use crate::job::Job;
use crate::progress::{How, Progress};

/// Orders of this process that may wait to be taken in; the backlog behind takes far more.
const ORDERS_MAX: usize = 16;

/// The forge's side. Cheap to clone; one forge at a time may sit at it.
#[derive(Debug, Clone)]
pub struct Desk {
    intake: Arc<Mutex<Intake>>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) demands: mpsc::Receiver<BuildOrder>,
    pub(crate) orders: mpsc::Receiver<Order>,
}

/// The side of everybody else in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    progress: watch::Receiver<Progress>,
}

/// An order for one job.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) job: Job,
    pub(crate) answer: oneshot::Sender<Result<Brought, OrderError>>,
}

/// An artifact that an order brought into the library, or found there.
#[derive(Debug, Clone, PartialEq)]
pub struct Brought {
    /// Its record.
    pub record: Record,
    /// How it came to be there.
    pub how: How,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Building it failed for good; asking again at once is answered with the same.
    #[error("blueprint {blueprint} cannot be compiled: {reason}")]
    Failed {
        /// The blueprint.
        blueprint: BlueprintId,
        /// Why.
        reason: String,
    },
    /// Too many jobs wait. Order again later.
    #[error("the forge has too many jobs waiting; order again later")]
    Busy,
    /// The forge stopped before it was done. Order again when it runs.
    #[error("the forge stopped before the job was done; order again")]
    Stopped,
}

impl Desk {
    /// A desk, the port for the prefetch worker and the handle for everybody else.
    pub fn open() -> (Self, Demand, Handle) {
        let (demand, demands) = Demand::channel();
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        let progress = watch::Sender::new(Progress::default());
        let handle = Handle { orders, progress: progress.subscribe() };
        let intake = Arc::new(Mutex::new(Intake { demands, orders: taken }));
        (Self { intake, progress }, demand, handle)
    }

    /// Sits down at the desk; `None` when another forge does.
    pub(crate) fn sit_down(&self) -> Option<OwnedMutexGuard<Intake>> {
        self.intake.clone().try_lock_owned().ok()
    }

    pub(crate) fn post(&self, progress: &Progress) {
        self.progress.send_if_modified(|posted| {
            let changed = posted != progress;
            if changed {
                posted.clone_from(progress);
            }
            changed
        });
    }
}

impl Handle {
    /// Orders a job and waits until it is in the library. Equal orders are built once. The wait has no bound of its own:
    /// put a time-out around it, giving up loses nothing.
    ///
    /// # Errors
    /// [`OrderError`]
    pub async fn order(&self, job: Job) -> Result<Record, OrderError> {
        self.bring(job).await.map(|brought| brought.record)
    }

    /// The same, and how it came to be there.
    ///
    /// # Errors
    /// [`OrderError`]
    pub async fn bring(&self, job: Job) -> Result<Brought, OrderError> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order { job, answer }).await.map_err(|_| OrderError::Stopped)?;
        answered.await.unwrap_or(Err(OrderError::Stopped))
    }

    /// How far the forge is with the catalogue.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }
}

/// Somebody who waits for a job. Dropping it tells them that the forge stopped.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// The prefetch worker, with the trace of the request it asks for.
    Demand(oneshot::Sender<BuildAnswer>, Option<TraceContext>),
    Order(oneshot::Sender<Result<Brought, OrderError>>),
}

impl Waiter {
    /// The trace that the job is done for.
    pub(crate) fn trace(&self) -> Option<TraceContext> {
        match self {
            Self::Demand(_, trace) => *trace,
            Self::Order(_) => None,
        }
    }

    // Whoever gave up waiting has dropped the other end, which is nobody's fault.

    pub(crate) fn done(self, record: &Record, how: How) {
        match self {
            Self::Demand(answer, _) => {
                drop(answer.send(BuildAnswer::Built(Box::new(record.clone()))))
            }
            Self::Order(answer) => drop(answer.send(Ok(Brought { record: record.clone(), how }))),
        }
    }

    pub(crate) fn failed(self, blueprint: &BlueprintId, reason: &str) {
        let reason = reason.to_owned();
        match self {
            Self::Demand(answer, _) => drop(answer.send(BuildAnswer::Failed { reason })),
            Self::Order(answer) => {
                let blueprint = blueprint.clone();
                drop(answer.send(Err(OrderError::Failed { blueprint, reason })));
            }
        }
    }

    pub(crate) fn busy(self) {
        match self {
            // The prefetch worker takes a dropped answer for "ask again later".
            Self::Demand(answer, _) => drop(answer),
            Self::Order(answer) => drop(answer.send(Err(OrderError::Busy))),
        }
    }
}
