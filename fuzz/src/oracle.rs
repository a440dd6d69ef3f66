//! The checks of `spec/oona.md`, written a second time and in the plainest way, straight from the
//! table there. It shares with Oona only the contract (`leyline`'s messages) and HMAC.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::wire::{BusEnvelope, BusMessageType as Kind};
use oona::judge::Judge;
use oona::{Config, EntryId, Refusal, Stream, attributes};

/// An entry's fields.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The secrets in force.
pub const CURRENT: &str = "the current secret of the fuzz targets";
pub const PREVIOUS: &str = "the previous secret of the fuzz targets";

/// Both secrets, as during a rotation.
pub fn keyring() -> Keyring {
    Keyring::new(&Secret::new(CURRENT), Some(&Secret::new(PREVIOUS)))
}

/// The secrets one by one: the current one, the previous one.
pub fn signers() -> &'static [Keyring; 2] {
    static SIGNERS: OnceLock<[Keyring; 2]> = OnceLock::new();
    SIGNERS.get_or_init(|| [CURRENT, PREVIOUS].map(|text| Keyring::new(&Secret::new(text), None)))
}

/// Settings of the targets: the defaults, but for small messages.
pub fn config(accept_legacy: bool) -> &'static Config {
    static CONFIGS: OnceLock<[Config; 2]> = OnceLock::new();
    let made =
        |accept_legacy| Config { accept_legacy, message_bytes_max: 2048, ..Config::default() };
    &CONFIGS.get_or_init(|| [made(false), made(true)])[usize::from(accept_legacy)]
}

/// The checks of a stream, made once: a fuzzer's time goes into checking.
pub fn judge(stream: Stream, accept_legacy: bool) -> &'static Judge {
    static JUDGES: OnceLock<Vec<(Stream, bool, Judge)>> = OnceLock::new();
    let judges = JUDGES.get_or_init(|| {
        let both = Stream::ALL.into_iter().flat_map(|stream| [(stream, false), (stream, true)]);
        both.map(|(stream, legacy)| (stream, legacy, Judge::new(stream, keyring(), config(legacy))))
            .collect()
    });
    let found = judges.iter().find(|(of, legacy, _)| (*of, *legacy) == (stream, accept_legacy));
    found
        .map(|(_, _, judge)| judge)
        .unwrap_or_else(|| unreachable!("there is one for every stream"))
}

/// What is expected of an entry; `Ok` with its nonce when it is to be admitted.
pub type Expected = Result<Option<String>, Option<Refusal>>;

/// Goes through the table; `Err(None)` is another program's entry.
pub fn expect(stream: Stream, accept_legacy: bool, id: EntryId, fields: &Fields) -> Expected {
    let config = config(accept_legacy);
    let field = |name: &[u8]| fields.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value);
    let (payload, signature) = (field(b"payload"), field(b"signature"));
    if payload.is_none() && signature.is_none() {
        return Err(None);
    }
    let size: usize = [payload, signature].iter().flatten().map(|value| value.len()).sum();
    if size > config.message_bytes_max {
        return Err(Some(Refusal::Oversize));
    }
    let (Some(payload), Some(signature)) = (payload, signature) else {
        return Err(Some(Refusal::Malformed));
    };
    // A signature is one text: what `sign` writes. Whatever else decodes to the same bytes is none.
    let honest = signers().each_ref().map(|ring| ring.sign(payload));
    if !honest.iter().any(|text| text.as_bytes() == signature.as_slice()) {
        return Err(Some(Refusal::BadSignature));
    }
    let Ok(envelope) = <BusEnvelope as prost::Message>::decode(payload.as_slice()) else {
        return Err(Some(Refusal::Malformed));
    };
    let kind = match Kind::try_from(envelope.message_type) {
        Ok(Kind::Unspecified) | Err(_) => return Err(Some(Refusal::UnknownType)),
        Ok(kind) => kind,
    };
    let Ok(message) = Message::decode(envelope.message_type, &envelope.payload) else {
        return Err(Some(Refusal::Malformed));
    };
    let signed_for = envelope.attributes.get(attributes::STREAM);
    let elsewhere = signed_for.is_some_and(|name| name != config.streams.name(stream));
    if elsewhere || !carried(stream, kind) {
        return Err(Some(Refusal::WrongStream));
    }
    identify(config, id, &message, &envelope.attributes).map_err(Some)
}

