//! Stressors in a whole run: commands germinate each of them while a host trains, each is caught and culled for what it
//! does, and the host is to the bit what it would have been. Those of ordinary operators again under another name, where
//! no list of names can stop them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use kasmina::{
    FetchOrder, FetchedKernel, Life, ORDERS_MAX, Parts, Prefetch, PrefetchConfig, PrefetchDesk,
    RESULTS_MAX, TrainerEnd,
};
use kernel::artifact::{Kernel, Manifest, write_bytes};
use kernel::quarantine::{Budget, Subject};
use kernel::{Execution, Graph};
use leyline::command::sign_command;
use leyline::ids::RunId;
use leyline::sign::{Keyring, Secret};
use leyline::time::{now_unix_ms, timestamp};
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{AdaptationCommand, CommandSeedOperation, CommandType, SeedOperation};
use leyline::{Gate, Message, Stage};
use oona::{Bus, Heartbeat, LogChoice};
use prometheus_client::registry::Registry;
use tamiyo::LivePolicy;

use super::*;
use crate::config::{Comparison, Config};
use crate::data::Source;
use crate::publisher::Outgoing;

/// Each stressor with the value of its parameter and the reason for which it is caught.
const STRESSORS: [(&str, &str, f32, &str); 8] = [
    ("BP043", "scale", 20.0, "gradient_exploded"),
    ("BP044", "decay", 0.05, "gradient_vanished"),
    ("BP045", "frequency", 0.05, "not_finite"),
    // The shortest loop: each run of it takes 100 ms.
    ("BP046", "iterations", 1000.0, "too_slow"),
    ("BP047", "growth_rate", 3.0, "memory_grew"),
    ("BP048", "threads", 4.0, "deadlocked"),
    ("BP049", "window_ns", 505.0, "not_repeatable"),
    ("BP050", "epsilon", 0.5, "harmful"),
];

/// More epochs than any seed here lives, embargo included.
const LIFE_MAX: u32 = 120;
/// Epochs after which the host alone learns nothing more worth the name.
const FLAT_AFTER: u32 = 40;

fn prepared() -> Prepared {
    let config = Config {
        slots: 1,
        // Too few for the policy to grow anything by itself; the test turns the epochs.
        epochs_max: 1,
        training_epochs: 2,
        attach_after_epochs: 1,
        kernel_wait_max: Duration::from_secs(60),
        epoch_time_min: Duration::ZERO,
        comparison: Comparison::Skip,
        ..Config::new(RunId::from("run"), Source::Moons(Default::default()), 7)
    };
    Prepared::load(config).unwrap()
}

fn keyring() -> Keyring {
    Keyring::new(&Secret::new("a secret for the tests"), None)
}

/// A run that the test turns, with what it says to the outside.
struct Run {
    training: Training,
    said: JoinHandle<Vec<Outgoing>>,
    commands: u32,
}

/// A run that withholds nothing, whose kernels come from this end.
fn run(TrainerEnd { orders, results }: TrainerEnd) -> Run {
    let prepared = prepared();
    let metrics = Metrics::unregistered();
    let (outbox, outbox_end) = Outbox::new(&metrics);
    let said = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut said = Vec::new();
            while let Some(outgoing) = outbox_end.recv().await {
                said.push(outgoing);
            }
            said
        })
    });
    let config = prepared.policy_config(tamiyo::Config::default());
    let tamiyo_metrics = tamiyo::Metrics::register(&mut Registry::default());
    let (reports, _) = tamiyo::report_queue(&config.reports, &tamiyo_metrics);
    let parts = Parts {
        run: prepared.config.run.clone(),
        keyring: Some(keyring()),
        orders,
        metrics: kasmina::Metrics::register(&mut Registry::default()),
    };
    let manager = SeedManager::new(prepared.kasmina_config(), parts);
    let live = LivePolicy::built_in(&config.growth);
    let policy = Policy::new(config, live, keyring());
    let (progress, _) = watch::channel(Progress::default());
    let channels = Channels { fetched: results, outbox, reports, progress, metrics };
    let training = Training::new(prepared, manager, policy, channels).unwrap();
    Run { training, said, commands: 0 }
}

