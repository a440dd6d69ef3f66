//! Policy updates over an embedded bus: what is taken, what is refused, and why.

use std::collections::HashMap;
use std::path::Path;

use leyline::Message;
use leyline::wire::{MessagePriority, PolicyUpdate};
use oona::{Bus, ConsumerSpec, Heartbeat, Stream};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tamiyo::{
    ARCHITECTURE, Config, Metrics, PolicyStore, PolicyUpdates, Rejection, Weights, encode,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::rig::{PATIENCE, Rig, bus};

/// The built-in policy with another patience.
pub fn patient(epochs: u32) -> Weights {
    let mut weights = Weights::built_in(&tamiyo::Growth::default());
    weights.plateau.patience_epochs = epochs;
    weights
}

/// A good update.
pub fn payload(weights: &Weights, sequence: u64) -> PolicyUpdate {
    PolicyUpdate {
        version: 1,
        policy_id: format!("policy-{sequence}"),
        training_run_id: "run-1".to_owned(),
        issued_at: Some(leyline::time::timestamp(leyline::time::now_unix_ms())),
        tamiyo_policy_version: ARCHITECTURE.to_owned(),
        payload: encode(weights, sequence),
    }
}

/// A bus, a store, and what the worker needs.
pub struct Desk {
    pub bus: Bus,
    pub store: PolicyStore,
    pub config: Config,
    pub metrics: Metrics,
}

impl Desk {
    pub async fn new(dir: &Path) -> Self {
        Self::with_config(Config::at(dir), dir).await
    }

    async fn with_config(config: Config, dir: &Path) -> Self {
        let (store, _) = PolicyStore::open(&config).unwrap();
        Self { bus: bus(dir).await, store, config, metrics: Metrics::detached() }
    }

    /// Sends an update and lets the worker run until it is settled.
    pub async fn send(&self, update: PolicyUpdate) {
        let group = self.config.updates.group.as_str();
        self.bus.ensure_groups(&[(Stream::Policy, group)]).await.unwrap();
        let message = Message::from(update);
        let sent = self.bus.publish(Stream::Policy, MessagePriority::Normal, "simic", &message);
        assert!(sent.await.unwrap().is_sent());
        let stop = CancellationToken::new();
        let worker = PolicyUpdates {
            bus: self.bus.clone(),
            store: self.store.clone(),
            settings: self.config.updates.clone(),
            metrics: self.metrics.clone(),
            heartbeat: Heartbeat::detached(),
        };
        let settled = async {
            while self.bus.depth(Stream::Policy, group).await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let (ended, ()) =
            timeout(PATIENCE, futures(worker.run(stop.clone()), settled)).await.unwrap();
        ended.unwrap();
    }

    /// Sends an update that must be taken.
    pub async fn take(&self, update: PolicyUpdate) {
        let before = self.refusals();
        let digest = kernel::Digest::of(&update.payload);
        self.send(update).await;
        assert_eq!(self.refusals(), before);
        assert_eq!(self.store.live().load().identity.digest, Some(digest));
    }

    /// Sends an update that must be refused for this reason, and change nothing.
    pub async fn refused(&self, update: PolicyUpdate, reason: Rejection) {
        let (before, live) = (self.refusals(), self.store.live().load());
        self.send(update).await;
        let mut expected = before;
        *expected.entry(reason.name()).or_default() += 1;
        assert_eq!(self.refusals(), expected);
        assert_eq!(self.store.live().load(), live, "{reason:?} changed the live policy");
    }

    fn refusals(&self) -> std::collections::BTreeMap<&'static str, u64> {
        Rejection::ALL.map(|reason| (reason.name(), self.metrics.rejected_total(reason))).into()
    }
}

async fn futures<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    tokio::join!(a, b)
}

/// The payload taken apart, changed, and put together again.
fn edited(
    change: impl FnOnce(&mut HashMap<String, String>, &mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>),
) -> Vec<u8> {
    let bytes = encode(&patient(7), 9);
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut entries = header.metadata().clone().unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut parts: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    change(&mut entries, &mut parts);
    let views = parts.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize(views, Some(entries)).unwrap()
}

fn tensor(name: &'static str, shape: &'static [usize], values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    edited(|_, parts| {
        parts.retain(|part| part.0 != name);
        parts.push((name.to_owned(), Dtype::F32, shape.to_vec(), data));
    })
}

/// `pickle.dumps({"a": [1.0]}, protocol=4)`, and a protocol 0 pickle that would call `os.system`.
const PICKLES: [&[u8]; 2] = [
    b"\x80\x04\x95\x14\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94]\x94G?\xf0\x00\x00\x00\x00\x00\x00as.",
    b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
];

