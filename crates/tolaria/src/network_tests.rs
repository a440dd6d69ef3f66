//! A pass is run for what it was made for, and by what its kernels allow.

use super::*;

const SHAPE: HostShape = HostShape { features: 2, width: 8, classes: 2 };
const ROWS: usize = 4;

fn seed() -> SeedId {
    "slot-a".into()
}

fn graft(blueprint: &str, execution: Execution) -> Graft {
    let blueprint = karn::find(&blueprint.into()).unwrap();
    let site = karn::Site::Vector { features: SHAPE.width };
    let graph = karn::build(blueprint, &blueprint.midpoints(), &site).unwrap();
    Graft { params: graph.init_params(3), graph, execution }
}

fn network(rows: usize) -> Network {
    Network::new(SHAPE, &[seed()], rows, 0.01, 1).unwrap()
}

/// A network with a graft that stands at a mode.
fn grown(mode: Mode) -> Network {
    let mut network = network(ROWS);
    network.attach(&seed(), graft("BP009", Execution::Plan), BlendMode::Convex, 0.01).unwrap();
    network.set_mode(&seed(), mode).unwrap();
    network
}

/// Some rows, others for each number.
fn rows(count: usize, number: usize) -> (Vec<f32>, Vec<f32>) {
    let features = (0..count * 2).map(|at| ((at * 7 + number * 3) % 11) as f32 / 5.0 - 1.0);
    (features.collect(), (0..count).map(|at| ((at + number) % 2) as f32).collect())
}

fn step(network: &mut Network, count: usize, number: usize) -> StepOutcome {
    let (features, labels) = rows(count, number);
    network.step(&features, &labels).unwrap()
}

/// The numbers of one group, to the bit.
fn bits(network: &Network, group: &str) -> Vec<u32> {
    let params = network.params();
    let own = params.iter().filter(|(name, _)| is_of(name, group));
    own.flat_map(|(_, tensor)| tensor.data().iter().map(|value| value.to_bits())).collect()
}

#[test]
fn a_pass_that_serves_is_run_again() {
    let mut network = grown(Mode::Live);
    for number in 0..3 {
        step(&mut network, ROWS, number);
        network.logits(&rows(ROWS, number).0, ROWS).unwrap();
    }
    let once = PassCounts { composed: 2, interpreted: 0, stale: 0 };
    assert_eq!(network.take_counts(), once, "one that trains, one that scores");
    step(&mut network, ROWS, 3);
    assert_eq!(network.take_counts(), PassCounts::default());
}

/// A kept seed is frozen. Should nobody have said so to the passes, their guard does.
#[test]
fn a_seed_that_is_kept_is_trained_no_more() {
    let mut told = grown(Mode::Live);
    step(&mut told, ROWS, 0);
    let mut untold = grown(Mode::Live);
    step(&mut untold, ROWS, 0);
    told.set_mode(&seed(), Mode::Frozen).unwrap();
    untold.slots[0].mode = Mode::Frozen;
    told.take_counts();
    untold.take_counts();
    let kept = bits(&untold, "slot-a");
    let losses = [&mut told, &mut untold].map(|network| step(network, ROWS, 1).loss);
    assert_eq!(losses[0].to_bits(), losses[1].to_bits());
    assert_eq!(bits(&untold, "slot-a"), kept, "its numbers stand still");
    assert_eq!((told.take_counts().stale, untold.take_counts().stale), (0, 1));
}

/// The other way round: what is trained now is not left standing by a pass that was made while it was frozen.
#[test]
fn a_seed_that_blends_is_trained() {
    let mut network = grown(Mode::Shadowed);
    step(&mut network, ROWS, 0);
    let before = bits(&network, "slot-a");
    network.slots[0].mode = Mode::Live;
    step(&mut network, ROWS, 1);
    assert_ne!(bits(&network, "slot-a"), before);
    assert_eq!(network.take_counts().stale, 1);
}

#[test]
fn a_pass_that_trains_is_not_run_to_score() {
    // A graft that does something else while it trains: dropout, or statistics of the batch.
    let mut network = network(ROWS);
    network.attach(&seed(), graft("BP002", Execution::Plan), BlendMode::Convex, 0.01).unwrap();
    network.set_mode(&seed(), Mode::Live).unwrap();
    let features = rows(ROWS, 5).0;
    let expected = network.logits(&features, ROWS).unwrap();
    let training = network.compile(ROWS).unwrap().host;
    network.evaluations.insert(ROWS, training);
    assert_eq!(network.logits(&features, ROWS).unwrap(), expected);
    assert_eq!(network.take_counts().stale, 1);
    step(&mut network, ROWS, 0);
    network.passes.as_mut().unwrap().host = network.compile_evaluation(ROWS).unwrap();
    assert!(step(&mut network, ROWS, 1).gradient_norm > 0.0, "a step trains");
    assert_eq!(network.take_counts().stale, 1);
}

