//! Seeds in quarantine: which blueprints are tried before a host may see them, the trial beside the coordinator, and
//! what the gates make of its report. The trial itself is [`kernel::quarantine`]'s.

use std::sync::Arc;
use std::time::Duration;

use karn::{Parameters, Site};
use kernel::quarantine::{Budget, Finding, QuarantineError, Report, Subject};
use leyline::Gate;
use leyline::ids::BlueprintId;
use leyline::wire::HandlingClass;
use tokio::sync::Semaphore;

use crate::evidence::{Evidence, Interface, KernelPresence, Observation, OutputScale};
use crate::fetch::{FetchFailure, FetchOrder, FetchedKernel};
use crate::gates::{self, GateFailure, Limits, Verdict};
use crate::metrics::Metrics;

/// Trials that run at the same time; others wait for their turn.
const TRIALS_MAX: usize = 1;
/// How long a seed waits for a trial, its turn included. A trial itself ends within its own budget.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(150);
/// Weights of a stressor start from this seed.
const WEIGHT_SEED: u64 = 1;

/// What must have happened before a host sees a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Nothing.
    Open,
    /// It went through quarantine and nothing was found: handling class quarantine.
    Tried,
    /// No host ever sees it: it may run in quarantine only.
    Confined,
}

/// How a blueprint is handled; one that is not in the catalogue is not handled in a special way.
pub fn handling(blueprint: &BlueprintId) -> Handling {
    match karn::find(blueprint) {
        None => Handling::Open,
        Some(known) if known.quarantine_only() => Handling::Confined,
        Some(known) => match karn::safety_sheet(known).handling {
            HandlingClass::Quarantine => Handling::Tried,
            HandlingClass::Standard | HandlingClass::Restricted | HandlingClass::Unspecified => {
                Handling::Open
            }
        },
    }
}

/// Runs trials beside the training thread. Cheap to clone; clones take turns with each other.
#[derive(Debug, Clone)]
pub(crate) struct Trials {
    turns: Arc<Semaphore>,
}

impl Default for Trials {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(TRIALS_MAX)) }
    }
}

impl Trials {
    /// Tries a blueprint that no host may see, as its seed commands it. Always an end of the fetch.
    pub(crate) async fn confined(&self, order: &FetchOrder, metrics: &Metrics) -> FetchFailure {
        let incompatible = || FetchFailure::Refused("incompatible".to_owned());
        let (Some(blueprint), Some(site)) = (karn::find(&order.blueprint), site(&order.shape))
        else {
            return incompatible();
        };
        let parameters = match order.parameters.is_empty() {
            true => blueprint.midpoints(),
            false => Parameters::from_wire(&order.parameters),
        };
        let tried = self.run(metrics, move |permit| {
            let graph = karn::build_in_quarantine(blueprint, &parameters, &site, permit)?;
            Ok(Subject::fresh(graph, WEIGHT_SEED))
        });
        match tried.await {
            Ok(report) => FetchFailure::Quarantined(Arc::new(report)),
            Err(failure) => failure,
        }
    }

    /// Lets a kernel pass that its trial found nothing wrong with, or that needs none.
    pub(crate) async fn passed(
        &self,
        kernel: FetchedKernel,
        metrics: &Metrics,
    ) -> Result<FetchedKernel, FetchFailure> {
        match handling(&kernel.blueprint) {
            Handling::Open => return Ok(kernel),
            Handling::Tried | Handling::Confined => {}
        }
        let subject = Subject {
            graph: kernel.kernel.graph().clone(),
            params: kernel.kernel.params().clone(),
        };
        let report = self.run(metrics, move |_| Ok(subject)).await?;
        match handling(&kernel.blueprint) {
            Handling::Tried if report.is_sound() => Ok(kernel),
            _ => Err(FetchFailure::Quarantined(Arc::new(report))),
        }
    }

    async fn run(
        &self,
        metrics: &Metrics,
        build: impl FnOnce(
            &kernel::quarantine::Permit,
        ) -> Result<Subject, Box<dyn std::error::Error + Send + Sync>>
        + Send
        + 'static,
    ) -> Result<Report, FetchFailure> {
        let turns = Arc::clone(&self.turns);
        let trial = async move {
            // The semaphore is never closed; should it be, there is nothing to wait for.
            let _turn = turns.acquire_owned().await;
            let trial = move || kernel::quarantine::run(&Budget::default(), build);
            tokio::task::spawn_blocking(trial).await
        };
        let outcome = tokio::time::timeout(TRIAL_TIMEOUT, trial).await;
        let Ok(Ok(outcome)) = outcome else { return Err(FetchFailure::TimedOut) };
        match outcome {
            Ok(report) => {
                metrics.quarantined(report.verdict());
                tracing::info!(
                    verdict = report.verdict(),
                    took_ms = report.took_ms,
                    "kernel tried in quarantine"
                );
                Ok(report)
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no quarantine took place"
                );
                Err(match error {
                    QuarantineError::Build { .. } | QuarantineError::Unfit { .. } => {
                        FetchFailure::Refused("incompatible".to_owned())
                    }
                    QuarantineError::Thread { .. } => FetchFailure::Unavailable,
                })
            }
        }
    }
}

/// The site of an activation without its batch.
fn site(shape: &[usize]) -> Option<Site> {
    match *shape {
        [features] => Some(Site::Vector { features }),
        [length, width] => Some(Site::Sequence { length, width }),
        [channels, height, width] => Some(Site::Image { channels, height, width }),
        _ => None,
    }
}

/// What a trial showed, as if the seed had trained: the measures of its steps. There is no host in quarantine that could
/// feel it.
pub fn evidence(seed: &Evidence, report: &Report) -> Evidence {
    let mut evidence = Evidence {
        blueprint: seed.blueprint.clone(),
        parameters: seed.parameters.clone(),
        kernel: KernelPresence::Attached,
        host_registered: seed.host_registered,
        ..Evidence::default()
    };
    for measure in &report.measures {
        let seen = Observation {
            loss: Some(measure.loss),
            gradient_norm: Some(measure.gradient_norm),
            host_gradient_norm: Some(0.0),
            learning_rate: None,
            latency_ms: Some(measure.run_ms),
            output: Some(OutputScale { host_rms: measure.input_rms, seed_rms: measure.output_rms }),
            interface: Some(Interface::Matches),
            validation: None,
        };
        // The one violation there is would be a gradient on the host, which is zero here.
        evidence.observe(&seen).unwrap_or_default();
    }
    evidence.caught = report.foremost().cloned();
    evidence
}

/// Why a seed in quarantine is turned back: what gate G1 says to the trial's evidence, else that no host may see it.
pub fn judge(seed: &Evidence, report: &Report, limits: &Limits) -> GateFailure {
    match gates::check(Gate::GradientHealth, &evidence(seed, report), limits) {
        Verdict::Failed(failure) => failure,
        Verdict::Passed | Verdict::NotYet(_) => GateFailure::QuarantineOnly,
    }
}

/// The stable text of a finding, for events; `sound` for none.
pub(crate) fn reason(finding: Option<&Finding>) -> &'static str {
    finding.map_or("sound", Finding::reason)
}