/// A run that nobody gives a kernel.
fn run_alone() -> Run {
    let (orders, _) = mpsc::channel(1);
    let (_, results) = mpsc::channel(1);
    run(TrainerEnd { orders, results })
}

impl Run {
    /// The seed of its one slot.
    fn seed(&self) -> SeedId {
        self.training.seeds[0].clone()
    }

    fn stage(&self) -> Stage {
        self.training.manager.stage(&self.seed()).unwrap()
    }

    fn epoch(&mut self) {
        assert!(self.training.epoch(&CancellationToken::new()).unwrap());
    }

    /// Carries out a signed command that germinates a blueprint.
    fn germinate(&mut self, blueprint: &str, parameters: BTreeMap<String, f32>) {
        self.commands += 1;
        let mut command = AdaptationCommand {
            command_id: format!("command {}", self.commands),
            command_type: CommandType::CommandSeed as i32,
            target_seed_id: self.seed().to_string(),
            issued_at: Some(timestamp(now_unix_ms())),
            payload: Some(Payload::SeedOperation(CommandSeedOperation {
                operation: SeedOperation::SeedOpGerminate as i32,
                blueprint_id: blueprint.to_owned(),
                parameters,
            })),
            ..AdaptationCommand::default()
        };
        sign_command(&keyring(), &mut command);
        let now = self.training.clock.now();
        let effects = self.training.manager.apply(&command, now).unwrap();
        self.training.carry_out(effects).unwrap();
    }

    /// Why the seed was culled, while its slot is embargoed.
    fn reason(&self) -> Option<String> {
        match self.training.manager.seed(&self.seed()).unwrap().life() {
            Life::Embargoed { rollback, .. } => Some(rollback.reason.clone()),
            _ => None,
        }
    }

    /// The host's own numbers, to the bit.
    fn host(&self) -> Vec<u32> {
        let (names, params) =
            (self.training.network.host_parameters(), self.training.network.params());
        let values = names.iter().flat_map(|name| params.get(name).unwrap().data().to_vec());
        values.map(f32::to_bits).collect()
    }

    /// Loss of training and validation of each epoch, to the bit.
    fn curve(&self) -> Vec<[u32; 3]> {
        let history = self.training.history.iter();
        history
            .map(|epoch| {
                [epoch.training_loss, epoch.validation_loss, epoch.validation_accuracy]
                    .map(f32::to_bits)
            })
            .collect()
    }

    /// The gates that closed, with what each said.
    fn closed(self) -> Vec<(String, String)> {
        drop(self.training);
        let mut closed = Vec::new();
        for outgoing in self.said.join().unwrap() {
            let Message::Telemetry(packet) = outgoing.message else { continue };
            for event in packet.events {
                let said = |name: &str| event.attributes.get(name).cloned().unwrap_or_default();
                if event.description == "gate_event" && said("passed") == "false" {
                    closed.push((said("gate"), said("reason")));
                }
            }
        }
        closed
    }
}

/// The prefetch coordinator, with quarantine, on a thread of its own until `stop`.
fn coordinator(
    directory: &Path,
    metrics: &kasmina::Metrics,
    stop: &CancellationToken,
) -> (TrainerEnd, JoinHandle<()>) {
    let (desk, end) = PrefetchDesk::new(PrefetchConfig::default());
    let (path, metrics, stop) = (directory.join("log.redb"), metrics.clone(), stop.clone());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let log = LogChoice::Embedded { path };
            let config = oona::Config { log, ..oona::Config::default() };
            let bus = Bus::open(config, keyring(), oona::Metrics::detached()).await.unwrap();
            let heartbeat = Heartbeat::detached();
            let worker = Prefetch { bus, run: "run".into(), desk, metrics, heartbeat };
            worker.run(stop).await.unwrap();
        });
    });
    (end, thread)
}

