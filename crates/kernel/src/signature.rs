//! Signatures of artifacts: who vouches for a kernel. Ed25519 (RFC 8032) over the artifact's digest.
//!
//! What is signed is the text `esper kernel sha256:` followed by the digest's 64 hex digits, so that any tool can check
//! it. A signature stands beside an artifact, never in it: the same job gives the same bytes whoever signs.
//! Keys are the PEM files that `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// Bytes of a public key and of the seed of a secret one.
const KEY_BYTES: usize = 32;
/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 64;
/// What stands before the key in a `SubjectPublicKeyInfo` of Ed25519 (RFC 8410).
const PUBLIC_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What stands before the seed in a PKCS#8 key of Ed25519 (RFC 8410).
const SECRET_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Most keys trusted at a time.
const KEYS_MAX: usize = 256;
/// Characters of a PEM line.
const PEM_LINE: usize = 64;

/// Names a key: the first 8 bytes of the SHA-256 of its public half, as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

/// Somebody's word for an artifact. Written as `<key id>:<base64>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    key: KeyId,
    bytes: [u8; SIGNATURE_BYTES],
}

/// The secret half of a key.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: KeyId,
}

/// The keys whose word is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeys(BTreeMap<KeyId, [u8; KEY_BYTES]>);

/// A new key as two PEM texts.
#[derive(Clone, PartialEq, Eq)]
pub struct NewKey {
    /// PKCS#8, to be kept from everybody.
    pub secret_pem: String,
    /// For those who check.
    pub public_pem: String,
    /// Its name.
    pub id: KeyId,
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM section of the right kind.
    #[error("the text holds no PEM section {expected:?}; make one with {make}")]
    NoPem {
        /// Label of the section.
        expected: &'static str,
        /// How to make one.
        make: &'static str,
    },
    /// A key of another algorithm, or damaged.
    #[error("the key is not an ed25519 key; make one with `openssl genpkey -algorithm ed25519`")]
    Algorithm,
    /// More than 256.
    #[error("{found} keys are too many; at most {KEYS_MAX} are read")]
    TooMany {
        /// Keys found.
        found: usize,
    },
    /// The system's source of random numbers failed.
    #[error("the system gives no random numbers")]
    NoRandom,
}

/// Why an artifact is not vouched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not `<key id>:<base64>`.
    #[error("a signature is written as 16 hex digits, a colon and 64 bytes in base64")]
    Unreadable,
    /// Signed by somebody else.
    #[error(
        "the kernel is signed by key {key}, which is not trusted here; add its public half to the trusted keys"
    )]
    Untrusted {
        /// Who signed.
        key: KeyId,
    },
    /// Not the signature of this artifact by this key.
    #[error("the signature by key {key} does not belong to this kernel")]
    Forged {
        /// Who is said to have signed.
        key: KeyId,
    },
}

impl SigningKey {
    /// Reads the first PKCS#8 key (`PRIVATE KEY`) of a PEM text.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::NoPem {
                expected: "PRIVATE KEY",
                make: "`openssl genpkey -algorithm ed25519`",
            })?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
        let pair = pair.map_err(|_| KeyError::Algorithm)?;
        let id = KeyId::of(pair.public_key().as_ref());
        Ok(Self { pair, id })
    }

    /// Makes a key out of the system's random numbers.
    ///
    /// # Errors
    /// [`KeyError::NoRandom`]
    pub fn generate() -> Result<NewKey, KeyError> {
        let mut seed = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::NoRandom)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Algorithm)?;
        let public = pair.public_key().as_ref();
        Ok(NewKey {
            secret_pem: pem("PRIVATE KEY", &[&SECRET_PREFIX[..], &seed].concat()),
            public_pem: pem("PUBLIC KEY", &[&PUBLIC_PREFIX[..], public].concat()),
            id: KeyId::of(public),
        })
    }

    /// The key's name.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Vouches for an artifact. The same artifact always gets the same signature.
    pub fn sign(&self, artifact: &Digest) -> Signature {
        let signature = self.pair.sign(&message(artifact));
        let bytes = signature.as_ref().try_into();
        Signature { key: self.id, bytes: bytes.expect("an Ed25519 signature has 64 bytes") }
    }
}

impl TrustedKeys {
    /// Reads every public key (`PUBLIC KEY`) of a PEM text; there must be one at least.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let none =
            KeyError::NoPem { expected: "PUBLIC KEY", make: "`openssl pkey -in key.pem -pubout`" };
        let mut keys = BTreeMap::new();
        for (index, der) in SubjectPublicKeyInfoDer::pem_slice_iter(text.as_bytes()).enumerate() {
            if index >= KEYS_MAX {
                return Err(KeyError::TooMany { found: index + 1 });
            }
            let der = der.map_err(|_| none.clone())?;
            let key = der.as_ref().strip_prefix(&PUBLIC_PREFIX).ok_or(KeyError::Algorithm)?;
            let key: [u8; KEY_BYTES] = key.try_into().map_err(|_| KeyError::Algorithm)?;
            keys.insert(KeyId::of(&key), key);
        }
        if keys.is_empty() { Err(none) } else { Ok(Self(keys)) }
    }

    /// Names of the keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.keys().copied()
    }

    /// Whether one of the keys vouches for this artifact.
    ///
    /// # Errors
    /// [`SignatureError::Untrusted`] or [`SignatureError::Forged`]
    pub fn verify(&self, artifact: &Digest, signature: &Signature) -> Result<(), SignatureError> {
        let key = signature.key;
        let public = self.0.get(&key).ok_or(SignatureError::Untrusted { key })?;
        UnparsedPublicKey::new(&ED25519, public)
            .verify(&message(artifact), &signature.bytes)
            .map_err(|_| SignatureError::Forged { key })
    }
}

