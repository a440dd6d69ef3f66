//! Measures one decision, over a host of 8 slots and 20,000 epochs of a run that grows, and prints
//! its percentiles: `cargo run --release -p tamiyo --example decision_time`. The budget is 5 ms.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use leyline::Stage;
use leyline::sign::{Keyring, Secret};
use leyline::wire::{SeedState, SystemStatePacket};
use tamiyo::{Action, Candidates, Config, Context, LivePolicy, Policy};

const EPOCHS: u32 = 20_000;
const SLOTS: usize = 8;
const BUDGET: Duration = Duration::from_millis(5);

fn main() {
    let config = Config::default();
    let live = LivePolicy::built_in(&config.growth);
    let keyring = Keyring::new(&Secret::new("a secret for a measurement"), None);
    let mut policy = Policy::new(config, live, keyring);
    let candidates = Candidates::for_site(&karn::Site::Vector { features: 32 });
    let mut state = SystemStatePacket {
        training_run_id: "measured".to_owned(),
        seed_states: (0..SLOTS).map(slot).collect(),
        training_metrics: metrics(),
        ..SystemStatePacket::default()
    };
    let (mut times, mut commands) = (Vec::new(), 0_u32);
    for epoch in 0..EPOCHS {
        state.validation_loss = 0.7 + 0.01 * (epoch as f32).sin();
        let context = Context::now(epoch, Candidates::Listed(candidates.clone()));
        let started = Instant::now();
        let decision = policy.decide(&state, &context);
        times.push(started.elapsed());
        commands += u32::from(decision.command.is_some());
        if decision.action == Action::Germinate {
            play(&mut state, &decision.annotations["selected_seed"]);
        }
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{EPOCHS} decisions, {commands} commands, {SLOTS} slots");
    println!("p50 {:?}  p95 {:?}  p99 {:?}  max {:?}", at(50), at(95), at(99), at(100));
    println!("budget {BUDGET:?}: {}", if at(99) < BUDGET { "kept" } else { "missed" });
}

fn slot(index: usize) -> SeedState {
    SeedState {
        seed_id: format!("seed-{index}"),
        stage: Stage::Dormant.wire().into(),
        layer_depth: index as u32,
        ..SeedState::default()
    }
}

fn metrics() -> BTreeMap<String, f32> {
    let keys = ["loss", "gradient_norm", "samples_per_s", "loss_volatility", "grad_var"];
    keys.into_iter().map(|key| (key.to_owned(), 0.01)).collect()
}

/// The seed grew and was taken away: its slot is embargoed, so that the next one is tried; with
/// none left, all begin again.
fn play(state: &mut SystemStatePacket, seed: &str) {
    let dormant: i32 = Stage::Dormant.wire().into();
    for slot in &mut state.seed_states {
        if slot.seed_id == seed {
            slot.stage = Stage::Embargoed.wire().into();
        }
    }
    if state.seed_states.iter().all(|slot| slot.stage != dormant) {
        state.seed_states.iter_mut().for_each(|slot| slot.stage = dormant);
    }
}
