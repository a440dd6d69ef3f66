//! What stands in the file for one message: the envelope, behind a signature that covers its place
//! as well.

use leyline::sign::{BadSignature, Keyring};

use super::file::Place;

/// Begins what is signed. Neither an envelope nor any other thing that this project signs begins so
/// (as Protobuf it has an impossible wire type), so a signature from the spool is good for nothing
/// else.
const DOMAIN: &[u8] = b"oona-spool-record-1";
/// Bytes of a signature in Base64.
const SIGNATURE_BYTES: usize = 44;

fn signed(place: Place, envelope: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DOMAIN.len() + 9 + envelope.len());
    bytes.extend_from_slice(DOMAIN);
    bytes.push(place.lane);
    bytes.extend_from_slice(&place.seq.to_le_bytes());
    bytes.extend_from_slice(envelope);
    bytes
}

/// Bytes that an envelope takes in the file.
pub(super) fn size(envelope: &[u8]) -> u64 {
    (SIGNATURE_BYTES + envelope.len()) as u64
}

pub(super) fn seal(keyring: &Keyring, place: Place, envelope: &[u8]) -> Vec<u8> {
    let mut value = keyring.sign(&signed(place, envelope)).into_bytes();
    value.extend_from_slice(envelope);
    value
}

/// The envelope, if we put it there.
pub(super) fn open<'a>(
    keyring: &Keyring,
    place: Place,
    value: &'a [u8],
) -> Result<&'a [u8], BadSignature> {
    let (signature, envelope) = value.split_at_checked(SIGNATURE_BYTES).ok_or(BadSignature)?;
    keyring.verify(&signed(place, envelope), signature)?;
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use leyline::sign::Secret;
    use prost::Message as _;

    #[test]
    fn only_what_we_put_there_comes_out_and_only_in_its_place() {
        let keyring = Keyring::new(&Secret::new("a secret of the tests"), None);
        let place = Place { lane: 2, seq: 7 };
        let value = seal(&keyring, place, b"envelope");
        assert_eq!(value.len() as u64, size(b"envelope"));
        assert_eq!(open(&keyring, place, &value), Ok(&b"envelope"[..]));
        assert!(open(&keyring, Place { lane: 1, ..place }, &value).is_err());
        assert!(open(&keyring, Place { seq: 8, ..place }, &value).is_err());
        for at in 0..value.len() {
            let mut spoilt = value.clone();
            spoilt[at] ^= 1;
            assert!(open(&keyring, place, &spoilt).is_err(), "byte {at}");
        }
        assert!(open(&keyring, place, b"").is_err());
        // The other way round: what is signed here is no envelope anywhere.
        assert!(leyline::wire::BusEnvelope::decode(signed(place, b"").as_slice()).is_err());
    }
}