#[tokio::test]
async fn a_good_update_is_taken_and_seen_by_the_next_decision() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(dir.path()).await;
    let mut rig = Rig::with_live(crate::rig::config(), desk.store.live().clone());
    let before = rig.epoch(1.0).policy_version;
    let mut weights = patient(1);
    weights.plateau.warm_up_epochs = 0;
    weights.blueprint_bias[9] = 100.0;
    desk.take(payload(&weights, 1)).await;
    let decision = rig.until_command(1.0);
    assert_eq!(crate::rig::blueprint(&decision), "BP010");
    assert_eq!(rig.epoch, 2, "the new patience is one epoch");
    assert_eq!(before, ARCHITECTURE);
}

#[tokio::test]
async fn what_is_refused_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(dir.path()).await;
    desk.take(payload(&patient(5), 5)).await;
    let good = || payload(&patient(6), 6);
    let with = |bytes: Vec<u8>| PolicyUpdate { payload: bytes, ..good() };
    let now = leyline::time::now_unix_ms();
    let issued = |ms| PolicyUpdate { issued_at: Some(leyline::time::timestamp(ms)), ..good() };

    use Rejection::*;
    for (update, reason) in [
        (PolicyUpdate { tamiyo_policy_version: String::new(), ..good() }, VersionMismatch),
        (
            PolicyUpdate { tamiyo_policy_version: "tamiyo_gnn_v1".to_owned(), ..good() },
            VersionMismatch,
        ),
        (PolicyUpdate { issued_at: None, ..good() }, StaleUpdate),
        (issued(now - 400_000), StaleUpdate),
        (issued(now + 60_000), StaleUpdate),
        (payload(&patient(6), 4), StaleUpdate),
        (payload(&patient(6), 5), StaleUpdate),
        (with(PICKLES[0].to_vec()), InvalidPayload),
        (with(PICKLES[1].to_vec()), InvalidPayload),
        (with(b"PK\x03\x04archive/data.pkl".to_vec()), InvalidPayload),
        (with(vec![0; 70_000]), InvalidPayload),
        (with(good().payload[..200].to_vec()), InvalidPayload),
        (
            with(edited(|header, _| {
                header.remove("sequence");
            })),
            InvalidPayload,
        ),
        (
            with(edited(|header, _| {
                header.insert("sequence".into(), "-1".into());
            })),
            InvalidPayload,
        ),
        (
            with(edited(|header, _| {
                header.insert("architecture".into(), "other".into());
            })),
            ShapeMismatch,
        ),
        (
            with(edited(|header, _| {
                header.remove("architecture");
            })),
            ShapeMismatch,
        ),
        (
            with(edited(|header, _| {
                header.insert("registry_digest".into(), "00".into());
            })),
            RegistryMismatch,
        ),
        (
            with(edited(|header, _| {
                header.remove("registry_digest");
            })),
            RegistryMismatch,
        ),
        (
            with(edited(|_, parts| {
                parts.pop();
            })),
            ShapeMismatch,
        ),
        (with(edited(|_, parts| parts[0].0 = "renamed".into())), ShapeMismatch),
        (
            with(edited(|_, parts| parts.push(("more".into(), Dtype::U8, vec![1], vec![0])))),
            ShapeMismatch,
        ),
        (
            with(edited(|_, parts| {
                for part in parts {
                    part.1 = Dtype::I32;
                }
            })),
            ShapeMismatch,
        ),
        (with(tensor("blueprint.bias", &[49], &[0.0; 49])), ShapeMismatch),
        (with(tensor("risk.weights", &[4, 5], &[0.0; 20])), ShapeMismatch),
        (with(tensor("risk.bias", &[5], &[0.0, f32::NAN, 0.0, 0.0, 0.0])), IncompatibleUpdate),
        (
            with(tensor("candidate.weights", &[4], &[0.0, f32::INFINITY, 0.0, 0.0])),
            IncompatibleUpdate,
        ),
        (with(tensor("plateau.patience", &[1], &[0.0])), IncompatibleUpdate),
        (with(tensor("plateau.patience", &[1], &[2.5])), IncompatibleUpdate),
        (with(tensor("plateau.smoothing", &[1], &[1.5])), IncompatibleUpdate),
        (with(tensor("verdict.thresholds", &[2], &[-0.1, 0.1])), IncompatibleUpdate),
    ] {
        desk.refused(update, reason).await;
    }
    desk.take(good()).await;
}

