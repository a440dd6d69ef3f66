//! Directories that the service writes to: there, writable, with room.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{Finding, Verdict};
use crate::settings::EsperSettings;

/// Below this nothing can be stored.
const FREE_BYTES_MIN: u64 = 8 << 20;

/// Below this a person should look at it: a catalogue has some hundred files, a spool a few.
const FREE_INODES_WARN: u64 = 5_000;
/// Below this nothing can be stored.
const FREE_INODES_MIN: u64 = 50;

pub(super) fn check(settings: &EsperSettings) -> Vec<Finding> {
    let mut wanted: Vec<(&str, PathBuf)> = vec![
        ("WEATHERLIGHT_STATE_DIR", settings.state_dir.clone()),
        ("URZA_ARTIFACT_DIR", settings.urza_artifact_dir.clone()),
        ("TAMIYO_POLICY_DIR", settings.tamiyo_policy_dir.clone()),
    ];
    if let Ok(config) = crate::wiring::library_config(settings)
        && let Some(parent) = config.catalogue.path().and_then(Path::parent)
    {
        wanted.push(("URZA_DATABASE_URL", parent.to_owned()));
    }
    let look = |(name, path): &(&str, PathBuf)| {
        let found = directory(name, path, settings.disk_free_min);
        [Some(found), inodes(name, path)]
    };
    wanted.iter().flat_map(look).flatten().collect()
}

/// Whether the file system can hold more files. Nothing to say where it has no such limit, or has
/// plenty.
fn inodes(setting: &str, path: &Path) -> Option<Finding> {
    let stat = rustix::fs::statvfs(path).ok()?;
    judge_inodes(setting, path, stat.f_files, stat.f_favail)
}

fn judge_inodes(setting: &str, path: &Path, all: u64, free: u64) -> Option<Finding> {
    const CHECK: &str = "inodes";
    // Some file systems make inodes as they go, and say 0.
    if all == 0 || free >= FREE_INODES_WARN {
        return None;
    }
    let verdict = if free < FREE_INODES_MIN { Verdict::Unavailable } else { Verdict::Warning };
    let path = path.display();
    let message = format!("the file system of {path} can hold only {free} more files");
    let remedy = format!("remove files there (`df -i {path}`), or move {setting}");
    Some(Finding::new(CHECK, verdict, message, remedy))
}

fn directory(setting: &str, path: &Path, free_min: u64) -> Finding {
    const CHECK: &str = "directory";
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if let Err(error) = make_and_probe(path) {
        return Finding::new(
            CHECK,
            Verdict::Misconfigured,
            format!("cannot write to {}: {error}", path.display()),
            format!(
                "give this user the right to write there, or set {setting} to another directory"
            ),
        );
    }
    let free = rustix::fs::statvfs(path).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    match free {
        Ok(free) if free < free_min.max(FREE_BYTES_MIN) => {
            let verdict =
                if free < FREE_BYTES_MIN { Verdict::Unavailable } else { Verdict::Warning };
            let message = format!("{} has only {} MiB left", path.display(), free >> 20);
            Finding::new(CHECK, verdict, message, format!("make room, or move {setting}"))
        }
        Ok(free) => {
            Finding::good(CHECK, format!("{} is writable, {} MiB free", path.display(), free >> 20))
        }
        Err(error) => Finding::new(
            CHECK,
            Verdict::Warning,
            format!("cannot tell how much room {} has: {error}", path.display()),
            "check the file system",
        ),
    }
}

fn make_and_probe(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let probe = path.join(format!(".weatherlight-probe-{}", std::process::id()));
    fs::write(&probe, b"probe")?;
    fs::remove_file(&probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_and_left_clean() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        assert_eq!(directory("X_DIR", &path, 0).verdict, Verdict::Good);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_written_names_its_setting() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let finding = directory("X_DIR", &file.join("below"), 0);
        assert_eq!(finding.verdict, Verdict::Misconfigured);
        assert!(finding.remedy.contains("X_DIR"), "{finding:?}");
    }

    #[test]
    fn a_file_system_without_room_for_files_is_found() {
        let judge = |all, free| {
            judge_inodes("X_DIR", Path::new("/x"), all, free).map(|finding| finding.verdict)
        };
        assert_eq!(judge(0, 0), None, "it has no such limit");
        assert_eq!(judge(1_000_000, 900_000), None);
        assert_eq!(judge(1_000_000, 4_000), Some(Verdict::Warning));
        assert_eq!(judge(1_000_000, 3), Some(Verdict::Unavailable));
    }

    #[test]
    fn too_little_room_is_a_warning() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(directory("X_DIR", root.path(), u64::MAX).verdict, Verdict::Warning);
    }
}
