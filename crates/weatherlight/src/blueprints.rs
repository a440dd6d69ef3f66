//! The blueprints of this process: ours, those of the manifests in `KARN_BLUEPRINT_DIR`, and which of them somebody has
//! approved. Read once at the start; every fault of every file is told at once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use karn::{Catalogue, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use leyline::ids::BlueprintId;

use crate::settings::EsperSettings;

/// Ending of the files that are read.
const ENDING: &str = "toml";

/// What may be built, served and chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Blueprints {
    /// Ours and the users'.
    pub catalogue: Catalogue,
    /// What somebody approved.
    pub approved: BTreeSet<BlueprintId>,
}

/// Everything wrong with the blueprints of a process, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the blueprints cannot be used:\n{}", .0.join("\n"))]
pub struct BlueprintFaults(pub Vec<String>);

impl Blueprints {
    /// Reads what the settings name. Blocking.
    ///
    /// # Errors
    /// Every fault at once, with file, line and field.
    pub fn load(settings: &EsperSettings) -> Result<Self, BlueprintFaults> {
        let directory = settings.karn_blueprint_dir.as_deref();
        let approvals = settings.karn_approvals.as_deref().unwrap_or_default();
        Self::read(directory, approvals)
    }

    fn read(directory: Option<&Path>, approvals: &str) -> Result<Self, BlueprintFaults> {
        let mut faults = Vec::new();
        let mut catalogue = Catalogue::built_in();
        let files = match directory.map(manifests) {
            None => Vec::new(),
            Some(Ok(files)) => files,
            Some(Err(fault)) => {
                faults.push(fault);
                Vec::new()
            }
        };
        for file in files {
            match read_manifest(&file).and_then(|manifest| {
                catalogue.with(manifest).map_err(|error| in_file(&file, &error))
            }) {
                Ok(grown) => catalogue = grown,
                Err(more) => faults.extend(more),
            }
        }
        let mut approved = BTreeSet::new();
        for id in approvals.split(',').map(str::trim).filter(|id| !id.is_empty()) {
            let id = BlueprintId::from(id);
            if catalogue.find(&id).is_none() {
                faults.push(format!("KARN_APPROVALS: there is no blueprint {id}"));
            }
            approved.insert(id);
        }
        if faults.is_empty() {
            Ok(Self { catalogue, approved })
        } else {
            Err(BlueprintFaults(faults))
        }
    }

    /// The forge's settings with these blueprints.
    pub(crate) fn forge(&self, config: tezzeret::Config) -> tezzeret::Config {
        tezzeret::Config { catalogue: self.catalogue.clone(), ..config }
    }

    /// The policy's settings with these blueprints and approvals.
    pub(crate) fn policy(&self, config: tamiyo::Config) -> tamiyo::Config {
        let (catalogue, approved) = (self.catalogue.clone(), self.approved.clone());
        tamiyo::Config { catalogue, approved, ..config }
    }

    /// The seed manager's settings, which say what it must refuse to germinate.
    pub(crate) fn seeds(&self, config: kasmina::Config) -> kasmina::Config {
        let withheld = self.catalogue.withheld(&self.approved).into_iter();
        let withheld = withheld.map(|(id, reason)| (id, reason.name())).collect();
        kasmina::Config { withheld, ..config }
    }
}

/// The manifests of a directory, in the order of their names.
fn manifests(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let fault = |error: io::Error| {
        format!(
            "{}: the directory of KARN_BLUEPRINT_DIR cannot be read: {error}",
            directory.display()
        )
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_some_and(|ending| ending == ENDING) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one manifest; no more of it than one may have.
pub(crate) fn read_manifest(path: &Path) -> Result<Manifest, Vec<String>> {
    let unreadable =
        |error: io::Error| vec![format!("{}: cannot be read: {error}", path.display())];
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(vec![format!("{}: is no regular file", path.display())]);
    }
    let mut text = String::new();
    let most = MANIFEST_BYTES_MAX as u64 + 1;
    file.take(most).read_to_string(&mut text).map_err(unreadable)?;
    Manifest::parse(&text).map_err(|error| in_file(path, &error))
}

/// The faults of a manifest with its file.
pub(crate) fn in_file(path: &Path, error: &ManifestError) -> Vec<String> {
    error.0.iter().map(|fault| format!("{}: {fault}", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/blueprints")
    }

    #[test]
    fn the_examples_and_approvals_reach_forge_policy_and_seeds() {
        let read = Blueprints::read(Some(&examples()), "BP036, gated-convolution").unwrap();
        assert_eq!(read.catalogue.served().count(), 44);
        let forge = read.forge(tezzeret::Config::default());
        assert_eq!(forge.catalogue, read.catalogue);
        assert_eq!(read.policy(tamiyo::Config::default()).approved.len(), 2);
        let withheld = read.seeds(kasmina::Config::default()).withheld;
        assert_eq!(withheld.len(), 6 + 8, "{withheld:?}");
        assert_eq!(withheld[&BlueprintId::from("BP038")], "approval_required");
        assert_eq!(withheld[&BlueprintId::from("BP045")], "quarantine_only");
    }

    #[test]
    fn without_settings_there_are_ours_and_nothing_is_approved() {
        let read = Blueprints::read(None, "").unwrap();
        assert_eq!(read, Blueprints::default());
        assert_eq!(read.seeds(kasmina::Config::default()).withheld.len(), 15);
    }

    #[test]
    fn every_fault_of_every_file_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let sound = fs::read_to_string(examples().join("bottleneck-adapter.toml")).unwrap();
        fs::write(directory.path().join("a.toml"), sound.replace("risk = 0.3", "risk = 3"))
            .unwrap();
        fs::write(directory.path().join("b.toml"), "id = ").unwrap();
        fs::write(directory.path().join("c.toml"), sound.replace("\"silu\"", "\"log\"")).unwrap();
        fs::create_dir(directory.path().join("d.toml")).unwrap();
        fs::write(directory.path().join("notes.md"), "not read").unwrap();
        let faults = Blueprints::read(Some(directory.path()), "BP099").unwrap_err().0;
        let expected = [
            "a.toml: line 9: risk",
            "b.toml: line 1: file",
            "c.toml: line 1",
            "d.toml: is no",
            "BP099",
        ];
        for part in expected {
            assert!(faults.iter().any(|fault| fault.contains(part)), "{part}: {faults:#?}");
        }
        let missing = Blueprints::read(Some(&directory.path().join("none")), "").unwrap_err();
        assert!(missing.to_string().contains("KARN_BLUEPRINT_DIR"), "{missing}");
    }
}
