//! The worker `weatherlight.settings`: reads the settings again when somebody asks (SIGHUP, over HTTP)
//! or when their files have changed, and puts into force what can be. All or nothing: with any fault
//! the old settings stay, wholly.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nissa::{ChangeOutcome, ReloadReport, ReloadRequest, SettingChange, SettingFault};
use oona::Heartbeat;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::live::{Senders, Unusable, Values};
use crate::settings::reload::{Change, Decision, decide};
use crate::settings::watch::{self, Print, Seen, Watch};
use crate::settings::{Fault, Faults, InForce, Problem, Reload, Resolved};

/// Between two looks at the files while nothing changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Between two looks while something does: what stands still this long is read.
const SETTLE_INTERVAL: Duration = Duration::from_millis(500);
/// How long reading the files may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads every source anew. Blocking.
pub type Read = Arc<dyn Fn() -> Result<Resolved, Faults> + Send + Sync>;
/// Puts a log filter into force, or says why it cannot.
pub type SetLogFilter = Box<dyn Fn(&str) -> anyhow::Result<()> + Send + Sync>;

/// How the settings of a service are read again.
pub struct Source {
    /// Reads every source anew.
    pub read: Read,
    /// The settings file and the file with variables, there or not; those with secrets are known
    /// from what was read.
    pub paths: Vec<PathBuf>,
    /// Puts the log's filter into force.
    pub set_log_filter: SetLogFilter,
}

/// What the worker knows; it survives the worker's restarts.
pub struct Keeper {
    source: Source,
    live: Senders,
    in_force: Vec<InForce>,
    secret_files: Vec<PathBuf>,
    watch: Watch,
    watches: bool,
    requests: mpsc::Receiver<ReloadRequest>,
}

/// The worker of one start.
pub struct Settings {
    /// What it knows.
    pub keeper: Arc<Mutex<Keeper>>,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

enum Event {
    Asked(ReloadRequest),
    Look,
    Stop,
}

/// Why the settings are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    Asked,
    FilesChanged,
}

impl Settings {
    /// Works until told to stop.
    ///
    /// # Errors
    /// None; the type is that of every worker.
    pub async fn run(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut keeper = self.keeper.lock().await;
        let mut next_look = Instant::now() + LOOK_INTERVAL;
        loop {
            let waiting = keeper.next_event(next_look, &stop);
            match self.heartbeat.during("waiting for changes", waiting).await {
                Event::Asked(answer) => {
                    let reading = keeper.reload(Because::Asked);
                    let report = self.heartbeat.during("reading the settings", reading).await;
                    // A signal waits for no report.
                    let _ = answer.send(report);
                }
                Event::Look => {
                    let looking = keeper.look();
                    let pause = self.heartbeat.during("looking at the files", looking).await;
                    next_look = Instant::now() + pause;
                }
                Event::Stop => return Ok(()),
            }
        }
    }
}

impl Keeper {
    /// `resolved` is what the service was started with.
    pub fn new(
        source: Source,
        resolved: Resolved,
        live: Senders,
        requests: mpsc::Receiver<ReloadRequest>,
    ) -> Self {
        Self {
            source,
            live,
            watches: resolved.settings.watch_settings,
            in_force: resolved.in_force,
            secret_files: resolved.secret_files,
            watch: Watch::default(),
            requests,
        }
    }

