//! A seed manager with two slots, its queue of orders, a clock, and what a policy and a trainer do.

use std::sync::Arc;
use std::time::Duration;

use kasmina::{
    CommandError, Config, Effect, FetchFailure, FetchOrder, Fetched, FetchedKernel, Interface,
    Limits, Metrics, Now, Observation, OutputScale, Parts, SeedManager, Slot, Validation,
};
use kernel::artifact::{Kernel, Manifest, write_bytes};
use kernel::{Execution, Graph};
use leyline::Stage;
use leyline::command::sign_command;
use leyline::ids::SeedId;
use leyline::sign::{Keyring, Secret};
use leyline::time::timestamp;
use leyline::wire::adaptation_command::Payload;
use leyline::wire::{
    AdaptationCommand, CommandSeedOperation, CommandType, SeedOperation, TelemetryLevel,
};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

pub fn keyring() -> Keyring {
    Keyring::new(&Secret::new("a secret of some length"), None)
}

pub fn limits() -> Limits {
    Limits {
        training_steps_min: 5,
        shadow_steps_min: 3,
        probation_epochs_min: 2,
        ..Limits::default()
    }
}

pub struct Rig {
    pub manager: SeedManager,
    pub metrics: Metrics,
    pub orders: mpsc::Receiver<FetchOrder>,
    pub now: Now,
    commands: u32,
}

pub fn rig() -> Rig {
    rig_with(Config { limits: limits(), ..Config::default() }, 8)
}

pub fn rig_with(config: Config, orders_max: usize) -> Rig {
    let (orders, ordered) = mpsc::channel(orders_max);
    let metrics = Metrics::register(&mut Registry::default());
    let parts =
        Parts { run: "run".into(), keyring: Some(keyring()), orders, metrics: metrics.clone() };
    let mut manager = SeedManager::new(config, parts);
    manager.register_host(&["host/w".to_owned()]).unwrap();
    for (depth, id) in ["s1", "s2"].into_iter().enumerate() {
        let slot = Slot { seed: id.into(), layer_depth: depth as u32 + 1, shape: vec![32] };
        manager.register_slot(slot).unwrap();
    }
    manager.note_validation(Validation { loss: 0.7, accuracy: 0.5 });
    let now = Now { unix_ms: 1_700_000_000_000, ..Now::default() };
    Rig { manager, metrics, orders: ordered, now, commands: 0 }
}

pub fn s1() -> SeedId {
    "s1".into()
}

pub fn operation(kind: SeedOperation, blueprint: &str) -> Payload {
    Payload::SeedOperation(CommandSeedOperation {
        operation: kind as i32,
        blueprint_id: blueprint.to_owned(),
        ..CommandSeedOperation::default()
    })
}

/// The file of a linear kernel of a width, with parameters `w.weight` and `w.bias`.
pub fn linear_artifact(blueprint: &str, width: usize) -> Vec<u8> {
    let mut graph = Graph::new();
    let input = graph.input("input", &[8, width]).unwrap();
    let output = graph.linear_layer(input, "w", width).unwrap();
    graph.output("output", output).unwrap();
    let params = graph.init_params(1);
    let site = serde_json::json!({ "vector": { "features": width } });
    let manifest = Manifest::new(blueprint, [].into(), site, graph, &params, 1e-5).unwrap();
    write_bytes(&manifest, &params).unwrap().0
}

pub fn linear_kernel(blueprint: &str, width: usize) -> Kernel {
    let bytes = linear_artifact(blueprint, width);
    Kernel::parse(&bytes, &kernel::Digest::of(&bytes)).unwrap()
}

/// The linear kernel of a width, as fetched for an order.
pub fn fetched(order: &FetchOrder, width: usize) -> FetchedKernel {
    let kernel = linear_kernel(order.blueprint.as_str(), width);
    FetchedKernel {
        blueprint: order.blueprint.clone(),
        digest: kernel.digest(),
        path: "/kernel".into(),
        latency: Duration::from_millis(3),
        prewarm_p50_ms: 0.1,
        prewarm_p95_ms: 0.2,
        execution: Execution::Plan,
        kernel: Arc::new(kernel),
        in_use: kasmina::InUse::default(),
    }
}