impl Signature {
    /// Who signed.
    pub fn key(&self) -> KeyId {
        self.key
    }
}

impl KeyId {
    fn of(public: &[u8]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *Digest::of(public).as_bytes();
        Self([a, b, c, d, e, f, g, h])
    }
}

fn message(artifact: &Digest) -> Vec<u8> {
    format!("esper kernel sha256:{artifact}").into_bytes()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines = vec![format!("-----BEGIN {label}-----")];
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, behind) = rest.split_at(rest.len().min(PEM_LINE));
        lines.push(line.to_owned());
        rest = behind;
    }
    lines.push(format!("-----END {label}-----\n"));
    lines.join("\n")
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let (key, bytes) = text.split_once(':').ok_or(SignatureError::Unreadable)?;
        let is_id =
            key.len() == 16 && key.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let key = u64::from_str_radix(key, 16).ok().filter(|_| is_id);
        let key = KeyId(key.ok_or(SignatureError::Unreadable)?.to_be_bytes());
        let bytes = STANDARD.decode(bytes).map_err(|_| SignatureError::Unreadable)?;
        let bytes = bytes.try_into().map_err(|_| SignatureError::Unreadable)?;
        Ok(Self { key, bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, STANDARD.encode(self.bytes))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The same key, that is: one name stands for one key.
impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// Without its secret.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Without its secret.
impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` wrote, and what
    /// `openssl pkeyutl -sign -rawin` made of the message for the digest of "abc".
    const SECRET: &str = include_str!("../tests/fixtures/signature/key.pem");
    const PUBLIC: &str = include_str!("../tests/fixtures/signature/key.pub.pem");
    const SIGNED: &str = include_str!("../tests/fixtures/signature/abc.sig");

    #[test]
    fn signs_as_openssl_does() {
        let key = SigningKey::from_pem(SECRET).unwrap();
        let trusted = TrustedKeys::from_pem(PUBLIC).unwrap();
        assert_eq!(trusted.ids().collect::<Vec<_>>(), [key.id()]);
        let artifact = Digest::of("abc");
        let signature = key.sign(&artifact);
        assert_eq!(signature.to_string(), format!("{}:{}", key.id(), SIGNED.trim()));
        assert_eq!(signature.to_string().parse(), Ok(signature));
        assert_eq!(trusted.verify(&artifact, &signature), Ok(()));
    }

    #[test]
    fn nobody_elses_word_and_no_other_artifact() {
        let made = SigningKey::generate().unwrap();
        let other = SigningKey::from_pem(&made.secret_pem).unwrap();
        assert_eq!(other.id(), made.id);
        let trusted = TrustedKeys::from_pem(PUBLIC).unwrap();
        let artifact = Digest::of("abc");
        let theirs = other.sign(&artifact);
        assert_eq!(
            trusted.verify(&artifact, &theirs),
            Err(SignatureError::Untrusted { key: made.id })
        );
        let both = TrustedKeys::from_pem(&format!("{PUBLIC}{}", made.public_pem)).unwrap();
        assert_eq!(both.verify(&artifact, &theirs), Ok(()));
        assert_eq!(
            both.verify(&Digest::of("abd"), &theirs),
            Err(SignatureError::Forged { key: made.id })
        );
        let mut flipped = theirs;
        flipped.bytes[5] ^= 1;
        assert!(matches!(both.verify(&artifact, &flipped), Err(SignatureError::Forged { .. })));
    }

    #[test]
    fn what_is_no_key_or_signature_is_refused() {
        let rsa = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf\n9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==\n-----END PUBLIC KEY-----\n";
        assert_eq!(TrustedKeys::from_pem(rsa).unwrap_err(), KeyError::Algorithm);
        assert!(matches!(TrustedKeys::from_pem(SECRET), Err(KeyError::NoPem { .. })));
        assert!(matches!(SigningKey::from_pem(PUBLIC), Err(KeyError::NoPem { .. })));
        assert!(matches!(TrustedKeys::from_pem(""), Err(KeyError::NoPem { .. })));
        let fine = SigningKey::from_pem(SECRET).unwrap().sign(&Digest::of("abc")).to_string();
        for text in ["", ":", "ab:cd", &fine[1..], &fine.to_uppercase(), &fine[..fine.len() - 4]] {
            assert_eq!(text.parse::<Signature>(), Err(SignatureError::Unreadable), "{text}");
        }
    }
}