#[tokio::test]
async fn a_refused_update_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(dir.path()).await;
    desk.refused(
        PolicyUpdate { payload: PICKLES[0].to_vec(), ..payload(&patient(1), 1) },
        Rejection::InvalidPayload,
    )
    .await;
    let mut consumer = desk.bus.consumer(ConsumerSpec::new(Stream::Telemetry, "reader"));
    let told = timeout(PATIENCE, consumer.recv()).await.unwrap().unwrap();
    let Message::Telemetry(packet) = &told.message else { panic!("{told:?}") };
    assert_eq!(packet.events[0].description, "policy_update_rejected");
    assert_eq!(packet.events[0].attributes["reason"], "invalid_payload");
    // The next worker on the same group sees the next update only.
    desk.take(payload(&patient(3), 2)).await;
    assert_eq!(desk.metrics.rejected_total(Rejection::InvalidPayload), 1);
    assert_eq!(desk.bus.len(Stream::DeadLetter).await.unwrap(), 0);
}

#[tokio::test]
async fn the_policy_in_force_sent_again_is_no_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(dir.path()).await;
    let update = payload(&patient(7), 1);
    desk.take(update.clone()).await;
    desk.take(update).await;
    assert_eq!(desk.store.live().previous().unwrap().identity.policy_id, "built_in");
}

#[tokio::test]
async fn an_empty_payload_changes_the_label_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::at(dir.path());
    config.updates.verification = tamiyo::Verification::PayloadOnly;
    let desk = Desk::with_config(config, dir.path()).await;
    desk.take(payload(&patient(7), 1)).await;
    let label = |version: &str, ms| PolicyUpdate {
        tamiyo_policy_version: version.to_owned(),
        payload: Vec::new(),
        issued_at: Some(leyline::time::timestamp(ms)),
        ..payload(&patient(7), 1)
    };
    let now = leyline::time::now_unix_ms();
    desk.send(label("winter", now + 1000)).await;
    let live = desk.store.live().load();
    assert_eq!(live.identity.version, "winter");
    assert_eq!(live.weights, patient(7));
    desk.refused(label("autumn", now - 60_000), Rejection::StaleUpdate).await;
    let (again, _) = PolicyStore::open(&desk.config).unwrap();
    assert_eq!(again.live().load().identity.version, "winter");
}

#[tokio::test]
async fn without_verification_the_payload_is_validated_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::at(dir.path());
    config.updates.verification = tamiyo::Verification::PayloadOnly;
    let desk = Desk::with_config(config, dir.path()).await;
    let unchecked = |bytes: Vec<u8>| PolicyUpdate {
        tamiyo_policy_version: "anything".to_owned(),
        issued_at: None,
        payload: bytes,
        ..payload(&patient(1), 1)
    };
    desk.refused(unchecked(PICKLES[0].to_vec()), Rejection::InvalidPayload).await;
    desk.take(unchecked(encode(&patient(4), 2))).await;
    desk.refused(unchecked(encode(&patient(4), 1)), Rejection::StaleUpdate).await;
}

#[tokio::test]
async fn an_update_that_cannot_be_kept_is_not_in_force_and_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::at(&dir.path().join("sub"));
    config.updates.group = "swap".to_owned();
    let desk = Desk::with_config(config, dir.path()).await;
    let live = desk.store.live().load();
    std::fs::remove_dir_all(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub"), "in the way").unwrap();
    let update = payload(&patient(7), 1);
    let message = Message::from(update);
    desk.bus.ensure_groups(&[(Stream::Policy, "swap")]).await.unwrap();
    let sent = desk.bus.publish(Stream::Policy, MessagePriority::Normal, "simic", &message);
    assert!(sent.await.unwrap().is_sent());
    let stop = CancellationToken::new();
    let worker = PolicyUpdates {
        bus: desk.bus.clone(),
        store: desk.store.clone(),
        settings: desk.config.updates.clone(),
        metrics: desk.metrics.clone(),
        heartbeat: Heartbeat::detached(),
    };
    let mended = async {
        while desk.metrics.rejected_total(Rejection::SwapFailed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(desk.store.live().load(), live);
        std::fs::remove_file(dir.path().join("sub")).unwrap();
        std::fs::create_dir_all(dir.path().join("sub/policies")).unwrap();
        while desk.store.live().load().identity.sequence == 0 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (ended, ()) = timeout(PATIENCE, futures(worker.run(stop.clone()), mended)).await.unwrap();
    ended.unwrap();
    assert_eq!(desk.store.live().load().weights, patient(7));
}

#[test]
fn a_policy_survives_its_own_format() {
    let weights = patient(7);
    assert_eq!(tamiyo::decode(&encode(&weights, 12), 1 << 16).unwrap(), (weights, 12));
}

#[test]
fn no_cut_policy_is_read() {
    let bytes = encode(&patient(7), 12);
    for cut in 0..bytes.len() {
        assert!(tamiyo::decode(&bytes[..cut], 1 << 16).is_err(), "cut at {cut}");
    }
}
