//! What may happen to a bus, and how a seed becomes a list of it.

use oona::Refusal;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// One thing that happens. Numbers choose among what there is at that moment, by remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A message of one of four keys and priorities.
    Publish {
        lane: u8,
        key: u8,
        priority: u8,
    },
    /// A publish whose caller gives up at once: it may or may not have happened.
    PublishCancelled {
        lane: u8,
        key: u8,
    },
    /// An honest message made by hand; on the kernel stream without attributes, as older programs do.
    Append {
        lane: u8,
        key: u8,
    },
    /// An entry that is to be refused.
    Forge {
        lane: u8,
        fault: Fault,
    },
    /// A copy of an earlier message, appended where it stood.
    Replay {
        which: u8,
    },
    /// A copy of an earlier message on another stream.
    ReplayElsewhere {
        which: u8,
    },
    /// Time passes; all consumers read.
    Pump {
        ms: u16,
    },
    Ack {
        which: u8,
    },
    AckSome {
        count: u8,
    },
    Fail {
        which: u8,
    },
    /// A delivery dropped unsettled.
    Drop {
        which: u8,
    },
    /// One consumer more in a group.
    Join {
        view: u8,
        process: u8,
    },
    /// A consumer is gone, with all it holds.
    CrashConsumer {
        which: u8,
    },
    /// A process is gone, with its bus and all its consumers; another one comes.
    CrashProcess {
        which: u8,
    },
    /// The log stops and comes back: as after `kill -9`, or (embedded only) closed and opened.
    Restart {
        hard: bool,
    },
    Sweep,
    /// A group vanishes; it is made again at once, or by its consumers.
    RemoveGroup {
        view: u8,
        ensure: bool,
    },
}

/// What is wrong with a forged entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    OtherSecret,
    NoSignature,
    SignatureIsNone,
    Undecodable,
    UnknownType,
    WrongType,
    WrongStream,
    Stale,
    Future,
    Oversize,
    NoAttributes,
    Foreign,
}

impl Fault {
    pub const ALL: [Self; 12] = [
        Self::OtherSecret,
        Self::NoSignature,
        Self::SignatureIsNone,
        Self::Undecodable,
        Self::UnknownType,
        Self::WrongType,
        Self::WrongStream,
        Self::Stale,
        Self::Future,
        Self::Oversize,
        Self::NoAttributes,
        Self::Foreign,
    ];

    /// What it has to be refused as; another program's entry is no refusal.
    pub fn refusal(self) -> Option<Refusal> {
        Some(match self {
            Self::OtherSecret | Self::SignatureIsNone => Refusal::BadSignature,
            Self::NoSignature | Self::Undecodable => Refusal::Malformed,
            Self::UnknownType => Refusal::UnknownType,
            Self::WrongType | Self::WrongStream => Refusal::WrongStream,
            Self::Stale => Refusal::Stale,
            Self::Future => Refusal::FromTheFuture,
            Self::Oversize => Refusal::Oversize,
            Self::NoAttributes => Refusal::Legacy,
            Self::Foreign => return None,
        })
    }
}

/// A whole case: settings, then what happens.
#[derive(Debug, Clone)]
pub struct Case {
    /// Whether the limits of the backlog are so low that some are rerouted and refused.
    pub pressure: bool,
    pub ops: Vec<Op>,
}

impl Case {
    /// The same seed always gives the same case. Two of five have neither crash nor vanished group:
    /// there every counter and every attempt has to be exact.
    pub fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let calm = random.random_range(0..5) < 2;
        let one_reader = random.random_bool(0.5);
        let pressure = random.random_bool(0.2);
        let length = random.random_range(8..48);
        let ops = (0..length).map(|_| op(&mut random, calm, one_reader)).collect();
        Self { pressure, ops }
    }
}

fn op(random: &mut StdRng, calm: bool, one_reader: bool) -> Op {
    let which = random.random();
    let lane = *[0, 0, 0, 1, 2].get(random.random_range(0..5)).unwrap_or(&0);
    let key = random.random_range(0..4);
    match random.random_range(0..100) {
        0..24 => Op::Publish { lane, key, priority: random.random_range(0..4) },
        24..28 => Op::Append { lane, key },
        28..37 => {
            let fault = Fault::ALL[random.random_range(0..Fault::ALL.len())];
            Op::Forge { lane, fault }
        }
        37..43 => Op::Replay { which },
        43..45 => Op::ReplayElsewhere { which },
        45..62 => Op::Pump { ms: [1, 3, 20, 60, 150][random.random_range(0..5)] },
        62..70 => Op::Ack { which },
        70..74 => Op::AckSome { count: random.random_range(1..6) },
        74..81 => Op::Fail { which },
        81..84 => Op::Drop { which },
        84..88 => Op::Sweep,
        88..91 if !one_reader => Op::Join { view: which, process: random.random() },
        _ if calm => Op::Publish { lane, key, priority: 1 },
        91..93 => Op::CrashConsumer { which },
        93..95 => Op::CrashProcess { which },
        95..97 => Op::Restart { hard: random.random_bool(0.7) },
        97 => Op::RemoveGroup { view: which, ensure: random.random() },
        98 => Op::PublishCancelled { lane, key },
        _ => Op::Pump { ms: 30 },
    }
}
