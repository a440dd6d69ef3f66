//! The places where bytes from outside enter, for the fuzz targets: the real code, without a log or
//! a runtime around it. Not part of the interface.

use std::cell::Cell;
use std::sync::Once;

use leyline::sign::{Keyring, Secret};

use crate::check::{Checker, Verdict};
use crate::config::Config;
use crate::entry::{EntryId, RawEntry};
use crate::live::Live;
use crate::log;
use crate::stream::Stream;

/// The secret under which [`envelope`] signs what it is given.
pub const SECRET: &str = "the secret of the fuzz targets";

/// An entry's id and its fields.
pub type Entry = (EntryId, Vec<(Vec<u8>, Vec<u8>)>);

/// Checks an entry whose payload these bytes are, correctly signed, on every stream: whoever knows
/// the secret may still send nonsense.
pub fn envelope(bytes: &[u8]) {
    let keyring = keyring();
    let signature = keyring.sign(bytes);
    for stream in Stream::ALL {
        for accept_legacy in [false, true] {
            let config = Config { accept_legacy, ..Config::default() };
            let checker =
                Checker::new(stream, Live::fixed(keyring.clone(), config.limits()), &config);
            let verdict = checker.check(entry(bytes, signature.as_bytes()));
            assert!(!matches!(verdict, Verdict::Foreign), "both fields are there");
        }
    }
}

/// Checks an entry that an outsider made: the first two bytes give the length of the signature, which
/// follows, then the payload.
///
/// # Panics
/// When an entry is admitted that was not signed with the secret.
pub fn verify(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (signature, payload) = rest.split_at(length);
    let keyring = keyring();
    let config = Config { accept_legacy: true, ..Config::default() };
    let checker =
        Checker::new(Stream::Normal, Live::fixed(keyring.clone(), config.limits()), &config);
    let admitted = matches!(checker.check(entry(payload, signature)), Verdict::Admitted(_));
    let honest = keyring.sign(payload);
    assert!(!admitted || signature == honest.as_bytes(), "an unsigned entry was admitted");
}

/// Opens these bytes as the embedded log's store and its two journals, and reads all entries that are in
/// them; `None` when they are no log.
///
/// The store asserts that the pages of a file agree with one another. A panic of that kind is caught
/// when a log is opened and reported as damage; here it is also kept from the hook with which a
/// fuzzer would take it for a finding.
pub fn embedded_files(files: [&[u8]; 3]) -> Option<Vec<Entry>> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !OPENING.get() {
                report(panic);
            }
        }));
    });
    OPENING.set(true);
    let entries = log::embedded_files(files);
    OPENING.set(false);
    entries
}

thread_local! {
    /// Whether this thread is inside the store.
    static OPENING: Cell<bool> = const { Cell::new(false) };
}

fn keyring() -> Keyring {
    Keyring::new(&Secret::new(SECRET), None)
}

fn entry(payload: &[u8], signature: &[u8]) -> RawEntry {
    RawEntry {
        id: EntryId { ms: 1_700_000_000_000, seq: 0 },
        payload: Some(payload.to_vec()),
        signature: Some(signature.to_vec()),
        deliveries: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_can_be_checked(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            envelope(&bytes);
            verify(&bytes);
            embedded_files([&bytes, &[], &[]]);
        }
    }
}
