//! Whether a command may be executed: the checks, in the contract's order.

use std::time::Duration;

use leyline::command::{BadCommand, verify_command};
use leyline::ids::CommandId;
use leyline::sign::Keyring;
use leyline::time::unix_ms;
use leyline::wire::AdaptationCommand;

use crate::ledger::NonceLedger;
use crate::moment::Now;

/// A command may be this much ahead of our clock.
pub const FUTURE_TOLERANCE: Duration = Duration::from_secs(5);
/// A command may be this old.
pub const AGE_MAX: Duration = Duration::from_secs(60);

/// Why a command was rejected before anything of it was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    /// There is no secret to verify with.
    #[error("no secret is configured to verify commands with; set ESPER_LEYLINE_SECRET")]
    VerifierUnavailable,
    /// No signature annotation.
    #[error("the command carries no signature")]
    MissingSignature,
    /// A signature of something else, or under another secret.
    #[error("the command's signature is not of its contents under our secret")]
    InvalidSignature,
    /// No command id.
    #[error("the command carries no id")]
    MissingCommandId,
    /// The id was executed before.
    #[error("a command of this id was executed before")]
    NonceReplayed,
    /// No issue time, or an impossible one.
    #[error("the command does not say when it was issued")]
    MissingTimestamp,
    /// Issued more than [`FUTURE_TOLERANCE`] from now.
    #[error("the command was issued in the future; check both clocks")]
    IssuedInFuture,
    /// Issued more than [`AGE_MAX`] ago.
    #[error("the command is older than 60 s; issue it anew")]
    StaleCommand,
    /// More commands within the ledger's time than it can remember.
    #[error("too many commands; issue it anew later")]
    LedgerFull,
}

impl Rejection {
    /// Every reason, in the order of the checks.
    pub const ALL: [Self; 9] = [
        Self::VerifierUnavailable,
        Self::MissingSignature,
        Self::InvalidSignature,
        Self::MissingCommandId,
        Self::NonceReplayed,
        Self::MissingTimestamp,
        Self::IssuedInFuture,
        Self::StaleCommand,
        Self::LedgerFull,
    ];

    /// The contract's reason code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::VerifierUnavailable => "verifier_unavailable",
            Self::MissingSignature => "missing_signature",
            Self::InvalidSignature => "invalid_signature",
            Self::MissingCommandId => "missing_command_id",
            Self::NonceReplayed => "nonce_replayed",
            Self::MissingTimestamp => "missing_timestamp",
            Self::IssuedInFuture => "issued_in_future",
            Self::StaleCommand => "stale_command",
            Self::LedgerFull => "ledger_full",
        }
    }
}

/// Verifies a command. Only one that passes every check burns its id, so that a command that came
/// early, or with a clock askew, may come again.
///
/// # Errors
/// [`Rejection`]: the first check that failed.
pub fn verify(
    keyring: Option<&Keyring>,
    ledger: &mut NonceLedger,
    command: &AdaptationCommand,
    now: Now,
) -> Result<CommandId, Rejection> {
    let keyring = keyring.ok_or(Rejection::VerifierUnavailable)?;
    verify_command(keyring, command).map_err(|bad| match bad {
        BadCommand::MissingSignature => Rejection::MissingSignature,
        BadCommand::InvalidSignature => Rejection::InvalidSignature,
    })?;
    if command.command_id.trim().is_empty() {
        return Err(Rejection::MissingCommandId);
    }
    let id = CommandId::new(command.command_id.clone());
    if ledger.contains(&id, now.elapsed) {
        return Err(Rejection::NonceReplayed);
    }
    let issued = command.issued_at.as_ref().and_then(unix_ms).ok_or(Rejection::MissingTimestamp)?;
    if issued > now.unix_ms.saturating_add(FUTURE_TOLERANCE.as_millis() as u64) {
        return Err(Rejection::IssuedInFuture);
    }
    if now.unix_ms.saturating_sub(issued) > AGE_MAX.as_millis() as u64 {
        return Err(Rejection::StaleCommand);
    }
    if ledger.is_full(now.elapsed) {
        return Err(Rejection::LedgerFull);
    }
    ledger.record(id.clone(), now.elapsed);
    Ok(id)
}

#[cfg(test)]
mod tests {
    use leyline::command::{SIGNATURE, sign_command};
    use leyline::sign::Secret;
    use leyline::time::timestamp;

    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn now(elapsed_s: u64) -> Now {
        Now {
            unix_ms: NOW_MS + elapsed_s * 1000,
            elapsed: Duration::from_secs(elapsed_s),
            ..Now::default()
        }
    }

    fn keyring() -> Keyring {
        Keyring::new(&Secret::new("a secret of some length"), None)
    }

    fn command(change: impl FnOnce(&mut AdaptationCommand)) -> AdaptationCommand {
        let mut command = AdaptationCommand {
            command_id: "c1".to_owned(),
            issued_at: Some(timestamp(NOW_MS)),
            ..AdaptationCommand::default()
        };
        change(&mut command);
        sign_command(&keyring(), &mut command);
        command
    }

    fn check(command: &AdaptationCommand, expected: Result<(), Rejection>) {
        let outcome = verify(Some(&keyring()), &mut NonceLedger::new(), command, now(0));
        assert_eq!(outcome.map(drop), expected);
    }

    #[test]
    fn each_check_has_its_code() {
        check(&command(|_| {}), Ok(()));
        let sound = command(|_| {});
        let unverified = verify(None, &mut NonceLedger::new(), &sound, now(0));
        assert_eq!(unverified, Err(Rejection::VerifierUnavailable));
        let mut unsigned = command(|_| {});
        unsigned.annotations.remove(SIGNATURE);
        check(&unsigned, Err(Rejection::MissingSignature));
        let mut altered = command(|_| {});
        altered.target_seed_id = "other".to_owned();
        check(&altered, Err(Rejection::InvalidSignature));
        check(&command(|c| c.command_id.clear()), Err(Rejection::MissingCommandId));
        check(&command(|c| c.issued_at = None), Err(Rejection::MissingTimestamp));
        let at = |ms| command(move |c| c.issued_at = Some(timestamp(ms)));
        check(&at(NOW_MS + 5_000), Ok(()));
        check(&at(NOW_MS + 5_001), Err(Rejection::IssuedInFuture));
        check(&at(NOW_MS - 60_000), Ok(()));
        check(&at(NOW_MS - 60_001), Err(Rejection::StaleCommand));
    }

    #[test]
    fn an_executed_command_is_a_replay() {
        let mut ledger = NonceLedger::new();
        let (ring, command) = (keyring(), command(|_| {}));
        assert!(verify(Some(&ring), &mut ledger, &command, now(0)).is_ok());
        let again = verify(Some(&ring), &mut ledger, &command, now(1));
        assert_eq!(again, Err(Rejection::NonceReplayed));
    }

    /// Weakness 72: a command that came too early could never be executed.
    #[test]
    fn a_command_refused_for_its_time_keeps_its_id() {
        let mut ledger = NonceLedger::new();
        let (ring, early) = (keyring(), command(|c| c.issued_at = Some(timestamp(NOW_MS + 8_000))));
        let refused = verify(Some(&ring), &mut ledger, &early, now(0));
        assert_eq!(refused, Err(Rejection::IssuedInFuture));
        assert!(verify(Some(&ring), &mut ledger, &early, now(4)).is_ok());
    }
}
