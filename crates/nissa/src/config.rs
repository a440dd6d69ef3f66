//! What can be set. Pure: [`IngestConfig::check`] and [`HttpConfig::check`] report every fault at once.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::reload::TokenSource;

/// Fewer characters than this make a guessable token.
pub const TOKEN_LEN_MIN: usize = 16;
/// Feature names that may become label values.
pub const COVERAGE_FEATURES_MAX: usize = 16;

/// A value that cannot be used. The text says what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigFault {
    /// A share that is none.
    #[error("{field} is {value}; give a number from 0 to 1")]
    Share {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
    },
    /// A limit that no value could meaningfully pass.
    #[error("{field} is {value}; give a number above 0")]
    Positive {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
    },
    /// A service level without room for error, or without meaning.
    #[error("the target of objective {name} is {target}; give a number above 0 and below 1")]
    Target {
        /// The objective.
        name: String,
        /// Its value.
        target: f64,
    },
    /// Each becomes a label value for ever.
    #[error("{count} coverage features; give at most {COVERAGE_FEATURES_MAX}")]
    Features {
        /// How many.
        count: usize,
    },
    /// A wait of zero would refuse everything.
    #[error("{field} is 0; give a duration")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// A token that could be guessed.
    #[error(
        "the token has fewer than {TOKEN_LEN_MIN} characters; `openssl rand -hex 32` makes one"
    )]
    WeakToken,
}

/// Limits of the alert rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Milliseconds that training may wait at an epoch's boundary (`tolaria.epoch_hook.latency_ms`).
    pub epoch_hook_ms: f64,
    /// Isolation violations within 5 minutes that raise an alert.
    pub isolation_violations: f64,
    /// Unacknowledged entries of the normal stream.
    pub queue_depth: f64,
    /// Retried compile jobs within 15 minutes that raise an alert.
    pub compile_retries: f64,
    /// `NISSA_COVERAGE_ALERT_THRESHOLD`: least share of its inputs that the policy must see.
    pub coverage_min: f64,
    /// `NISSA_COVERAGE_ALERT_CONSECUTIVE`: packets in a row below it.
    pub coverage_samples: NonZeroU32,
    /// `NISSA_BSDS_ELEVATED_RISK_THRESHOLD`: risk from which a blueprint counts as elevated.
    pub elevated_risk: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            epoch_hook_ms: 18.0,
            isolation_violations: 3.0,
            queue_depth: 4000.0,
            compile_retries: 2.0,
            coverage_min: 0.7,
            coverage_samples: NonZeroU32::MIN.saturating_add(2),
            elevated_risk: 0.8,
        }
    }
}

/// One service level.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Its name, the `<name>` of `slo.<name>_objective`.
    pub name: String,
    /// Share of samples that must be good, below 1.
    pub target: f64,
    /// Burn rate over 24 h from which it alerts. 12 uses 40 % of a 30-day budget in a day.
    pub burn_limit: f64,
}

/// What the ingest worker can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct IngestConfig {
    /// Appended to the group `nissa-service`. Each replica needs its own, so that each sees
    /// everything; with a shared one their alerts disagree. Default: none.
    pub replica: Option<String>,
    /// Limits of the alert rules.
    pub thresholds: Thresholds,
    /// `NISSA_COVERAGE_FEATURE_KEYS`: features exposed one by one.
    pub coverage_features: Vec<String>,
    /// Service levels with a target of their own; others get 99.9 % and a limit of 12.
    pub objectives: Vec<Objective>,
    /// Longest time between a change and the page showing it. Shorter costs copies of the history.
    pub publish_every: Duration,
    /// Messages taken from one stream at a time.
    pub batch_max: NonZeroUsize,
    /// Slower than this, an ingest counts against the objective `nissa.ingest`.
    pub ingest_objective: Duration,
}

impl Default for IngestConfig {
    fn default() -> Self {
        let objective = |name: &str, target, burn_limit| Objective {
            name: name.to_owned(),
            target,
            burn_limit,
        };
        Self {
            replica: None,
            thresholds: Thresholds::default(),
            coverage_features: ["global.loss", "seed.learning_rate", "edges.seed_param_allowed"]
                .map(str::to_owned)
                .to_vec(),
            objectives: vec![
                objective("nissa.ingest", 0.999, 10.0),
                objective("nissa.query", 0.995, 5.0),
                objective("nissa.alert", 0.999, 20.0),
                objective("oona.availability", 0.9995, 2.0),
            ],
            publish_every: Duration::from_millis(200),
            batch_max: NonZeroUsize::MIN.saturating_add(99),
            ingest_objective: Duration::from_millis(100),
        }
    }
}

