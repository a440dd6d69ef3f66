//! What is checked before a handler sees a message, in this order. Pure: the only step that needs
//! the log, the claim of the nonce, is left to the caller and comes last.
//!
//! Older programs know no attributes. Their prefetch messages are admitted all the same, so that
//! both generations can share the kernel streams:
//!
//! | type | nonce | time |
//! |---|---|---|
//! | request | `request_id` | `issued_at` |
//! | ready, error | `request_id` | none on the wire: taken as issued when it was appended |
//! | catalogue update | blueprint and checksum: a copy says nothing new | as above |
//!
//! Their other messages are refused as `legacy` unless `OONA_ACCEPT_LEGACY` is set.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use leyline::sign::Keyring;
use leyline::wire::{BusEnvelope, BusMessageType};
use leyline::{DecodeError, Message};

use crate::attributes;
use crate::config::Config;
use crate::entry::{EntryId, RawEntry};
use crate::live::Live;
use crate::metrics::{KeyUse, Metrics};
use crate::stream::Stream;

/// A nonce longer than this cannot be claimed; ours have 36 bytes.
const NONCE_BYTES_MAX: usize = 512;

/// Why an entry was refused. Refused entries are acknowledged, counted, and never retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Larger than `OONA_MAX_MESSAGE_BYTES`.
    Oversize,
    /// A field is missing, or envelope or payload cannot be parsed.
    Malformed,
    /// Signed with no secret in force.
    BadSignature,
    /// A type outside the contract.
    UnknownType,
    /// A type that this stream does not carry, or a copy of an entry signed for another stream.
    WrongStream,
    /// Older than the window when it was appended.
    Stale,
    /// More than the tolerance ahead of the log's clock when it was appended.
    FromTheFuture,
    /// Its nonce belongs to another entry.
    Replay,
    /// Without the attributes, and `OONA_ACCEPT_LEGACY` is not set.
    Legacy,
}

impl Refusal {
    /// Every reason, in the order of the checks.
    pub const ALL: [Self; 9] = [
        Self::Oversize,
        Self::Malformed,
        Self::BadSignature,
        Self::UnknownType,
        Self::WrongStream,
        Self::Stale,
        Self::FromTheFuture,
        Self::Replay,
        Self::Legacy,
    ];

    /// How the reason is called in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::Malformed => "malformed",
            Self::BadSignature => "bad_signature",
            Self::UnknownType => "unknown_type",
            Self::WrongStream => "wrong_stream",
            Self::Stale => "stale",
            Self::FromTheFuture => "from_the_future",
            Self::Replay => "replay",
            Self::Legacy => "legacy",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// What the checks found.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack for one step, boxing costs more")]
pub(crate) enum Verdict {
    /// Another program's entry: neither field is there.
    Foreign,
    Refused(Refusal),
    Admitted(Checked),
}

/// An entry that passed every check but the claim of its nonce.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) id: EntryId,
    pub(crate) attempt: u32,
    pub(crate) message: Message,
    pub(crate) attributes: BTreeMap<String, String>,
    /// `<type>:<nonce>`; absent only for legacy messages of types without a nonce.
    pub(crate) nonce: Option<String>,
    pub(crate) legacy: bool,
}

/// Checks the entries of one stream.
#[derive(Debug)]
pub(crate) struct Checker {
    stream: Stream,
    name: String,
    live: Live,
    ring: Mutex<Arc<Ring>>,
    /// Where verified entries are counted, if anywhere.
    metrics: Option<Metrics>,
    config: Config,
}

/// The secrets last seen in force, and where what they verify is counted.
#[derive(Debug)]
struct Ring {
    keyring: Arc<Keyring>,
    current: KeyUse,
    previous: KeyUse,
}

impl Ring {
    fn new(keyring: Arc<Keyring>, metrics: Option<&Metrics>) -> Arc<Self> {
        let of = |key| metrics.map(|metrics| metrics.key_use(key)).unwrap_or_default();
        let current = of(keyring.current_id());
        let previous = keyring.previous_id().map(of).unwrap_or_default();
        Arc::new(Self { keyring, current, previous })
    }
}

impl Checker {
    pub(crate) fn new(stream: Stream, live: Live, config: &Config) -> Self {
        let name = config.streams.name(stream).to_owned();
        let ring = Mutex::new(Ring::new(live.keyring(), None));
        Self { stream, name, live, ring, metrics: None, config: config.clone() }
    }

    /// Counts what it verifies here: in the process's metrics, whatever the consumer's role, since a
    /// secret is in use as long as anybody verifies with it.
    pub(crate) fn counted_in(mut self, metrics: &Metrics) -> Self {
        self.metrics = Some(metrics.clone());
        self.ring = Mutex::new(Ring::new(self.live.keyring(), Some(metrics)));
        self
    }

