//! Grows a host on two spirals by a fixed schedule, without service, bus and policy: what the engine and the host can do.
//! `cargo run --release -p tolaria --example spirals`

use kasmina::{BlendMode, Ramp};
use leyline::ids::SeedId;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use tolaria::data::{Dataset, Part, Source, Split};
use tolaria::host::{HostShape, Mode};
use tolaria::{Graft, Network};

fn epoch(
    network: &mut Network,
    part: &Part,
    rng: &mut rand_chacha::ChaCha8Rng,
    ramp: &mut Option<(SeedId, u32)>,
) {
    let mut order: Vec<usize> = (0..part.rows()).collect();
    order.shuffle(rng);
    for rows in order.chunks_exact(network.batch()) {
        let x: Vec<f32> = rows.iter().flat_map(|row| part.row(*row)).copied().collect();
        let y: Vec<f32> = rows.iter().map(|row| part.labels[*row]).collect();
        if let Some((seed, step)) = ramp {
            *step += 1;
            network
                .set_alpha(seed, Ramp { steps: 48, temperature: 4.8 }.alpha(*step))
                .expect("slot");
        }
        network.step(&x, &y).expect("step");
    }
}

fn main() {
    let started = std::time::Instant::now();
    for seed in 1..=5 {
        let data: Dataset = Source::Spirals(Default::default()).load(seed).expect("data");
        let split = Split::of(&data, seed);
        let shape = HostShape { features: 2, width: 32, classes: 2 };
        let slots: Vec<SeedId> = ["A", "B"].map(SeedId::from).into();
        let blueprint = karn::find(&"BP009".into()).expect("BP009");
        let graph =
            karn::build(blueprint, &blueprint.midpoints(), &karn::Site::Vector { features: 32 })
                .expect("graph");
        let mut network = Network::new(shape, &slots, 32, 0.003, seed).expect("network");
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut none = None;
        for _ in 0..30 {
            epoch(&mut network, &split.train, &mut rng, &mut none);
        }
        print!("seed {seed}: host {:?} ", network.evaluate(&split.test).expect("score"));
        for slot in &slots {
            let graft = Graft {
                graph: graph.clone(),
                params: graph.init_params(seed),
                execution: kernel::Execution::Plan,
            };
            network.attach(slot, graft, BlendMode::Convex, 0.003).expect("attach");
            for _ in 0..20 {
                epoch(&mut network, &split.train, &mut rng, &mut none);
            }
            network.set_mode(slot, Mode::Blended).expect("mode");
            let mut ramp = Some((slot.clone(), 0));
            epoch(&mut network, &split.train, &mut rng, &mut ramp);
            epoch(&mut network, &split.train, &mut rng, &mut ramp);
            print!("| blended {:?} ", network.evaluate(&split.validation).expect("score"));
            network.set_mode(slot, Mode::Live).expect("mode");
            for _ in 0..10 {
                epoch(&mut network, &split.train, &mut rng, &mut none);
            }
            network.set_mode(slot, Mode::Frozen).expect("mode");
            print!("| live {:?} ", network.evaluate(&split.test).expect("score"));
        }
        println!("| {} parameters, {:?}", network.parameter_count(), started.elapsed());
    }
}
