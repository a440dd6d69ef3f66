//! The signature inside an `AdaptationCommand`, which outlives the envelope: a command is verified
//! by whoever executes it, whichever way it came.

use prost::Message as _;

use crate::canonical::{self, Order};
use crate::sign::{BadSignature, KeyId, Keyring};
use crate::wire::AdaptationCommand;

/// The annotation that holds the signature.
pub const SIGNATURE: &str = "signature";

/// Why a command is not authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// There is no signature annotation.
    #[error("the command carries no signature annotation")]
    MissingSignature,
    /// There is one, and it is not of these contents under any known secret.
    #[error("the command's signature does not match its contents")]
    InvalidSignature,
}

impl From<BadSignature> for BadCommand {
    fn from(_: BadSignature) -> Self {
        Self::InvalidSignature
    }
}

/// The bytes a command's signature is made over: the deterministic encoding (map entries ordered
/// by key, both halves written) with the signature annotation absent.
pub fn signed_bytes(command: &AdaptationCommand) -> Vec<u8> {
    ordered_bytes(command, Order::Lexical)
}

fn ordered_bytes(command: &AdaptationCommand, order: Order) -> Vec<u8> {
    if !command.annotations.contains_key(SIGNATURE) {
        return canonical::canonical(&command.encode_to_vec(), &canonical::COMMAND, order);
    }
    let mut bare = command.clone();
    bare.annotations.remove(SIGNATURE);
    canonical::canonical(&bare.encode_to_vec(), &canonical::COMMAND, order)
}

/// Signs a command in place, replacing a signature it may have.
pub fn sign_command(keyring: &Keyring, command: &mut AdaptationCommand) {
    let signature = keyring.sign(&signed_bytes(command));
    command.annotations.insert(SIGNATURE.to_owned(), signature);
}

/// Verifies a command's own signature and says which secret made it.
///
/// Encoders disagree on the order of two keys of which one begins the other; both orders are
/// accepted. Signed is the lexical one, so a sender that wants every reader to verify its commands
/// uses no such pair of keys.
///
/// # Errors
/// [`BadCommand`] when the signature is absent or not of these contents.
pub fn verify_command<'a>(
    keyring: &'a Keyring,
    command: &AdaptationCommand,
) -> Result<&'a KeyId, BadCommand> {
    let signature = command.annotations.get(SIGNATURE).ok_or(BadCommand::MissingSignature)?;
    let lexical = signed_bytes(command);
    if let Ok(key) = keyring.verify(&lexical, signature) {
        return Ok(key);
    }
    let other = ordered_bytes(command, Order::PrefixLast);
    if other == lexical {
        return Err(BadCommand::InvalidSignature);
    }
    Ok(keyring.verify(&other, signature)?)
}