#[test]
fn every_stressor_is_culled_and_the_host_is_what_it_would_have_been() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = kasmina::Metrics::register(&mut Registry::default());
    let stop = CancellationToken::new();
    let (end, thread) = coordinator(directory.path(), &metrics, &stop);
    let mut stressed = run(end);
    let mut alone = run_alone();
    for (id, parameter, value, verdict) in STRESSORS {
        stressed.germinate(id, [(parameter.to_owned(), value)].into());
        assert_eq!(stressed.stage(), Stage::Germinated, "{id}");
        let mut reasons = Vec::new();
        for _ in 0..LIFE_MAX {
            stressed.epoch();
            alone.epoch();
            reasons.extend(stressed.reason());
            assert!(!stressed.training.network.has_graft(&stressed.seed()), "{id}");
            assert_eq!(stressed.host(), alone.host(), "{id}: the host was touched");
            if stressed.stage() == Stage::Dormant {
                break;
            }
        }
        assert_eq!(stressed.stage(), Stage::Dormant, "{id}: the slot is free again");
        let reason = reasons.first().unwrap_or_else(|| panic!("{id} was not culled"));
        assert!(reason.starts_with("caught in quarantine: "), "{id}: {reason}");
        assert_eq!(metrics.quarantined_total(verdict), 1, "{id}: {reason}");
    }
    assert_eq!(stressed.curve(), alone.curve());
    let journeys = stressed.training.journal.journeys();
    let ids: Vec<&str> = journeys.iter().map(|journey| journey.blueprint.as_str()).collect();
    assert_eq!(ids, STRESSORS.map(|(id, ..)| id));
    for journey in journeys {
        let stages: Vec<Stage> = journey.milestones.iter().map(|one| one.stage).collect();
        assert_eq!(stages, [Stage::Germinated, Stage::Culled], "{}", journey.blueprint);
    }
    assert_eq!((stressed.training.violations, stressed.training.rollbacks), (0, 0));
    let closed = stressed.closed();
    let gates: Vec<&str> = closed.iter().map(|(gate, _)| gate.as_str()).collect();
    assert_eq!(gates, [Gate::GradientHealth.name(); 8], "{closed:?}");
    drop(alone.closed());
    stop.cancel();
    thread.join().unwrap();
}

/// A kernel as the forge would make it of a graph.
fn kernel(name: &str, graph: Graph) -> Kernel {
    let params = graph.init_params(1);
    let site = prepared().site().to_string().into();
    let manifest = Manifest::new(name, BTreeMap::new(), site, graph, &params, 1e-4).unwrap();
    let (bytes, digest) = write_bytes(&manifest, &params).unwrap();
    Kernel::parse(&bytes, &digest).unwrap()
}

/// The graph of a stressor of ordinary operators: quarantine alone has the permit to build it.
fn graph_of(id: &str, parameter: &'static str, value: f64) -> Graph {
    let (blueprint, site) = (karn::find(&id.into()).unwrap(), prepared().site());
    let built = Arc::new(Mutex::new(None));
    let taken = Arc::clone(&built);
    let report = kernel::quarantine::run(&Budget::default(), move |permit| {
        let parameters = [(parameter, value)].into_iter().collect();
        let graph = karn::build_in_quarantine(blueprint, &parameters, &site, permit)?;
        *taken.lock().unwrap() = Some(graph.clone());
        Ok(Subject::fresh(graph, 1))
    });
    assert!(!report.unwrap().is_sound());
    built.lock().unwrap().take().unwrap()
}

/// A blueprint of a user: ten layers of gain 20, as BP043 has them.
fn amplifier() -> Graph {
    use std::fmt::Write as _;
    let mut text =
        "id = \"amplifier\"\nname = \"amplifier\"\ntier = \"safe\"\nrisk = 0.1\nstage = 1\n\
         description = \"ten layers of gain 20\"\nsites = [\"vector[32]\"]\noutput = \"louder9\"\n"
            .to_owned();
    let mut from = "input".to_owned();
    for layer in 0..10 {
        write!(
            text,
            "[[nodes]]\nname = \"weight{layer}\"\nop = \"weight\"\nshape = [\"features\"]\nstart = \"one\"\n\
             [[nodes]]\nname = \"weighted{layer}\"\nop = \"mul\"\ninputs = [\"{from}\", \"weight{layer}\"]\n\
             [[nodes]]\nname = \"louder{layer}\"\nop = \"scale\"\ninputs = [\"weighted{layer}\"]\nby = 20\n"
        )
        .unwrap();
        from = format!("louder{layer}");
    }
    let manifest = karn::Manifest::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let catalogue = karn::Catalogue::built_in().with(manifest);
    let catalogue = catalogue.unwrap_or_else(|error| panic!("{error}"));
    let blueprint = catalogue.find(&"amplifier".into()).unwrap();
    karn::build(blueprint, &blueprint.midpoints(), &prepared().site()).unwrap()
}