impl IngestConfig {
    /// The consumer group of this replica.
    pub fn group(&self) -> String {
        match &self.replica {
            Some(replica) => format!("nissa-service-{replica}"),
            None => "nissa-service".to_owned(),
        }
    }

    /// Every fault, none if it can be used.
    pub fn check(&self) -> Vec<ConfigFault> {
        let limits = &self.thresholds;
        let shares =
            [("coverage threshold", limits.coverage_min), ("elevated risk", limits.elevated_risk)];
        let positives = [
            ("epoch hook limit", limits.epoch_hook_ms),
            ("isolation violations", limits.isolation_violations),
            ("queue depth limit", limits.queue_depth),
            ("compile retries", limits.compile_retries),
        ];
        let mut faults = Vec::new();
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                faults.push(ConfigFault::Share { field, value });
            }
        }
        for (field, value) in positives {
            if !(value.is_finite() && value > 0.0) {
                faults.push(ConfigFault::Positive { field, value });
            }
        }
        for objective in &self.objectives {
            if !(objective.target > 0.0 && objective.target < 1.0) {
                let (name, target) = (objective.name.clone(), objective.target);
                faults.push(ConfigFault::Target { name, target });
            }
            if !(objective.burn_limit.is_finite() && objective.burn_limit > 0.0) {
                let (field, value) = ("burn limit", objective.burn_limit);
                faults.push(ConfigFault::Positive { field, value });
            }
        }
        if self.coverage_features.len() > COVERAGE_FEATURES_MAX {
            faults.push(ConfigFault::Features { count: self.coverage_features.len() });
        }
        if self.publish_every.is_zero() {
            faults.push(ConfigFault::Zero { field: "publish interval" });
        }
        faults
    }
}

/// A bearer token. Only its digest is kept, so nothing can print it.
#[derive(Debug, Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Takes the token's text.
    ///
    /// # Errors
    /// [`ConfigFault::WeakToken`] below [`TOKEN_LEN_MIN`] characters.
    pub fn new(text: &str) -> Result<Self, ConfigFault> {
        let text = text.trim();
        if text.chars().count() < TOKEN_LEN_MIN {
            return Err(ConfigFault::WeakToken);
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// Whether this is the token. Compares digests in constant time, so neither its length nor a
    /// common beginning shows.
    pub(crate) fn matches(&self, claimed: &[u8]) -> bool {
        let claimed: [u8; 32] = Sha256::digest(claimed).into();
        self.0.ct_eq(&claimed).into()
    }
}

/// What the HTTP worker can be told.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Allows changes (`POST`). Default: none, and every change is refused.
    pub token: TokenSource,
    /// `URZA_HTTP_TOKEN`: allows downloads of kernels, as the other does. Without either everybody who
    /// reaches this listener may have them.
    pub kernel_token: TokenSource,
    /// Downloads of kernels at once; more are told to come again.
    pub downloads_max: NonZeroUsize,
    /// Host names, beside `localhost` and addresses, under which a loopback listener may be asked
    /// for. Others are refused there, so that no web site can rebind its name to this machine.
    pub hosts: Vec<String>,
    /// Open connections; more wait in the listener's queue.
    pub connections_max: NonZeroUsize,
    /// Readers of live updates; more are told to poll. Keep below `connections_max`.
    pub subscribers_max: NonZeroUsize,
    /// Time a client has for its request line and headers, also between two requests.
    pub header_timeout: Duration,
    /// Time a handler has.
    pub request_timeout: Duration,
    /// Time without progress after which a client that does not read is dropped.
    pub write_timeout: Duration,
    /// Age of the supervisor's snapshot from which `/livez` says that its loop hangs.
    pub liveness_age_max: Duration,
    /// Time that open requests have to end when the worker stops.
    pub drain_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        let count = |count: usize| NonZeroUsize::MIN.saturating_add(count - 1);
        Self {
            token: TokenSource::default(),
            kernel_token: TokenSource::default(),
            downloads_max: count(16),
            hosts: Vec::new(),
            connections_max: count(128),
            subscribers_max: count(32),
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            liveness_age_max: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(2),
        }
    }
}

impl HttpConfig {
    /// Every fault, none if it can be used.
    pub fn check(&self) -> Vec<ConfigFault> {
        [
            ("header time-out", self.header_timeout),
            ("request time-out", self.request_timeout),
            ("write time-out", self.write_timeout),
            ("liveness limit", self.liveness_age_max),
        ]
        .into_iter()
        .filter(|(_, duration)| duration.is_zero())
        .map(|(field, _)| ConfigFault::Zero { field })
        .collect()
    }
}
