//! Kernels as one file that another library takes: a tar of a header, the records as JSON lines, and the artifacts.
//!
//! The same records give the same bytes. Taking one in verifies everything before anything of it shows: nothing is half
//! imported, and importing again changes nothing. Its layout stands in `docs/library.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use kernel::Digest;
use leyline::wire::BlueprintTier;
use serde_json::{Value, json};

use crate::error::{FetchError, LibraryError, StoreError};
use crate::extras::in_order;
use crate::job::JobKey;
use crate::library::Library;
use crate::measurement::Measurement;
use crate::prewarm::Prewarm;
use crate::record::{NewArtifact, Page, Record, Role};
use crate::select::{Filter, StateFilter};

const HEADER: &str = "urza-export.json";
const RECORDS: &str = "records.jsonl";
const FORMAT: u64 = 1;
const HEADER_BYTES_MAX: u64 = 64 << 10;
const RECORDS_BYTES_MAX: u64 = 1 << 30;
const PAGE: u32 = 200;

/// What went out or came in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Archived {
    /// Records in the archive.
    pub records: u64,
    /// Artifacts in the archive.
    pub artifacts: u64,
    /// Bytes of the artifacts.
    pub bytes: u64,
    /// Records that were not there before; of an export all.
    pub new: u64,
}

/// Why an archive was not written or not taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive's file cannot be read or written.
    #[error("cannot use archive {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no sound archive; nothing of it was taken.
    #[error("archive refused, nothing was imported: {problem}")]
    Refused {
        /// What is wrong with it.
        problem: String,
    },
    /// An artifact to be exported is not sound.
    #[error(
        "an artifact cannot be exported; `weatherlight kernels verify --repair` has it built again"
    )]
    Artifact(#[from] FetchError),
    /// An artifact could not be stored.
    #[error("cannot import an artifact; import again, what was stored is kept")]
    Store(#[from] StoreError),
    /// The catalogue did not answer.
    #[error(transparent)]
    Library(#[from] LibraryError),
}

/// One record on its way in, with what stands beside it.
#[derive(Debug)]
pub(crate) struct Arriving {
    pub(crate) new: NewArtifact,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) created_at_ms: u64,
    pub(crate) pinned: bool,
    pub(crate) tags: Vec<String>,
    pub(crate) measurements: Vec<(String, String, Measurement)>,
}

fn refused(problem: impl Into<String>) -> ArchiveError {
    ArchiveError::Refused { problem: problem.into() }
}

impl Library {
    /// Writes the active records that a filter wants, with their artifacts, to a new file. Each artifact is verified.
    ///
    /// # Errors
    /// [`ArchiveError`]; no file is left behind.
    pub async fn export(&self, filter: &Filter, to: &Path) -> Result<Archived, ArchiveError> {
        let filter = Filter { state: Some(StateFilter::Active), ..filter.clone() };
        let mut lines: Vec<String> = Vec::new();
        let mut paths: BTreeMap<Digest, (PathBuf, u64)> = BTreeMap::new();
        let mut page = Some(Page { after: None, limit: PAGE });
        while let Some(wanted) = page {
            let records = self.select(&filter, wanted).await?;
            page = wanted.next(&records);
            let tags = self.tags(&records).await?;
            for record in &records {
                let path = self.verify(record).await?;
                paths.insert(record.digest, (path, record.bytes));
                let measured = self.measurements(&record.digest).await?;
                let tags = tags.get(&record.id).cloned().unwrap_or_default();
                lines.push(line(record, &tags, &measured).to_string());
            }
        }
        lines.sort();
        let bytes = paths.values().map(|(_, bytes)| bytes).sum();
        let (records, artifacts) = (lines.len() as u64, paths.len() as u64);
        let path = to.to_owned();
        let fault = move |source| ArchiveError::File { path, source };
        let target = to.to_owned();
        let writing = tokio::task::spawn_blocking(move || write(&target, &lines, &paths));
        writing.await.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())).map_err(fault)?;
        Ok(Archived { records, artifacts, bytes, new: records })
    }

    /// Takes an archive in: verifies all of it, stores the artifacts, then shows all records at once.
    ///
    /// # Errors
    /// [`ArchiveError`]; no record of it shows then.
    pub async fn import(&self, from: &Path) -> Result<Archived, ArchiveError> {
        let (root, bytes_max) =
            (self.artifacts().files().root().to_owned(), self.artifact_bytes_max());
        let source = from.to_owned();
        let reading = tokio::task::spawn_blocking(move || read(&source, &root, bytes_max));
        let staged = reading.await.unwrap_or_else(|_| Err(refused("this process is ending")))?;
        let mut archived = Archived { records: staged.records.len() as u64, ..Archived::default() };
        for (digest, bytes) in &staged.artifacts {
            let path = staged.directory.path().join(digest.to_hex());
            let fault = |source| ArchiveError::File { path: path.clone(), source };
            let contents = tokio::fs::read(&path).await.map_err(fault)?;
            // What was verified is what is stored.
            if self.artifacts().put(contents.into()).await? != *digest {
                return Err(refused(format!("artifact {digest} changed while it was imported")));
            }
            archived.artifacts += 1;
            archived.bytes += bytes;
        }
        archived.new = self.catalogue().import(&staged.records).await?;
        self.changed_by_import();
        Ok(archived)
    }
}

