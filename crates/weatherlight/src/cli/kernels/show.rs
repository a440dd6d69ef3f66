//! `weatherlight kernels show`: all that is known of one kernel.

use std::collections::BTreeSet;

use leyline::ids::BlueprintId;
use serde_json::{Value, json};
use urza::{Filter, Library, Page, Record, RecordId};

use super::super::failure::Failure;
use super::super::table;
use super::{as_json, list, open};
use crate::settings::EsperSettings;

/// Digits that name a kernel by its digest at the least: fewer may name another one tomorrow.
const DIGEST_START_LEN: usize = 4;

/// Finds the one kernel that a person names: by a blueprint (the one it is served with), its row, or the start of its
/// digest.
pub(super) async fn named(library: &Library, name: &str) -> Result<Record, Failure> {
    let away = |error: urza::LibraryError| Failure::unavailable_because(&error);
    let blueprint = list::blueprint(name);
    if let Some(record) = library.find(&blueprint).await.map_err(away)? {
        return Ok(record);
    }
    let row = match name.parse::<RecordId>() {
        Ok(id) => library.by_id(id).await.map_err(away)?,
        Err(_) => None,
    };
    let is_digest = (DIGEST_START_LEN..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_hexdigit());
    let found = if is_digest {
        let filter = Filter { digest: Some(name.to_owned()), ..Filter::default() };
        library.select(&filter, Page { after: None, limit: 100 }).await.map_err(away)?
    } else {
        Vec::new()
    };
    match (row, found.last()) {
        (Some(record), None) => Ok(record),
        (Some(record), Some(newest)) if record.digest == newest.digest => Ok(record),
        (Some(_), Some(_)) => Err(Failure::unusable(format!(
            "{name} is the id of one kernel and begins the digest of another; give more of the digest"
        ))),
        (None, Some(newest)) => {
            let digests: BTreeSet<_> = found.iter().map(|other| other.digest).collect();
            if digests.len() > 1 {
                return Err(Failure::unusable(format!(
                    "the digests of {} kernels begin with {name}; give more of it",
                    digests.len()
                )));
            }
            Ok(newest.clone())
        }
        (None, None) if is_digest => {
            Err(Failure::unusable(format!("no kernel's digest begins with {name}")))
        }
        (None, None) => Err(nothing(library, name, &blueprint).await.unwrap_or_else(away)),
    }
}

/// Why a name that is no start of a digest names nothing.
async fn nothing(
    library: &Library,
    name: &str,
    blueprint: &BlueprintId,
) -> Result<Failure, urza::LibraryError> {
    if name.parse::<u64>().is_ok() {
        return Ok(Failure::unusable(format!("there is no kernel with id {name}")));
    }
    let filter = Filter { blueprint: Some(blueprint.clone()), ..Filter::default() };
    let others = !library.select(&filter, Page { after: None, limit: 1 }).await?.is_empty();
    Ok(Failure::unusable(if others {
        format!(
            "there is no active default kernel of {blueprint}; `weatherlight kernels list --blueprint {blueprint}` \
             shows its others, each of which its digest names"
        )
    } else if karn::find(blueprint).is_some() {
        format!(
            "there is no kernel of {blueprint}; `weatherlight kernels build {blueprint}` compiles it"
        )
    } else {
        format!(
            "{name:?} names no kernel; use the start of its digest (4 or more hex digits), its id, or a blueprint"
        )
    }))
}

pub(super) async fn run(settings: &EsperSettings, name: &str, json: bool) -> Result<u8, Failure> {
    let library = open(settings).await?;
    let record = named(&library, name).await?;
    let told = tell(&library, &record).await?;
    library.close().await;
    if json {
        table::print_json(&told);
    } else {
        print(&told);
    }
    Ok(0)
}

async fn tell(library: &Library, record: &Record) -> Result<Value, Failure> {
    let away = |error: urza::LibraryError| Failure::unavailable_because(&error);
    let mut told = as_json(record);
    let tags = library.tags(std::slice::from_ref(record)).await.map_err(away)?;
    told["tags"] = tags.into_values().flatten().collect::<Vec<_>>().into();
    told["guard_spec"] = serde_json::from_str(&record.guard_spec)
        .unwrap_or_else(|_| record.guard_spec.clone().into());
    told["extras"] = json!(record.extras);
    let mut latencies = vec![json!({
        "machine": record.prewarm.machine, "engine": record.job.engine,
        "samples": record.prewarm.samples_ms.len(),
        "p50_ms": record.prewarm.p50_ms(), "p95_ms": record.prewarm.p95_ms(),
    })];
    for (machine, engine, found) in library.measurements(&record.digest).await.map_err(away)? {
        latencies.push(json!({
            "machine": machine, "engine": engine, "samples": found.samples_ms.len(),
            "p50_ms": urza::percentile(&found.samples_ms, 0.5),
            "p95_ms": urza::percentile(&found.samples_ms, 0.95),
            "algorithms": found.algorithms, "measured_at_ms": found.measured_at_ms,
        }));
    }
    told["latencies"] = latencies.into();
    let children = library.children(record).await.map_err(away)?;
    let child = |child: &Record| json!({ "version": child.version, "checksum": child.digest.to_hex(), "engine": child.job.engine });
    told["replaced_by"] = children.iter().map(child).collect();
    let leases = library.leases(Some(&record.digest)).await.map_err(away)?;
    let lease = |lease: &urza::Lease| {
        json!({
            "holder": lease.holder, "purpose": lease.purpose,
            "ttl_s": lease.ttl.as_secs_f64(), "renewed_s_ago": lease.age.as_secs_f64(),
        })
    };
    told["leases"] = leases.iter().map(lease).collect();
    told["manifest"] = manifest(record).unwrap_or(Value::Null);
    Ok(told)
}

/// What the artifact says of itself: the metadata in its safetensors header. Read, never run.
fn manifest(record: &Record) -> Option<Value> {
    const HEADER_BYTES_MAX: u64 = 16 << 20;
    let mut file = std::fs::File::open(&record.path).ok()?;
    let mut length = [0; 8];
    std::io::Read::read_exact(&mut file, &mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return None;
    }
    let mut header = vec![0; usize::try_from(length).ok()?];
    std::io::Read::read_exact(&mut file, &mut header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    let metadata = header.get("__metadata__")?.as_object()?;
    // Values are texts, some of them JSON.
    let read = |(name, text): (&String, &Value)| {
        let parsed = text.as_str().and_then(|text| serde_json::from_str(text).ok());
        (name.clone(), parsed.unwrap_or_else(|| text.clone()))
    };
    Some(metadata.iter().map(read).collect())
}

fn print(told: &Value) {
    let mut rows = table::with_columns(&["what", "value"]);
    for (name, value) in told.as_object().into_iter().flatten() {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            Value::Array(items) if items.is_empty() => "-".to_owned(),
            value => serde_json::to_string_pretty(value).unwrap_or_default(),
        };
        rows.add_row([name.clone(), text]);
    }
    table::print(&rows.to_string());
}
