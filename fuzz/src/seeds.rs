//! The seed corpus, made and not collected: the same call always gives the same files.

use std::collections::BTreeMap;
use std::path::Path;

use leyline::Message;
use leyline::wire::{
    AdaptationCommand, BenchmarkReport, BsdsFailed, BsdsIssued, BusEnvelope, EmergencySignal,
    FieldReport, KernelArtifactError, KernelArtifactReady, KernelCatalogUpdate,
    KernelPrefetchRequest, PolicyUpdate, SystemStatePacket, TelemetryPacket,
};
use oona::{Config, Stream, attributes};
use prost::Message as _;

use super::envelope::APPENDED;

/// Name and bytes of every seed of a target.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "envelope" => envelopes(),
        "verify" => (0..48)
            .map(|number| (format!("choices-{number:02}"), noise(number, 24 + number)))
            .collect(),
        "log_file" => {
            (0..24).map(|number| (format!("changes-{number:02}"), changes(number))).collect()
        }
        other => panic!("there is no target {other}"),
    }
}

/// Writes the corpus of every target under `corpus`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(corpus: &Path) -> std::io::Result<()> {
    for target in ["envelope", "verify", "log_file"] {
        std::fs::create_dir_all(corpus.join(target))?;
        for (name, bytes) in of(target) {
            std::fs::write(corpus.join(target).join(name), bytes)?;
        }
    }
    Ok(())
}

/// One honest envelope of every type, one without attributes, and what is torn.
fn envelopes() -> Vec<(String, Vec<u8>)> {
    let messages: [Message; 13] = [
        SystemStatePacket { training_run_id: "run".to_owned(), ..Default::default() }.into(),
        AdaptationCommand { command_id: "c-1".to_owned(), ..Default::default() }.into(),
        FieldReport { training_run_id: "run".to_owned(), ..Default::default() }.into(),
        TelemetryPacket { packet_id: "p-1".to_owned(), ..Default::default() }.into(),
        PolicyUpdate { policy_id: "policy".to_owned(), ..Default::default() }.into(),
        KernelPrefetchRequest { request_id: "r-1".to_owned(), ..Default::default() }.into(),
        KernelArtifactReady { request_id: "r-1".to_owned(), ..Default::default() }.into(),
        KernelArtifactError { request_id: "r-1".to_owned(), ..Default::default() }.into(),
        KernelCatalogUpdate { blueprint_id: "BP001".to_owned(), ..Default::default() }.into(),
        EmergencySignal { run_id: "run".to_owned(), ..Default::default() }.into(),
        BsdsIssued::default().into(),
        BsdsFailed { blueprint_id: "BP001".to_owned(), ..Default::default() }.into(),
        BenchmarkReport::default().into(),
    ];
    let mut seeds = vec![("empty".to_owned(), Vec::new())];
    for message in messages {
        let kind = message.message_type();
        let home = Stream::home(kind).unwrap_or(Stream::Normal);
        let name = Config::default().streams.name(home).to_owned();
        let attributes = BTreeMap::from([
            (attributes::ID.to_owned(), "0190-seed".to_owned()),
            (attributes::ISSUED_AT_MS.to_owned(), APPENDED.ms.to_string()),
            (attributes::STREAM.to_owned(), name),
        ]);
        let payload = message.encode_payload();
        let honest = BusEnvelope { message_type: kind as i32, payload, attributes };
        let legacy = BusEnvelope { attributes: BTreeMap::new(), ..honest.clone() };
        let label = kind.as_str_name().trim_start_matches("BUS_MESSAGE_TYPE_").to_lowercase();
        let bytes = honest.encode_to_vec();
        seeds.push((format!("{label}-torn"), bytes[..bytes.len() * 2 / 3].to_vec()));
        seeds.push((label.clone(), bytes));
        seeds.push((format!("{label}-legacy"), legacy.encode_to_vec()));
    }
    seeds
}

/// A few changes of the honest file, in different places.
fn changes(number: usize) -> Vec<u8> {
    noise(1000 + number, 4 + number * 3)
}

/// Bytes from a fixed generator (SplitMix64).
pub fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
