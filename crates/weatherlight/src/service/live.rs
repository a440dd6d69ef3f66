//! What may change while the service runs: the ends that send, and the ends that the workers hold.

use std::sync::Arc;
use std::time::Duration;

use leyline::sign::{Keyring, SECRET_BYTES_MIN};
use nissa::{Thresholds, Token};
use tokio::sync::watch;

use crate::settings::EsperSettings;
use crate::wiring;

/// Everything that may change, made of one set of settings.
#[derive(Debug, Clone)]
pub struct Values {
    keyring: Arc<Keyring>,
    limits: oona::Limits,
    thresholds: Thresholds,
    token: Option<Token>,
    telemetry_interval: Duration,
}

/// Why settings that passed every check cannot be put into force.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no secret.
    #[error("there is no secret to sign messages with; set ESPER_LEYLINE_SECRET")]
    NoSecret,
    /// A secret could be guessed.
    #[error(
        "{setting} is weak: shorter than {SECRET_BYTES_MIN} bytes; make one with `openssl rand -hex 32`"
    )]
    Weak {
        /// Which.
        setting: &'static str,
    },
    /// The token could be guessed.
    #[error("WEATHERLIGHT_HTTP_TOKEN cannot be used: {0}")]
    Token(#[from] nissa::ConfigFault),
}

impl Values {
    /// Makes everything that can fail, so that putting it into force cannot.
    ///
    /// # Errors
    /// [`Unusable`]; nothing has changed then.
    pub fn of(settings: &EsperSettings) -> Result<Self, Unusable> {
        for (setting, secret) in [
            ("ESPER_LEYLINE_SECRET", &settings.leyline_secret),
            ("ESPER_LEYLINE_SECRET_PREVIOUS", &settings.leyline_secret_previous),
        ] {
            if secret.as_ref().is_some_and(|secret| secret.signing().is_weak()) {
                return Err(Unusable::Weak { setting });
            }
        }
        let token = settings.http_token.as_ref().map(|token| Token::new(token.expose()));
        Ok(Self {
            keyring: Arc::new(wiring::keyring(settings).ok_or(Unusable::NoSecret)?),
            limits: wiring::bus_config(settings).limits(),
            thresholds: wiring::ingest_config(settings).thresholds,
            token: token.transpose()?,
            telemetry_interval: settings.telemetry_interval,
        })
    }
}

/// The sending ends; one worker holds them.
#[derive(Debug)]
pub struct Senders {
    keyring: watch::Sender<Arc<Keyring>>,
    limits: watch::Sender<oona::Limits>,
    thresholds: watch::Sender<Thresholds>,
    token: watch::Sender<Option<Token>>,
    telemetry_interval: watch::Sender<Duration>,
}

impl Senders {
    /// Puts everything into force. Cannot fail.
    pub fn put(&self, values: Values) {
        self.keyring.send_replace(values.keyring);
        self.limits.send_replace(values.limits);
        self.thresholds.send_replace(values.thresholds);
        self.token.send_replace(values.token);
        self.telemetry_interval.send_replace(values.telemetry_interval);
    }
}

/// What the workers look at each time they need it.
#[derive(Debug, Clone)]
pub struct InForce {
    /// Secrets and limits of the bus.
    pub bus: oona::Live,
    /// Thresholds of the alerts.
    pub thresholds: watch::Receiver<Thresholds>,
    /// What allows changes over HTTP.
    pub token: watch::Receiver<Option<Token>>,
    /// Between two of the service's own packets.
    pub telemetry_interval: watch::Receiver<Duration>,
}

/// Both ends, beginning with these values.
pub fn channel(values: Values) -> (Senders, InForce) {
    let Values { keyring, limits, thresholds, token, telemetry_interval } = values;
    let keyring = watch::channel(keyring);
    let limits = watch::channel(limits);
    let thresholds = watch::channel(thresholds);
    let token = watch::channel(token);
    let telemetry_interval = watch::channel(telemetry_interval);
    let senders = Senders {
        keyring: keyring.0,
        limits: limits.0,
        thresholds: thresholds.0,
        token: token.0,
        telemetry_interval: telemetry_interval.0,
    };
    let in_force = InForce {
        bus: oona::Live { keyring: keyring.1, limits: limits.1 },
        thresholds: thresholds.1,
        token: token.1,
        telemetry_interval: telemetry_interval.1,
    };
    (senders, in_force)
}