/// A record as the archive tells it: canonical JSON.
fn line(record: &Record, tags: &[String], measured: &[(String, String, Measurement)]) -> Value {
    let measured: Vec<Value> = measured
        .iter()
        .map(|(machine, engine, found)| {
            json!({
                "machine": machine, "engine": engine, "samples_ms": found.samples_ms,
                "algorithms": found.algorithms, "measured_at_ms": found.measured_at_ms,
            })
        })
        .collect();
    in_order(&json!({
        "blueprint": record.job.blueprint.as_str(),
        "parameters": record.job.parameters,
        "site": record.job.site,
        "engine": record.job.engine,
        "role": record.role.text(),
        "sha256": record.digest.to_hex(),
        "bytes": record.bytes,
        "guard_digest": record.guard_digest.to_hex(),
        "guard_spec": record.guard_spec,
        "guard_summary": record.guard_summary,
        "compile_ms": record.compile_ms,
        "prewarm_machine": record.prewarm.machine,
        "prewarm_samples_ms": record.prewarm.samples_ms,
        "strategy": record.strategy,
        "tier": record.tier as i32,
        "extras": record.extras,
        "created_at_ms": record.created_at_ms,
        "pinned": record.pinned,
        "tags": tags,
        "measurements": measured,
    }))
}

fn write(to: &Path, lines: &[String], paths: &BTreeMap<Digest, (PathBuf, u64)>) -> io::Result<()> {
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new(".")))?;
    let mut records = lines.join("\n");
    if !lines.is_empty() {
        records.push('\n');
    }
    let header = json!({
        "artifacts": paths.len(), "format": FORMAT, "records": lines.len(),
        "records_sha256": Digest::of(&records).to_hex(),
    });
    let mut tar = tar::Builder::new(io::BufWriter::new(file.as_file_mut()));
    append(&mut tar, HEADER, header.to_string().len() as u64, header.to_string().as_bytes())?;
    append(&mut tar, RECORDS, records.len() as u64, records.as_bytes())?;
    for (digest, (path, bytes)) in paths {
        append(&mut tar, &name(digest), *bytes, File::open(path)?)?;
    }
    tar.into_inner()?.flush()?;
    file.as_file().sync_all()?;
    file.persist_noclobber(to).map_err(|error| error.error)?;
    Ok(())
}

/// An entry that tells nothing of where and when it was made.
fn append(
    tar: &mut tar::Builder<impl io::Write>,
    name: &str,
    bytes: u64,
    contents: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, contents.take(bytes))
}