/// Hands every order this kernel, under the name it asks for.
fn kitchen(kernel: Kernel) -> (TrainerEnd, JoinHandle<()>) {
    let (orders, mut ordered) = mpsc::channel::<FetchOrder>(ORDERS_MAX);
    let (answers, results) = mpsc::channel(RESULTS_MAX);
    let kernel = Arc::new(kernel);
    let thread = std::thread::spawn(move || {
        while let Some(order) = ordered.blocking_recv() {
            let fetched = FetchedKernel {
                blueprint: order.blueprint,
                digest: kernel.digest(),
                path: PathBuf::from("/nowhere"),
                latency: Duration::from_millis(1),
                prewarm_p50_ms: 0.0,
                prewarm_p95_ms: 0.0,
                execution: Execution::Plan,
                kernel: Arc::clone(&kernel),
                in_use: kasmina::InUse::default(),
            };
            let (request, seed) = (order.request, order.seed);
            let answer = Fetched { step: None, request, seed, result: Ok(fetched) };
            if answers.blocking_send(answer).is_err() {
                return;
            }
        }
    });
    (TrainerEnd { orders, results }, thread)
}

/// Germinates a graph that no list knows, and says which gate closed on it and why.
fn judged(name: &str, graph: Graph) -> (String, String) {
    let (end, thread) = kitchen(kernel(name, graph));
    let mut stressed = run(end);
    let mut alone = run_alone();
    for _ in 0..FLAT_AFTER {
        stressed.epoch();
        alone.epoch();
    }
    stressed.germinate(name, BTreeMap::new());
    let mut is_blended = false;
    for _ in 0..LIFE_MAX {
        stressed.epoch();
        alone.epoch();
        is_blended |= match stressed.stage() {
            Stage::Blending | Stage::Shadowing | Stage::Probationary => true,
            Stage::Fossilized => panic!("{name} was kept"),
            _ => false,
        };
        if !is_blended {
            assert_eq!(stressed.host(), alone.host(), "{name}: the host felt it before it blended");
        }
        if stressed.reason().is_some() {
            break;
        }
    }
    let reason = stressed.reason().unwrap_or_else(|| panic!("{name} was not culled"));
    assert!(!stressed.training.network.has_graft(&stressed.seed()));
    assert_eq!(stressed.training.violations, 0, "{name}: no gradient came through the seed");
    // What the host learnt meanwhile or lost is finite, and it goes on.
    stressed.epoch();
    assert!(stressed.host().iter().all(|bits| f32::from_bits(*bits).is_finite()), "{name}");
    let closed = stressed.closed();
    let [(gate, said)] = closed.as_slice() else { panic!("{name}: {closed:?}") };
    assert_eq!(*said, reason);
    drop(alone.closed());
    thread.join().unwrap();
    (gate.clone(), reason)
}

#[test]
fn a_stressor_under_another_name_is_culled_by_the_gates() {
    let health = Gate::GradientHealth.name();
    let cases = [
        ("amplifier", amplifier(), health, "exploded"),
        ("loud", graph_of("BP043", "scale", 20.0), health, "exploded"),
        ("quiet", graph_of("BP044", "decay", 0.05), health, "vanished"),
        ("holes", graph_of("BP045", "frequency", 0.05), health, "no finite number"),
        ("noise", graph_of("BP050", "epsilon", 1.0), Gate::SystemImpact.name(), "no improvement"),
    ];
    for (name, graph, gate, part) in cases {
        let (found, reason) = judged(name, graph);
        assert!(found == gate && reason.contains(part), "{name}: {found}: {reason}");
    }
}