/// What a trainer measures of a healthy seed in a step.
pub fn healthy() -> Observation {
    Observation {
        loss: Some(0.4),
        gradient_norm: Some(0.2),
        host_gradient_norm: Some(0.0),
        learning_rate: Some(0.003),
        latency_ms: Some(0.1),
        output: Some(OutputScale { host_rms: 1.0, seed_rms: 1.5 }),
        interface: Some(Interface::Matches),
        validation: None,
    }
}

impl Rig {
    pub fn wait(&mut self, time: Duration) -> Vec<Effect> {
        self.now.elapsed += time;
        self.now.unix_ms += time.as_millis() as u64;
        self.manager.tick(self.now)
    }

    /// A signed command; `change` happens before signing.
    pub fn command(
        &mut self,
        kind: CommandType,
        payload: Option<Payload>,
        change: impl FnOnce(&mut AdaptationCommand),
    ) -> AdaptationCommand {
        self.commands += 1;
        let mut command = AdaptationCommand {
            command_id: format!("c{}", self.commands),
            command_type: kind as i32,
            target_seed_id: "s1".to_owned(),
            issued_at: Some(timestamp(self.now.unix_ms)),
            payload,
            ..AdaptationCommand::default()
        };
        change(&mut command);
        sign_command(&keyring(), &mut command);
        command
    }

    pub fn apply(
        &mut self,
        kind: CommandType,
        payload: Option<Payload>,
        change: impl FnOnce(&mut AdaptationCommand),
    ) -> Result<Vec<Effect>, CommandError> {
        let command = self.command(kind, payload, change);
        self.manager.apply(&command, self.now)
    }

    pub fn operate(&mut self, kind: SeedOperation) -> Result<Vec<Effect>, CommandError> {
        self.apply(CommandType::CommandSeed, Some(operation(kind, "BP009")), |_| {})
    }

    /// Germinates s1 and hands back the order for its kernel.
    pub fn germinate(&mut self) -> FetchOrder {
        self.operate(SeedOperation::SeedOpGerminate).unwrap();
        self.orders.try_recv().unwrap()
    }

    pub fn answer(&mut self, order: &FetchOrder, result: Result<(), FetchFailure>) -> Vec<Effect> {
        self.hand(order, result.map(|()| fetched(order, 32)))
    }

    /// Hands over what the coordinator would.
    pub fn hand(
        &mut self,
        order: &FetchOrder,
        result: Result<FetchedKernel, FetchFailure>,
    ) -> Vec<Effect> {
        let (request, seed) = (order.request.clone(), order.seed.clone());
        self.manager.on_fetched(Fetched { step: None, request, seed, result }, self.now)
    }

    pub fn step(&mut self, seen: Observation) -> Vec<Effect> {
        self.now.step += 1;
        self.manager.advance(&s1(), &seen, self.now).unwrap()
    }

    /// Steps with healthy observations until s1 is in a stage; says how many it took.
    pub fn step_until(&mut self, stage: Stage) -> u32 {
        for steps in 0..1000 {
            if self.stage() == stage {
                return steps;
            }
            let validation = (self.stage() == Stage::Probationary)
                .then_some(Validation { loss: 0.3, accuracy: 0.95 });
            self.step(Observation { validation, ..healthy() });
        }
        panic!("s1 stays {:?}", self.stage());
    }

    /// s1 in a stage reached the honest way.
    pub fn grown_to(stage: Stage) -> Self {
        let mut rig = rig();
        if stage == Stage::Dormant {
            return rig;
        }
        let order = rig.germinate();
        if stage != Stage::Germinated {
            rig.answer(&order, Ok(()));
            rig.step_until(stage);
        }
        rig
    }

    pub fn stage(&self) -> Stage {
        self.manager.stage(&s1()).unwrap()
    }

    /// Names and levels of the events that wait.
    pub fn events(&mut self) -> Vec<(String, TelemetryLevel)> {
        let packets = self.manager.drain_telemetry(self.now);
        let events = packets.into_iter().flat_map(|packet| packet.packet.events);
        events.map(|event| (event.description.clone(), event.level())).collect()
    }
}

/// The stages a list of effects moves through.
pub fn moves(effects: &[Effect]) -> Vec<Stage> {
    let stage = |effect: &Effect| match effect {
        Effect::Moved { moved, .. } => Some(moved.to),
        _ => None,
    };
    effects.iter().filter_map(stage).collect()
}
