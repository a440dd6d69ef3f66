//! The queue between the decision and the worker.

use std::sync::Arc;

use leyline::wire::FieldReport;
use tokio::sync::{Mutex, mpsc};

use crate::config::Reports as Settings;
use crate::metrics::{Dropped, Metrics};

/// Takes reports from whoever decides. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reports {
    sender: mpsc::Sender<FieldReport>,
    metrics: Metrics,
}

/// The other end. Cheap to clone, so that a restarted worker reads on where the last one stopped;
/// only one reads at a time.
#[derive(Debug, Clone)]
pub struct ReportInbox(pub(super) Arc<Mutex<mpsc::Receiver<FieldReport>>>);

/// Makes the queue.
pub fn queue(settings: &Settings, metrics: &Metrics) -> (Reports, ReportInbox) {
    let (sender, receiver) = mpsc::channel(settings.queue_len_max.max(1));
    let metrics = metrics.clone();
    (Reports { sender, metrics }, ReportInbox(Arc::new(Mutex::new(receiver))))
}

impl Reports {
    /// Hands over reports without waiting. What finds the queue full is dropped and counted:
    /// training goes first.
    pub fn offer(&self, reports: impl IntoIterator<Item = FieldReport>) {
        for report in reports {
            let id = report.report_id.clone();
            if self.sender.try_send(report).is_err() {
                self.metrics.report_dropped(Dropped::QueueFull, &id);
            }
        }
    }
}
