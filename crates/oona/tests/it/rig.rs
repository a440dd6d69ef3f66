//! What every test needs: a log of its own, a bus on it, messages good and bad.

use std::collections::BTreeMap;
use std::time::Duration;

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::wire::{
    BusEnvelope, BusMessageType, KernelPrefetchRequest, MessagePriority, SystemStatePacket,
};
use oona::{
    Bus, Config, Consumer, ConsumerSpec, Delivery, EntryId, LogChoice, Metrics, Outcome, Refusal,
    Stream, attributes,
};
use prost::Message as _;
use tempfile::TempDir;

use crate::redis_server::RedisServer;

/// Nothing here takes longer unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const GROUP: &str = "weatherlight";
const SECRET: &str = "a secret that only tests know";

/// One log, and how to open buses on it.
pub struct Rig {
    pub config: Config,
    pub server: Option<RedisServer>,
    _directory: TempDir,
}

impl Rig {
    pub fn embedded() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = LogChoice::Embedded { path: directory.path().join("oona/log.redb") };
        Self { config: quick(log), server: None, _directory: directory }
    }

    pub fn redis() -> Self {
        let server = RedisServer::start();
        let log = LogChoice::Redis { url: server.url() };
        let directory = tempfile::tempdir().unwrap();
        Self { config: quick(log), server: Some(server), _directory: directory }
    }

    pub async fn bus(&self) -> Bus {
        self.bus_with(|_| {}).await
    }

    /// A bus as a process of its own would have it, with settings changed.
    pub async fn bus_with(&self, change: impl FnOnce(&mut Config)) -> Bus {
        let fresh = Config::default().consumer;
        let mut config = Config { consumer: fresh, ..self.config.clone() };
        change(&mut config);
        Bus::open(config, keyring(), Metrics::detached()).await.unwrap()
    }
}

/// Production settings, but patient to the millisecond instead of the second.
pub fn quick(log: LogChoice) -> Config {
    Config {
        log,
        read_block: Duration::from_millis(100),
        consumer_ttl: Duration::from_millis(450),
        claim_idle: Duration::from_secs(2),
        retry_delay_min: Duration::from_millis(10),
        retry_delay_max: Duration::from_millis(50),
        depth_sample_interval: Duration::from_millis(1),
        publish_timeout: Duration::from_millis(700),
        ..Config::default()
    }
}

pub fn keyring() -> Keyring {
    Keyring::new(&Secret::new(SECRET), None)
}

pub fn state(run: &str, epoch: u32) -> Message {
    SystemStatePacket {
        training_run_id: run.to_owned(),
        current_epoch: epoch,
        ..SystemStatePacket::default()
    }
    .into()
}

pub fn epoch(delivery: &Delivery) -> u32 {
    match &delivery.message {
        Message::SystemState(packet) => packet.current_epoch,
        other => panic!("expected a state packet, got {other:?}"),
    }
}

pub fn request(id: &str, issued_at_ms: u64) -> Message {
    KernelPrefetchRequest {
        request_id: id.to_owned(),
        blueprint_id: "BP001".to_owned(),
        training_run_id: "run".to_owned(),
        issued_at: Some(leyline::time::timestamp(issued_at_ms)),
    }
    .into()
}

pub fn now_ms() -> u64 {
    leyline::time::now_unix_ms()
}

/// Publishes on the normal stream and insists on it.
pub async fn publish(bus: &Bus, message: &Message) -> EntryId {
    publish_on(bus, Stream::Normal, message).await
}

pub async fn publish_on(bus: &Bus, stream: Stream, message: &Message) -> EntryId {
    match bus.publish(stream, MessagePriority::Normal, "test", message).await.unwrap() {
        Outcome::Published { id, .. } => id,
        other => panic!("not published: {other:?}"),
    }
}

pub fn consumer(bus: &Bus, stream: Stream) -> Consumer {
    bus.consumer(ConsumerSpec::new(stream, GROUP))
}

pub async fn recv(consumer: &mut Consumer) -> Delivery {
    tokio::time::timeout(PATIENCE, consumer.recv()).await.expect("a delivery in time").unwrap()
}

/// An envelope made by hand, as another program or an attacker would.
#[derive(Clone)]
pub struct Envelope {
    pub kind: i32,
    pub payload: Vec<u8>,
    pub attributes: BTreeMap<String, String>,
    pub secret: String,
}

impl Envelope {
    /// Complete and valid for that stream, unless the caller spoils it.
    pub fn of(message: &Message, stream_name: &str) -> Self {
        let attributes = [
            (attributes::ID, format!("id-{:x}", rand::random::<u128>())),
            (attributes::ISSUED_AT_MS, now_ms().to_string()),
            (attributes::STREAM, stream_name.to_owned()),
        ];
        Self {
            kind: message.message_type() as i32,
            payload: message.encode_payload(),
            attributes: attributes.map(|(name, value)| (name.to_owned(), value)).into(),
            secret: SECRET.to_owned(),
        }
    }

    /// As programs send it that know no attributes.
    pub fn legacy(message: &Message) -> Self {
        Self { attributes: BTreeMap::new(), ..Self::of(message, "") }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.attributes.insert(name.to_owned(), value.to_string());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        BusEnvelope {
            message_type: self.kind,
            payload: self.payload.clone(),
            attributes: self.attributes.clone(),
        }
        .encode_to_vec()
    }

    pub async fn append(&self, bus: &Bus, stream: Stream) -> EntryId {
        let bytes = self.bytes();
        let signature = Keyring::new(&Secret::new(self.secret.as_str()), None).sign(&bytes);
        let fields: [(&str, &[u8]); 2] = [("payload", &bytes), ("signature", signature.as_bytes())];
        bus.append_raw(stream, &fields).await.unwrap()
    }
}

/// Expects that what was appended is refused for that reason: the message published after it comes
/// first, nothing stays pending, and the reason is counted once.
pub async fn expect_refused(bus: &Bus, stream: Stream, reason: Refusal) {
    let before = bus.metrics().refused_total(stream, reason);
    let mut reader = consumer(bus, stream);
    let (sentinel, kind) = sentinel(stream);
    publish_on(bus, stream, &sentinel).await;
    let delivery = recv(&mut reader).await;
    assert_eq!(delivery.message.message_type(), kind, "the refused entry was handed out");
    assert_eq!(delivery.message, sentinel);
    delivery.ack().await.unwrap();
    assert_eq!(bus.metrics().refused_total(stream, reason), before + 1, "{reason}");
    assert_eq!(bus.depth(stream, GROUP).await.unwrap(), 0, "{reason} was not acknowledged");
}

fn sentinel(stream: Stream) -> (Message, BusMessageType) {
    let message = match stream {
        Stream::KernelRequests => request(&format!("sentinel-{}", rand::random::<u64>()), now_ms()),
        _ => state("sentinel", rand::random()),
    };
    let kind = message.message_type();
    (message, kind)
}