    async fn next_event(&mut self, next_look: Instant, stop: &CancellationToken) -> Event {
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            Some(request) = self.requests.recv() => Event::Asked(request),
            () = tokio::time::sleep_until(next_look), if self.watches => Event::Look,
        }
    }

    /// Looks at the files, reads them when they have changed, and says when to look again. The first
    /// look reads them in any case: they may have changed since the start.
    async fn look(&mut self) -> Duration {
        let paths = self.paths();
        let looking = tokio::task::spawn_blocking(move || watch::look(&paths));
        let Ok(Ok(print)) = timeout(READ_TIMEOUT, looking).await else {
            tracing::debug!("the files of the settings do not answer");
            return LOOK_INTERVAL;
        };
        match self.watch.take(print) {
            Seen::Quiet => LOOK_INTERVAL,
            Seen::Settling => SETTLE_INTERVAL,
            Seen::Changed => {
                self.reload(Because::FilesChanged).await;
                LOOK_INTERVAL
            }
            Seen::Emptied(path) => {
                tracing::warn!(
                    file = %path.display(),
                    "a file with settings is empty or gone; the old settings stay. Should that be right, \
                     send SIGHUP or run `weatherlight config reload`"
                );
                LOOK_INTERVAL
            }
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.source.paths.iter().chain(&self.secret_files).cloned().collect()
    }

    /// Reads the settings and puts into force what can be, or nothing.
    async fn reload(&mut self, because: Because) -> ReloadReport {
        let read = match self.read().await {
            Ok(read) => read,
            Err(faults) => return refused(&faults),
        };
        match self.put_into_force(&read) {
            Ok(changes) => applied(&changes, because),
            Err(faults) => refused(&faults),
        }
    }

    /// Reads every source, together with how the files looked before. When it turns out that others
    /// belong to them, reads once more, so that no change to those is missed.
    async fn read(&mut self) -> Result<Resolved, Faults> {
        let mut result = Err(late());
        for _ in 0..2 {
            let (paths, read) = (self.paths(), Arc::clone(&self.source.read));
            let known = self.secret_files.clone();
            let reading = tokio::task::spawn_blocking(move || (watch::look(&paths), read()));
            let (print, found): (Print, _) = match timeout(READ_TIMEOUT, reading).await {
                Ok(Ok(read)) => read,
                Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                Err(_) => return Err(late()),
            };
            self.watch.settle(print);
            match &found {
                Ok(read) => self.secret_files.clone_from(&read.secret_files),
                Err(faults) => self.secret_files.extend(unreadable(faults, &known)),
            }
            let is_complete = self.secret_files == known;
            result = found;
            if is_complete {
                break;
            }
        }
        result
    }

    /// First everything that may fail, then everything that cannot.
    fn put_into_force(&mut self, read: &Resolved) -> Result<Vec<Change>, Faults> {
        let Decision { settings, in_force, changes } = decide(&self.in_force, read)?;
        let is_live = |change: &Change| change.now.definition.reload == Reload::Live;
        if changes.iter().any(is_live) {
            let values = Values::of(&settings).map_err(|unusable| unusable_as_fault(&unusable))?;
            let filter = settings.log_level.as_str();
            (self.source.set_log_filter)(filter).map_err(|error| {
                contradiction(format!("ESP_LOG_LEVEL cannot be put into force: {error:#}"))
            })?;
            self.live.put(values);
        }
        self.in_force = in_force;
        Ok(changes)
    }
}

/// The files that could not be read: whoever repairs them wants them to be noticed.
fn unreadable(faults: &Faults, known: &[PathBuf]) -> Vec<PathBuf> {
    let paths = faults.0.iter().filter_map(|fault| match &fault.problem {
        Problem::Unreadable { path, .. } => Some(PathBuf::from(path)),
        _ => None,
    });
    paths.filter(|path| !known.contains(path)).collect()
}

fn late() -> Faults {
    contradiction(format!(
        "the files of the settings did not answer within {} s; is their disk there?",
        READ_TIMEOUT.as_secs()
    ))
}

fn unusable_as_fault(unusable: &Unusable) -> Faults {
    contradiction(unusable.to_string())
}

fn contradiction(message: String) -> Faults {
    let problem = Problem::Contradiction { message, parties: Vec::new() };
    Faults(vec![Fault { origin: crate::settings::Origin::Together, problem }])
}

/// Says what became of each changed setting, in the log and in the report.
fn applied(changes: &[Change], because: Because) -> ReloadReport {
    let mut report = ReloadReport { applied: true, ..ReloadReport::default() };
    for Change { was, now } in changes {
        let (setting, origin) = (now.definition.env, now.origin.to_string());
        let (before, after) = (was.shown.as_deref(), now.shown.as_deref());
        let outcome = match now.definition.reload {
            Reload::Live => {
                tracing::info!(setting, was = before, now = after, origin, "setting took effect");
                ChangeOutcome::TookEffect
            }
            Reload::Restart => {
                tracing::warn!(
                    setting,
                    was = before,
                    now = after,
                    origin,
                    "setting needs a restart"
                );
                ChangeOutcome::NeedsRestart
            }
            Reload::Never => {
                tracing::warn!(setting, origin, "setting has no effect");
                ChangeOutcome::NoEffect
            }
        };
        report.changes.push(SettingChange {
            setting: setting.to_owned(),
            was: was.shown.clone(),
            now: now.shown.clone(),
            origin,
            outcome,
        });
    }
    if because == Because::Asked || !changes.is_empty() {
        tracing::info!(changes = changes.len(), "settings reloaded");
    }
    report
}

/// Says why nothing has changed, in one line of the log and in the report.
fn refused(faults: &Faults) -> ReloadReport {
    let lines: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
    tracing::error!(
        faults = faults.0.len(),
        "settings not reloaded, the old ones stay: {}",
        lines.join("; ")
    );
    let fault = |fault: &Fault| SettingFault {
        setting: fault.problem.setting().map(str::to_owned),
        problem: fault.problem.to_string(),
        origin: fault.origin.to_string(),
    };
    ReloadReport {
        applied: false,
        changes: Vec::new(),
        faults: faults.0.iter().map(fault).collect(),
    }
}

#[cfg(test)]
mod tests;