#[test]
fn another_batch_is_taken_by_passes_made_for_it() {
    for mode in [Mode::Isolated, Mode::Live] {
        let mut one = grown(mode);
        step(&mut one, ROWS, 0);
        let mut other = one.store.clone();
        assert_eq!(one.take_counts().stale, 0);
        let larger = step(&mut one, 2 * ROWS, 1);
        assert_eq!(one.take_counts().stale, 1, "{mode:?}");
        // The same as in a network that never knew another batch.
        let mut fresh = grown(mode);
        fresh.batch = 2 * ROWS;
        step(&mut fresh, ROWS, 0);
        fresh.changed();
        std::mem::swap(&mut fresh.store, &mut other);
        assert_eq!(step(&mut fresh, 2 * ROWS, 1).loss.to_bits(), larger.loss.to_bits());
        let found = step(&mut one, ROWS, 2);
        assert!(found.loss.is_finite());
        assert_eq!(one.take_counts().stale, 1, "and back again");
    }
    let mut network = grown(Mode::Live);
    let (features, labels) = rows(ROWS, 0);
    let fault = network.step(&features[2..], &labels).unwrap_err();
    assert!(matches!(fault, NetworkError::Run(RunError::Size { .. })), "{fault:?}");
}

/// A kernel whose plan the forge found wrong is interpreted wherever it takes part, and the numbers are those of a right
/// plan but for rounding.
#[test]
fn what_is_forbidden_to_plan_is_interpreted_with_the_same_numbers() {
    let reason = Fallback::Asked { reason: "the forge said so".to_owned() };
    let forbidden = Execution::Interpreter { reason };
    let mut networks = [Execution::Plan, forbidden].map(|execution| {
        let mut network = network(ROWS);
        network.attach(&seed(), graft("BP009", execution), BlendMode::Convex, 0.01).unwrap();
        network
    });
    let modes = [
        (Mode::Isolated, 1),
        (Mode::Blended, 1),
        (Mode::Shadowed, 1),
        (Mode::Live, 1),
        (Mode::Frozen, 1),
        (Mode::Joint, 1),
        (Mode::Identity, 0),
    ];
    for (mode, interpreted) in modes {
        for network in &mut networks {
            network.set_mode(&seed(), mode).unwrap();
            network.set_alpha(&seed(), 0.5).unwrap();
            network.take_counts();
        }
        for number in 0..5 {
            let [planned, run] = networks.each_mut().map(|network| step(network, ROWS, number));
            let seeds = |outcome: &StepOutcome| {
                outcome.seeds.iter().map(|seed| seed.loss).collect::<Vec<_>>()
            };
            let pairs = seeds(&planned).into_iter().zip(seeds(&run));
            for (one, two) in pairs.chain([(planned.loss, run.loss)]) {
                assert!((one - two).abs() <= 1e-4 * one.abs().max(1.0), "{mode:?}: {one} {two}");
            }
        }
        let counts = networks.each_mut().map(Network::take_counts);
        assert_eq!(counts[0].composed, counts[1].composed);
        assert_eq!(counts.map(|counts| counts.stale), [0; 2], "{mode:?}");
        let found = counts.map(|counts| counts.interpreted);
        assert_eq!(found, [0, interpreted], "{mode:?}: only the passes that compute it");
    }
}

/// What a pass is made for is what it is then asked for, whatever grows: else each step would make it anew.
#[test]
fn no_blueprint_has_passes_made_anew() {
    let shape = HostShape { width: 32, ..SHAPE };
    let slots = ["slot-a".into(), "slot-b".into()];
    let mut network = Network::new(shape, &slots, ROWS, 0.01, 1).unwrap();
    for blueprint in karn::catalogue().iter().filter(|blueprint| blueprint.graftable()) {
        let site = karn::Site::Vector { features: shape.width };
        let graph = karn::build(blueprint, &blueprint.midpoints(), &site).unwrap();
        let graft = Graft { params: graph.init_params(3), graph, execution: Execution::Plan };
        for slot in &slots {
            network.attach(slot, graft.clone(), BlendMode::Convex, 0.01).unwrap();
        }
        let modes = [
            [Mode::Isolated, Mode::Isolated],
            [Mode::Live, Mode::Blended],
            [Mode::Frozen, Mode::Shadowed],
            [Mode::Joint, Mode::Joint],
        ];
        for pair in modes {
            slots.iter().zip(pair).for_each(|(slot, mode)| network.set_mode(slot, mode).unwrap());
            for number in 0..2 {
                step(&mut network, ROWS, number);
                network.logits(&rows(ROWS, number).0, ROWS).unwrap();
            }
            let found = network.take_counts();
            let isolated = pair.iter().filter(|mode| **mode == Mode::Isolated).count() as u64;
            let once = PassCounts { composed: 2 + isolated, interpreted: 0, stale: 0 };
            assert_eq!(found, once, "{} {pair:?}", blueprint.id());
        }
        slots.iter().for_each(|slot| network.detach(slot).unwrap());
    }
}
