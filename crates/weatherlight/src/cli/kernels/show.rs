//! `weatherlight kernels show`: all that is known of one kernel.

use serde_json::{Value, json};
use urza::{Filter, Library, Page, Record, RecordId};

use super::super::failure::Failure;
use super::super::table;
use super::{as_json, open};
use crate::settings::EsperSettings;

/// Finds the one kernel that a person names: by the start of its digest, its row, or a blueprint (the one it is served
/// with).
pub(super) async fn named(library: &Library, name: &str) -> Result<Record, Failure> {
    let away = |error: urza::LibraryError| Failure::unavailable_because(&error);
    let is_blueprint = name.to_ascii_uppercase().starts_with("BP");
    if is_blueprint {
        let found = library.find(&name.to_ascii_uppercase().into()).await.map_err(away)?;
        return found.ok_or_else(|| Failure::unusable(format!("there is no kernel of {name}")));
    }
    // A short number is a row: digests are named by more than that, lest they name another one tomorrow.
    if name.len() < 8
        && let Ok(id) = name.parse::<RecordId>()
    {
        let found = library.by_id(id).await.map_err(away)?;
        return found
            .ok_or_else(|| Failure::unusable(format!("there is no kernel with id {name}")));
    }
    let is_digest = (4..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_digest {
        return Err(Failure::unusable(format!(
            "{name:?} names no kernel; use the start of its digest (4 or more hex digits), its id, or a blueprint"
        )));
    }
    let filter = Filter { digest: Some(name.to_owned()), ..Filter::default() };
    let found = library.select(&filter, Page { after: None, limit: 100 }).await.map_err(away)?;
    let Some(newest) = found.last() else {
        return Err(Failure::unusable(format!("no kernel's digest begins with {name}")));
    };
    if found.iter().any(|other| other.digest != newest.digest) {
        return Err(Failure::unusable(format!(
            "the digests of {} kernels begin with {name}; give more of it",
            found.len()
        )));
    }
    Ok(newest.clone())
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
