//! The port by which a request over HTTP asks for the settings to be read again.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Token;

/// Requests that may wait. More at once is no operator at work.
const QUEUE_LEN_MAX: usize = 4;

/// What became of a changed setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOutcome {
    /// It is in force.
    TookEffect,
    /// It will be in force after a restart.
    NeedsRestart,
    /// It is accepted and does nothing.
    NoEffect,
}

/// One setting whose value is not the one in force before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingChange {
    /// Its variable.
    pub setting: String,
    /// The value before, secrets masked; absent when it was unset.
    pub was: Option<String>,
    /// The value now, secrets masked; absent when it is unset.
    pub now: Option<String>,
    /// Where that came from.
    pub origin: String,
    /// What became of it.
    pub outcome: ChangeOutcome,
}

/// Something wrong with the settings that were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingFault {
    /// The setting it is about, where it is about one.
    pub setting: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// Where it stands.
    pub origin: String,
}

/// What came of reading the settings again: all of it, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Whether the new settings are in force, as far as they can be without a restart. If not, the
    /// old ones are, wholly.
    pub applied: bool,
    /// Every setting that differs from what was in force.
    pub changes: Vec<SettingChange>,
    /// Why they were refused.
    pub faults: Vec<SettingFault>,
}

/// One request: where the report goes.
pub type ReloadRequest = oneshot::Sender<ReloadReport>;

/// The asking end; the worker that reads settings holds the other.
#[derive(Debug, Clone)]
pub struct ReloadPort(mpsc::Sender<ReloadRequest>);

/// Nobody reads settings any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service is stopping, or its worker for settings is parked")]
pub struct NoReload;

impl ReloadPort {
    /// A port of a few waiting requests.
    pub fn channel() -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN_MAX);
        (Self(sender), receiver)
    }

    /// Asks, and waits for the report. The caller bounds the wait.
    ///
    /// # Errors
    /// [`NoReload`] when nobody answers any more.
    pub async fn ask(&self) -> Result<ReloadReport, NoReload> {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| NoReload)?;
        answered.await.map_err(|_| NoReload)
    }

    /// Asks without waiting for the report, as a signal does. A full queue is as good: what waits in
    /// it will read the newest settings.
    pub fn nudge(&self) {
        let (answer, _) = oneshot::channel();
        let _ = self.0.try_send(answer);
    }
}

/// The token in force, which whoever reads settings may exchange.
#[derive(Debug, Clone)]
pub struct TokenSource(watch::Receiver<Option<Token>>);

impl TokenSource {
    /// The token in force now; without one every change is refused.
    pub(crate) fn in_force(&self) -> Option<Token> {
        self.0.borrow().clone()
    }
}

impl Default for TokenSource {
    fn default() -> Self {
        Self(watch::channel(None).1)
    }
}

impl From<Token> for TokenSource {
    /// One that never changes.
    fn from(token: Token) -> Self {
        Self(watch::channel(Some(token)).1)
    }
}

impl From<watch::Receiver<Option<Token>>> for TokenSource {
    fn from(token: watch::Receiver<Option<Token>>) -> Self {
        Self(token)
    }
}
