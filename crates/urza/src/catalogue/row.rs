//! A row read as a record.

use leyline::wire::BlueprintTier;

use super::database::Row;
use crate::extras::Extras;
use crate::files::Files;
use crate::job::JobKey;
use crate::measurement::Measurement;
use crate::prewarm::Prewarm;
use crate::record::{Parent, Record, RecordId, RecordState, Role};

/// The columns of a record, named: a newer column of another program changes nothing here.
pub(super) const COLUMNS: &str = "id, blueprint, job_key, parameters, site, engine, role, digest, \
    bytes, guard_digest, guard_spec, guard_summary, compile_ms, prewarm_machine, prewarm_samples, \
    strategy, tier, created_at_ms, state, quarantine_reason, quarantined_at_ms, extras, version, \
    parent_digest, parent_engine, stage, pinned, last_used_ms";

/// Reads a row; the error is the column that cannot be read.
pub(super) fn read(row: &Row, files: &Files) -> Result<Record, &'static str> {
    let text = |column: &'static str| row.text(column).map_err(|_| column);
    let number = |column: &'static str| {
        u64::try_from(row.integer(column).map_err(|_| column)?).map_err(|_| column)
    };
    let digest_of = |column: &'static str| text(column)?.parse().map_err(|_| column);
    let digest = digest_of("digest")?;
    let state = match text("state")?.as_str() {
        "active" => RecordState::Active,
        "quarantined" => RecordState::Quarantined {
            reason: text("quarantine_reason").unwrap_or_default(),
            at_ms: number("quarantined_at_ms").unwrap_or_default(),
        },
        _ => return Err("state"),
    };
    let tier = i32::try_from(number("tier")?).map_err(|_| "tier")?;
    let parent = match row.maybe_text("parent_digest").map_err(|_| "parent_digest")? {
        Some(digest) => Some(Parent {
            digest: digest.parse().map_err(|_| "parent_digest")?,
            engine: row.maybe_text("parent_engine").ok().flatten().unwrap_or_default(),
        }),
        None => None,
    };
    let stage = row.maybe_integer("stage").map_err(|_| "stage")?;
    Ok(Record {
        id: RecordId(row.integer("id").map_err(|_| "id")?),
        job: JobKey {
            blueprint: text("blueprint")?.into(),
            parameters: serde_json::from_str(&text("parameters")?).map_err(|_| "parameters")?,
            site: text("site")?,
            engine: text("engine")?,
        },
        role: Role::read(&text("role")?).ok_or("role")?,
        digest,
        path: files.path(&digest),
        bytes: number("bytes")?,
        guard_digest: digest_of("guard_digest")?,
        guard_spec: text("guard_spec")?,
        guard_summary: text("guard_summary")?,
        compile_ms: row.real("compile_ms").map_err(|_| "compile_ms")?,
        prewarm: prewarm(row)?,
        strategy: text("strategy")?,
        // An unknown tier is refused, never taken for a safe one.
        tier: BlueprintTier::try_from(tier).map_err(|_| "tier")?,
        stage: stage.map(u32::try_from).transpose().map_err(|_| "stage")?,
        extras: extras(row)?,
        version: number("version")?,
        parent,
        pinned: number("pinned")? != 0,
        created_at_ms: number("created_at_ms")?,
        last_used_ms: number("last_used_ms")?,
        state,
    })
}

pub(super) fn extras(row: &Row) -> Result<Extras, &'static str> {
    let text = row.text("extras").map_err(|_| "extras")?;
    serde_json::from_str(&text).map_err(|_| "extras")
}

pub(super) fn prewarm(row: &Row) -> Result<Prewarm, &'static str> {
    let machine = row.text("prewarm_machine").map_err(|_| "prewarm_machine")?;
    let samples = row.text("prewarm_samples").map_err(|_| "prewarm_samples")?;
    let samples: Vec<f64> = serde_json::from_str(&samples).map_err(|_| "prewarm_samples")?;
    Ok(Prewarm::new(machine, samples))
}

/// One that cannot be read is as good as none: it is measured again.
pub(super) fn measurement(row: &Row) -> Option<Measurement> {
    Some(Measurement {
        samples_ms: serde_json::from_str(&row.text("samples_ms").ok()?).ok()?,
        algorithms: serde_json::from_str(&row.text("algorithms").ok()?).ok()?,
        measured_at_ms: u64::try_from(row.integer("measured_at_ms").ok()?).ok()?,
    })
}
