//! What is encoded is what is decoded, whatever it holds; what is not of the contract is refused.

use std::collections::BTreeMap;

use leyline::{DecodeError, Message, command, sign, time, wire};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 ._/ü-]{0,12}"
}

fn floats() -> impl Strategy<Value = BTreeMap<String, f32>> {
    btree_map(text(), prop_oneof![Just(0.0_f32), -1e6_f32..1e6], 0..4)
}

fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(text(), text(), 0..5)
}

fn moment() -> impl Strategy<Value = Option<prost_types::Timestamp>> {
    prop::option::of((0_u64..4_000_000_000_000).prop_map(time::timestamp))
}

fn seed_state() -> impl Strategy<Value = wire::SeedState> {
    (text(), 0..12_i32, any::<u32>(), floats()).prop_map(|(seed_id, stage, age_epochs, metrics)| {
        wire::SeedState { seed_id, stage, age_epochs, metrics, ..Default::default() }
    })
}

prop_compose! {
    fn command()(
        command_id in text(),
        target in text(),
        issued_at in moment(),
        annotations in texts(),
        parameters in floats(),
        kind in 0..4_i32,
    ) -> wire::AdaptationCommand {
        use wire::adaptation_command::Payload;
        let payload = match kind {
            0 => None,
            1 => Some(Payload::SeedOperation(wire::CommandSeedOperation {
                operation: 1,
                blueprint_id: target.clone(),
                parameters,
            })),
            2 => Some(Payload::OptimizerAdjustment(wire::CommandOptimizerAdjustment {
                optimizer_id: target.clone(),
                hyperparameters: parameters,
            })),
            _ => Some(Payload::CircuitBreaker(wire::CommandCircuitBreaker {
                desired_state: 2,
                rationale: target.clone(),
            })),
        };
        wire::AdaptationCommand {
            version: 1,
            command_id,
            command_type: kind,
            target_seed_id: target,
            issued_at,
            annotations,
            payload,
            ..Default::default()
        }
    }
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (text(), floats(), vec(seed_state(), 0..3), any::<u64>()).prop_map(
            |(packet_id, training_metrics, seed_states, timestamp_ns)| {
                Message::from(wire::SystemStatePacket {
                    packet_id,
                    training_metrics,
                    seed_states,
                    timestamp_ns,
                    ..Default::default()
                })
            }
        ),
        command().prop_map(Message::from),
        (text(), text(), moment()).prop_map(|(request_id, blueprint_id, issued_at)| {
            Message::from(wire::KernelPrefetchRequest {
                request_id,
                blueprint_id,
                issued_at,
                ..Default::default()
            })
        }),
        (text(), text(), any::<f32>().prop_filter("comparable", |x| !x.is_nan())).prop_map(
            |(request_id, checksum, prewarm_p50_ms)| Message::from(wire::KernelArtifactReady {
                request_id,
                checksum,
                prewarm_p50_ms,
                ..Default::default()
            })
        ),
        (text(), text()).prop_map(|(request_id, reason)| Message::from(
            wire::KernelArtifactError { request_id, reason, ..Default::default() }
        )),
        (text(), vec(any::<u8>(), 0..64)).prop_map(|(policy_id, payload)| Message::from(
            wire::PolicyUpdate { policy_id, payload, ..Default::default() }
        )),
        (text(), texts()).prop_map(|(reason, attributes)| Message::from(wire::EmergencySignal {
            reason,
            attributes,
            ..Default::default()
        })),
        (text(), floats()).prop_map(|(report_id, metrics)| Message::from(wire::FieldReport {
            report_id,
            metrics,
            ..Default::default()
        })),
    ]
}

proptest! {
    #[test]
    fn messages_survive(message in message()) {
        let bytes = message.encode_payload();
        let back = Message::decode(message.message_type() as i32, &bytes).unwrap();
        prop_assert_eq!(&back, &message);
        prop_assert_eq!(back.encode_payload(), bytes);
    }

    #[test]
    fn signed_commands_survive_the_wire(mut command in command()) {
        let ring = sign::Keyring::new(&sign::Secret::new("a secret of some length"), None);
        command::sign_command(&ring, &mut command);
        let bytes = Message::from(command).encode_payload();
        let Message::Command(back) = Message::decode(2, &bytes).unwrap() else { unreachable!() };
        prop_assert!(command::verify_command(&ring, &back).is_ok());
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in -2..30_i32, bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::decode(kind, &bytes) {
            prop_assert_eq!(message.message_type() as i32, kind);
        }
    }
}

#[test]
fn types_outside_the_contract_are_refused() {
    for number in [-1, 0, 11, 19, 23, 100, i32::MAX] {
        assert!(
            matches!(Message::decode(number, &[]), Err(DecodeError::UnknownType { number: n }) if n == number),
            "{number}"
        );
    }
}

#[test]
fn what_is_no_message_is_malformed() {
    assert!(matches!(Message::decode(6, &[0xff; 4]), Err(DecodeError::Malformed { .. })));
}
