//! The machine and the files, for a support archive.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::settings::EsperSettings;

/// Files that are listed; more are counted.
const FILES_MAX: usize = 2_000;
/// How deep directories are looked into.
const DEPTH_MAX: usize = 6;

/// Directories that the service keeps files in, by setting.
fn directories(settings: &EsperSettings) -> [(&'static str, PathBuf); 3] {
    [
        ("WEATHERLIGHT_STATE_DIR", settings.state_dir.clone()),
        ("URZA_ARTIFACT_DIR", settings.urza_artifact_dir.clone()),
        ("TAMIYO_POLICY_DIR", settings.tamiyo_policy_dir.clone()),
    ]
}

/// System, processors, memory, limits and disks. What cannot be read is null.
pub(super) fn facts(settings: Option<&EsperSettings>) -> Value {
    let text = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let processors = std::thread::available_parallelism().ok().map(std::num::NonZero::get);
    let mut disks = Map::new();
    for (setting, path) in settings.iter().flat_map(|settings| directories(settings)) {
        disks.insert(setting.to_owned(), disk(&path));
    }
    json!({
        "kernel": text("/proc/sys/kernel/osrelease"),
        "system": text("/etc/os-release"),
        "processors": processors,
        "processor": text("/proc/cpuinfo").and_then(|text| model(&text)),
        "load": text("/proc/loadavg"),
        "memory": text("/proc/meminfo").map(|text| text.lines().take(5).map(str::to_owned).collect::<Vec<_>>()),
        "memory_limit": text("/sys/fs/cgroup/memory.max"),
        "limits_of_this_shell": text("/proc/self/limits").map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()),
        "uptime_s": text("/proc/uptime"),
        "disks": disks,
    })
}

fn model(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn disk(path: &Path) -> Value {
    match rustix::fs::statvfs(path) {
        Ok(stat) => json!({
            "path": path,
            "bytes": stat.f_blocks.saturating_mul(stat.f_frsize),
            "free_bytes": stat.f_bavail.saturating_mul(stat.f_frsize),
            "inodes": stat.f_files,
            "free_inodes": stat.f_favail,
        }),
        Err(error) => json!({ "path": path, "error": error.to_string() }),
    }
}

/// Names, sizes and ages; nothing of what stands in the files.
pub(super) fn files(settings: &EsperSettings) -> String {
    let mut text = String::new();
    for (setting, path) in directories(settings) {
        let _ = writeln!(text, "{setting} {}", path.display());
        let mut listing = Listing::default();
        listing.walk(&path, 0);
        listing.lines.sort();
        text.extend(listing.lines.iter().map(|line| format!("  {line}\n")));
        let (files, bytes) = (listing.files, listing.bytes);
        let _ = writeln!(text, "  {files} files, {bytes} bytes");
    }
    text
}

#[derive(Default)]
struct Listing {
    lines: Vec<String>,
    files: u64,
    bytes: u64,
}

impl Listing {
    /// Does not follow links.
    fn walk(&mut self, directory: &Path, depth: usize) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => return self.lines.push(format!("{}: {error}", directory.display())),
        };
        for entry in entries.flatten() {
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() && depth < DEPTH_MAX {
                self.walk(&entry.path(), depth + 1);
            } else if about.is_file() {
                self.files += 1;
                self.bytes += about.len();
                if self.lines.len() < FILES_MAX {
                    self.lines.push(format!("{} {}", entry.path().display(), about.len()));
                }
            }
        }
    }
}