    /// The secrets in force, with their counters.
    fn ring(&self) -> Arc<Ring> {
        let keyring = self.live.keyring();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&ring.keyring, &keyring) {
            *ring = Ring::new(keyring, self.metrics.as_ref());
        }
        Arc::clone(&ring)
    }

    /// Runs the checks in their order.
    pub(crate) fn check(&self, entry: RawEntry) -> Verdict {
        if entry.payload.is_none() && entry.signature.is_none() {
            return Verdict::Foreign;
        }
        match self.admit(entry) {
            Ok(checked) => Verdict::Admitted(checked),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    fn admit(&self, entry: RawEntry) -> Result<Checked, Refusal> {
        if entry.size() > self.config.message_bytes_max {
            return Err(Refusal::Oversize);
        }
        let (Some(payload), Some(signature)) = (&entry.payload, &entry.signature) else {
            return Err(Refusal::Malformed);
        };
        let ring = self.ring();
        let key = ring.keyring.verify(payload, signature).map_err(|_| Refusal::BadSignature)?;
        match key == ring.keyring.current_id() {
            true => ring.current.count(),
            false => ring.previous.count(),
        }
        let envelope: BusEnvelope =
            prost::Message::decode(payload.as_slice()).map_err(|_| Refusal::Malformed)?;
        let message = Message::decode(envelope.message_type, &envelope.payload).map_err(
            |error| match error {
                DecodeError::UnknownType { .. } => Refusal::UnknownType,
                DecodeError::Malformed { .. } => Refusal::Malformed,
            },
        )?;
        let attributes = envelope.attributes;
        self.belongs_here(message.message_type(), &attributes)?;
        let identity = self.identify(&message, &attributes, entry.id.ms)?;
        self.is_fresh(message.message_type(), identity.issued_at_ms, entry.id.ms)?;
        let kind = message.message_type() as i32;
        let nonce = identity.nonce.map(|nonce| format!("{kind}:{nonce}"));
        Ok(Checked {
            id: entry.id,
            attempt: entry.deliveries,
            message,
            attributes,
            nonce,
            legacy: identity.legacy,
        })
    }

    fn belongs_here(
        &self,
        kind: BusMessageType,
        attributes: &BTreeMap<String, String>,
    ) -> Result<(), Refusal> {
        let signed_for = attributes.get(attributes::STREAM);
        if !self.stream.carries(kind) || signed_for.is_some_and(|name| *name != self.name) {
            return Err(Refusal::WrongStream);
        }
        Ok(())
    }

    /// Finds nonce and time: in the attributes, else where older programs have them.
    fn identify(
        &self,
        message: &Message,
        attributes: &BTreeMap<String, String>,
        appended_ms: u64,
    ) -> Result<Identity, Refusal> {
        let complete = [attributes::ID, attributes::ISSUED_AT_MS, attributes::STREAM]
            .iter()
            .all(|name| attributes.contains_key(*name));
        let prefetch = matches!(
            message,
            Message::PrefetchRequest(_)
                | Message::PrefetchReady(_)
                | Message::PrefetchError(_)
                | Message::CatalogUpdate(_)
        );
        if !complete && !prefetch && !self.config.accept_legacy {
            return Err(Refusal::Legacy);
        }
        let nonce = match attributes.get(attributes::ID) {
            Some(id) => Some(id.clone()),
            None => body_nonce(message),
        };
        let issued_at_ms = match attributes.get(attributes::ISSUED_AT_MS) {
            Some(text) => Some(text.parse().map_err(|_| Refusal::Malformed)?),
            None => match message {
                Message::PrefetchReady(_)
                | Message::PrefetchError(_)
                | Message::CatalogUpdate(_) => Some(appended_ms),
                _ => message.issued_at_ms(),
            },
        };
        // An empty nonce is none: claimed, it would make replays of one another of all that have it.
        let impossible = |nonce: &String| nonce.is_empty() || nonce.len() > NONCE_BYTES_MAX;
        let needs_both = complete || prefetch;
        if nonce.as_ref().is_some_and(impossible)
            || needs_both && (nonce.is_none() || issued_at_ms.is_none())
        {
            return Err(Refusal::Malformed);
        }
        Ok(Identity { nonce, issued_at_ms, legacy: !complete })
    }

    /// Judged at append time: what waited in the queue is late, not stale.
    fn is_fresh(
        &self,
        kind: BusMessageType,
        issued_at_ms: Option<u64>,
        appended_ms: u64,
    ) -> Result<(), Refusal> {
        let Some(issued) = issued_at_ms else { return Ok(()) };
        let window = self.config.window(kind == BusMessageType::KernelPrefetchRequest);
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if appended_ms.saturating_sub(issued) > ms(window) {
            return Err(Refusal::Stale);
        }
        if issued.saturating_sub(appended_ms) > ms(self.config.future_tolerance) {
            return Err(Refusal::FromTheFuture);
        }
        Ok(())
    }
}

struct Identity {
    nonce: Option<String>,
    issued_at_ms: Option<u64>,
    legacy: bool,
}

fn body_nonce(message: &Message) -> Option<String> {
    match message {
        Message::CatalogUpdate(update) => {
            Some(format!("{}@{}", update.blueprint_id, update.checksum))
        }
        other => other.nonce().map(str::to_owned),
    }
}

/// The key by which order is kept: the request for kernel traffic, the training run for the rest.
pub(crate) fn order_key(message: &Message) -> Option<&str> {
    let key = match message {
        Message::PrefetchRequest(body) => &body.request_id,
        Message::PrefetchReady(body) => &body.request_id,
        Message::PrefetchError(body) => &body.request_id,
        Message::SystemState(body) => &body.training_run_id,
        Message::FieldReport(body) => &body.training_run_id,
        Message::PolicyUpdate(body) => &body.training_run_id,
        Message::Emergency(body) => &body.run_id,
        Message::Command(_)
        | Message::Telemetry(_)
        | Message::CatalogUpdate(_)
        | Message::BsdsIssued(_)
        | Message::BsdsFailed(_)
        | Message::Benchmark(_) => return None,
    };
    (!key.is_empty()).then_some(key.as_str())
}
