//! The port by which a request over HTTP asks the supervisor for something.

use tokio::sync::{mpsc, oneshot};

/// Requests that may wait for the supervisor. More at once is no operator at work.
pub const CONTROL_QUEUE_LEN_MAX: usize = 8;

/// What may be asked for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerAction {
    /// Stop it if it runs, forget its failures, start it now. Revives a parked one.
    Restart,
    /// Stop it, and start it only when an operator restarts it. Refused for critical workers.
    Park,
}

/// Why the supervisor refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlRefused {
    /// There is no such worker; `GET /healthz` lists them.
    #[error("there is no worker {name}")]
    UnknownWorker {
        /// The name that was asked for.
        name: String,
    },
    /// The service is stopping and starts nothing any more.
    #[error("the service is stopping")]
    Stopping,
    /// It must not be parked: the service does not live without it.
    #[error(
        "{name} is critical: the service does not live without it; restart it, or stop the service"
    )]
    Critical {
        /// The name that was asked for.
        name: String,
    },
}

/// One request, with the way back.
#[derive(Debug)]
pub struct ControlRequest {
    /// Name of the worker.
    pub worker: String,
    /// What is asked for.
    pub action: WorkerAction,
    /// Where the supervisor answers once the action has begun.
    pub answer: oneshot::Sender<Result<(), ControlRefused>>,
}

/// The asking end; the supervisor holds the other.
#[derive(Debug, Clone)]
pub struct WorkerControl(mpsc::Sender<ControlRequest>);

impl WorkerControl {
    /// A port of [`CONTROL_QUEUE_LEN_MAX`] waiting requests.
    pub fn channel() -> (Self, mpsc::Receiver<ControlRequest>) {
        let (sender, receiver) = mpsc::channel(CONTROL_QUEUE_LEN_MAX);
        (Self(sender), receiver)
    }

    /// Asks, and waits for the answer. The caller bounds the wait.
    ///
    /// # Errors
    /// What the supervisor answered; [`ControlRefused::Stopping`] also when it is gone or its queue
    /// is full and closed.
    pub async fn ask(&self, worker: String, action: WorkerAction) -> Result<(), ControlRefused> {
        let (answer, answered) = oneshot::channel();
        let request = ControlRequest { worker, action, answer };
        self.0.send(request).await.map_err(|_| ControlRefused::Stopping)?;
        answered.await.unwrap_or(Err(ControlRefused::Stopping))
    }
}
