//! Signing and verifying: HMAC-SHA256 over exact bytes, in standard Base64 with padding.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Fewer bytes than this make a weak secret.
pub const SECRET_BYTES_MIN: usize = 16;

/// A shared secret. It is wiped from memory when dropped, and no formatting shows it.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the secret's text; its UTF-8 bytes are the key.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// Whether it is shorter than [`SECRET_BYTES_MIN`] bytes.
    pub fn is_weak(&self) -> bool {
        self.0.trim().len() < SECRET_BYTES_MIN
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Which secret signed: the first 8 hex digits of the secret's SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// The 8 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The signature does not belong to the bytes under any known secret, or is no signature at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature matches under no known secret; check ESPER_LEYLINE_SECRET on both sides")]
pub struct BadSignature;

/// One secret, ready to sign: the key schedule is computed once.
#[derive(Clone)]
struct Key {
    id: KeyId,
    mac: Hmac<Sha256>,
}

impl Key {
    fn new(secret: &Secret) -> Self {
        let bytes = secret.0.as_bytes();
        let mac = Hmac::<Sha256>::new_from_slice(bytes)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        let hash = Sha256::digest(bytes);
        let id = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id: KeyId(id), mac }
    }
}

/// The secrets in force: the current one signs, the current and the previous one verify, so that a
/// secret can be rotated without a stop.
#[derive(Clone)]
pub struct Keyring {
    current: Key,
    previous: Option<Key>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("current", &self.current.id)
            .field("previous", &self.previous.as_ref().map(|key| &key.id))
            .finish()
    }
}

impl Keyring {
    /// Makes a keyring of the current secret and, during a rotation, the previous one.
    pub fn new(current: &Secret, previous: Option<&Secret>) -> Self {
        Self { current: Key::new(current), previous: previous.map(Key::new) }
    }

    /// Which secret signs.
    pub fn current_id(&self) -> &KeyId {
        &self.current.id
    }

    /// Which secret is being rotated out, if any.
    pub fn previous_id(&self) -> Option<&KeyId> {
        self.previous.as_ref().map(|key| &key.id)
    }

    /// Base64 HMAC-SHA256 of exactly these bytes under the current secret.
    pub fn sign(&self, bytes: &[u8]) -> String {
        let mut mac = self.current.mac.clone();
        mac.update(bytes);
        STANDARD.encode(mac.finalize().into_bytes())
    }

    /// Compares in constant time under the current, then the previous secret.
    ///
    /// The signature is bytes because it comes from outside: what is not ASCII, not Base64 or not
    /// of the right length is a bad signature like any other.
    ///
    /// # Errors
    /// [`BadSignature`] when no secret in force made it.
    pub fn verify(
        &self,
        bytes: &[u8],
        signature: impl AsRef<[u8]>,
    ) -> Result<&KeyId, BadSignature> {
        let mut claimed = [0_u8; 33];
        let length =
            STANDARD.decode_slice(signature.as_ref(), &mut claimed).map_err(|_| BadSignature)?;
        let claimed = &claimed[..length];
        for key in std::iter::once(&self.current).chain(&self.previous) {
            let mut mac = key.mac.clone();
            mac.update(bytes);
            if mac.verify_slice(claimed).is_ok() {
                return Ok(&key.id);
            }
        }
        Err(BadSignature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(secret: &str) -> Keyring {
        Keyring::new(&Secret::new(secret), None)
    }

    /// RFC 4231, test cases 2 and 1 (the key of case 1 is 20 bytes of 0x0b, which is UTF-8).
    #[test]
    fn published_vectors() {
        for (key, data, hex) in [
            (
                "Jefe".to_owned(),
                "what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                "\u{b}".repeat(20),
                "Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
        ] {
            let signature = STANDARD.decode(keyring(&key).sign(data.as_bytes())).unwrap();
            let found: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, hex);
        }
    }

    #[test]
    fn only_the_same_bytes_and_secret_verify() {
        let ring = keyring("a secret of some length");
        let signature = ring.sign(b"payload");
        assert!(ring.verify(b"payload", &signature).is_ok());
        assert_eq!(ring.verify(b"Payload", &signature), Err(BadSignature));
        assert_eq!(
            keyring("another secret, as long").verify(b"payload", &signature),
            Err(BadSignature)
        );
    }

    #[test]
    fn what_is_no_signature_is_a_bad_one() {
        let ring = keyring("a secret of some length");
        let long = "A".repeat(4096);
        for text in [&b""[..], b"=", b"not base64!", b"\xff\xfe", b"AAAA", long.as_bytes()] {
            assert_eq!(ring.verify(b"payload", text), Err(BadSignature), "{text:?}");
        }
    }

    #[test]
    fn the_previous_secret_verifies_and_does_not_sign() {
        let (old, new) = (Secret::new("the old secret 123"), Secret::new("the new secret 456"));
        let before = Keyring::new(&old, None);
        let during = Keyring::new(&new, Some(&old));
        let signature = before.sign(b"x");
        assert_eq!(during.verify(b"x", &signature), Ok(before.current_id()));
        assert_eq!(before.verify(b"x", during.sign(b"x")), Err(BadSignature));
    }

    #[test]
    fn secrets_are_never_shown() {
        let secret = Secret::new("hunter2hunter2hunter2");
        let shown = format!("{secret:?} {:?}", Keyring::new(&secret, Some(&secret)));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
