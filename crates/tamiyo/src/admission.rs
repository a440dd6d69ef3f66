//! Whether a policy update is taken. Pure: the clock and what is in force are arguments.

use std::time::Duration;

use kernel::Digest;
use leyline::wire::PolicyUpdate;

use crate::archive::Floor;
use crate::config::{Updates, Verification};
use crate::error::UpdateRefused;
use crate::live::{Identity, Loaded};
use crate::tensors;
use crate::weights::ARCHITECTURE;

/// What an update that passed every check asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Admitted {
    /// An empty payload: only the label changes.
    Label,
    /// A new policy.
    Policy(Box<Loaded>),
    /// The policy that is in force already: the same update, delivered again.
    Again,
}

/// Judges an update.
pub(crate) fn admit(
    update: &PolicyUpdate,
    current: &Identity,
    floor: Floor,
    now_ms: u64,
    settings: &Updates,
) -> Result<Admitted, UpdateRefused> {
    if settings.verification == Verification::Strict {
        check_version(update)?;
        check_age(update, now_ms, settings)?;
    }
    if update.payload.is_empty() {
        // A relabelling has no sequence; its time of issue is what orders it.
        if issued_at_ms(update) < floor.issued_at_ms {
            return Err(UpdateRefused::Superseded { found: 0, floor: floor.sequence });
        }
        return Ok(Admitted::Label);
    }
    let (weights, sequence) = tensors::decode(&update.payload, settings.payload_bytes_max)?;
    let digest = Digest::of(&update.payload);
    if current.digest == Some(digest) {
        return Ok(Admitted::Again);
    }
    if sequence <= floor.sequence {
        return Err(UpdateRefused::Superseded { found: sequence, floor: floor.sequence });
    }
    let version = if update.tamiyo_policy_version.is_empty() {
        ARCHITECTURE.to_owned()
    } else {
        update.tamiyo_policy_version.clone()
    };
    let policy_id = update.policy_id.clone();
    let identity = Identity { version, policy_id, sequence, digest: Some(digest) };
    Ok(Admitted::Policy(Box::new(Loaded { identity, weights })))
}

/// When an update was issued, in Unix milliseconds; 0 when it does not say.
pub(crate) fn issued_at_ms(update: &PolicyUpdate) -> u64 {
    update.issued_at.as_ref().and_then(leyline::time::unix_ms).unwrap_or(0)
}

fn check_version(update: &PolicyUpdate) -> Result<(), UpdateRefused> {
    if update.tamiyo_policy_version == ARCHITECTURE {
        return Ok(());
    }
    let found = update.tamiyo_policy_version.chars().take(80).collect();
    Err(UpdateRefused::VersionMismatch { found, expected: ARCHITECTURE })
}

fn check_age(update: &PolicyUpdate, now_ms: u64, settings: &Updates) -> Result<(), UpdateRefused> {
    let window = settings.freshness;
    if window.is_zero() {
        return Ok(());
    }
    let issued = issued_at_ms(update);
    if issued == 0 {
        return Err(UpdateRefused::Stale { age_s: i64::MAX, window });
    }
    let late = Duration::from_millis(now_ms.saturating_sub(issued));
    let early = Duration::from_millis(issued.saturating_sub(now_ms));
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    if late > window {
        return Err(UpdateRefused::Stale { age_s: seconds(late), window });
    }
    if early > settings.future_tolerance {
        return Err(UpdateRefused::Stale { age_s: -seconds(early), window });
    }
    Ok(())
}
