//! Commands signed by another implementation of protobuf verify here, and the bytes signed here
//! are the bytes it signs.

use leyline::Message;
use leyline::command::{self, BadCommand};
use leyline::sign::{Keyring, Secret};
use leyline::wire::AdaptationCommand;
use prost::Message as _;

const VECTORS: &str = include_str!("../vectors/commands.txt");

fn keyring() -> Keyring {
    Keyring::new(&Secret::new("leyline-test-vector-secret"), None)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Name, signed message, signed bytes, signature.
fn vectors() -> impl Iterator<Item = (&'static str, Vec<u8>, Vec<u8>, &'static str)> {
    VECTORS.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let parts: Vec<&str> = line.split(' ').collect();
        (parts[0], bytes(parts[1]), bytes(parts[2]), parts[3])
    })
}

fn commands() -> impl Iterator<Item = (&'static str, AdaptationCommand, Vec<u8>, &'static str)> {
    vectors().filter(|(name, ..)| *name != "envelope").map(|(name, message, signed, signature)| {
        (name, AdaptationCommand::decode(&message[..]).unwrap(), signed, signature)
    })
}

#[test]
fn foreign_commands_verify() {
    let ring = keyring();
    for (name, command, signed, _) in commands() {
        // The vectors with a key that begins another stand in the order of the encoder that made
        // them, which is not the one we sign.
        let lexical = !name.ends_with("-prefix");
        assert_eq!(command::signed_bytes(&command) == signed, lexical, "{name}");
        assert_eq!(command::verify_command(&ring, &command), Ok(ring.current_id()), "{name}");
    }
    assert_eq!(commands().count(), 6);
}

#[test]
fn our_signatures_are_theirs() {
    for (name, command, _, signature) in commands().filter(|(name, ..)| !name.ends_with("-prefix"))
    {
        let mut ours = command.clone();
        ours.annotations.remove(command::SIGNATURE);
        command::sign_command(&keyring(), &mut ours);
        assert_eq!(ours.annotations[command::SIGNATURE], signature, "{name}");
        assert_eq!(ours, command, "{name}");
    }
}

#[test]
fn a_changed_command_is_refused() {
    for (name, command, ..) in commands() {
        let mut forged = command.clone();
        forged.issued_by.push('x');
        assert_eq!(
            command::verify_command(&keyring(), &forged),
            Err(BadCommand::InvalidSignature),
            "{name}"
        );
        let mut bare = command;
        bare.annotations.remove(command::SIGNATURE);
        assert_eq!(
            command::verify_command(&keyring(), &bare),
            Err(BadCommand::MissingSignature),
            "{name}"
        );
    }
}

#[test]
fn a_foreign_envelope_verifies_as_sent() {
    let (_, sent, _, signature) = vectors().find(|(name, ..)| *name == "envelope").unwrap();
    assert!(keyring().verify(&sent, signature).is_ok());
    let envelope = leyline::wire::BusEnvelope::decode(&sent[..]).unwrap();
    let message = Message::decode(envelope.message_type, &envelope.payload).unwrap();
    assert_eq!(message.nonce(), Some("req-1"));
    assert_eq!(message.issued_at_ms(), Some(1_700_000_000_000));
    assert_eq!(envelope.attributes["empty"], "");
}