/// The table of `spec/leyline.md`, and what may be rerouted to the emergency stream.
fn carried(stream: Stream, kind: Kind) -> bool {
    let normal = [
        Kind::SystemState,
        Kind::AdaptationCommand,
        Kind::FieldReport,
        Kind::BsdsIssued,
        Kind::BsdsFailed,
        Kind::BenchmarkReport,
    ];
    match stream {
        Stream::Normal => normal.contains(&kind),
        Stream::Emergency => {
            normal.contains(&kind)
                || matches!(kind, Kind::EmergencySignal | Kind::Telemetry | Kind::PolicyUpdate)
        }
        Stream::Telemetry => kind == Kind::Telemetry,
        Stream::Policy => kind == Kind::PolicyUpdate,
        Stream::KernelRequests => kind == Kind::KernelPrefetchRequest,
        Stream::KernelReady => {
            matches!(kind, Kind::KernelPrefetchReady | Kind::KernelCatalogUpdate)
        }
        Stream::KernelErrors => kind == Kind::KernelPrefetchError,
        Stream::DeadLetter => true,
    }
}

/// Who it is and when it was issued: freshness, and the nonce to claim.
fn identify(
    config: &Config,
    id: EntryId,
    message: &Message,
    attributes: &BTreeMap<String, String>,
) -> Result<Option<String>, Refusal> {
    let (nonce, issued) =
        (attributes.get(attributes::ID), attributes.get(attributes::ISSUED_AT_MS));
    let complete =
        nonce.is_some() && issued.is_some() && attributes.contains_key(attributes::STREAM);
    // The body's nonce, and its time; `None` for a message that has neither.
    let body = match message {
        Message::PrefetchRequest(body) => Some((body.request_id.clone(), message.issued_at_ms())),
        Message::PrefetchReady(body) => Some((body.request_id.clone(), Some(id.ms))),
        Message::PrefetchError(body) => Some((body.request_id.clone(), Some(id.ms))),
        Message::CatalogUpdate(body) => {
            Some((format!("{}@{}", body.blueprint_id, body.checksum), Some(id.ms)))
        }
        _ => None,
    };
    if !complete && body.is_none() && !config.accept_legacy {
        return Err(Refusal::Legacy);
    }
    let needs_both = complete || body.is_some();
    let nonce = match (nonce, &body) {
        (Some(nonce), _) => Some(nonce.clone()),
        (None, Some((nonce, _))) => Some(nonce.clone()).filter(|nonce| !nonce.is_empty()),
        (None, None) => message.nonce().map(str::to_owned),
    };
    let issued = match (issued, &body) {
        (Some(text), _) => Some(text.parse::<u64>().map_err(|_| Refusal::Malformed)?),
        (None, Some((_, issued))) => *issued,
        (None, None) => message.issued_at_ms(),
    };
    let impossible = nonce.as_ref().is_some_and(|nonce| nonce.is_empty() || nonce.len() > 512);
    if impossible || (needs_both && (nonce.is_none() || issued.is_none())) {
        return Err(Refusal::Malformed);
    }
    if let Some(issued) = issued {
        let request = message.message_type() == Kind::KernelPrefetchRequest;
        let window = if request { config.kernel_freshness_window } else { config.freshness_window };
        if i128::from(id.ms) - i128::from(issued) > window.as_millis() as i128 {
            return Err(Refusal::Stale);
        }
        if i128::from(issued) - i128::from(id.ms) > 5_000 {
            return Err(Refusal::FromTheFuture);
        }
    }
    Ok(nonce.map(|nonce| format!("{}:{nonce}", message.message_type() as i32)))
}
