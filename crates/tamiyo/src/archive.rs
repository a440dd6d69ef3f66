//! The policies kept on disk: the payloads by digest, and `policy.json`, which says which of them
//! is in force, which was before it, and what no update may fall behind again. A payload is written
//! first and named there last, so a crash leaves the old policy or the new one, never half of one.
//! Blocking: the worker calls it on a thread for that.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kernel::Digest;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{ArchiveError, Quarantined};
use crate::live::{Identity, LivePolicy, Loaded};
use crate::tensors;

const STATE_FILE: &str = "policy.json";

/// What stands in `policy.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    current: Identity,
    previous: Option<Identity>,
    floor: Floor,
}

/// What an update may not fall behind, so that an older policy never comes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Floor {
    /// Highest sequence ever in force.
    pub(crate) sequence: u64,
    /// When the latest accepted update was issued, in Unix milliseconds.
    pub(crate) issued_at_ms: u64,
}

/// The directory of policies. One per process writes it.
#[derive(Debug)]
pub(crate) struct Archive {
    dir: PathBuf,
    state: State,
}

/// The archive, the policy in force, and what was found damaged.
pub(crate) struct Opened {
    pub(crate) archive: Archive,
    pub(crate) live: LivePolicy,
    pub(crate) damaged: Vec<Quarantined>,
}

impl Archive {
    /// Opens the directory and loads the policy that was in force; the built-in one when there is
    /// none, or when it is damaged.
    pub(crate) fn open(config: &Config) -> Result<Opened, ArchiveError> {
        let dir = config.policy_dir.clone();
        fs::create_dir_all(&dir).map_err(at("make", &dir))?;
        let built_in = Loaded::built_in(&config.growth);
        let mut opening = Opening { dir: &dir, config, damaged: Vec::new() };
        let mut state = opening.state()?.unwrap_or_else(|| State {
            current: built_in.identity.clone(),
            previous: None,
            floor: Floor { sequence: opening.highest_kept(), issued_at_ms: 0 },
        });
        let current = match opening.policy(&state.current)? {
            Some(loaded) => loaded,
            None => {
                state.current = built_in.identity.clone();
                built_in
            }
        };
        let previous = match &state.previous {
            Some(identity) => opening.policy(identity)?,
            None => None,
        };
        state.previous = previous.as_ref().map(|loaded| loaded.identity.clone());
        let damaged = opening.damaged;
        let live = LivePolicy::with_previous(current, previous);
        Ok(Opened { archive: Self { dir, state }, live, damaged })
    }

    pub(crate) fn floor(&self) -> Floor {
        self.state.floor
    }

    /// Keeps a new policy, then puts it in force.
    pub(crate) fn install(
        &mut self,
        live: &LivePolicy,
        next: Loaded,
        payload: &[u8],
        issued_at_ms: u64,
    ) -> Result<(), ArchiveError> {
        let digest = next.identity.digest.unwrap_or_else(|| Digest::of(payload));
        write_durably(&self.dir, &payload_file(&digest), payload)?;
        let state = State {
            current: next.identity.clone(),
            previous: Some(self.state.current.clone()),
            floor: Floor {
                sequence: self.state.floor.sequence.max(next.identity.sequence),
                issued_at_ms: self.state.floor.issued_at_ms.max(issued_at_ms),
            },
        };
        self.keep(state)?;
        live.swap(next);
        self.prune();
        Ok(())
    }

    /// Keeps and shows a new label for the policy in force.
    pub(crate) fn relabel(
        &mut self,
        live: &LivePolicy,
        version: String,
        policy_id: String,
        issued_at_ms: u64,
    ) -> Result<(), ArchiveError> {
        let mut state = self.state.clone();
        state.current.version.clone_from(&version);
        state.current.policy_id.clone_from(&policy_id);
        state.floor.issued_at_ms = state.floor.issued_at_ms.max(issued_at_ms);
        self.keep(state)?;
        live.relabel(version, policy_id);
        Ok(())
    }

    /// Puts the policy before the one in force back. What was in force cannot come back by an
    /// update: the floor stays.
    pub(crate) fn rollback(&mut self, live: &LivePolicy) -> Result<Identity, ArchiveError> {
        let mut state = self.state.clone();
        let earlier = state.previous.take().ok_or(ArchiveError::NothingEarlier)?;
        state.previous = Some(std::mem::replace(&mut state.current, earlier));
        self.keep(state)?;
        live.swap_back().ok_or(ArchiveError::NothingEarlier)
    }

