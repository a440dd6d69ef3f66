//! What the world is told: packets, states, attribution.

use kasmina::Observation;
use leyline::Stage;
use leyline::wire::{HealthStatus, MessagePriority};

use crate::rig::{Rig, healthy, rig, s1};

#[test]
fn a_packet_for_each_seed_with_news_and_priority_by_its_worst() {
    let mut rig = rig();
    assert!(rig.manager.drain_telemetry(rig.now).is_empty());
    rig.germinate();
    let packets = rig.manager.drain_telemetry(rig.now);
    assert_eq!(packets.len(), 1);
    let packet = &packets[0].packet;
    assert_eq!(packets[0].priority, MessagePriority::Normal);
    assert_eq!(packet.source_subsystem, "kasmina");
    let names: Vec<&str> = packet.events.iter().map(|e| e.description.as_str()).collect();
    assert_eq!(names, ["gate_event", "seed_stage", "prefetch_requested", "seed_operation"]);
    assert_eq!(packet.system_health.as_ref().unwrap().indicators["seed_id"], "s1");
    rig.manager.fail(&s1(), "test", rig.now);
    let failed = rig.manager.drain_telemetry(rig.now);
    assert_eq!(failed[0].priority, MessagePriority::High);
    assert_ne!(failed[0].packet.packet_id, packet.packet_id);
}

#[test]
fn violations_make_a_seed_unhealthy_and_then_critical() {
    let mut rig = Rig::grown_to(Stage::Probationary);
    rig.events();
    let leak = Observation { host_gradient_norm: Some(1.0), ..healthy() };
    rig.step(leak);
    // G4 closes at once; the violations of the seed that was culled stay in its packet's events.
    let packets = rig.manager.drain_telemetry(rig.now);
    let names: Vec<&str> =
        packets[0].packet.events.iter().map(|e| e.description.as_str()).collect();
    assert!(names.contains(&"violation_recorded"), "{names:?}");
    assert!(names.contains(&"rollback_ready"), "{names:?}");
    assert_eq!(packets[0].priority, MessagePriority::High);
}

#[test]
fn health_says_what_is_wrong() {
    let mut rig = Rig::grown_to(Stage::Training);
    let health = |rig: &mut Rig| {
        let packet = rig.manager.drain_telemetry(rig.now).remove(0).packet;
        let health = packet.system_health.unwrap();
        (health.status(), health.summary)
    };
    assert_eq!(health(&mut rig), (HealthStatus::Healthy, "nominal".to_owned()));
    rig.step(Observation { latency_ms: Some(99.0), ..healthy() });
    assert_eq!(health(&mut rig), (HealthStatus::Degraded, "latency_high".to_owned()));
}

#[test]
fn states_are_filled() {
    let mut rig = Rig::grown_to(Stage::Blending);
    rig.step(healthy());
    rig.now.epoch = 7;
    let states = rig.manager.states(rig.now);
    assert_eq!(states.len(), 2);
    let state = &states[0];
    assert_eq!((state.seed_id.as_str(), state.stage, state.layer_depth), ("s1", 4, 1));
    assert_eq!((state.gradient_norm, state.learning_rate, state.age_epochs), (0.2, 0.003, 7));
    assert_eq!(state.metrics["alpha_steps"], 2.0);
    assert_eq!(state.metrics["alpha"], rig.manager.host_alpha(&s1()));
    assert_eq!(state.metrics["alpha_total_steps"], 20.0);
    assert_eq!(state.metrics["blend_allowed"], 1.0);
    assert_eq!((states[1].stage, states[1].age_epochs), (1, 0));
    assert_eq!(states[1].metrics["blend_allowed"], 0.0);
    rig.manager.fail(&s1(), "test", rig.now);
    let culled = &rig.manager.states(rig.now)[0];
    assert_eq!((culled.stage, culled.metrics["blend_allowed"]), (9, 0.0));
}

/// Weakness 71: attribution failed on a stage that the contract does not have.
#[test]
fn attribution_is_equal_over_those_that_learn() {
    let rig = rig();
    let shares = rig.manager.attribution();
    assert_eq!(shares.values().copied().collect::<Vec<_>>(), [0.5, 0.5]);
    let rig = Rig::grown_to(Stage::Training);
    assert_eq!(rig.manager.attribution(), [(s1(), 1.0)].into());
}