fn name(digest: &Digest) -> String {
    format!("artifacts/{digest}.safetensors")
}

/// An archive that was verified: its artifacts stand in a directory of their own, by digest.
#[derive(Debug)]
struct Staged {
    records: Vec<Arriving>,
    artifacts: BTreeMap<Digest, u64>,
    directory: tempfile::TempDir,
}

fn read(from: &Path, root: &Path, bytes_max: u64) -> Result<Staged, ArchiveError> {
    let fault = |source| ArchiveError::File { path: from.to_owned(), source };
    let broken = |error: io::Error| refused(format!("it cannot be read to its end ({error})"));
    // Before it is opened: a pipe would be waited for.
    if !std::fs::metadata(from).map_err(fault)?.is_file() {
        return Err(fault(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let file = File::open(from).map_err(fault)?;
    // Below the library's temporary files, which are cleared away should this process be killed.
    let directory = tempfile::Builder::new().prefix("import-").tempdir_in(root.join("tmp"));
    let directory = directory.map_err(fault)?;
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    // As they stand: an entry that renames the next, or spreads it, is one that no record wants.
    let mut entries = archive.entries().map_err(broken)?.raw(true);
    let mut next = || entries.next().transpose().map_err(broken);
    let header = text(next()?, HEADER, HEADER_BYTES_MAX)?;
    let header: Value =
        serde_json::from_str(&header).map_err(|_| refused("its header is no JSON"))?;
    match header["format"].as_u64() {
        Some(FORMAT) => {}
        Some(format) => {
            return Err(refused(format!(
                "its format is {format}, this program knows {FORMAT}; use the newer program"
            )));
        }
        None => return Err(refused("its header names no format")),
    }
    let lines = text(next()?, RECORDS, RECORDS_BYTES_MAX)?;
    if header["records_sha256"].as_str() != Some(&Digest::of(&lines).to_hex()) {
        return Err(refused("its records are not what its header says"));
    }
    let mut records = Vec::new();
    let mut wanted: BTreeMap<Digest, u64> = BTreeMap::new();
    for (number, line) in (1..).zip(lines.lines()) {
        let record = arriving(line, bytes_max)
            .map_err(|problem| refused(format!("record {number}: {problem}")))?;
        if *wanted.entry(record.digest).or_insert(record.bytes) != record.bytes {
            return Err(refused(format!("record {number}: another size than before")));
        }
        records.push(record);
    }
    let mut seen: BTreeSet<Digest> = BTreeSet::new();
    while let Some(entry) = next()? {
        let path = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&path).into_owned();
        let found = wanted.iter().find(|(digest, _)| name(digest).as_bytes() == path);
        let is_file = entry.header().entry_type() == tar::EntryType::Regular;
        let Some((digest, bytes)) = found.filter(|_| is_file) else {
            return Err(refused(format!("it holds {shown:?}, which no record wants as a file")));
        };
        if entry.size() != *bytes || !seen.insert(*digest) {
            return Err(refused(format!(
                "{shown} has another size than its record, or is there twice"
            )));
        }
        let target = directory.path().join(digest.to_hex());
        let mut file = File::create(&target).map_err(fault)?;
        io::copy(&mut entry.take(*bytes), &mut file).map_err(broken)?;
        let actual = File::open(&target).and_then(Digest::of_reader).map_err(fault)?;
        if actual != *digest {
            return Err(refused(format!("{shown} hashes to {actual}")));
        }
    }
    if let Some(missing) = wanted.keys().find(|digest| !seen.contains(digest)) {
        return Err(refused(format!("artifact {missing} is missing")));
    }
    Ok(Staged { records, artifacts: wanted, directory })
}

/// The text of an entry that must be the one named.
fn text(
    entry: Option<tar::Entry<'_, impl Read>>,
    name: &str,
    bytes_max: u64,
) -> Result<String, ArchiveError> {
    let entry = entry.filter(|entry| {
        *entry.path_bytes() == *name.as_bytes()
            && entry.header().entry_type() == tar::EntryType::Regular
            && entry.size() <= bytes_max
    });
    let entry = entry.ok_or_else(|| refused(format!("it has no {name} where one belongs")))?;
    let mut text = String::new();
    let read = entry.take(bytes_max).read_to_string(&mut text);
    read.map_err(|error| refused(format!("{name} cannot be read ({error})")))?;
    Ok(text)
}

/// Reads a line; the error says what is wrong with it.
fn arriving(line: &str, bytes_max: u64) -> Result<Arriving, String> {
    let value: Value = serde_json::from_str(line).map_err(|_| "no JSON".to_owned())?;
    let bad = |field: &str| format!("{field} is missing or of another kind");
    let text = |field: &str| value[field].as_str().map(str::to_owned).ok_or_else(|| bad(field));
    let number = |field: &str| value[field].as_u64().ok_or_else(|| bad(field));
    let digest_of = |field: &str| text(field)?.parse::<Digest>().map_err(|_| bad(field));
    let read = |field: &str| value[field].clone();
    let job = JobKey {
        blueprint: text("blueprint")?.into(),
        parameters: serde_json::from_value(read("parameters")).map_err(|_| bad("parameters"))?,
        site: text("site")?,
        engine: text("engine")?,
    };
    job.check().map_err(|error| error.to_string())?;
    let bytes = number("bytes")?;
    if bytes == 0 || bytes_max < bytes {
        return Err(format!("an artifact has 1 to {bytes_max} bytes, this one has {bytes}"));
    }
    let tier =
        i32::try_from(number("tier")?).ok().and_then(|tier| BlueprintTier::try_from(tier).ok());
    let tier =
        tier.filter(|tier| *tier != BlueprintTier::Unspecified).ok_or_else(|| bad("tier"))?;
    let samples: Vec<f64> = serde_json::from_value(read("prewarm_samples_ms"))
        .map_err(|_| bad("prewarm_samples_ms"))?;
    let extras = serde_json::from_value(read("extras")).map_err(|_| bad("extras"))?;
    crate::extras::canonical(&extras).map_err(|error| error.to_string())?;
    let tags: Vec<String> = serde_json::from_value(read("tags")).map_err(|_| bad("tags"))?;
    for tag in &tags {
        crate::select::folded(tag).map_err(|error| error.to_string())?;
    }
    let mut measurements = Vec::new();
    for found in value["measurements"].as_array().ok_or_else(|| bad("measurements"))? {
        let field = |name: &str| found[name].as_str().map(str::to_owned);
        let measured = Measurement {
            samples_ms: serde_json::from_value(found["samples_ms"].clone())
                .map_err(|_| bad("measurements"))?,
            algorithms: found["algorithms"].clone(),
            measured_at_ms: found["measured_at_ms"].as_u64().unwrap_or_default(),
        };
        let machine = field("machine").ok_or_else(|| bad("measurements"))?;
        measurements.push((machine, field("engine").ok_or_else(|| bad("measurements"))?, measured));
    }
    let new = NewArtifact {
        job,
        role: Role::read(&text("role")?).ok_or_else(|| bad("role"))?,
        bytes: Vec::new(),
        guard_digest: digest_of("guard_digest")?,
        guard_spec: text("guard_spec")?,
        guard_summary: text("guard_summary")?,
        compile_ms: value["compile_ms"].as_f64().ok_or_else(|| bad("compile_ms"))?,
        prewarm: Prewarm::new(text("prewarm_machine")?, samples),
        strategy: text("strategy")?,
        tier,
        extras,
    };
    Ok(Arriving {
        new,
        digest: digest_of("sha256")?,
        bytes,
        created_at_ms: number("created_at_ms")?,
        pinned: value["pinned"].as_bool().ok_or_else(|| bad("pinned"))?,
        tags,
        measurements,
    })
}