    fn keep(&mut self, state: State) -> Result<(), ArchiveError> {
        let text = serde_json::to_vec_pretty(&state)
            .map_err(io::Error::from)
            .map_err(at("write", &self.dir.join(STATE_FILE)))?;
        write_durably(&self.dir, STATE_FILE, &text)?;
        self.state = state;
        Ok(())
    }

    /// Removes payloads that are neither in force nor before it. One that stays costs 2 KiB and is
    /// removed the next time, so failures are not reported.
    fn prune(&self) {
        let digests = [Some(&self.state.current), self.state.previous.as_ref()];
        let wanted: Vec<String> = digests
            .into_iter()
            .filter_map(|identity| identity?.digest.as_ref().map(payload_file))
            .collect();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(PAYLOAD_SUFFIX) && !wanted.contains(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Reading at the start, and what was found damaged meanwhile.
struct Opening<'a> {
    dir: &'a Path,
    config: &'a Config,
    damaged: Vec<Quarantined>,
}

impl Opening<'_> {
    fn state(&mut self) -> Result<Option<State>, ArchiveError> {
        let path = self.dir.join(STATE_FILE);
        let Some(text) = read(&path)? else { return Ok(None) };
        match serde_json::from_slice(&text) {
            Ok(state) => Ok(Some(state)),
            Err(_) => {
                self.quarantine(&path, None)?;
                Ok(None)
            }
        }
    }

    /// The policy of that name; `None` when it is damaged or gone.
    fn policy(&mut self, identity: &Identity) -> Result<Option<Loaded>, ArchiveError> {
        let Some(digest) = &identity.digest else {
            let weights = Loaded::built_in(&self.config.growth).weights;
            return Ok(Some(Loaded { identity: identity.clone(), weights }));
        };
        let path = self.dir.join(payload_file(digest));
        let Some(payload) = read(&path)? else {
            self.damaged.push(Quarantined { moved_to: path.clone(), file: path, source: None });
            return Ok(None);
        };
        if Digest::of(&payload) != *digest {
            self.quarantine(&path, None)?;
            return Ok(None);
        }
        match tensors::decode(&payload, self.config.updates.payload_bytes_max) {
            Ok((weights, _)) => Ok(Some(Loaded { identity: identity.clone(), weights })),
            Err(refused) => {
                self.quarantine(&path, Some(refused))?;
                Ok(None)
            }
        }
    }

    /// Highest sequence among the kept payloads: what holds when `policy.json` is lost, so that an
    /// older policy does not come back that way either.
    fn highest_kept(&self) -> u64 {
        let paths = fs::read_dir(self.dir).into_iter().flatten().flatten().map(|one| one.path());
        let payloads = paths.filter(|path| path.to_string_lossy().ends_with(PAYLOAD_SUFFIX));
        let bytes_max = self.config.updates.payload_bytes_max;
        let sequence = |path: PathBuf| {
            let payload = fs::read(path).ok()?;
            tensors::decode(&payload, bytes_max).ok().map(|(_, sequence)| sequence)
        };
        payloads.filter_map(sequence).max().unwrap_or(0)
    }

    fn quarantine(
        &mut self,
        path: &Path,
        source: Option<crate::error::UpdateRefused>,
    ) -> Result<(), ArchiveError> {
        let beside = |number: u32| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{name}.corrupt-{number}"))
        };
        let free = (1..).map(beside).find(|candidate| !candidate.exists());
        let moved_to = free.expect("there are more numbers than files");
        fs::rename(path, &moved_to).map_err(at("quarantine", path))?;
        self.damaged.push(Quarantined { file: path.to_owned(), moved_to, source });
        Ok(())
    }
}

const PAYLOAD_SUFFIX: &str = ".safetensors";

fn payload_file(digest: &Digest) -> String {
    format!("{digest}{PAYLOAD_SUFFIX}")
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Io { operation, path, source }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, ArchiveError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("read", path)(error)),
    }
}

/// Temporary file, fsync, rename, fsync of the directory.
fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(name))?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        ArchiveError::Io { operation: "write", path: dir.join(name), source }
    })
}
