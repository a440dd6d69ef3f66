//! The artifact directory. A file's name is its SHA-256; it appears whole or not at all.
//! Everything here blocks.
//!
//! `ab/abcdef….safetensors` the artifacts, `tmp/` files being written, `quarantine/` what was found
//! to be something else than its name says.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kernel::Digest;
use tempfile::NamedTempFile;

use crate::error::{FetchError, Mismatch};
use crate::hash;
use crate::store::{Stored, WriteFault};

/// Names the library, whoever opens it by whatever path.
const ID: &str = "library.id";
const TMP: &str = "tmp";
const QUARANTINE: &str = "quarantine";
const EXTENSION: &str = "safetensors";

/// Which file it is, as far as the system can tell. Another writer leaves another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
}

impl Identity {
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        let modified_ns =
            i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), bytes: metadata.len(), modified_ns }
    }
}

/// Reads the library's id, or makes one; of several processes that do so at once, one is the first.
fn id(root: &Path) -> io::Result<String> {
    let path = root.join(ID);
    if !path.exists() {
        let mut file = tempfile::NamedTempFile::new_in(root.join(TMP))?;
        // The name of a fresh temporary file is random, and where and when it was made is not shared.
        let made = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = format!("{} {} {made:?}", file.path().display(), std::process::id());
        let fresh = Digest::of(seed).to_hex();
        file.write_all(&fresh.as_bytes()[..16])?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(&path) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error.error);
            }
            Ok(_) | Err(_) => {}
        }
    }
    let id = fs::read_to_string(&path)?.trim().to_owned();
    let is_one = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_one.then_some(id).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "not 16 hex digits; remove the file, it is made anew",
        )
    })
}

/// The artifact directory.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    root: PathBuf,
    id: String,
}

impl Files {
    /// Makes the directory and proves that it can be written.
    pub(crate) fn open(root: &Path) -> Result<Self, (PathBuf, io::Error)> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |error| (path, error)
        };
        fs::create_dir_all(root).map_err(fault(root))?;
        let root = root.canonicalize().map_err(fault(root))?;
        for name in [TMP, QUARANTINE] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(fault(&path))?;
        }
        tempfile::tempfile_in(root.join(TMP)).map_err(fault(&root.join(TMP)))?;
        let id = id(&root).map_err(fault(&root.join(ID)))?;
        Ok(Self { root, id })
    }

    /// 16 hex digits, the same for every process that has this directory.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The directory, as an absolute path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the artifact of this digest stands; an absolute path.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_hex();
        self.root.join(&hex[..2]).join(format!("{hex}.{EXTENSION}"))
    }

    /// Writes an artifact so that a crash at any point leaves the whole file or none: temporary
    /// file, sync, rename, sync of the directories. An existing file of the same name is replaced,
    /// which heals one that was corrupt; readers that have it open keep what they opened.
    pub(crate) fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<PathBuf, WriteFault> {
        let path = self.path(digest);
        let written = self.temporary().and_then(|mut temporary| {
            temporary.write_all(bytes)?;
            self.settle(temporary, &path)
        });
        written.map_err(|error| WriteFault::read(&path, bytes.len() as u64, error))?;
        Ok(path)
    }

    /// A file to write an artifact into; it is gone when it is dropped before it is settled.
    pub(crate) fn temporary(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix("store-").tempfile_in(self.root.join(TMP))
    }

    /// Makes a whole file durable and gives it its name.
    pub(crate) fn settle(&self, temporary: NamedTempFile, path: &Path) -> io::Result<()> {
        temporary.as_file().sync_all()?;
        oona::chaos::point(oona::chaos::Point::ArtifactWritten);
        self.make_shard(path)?;
        temporary.persist(path)?;
        self.sync_shard(path)
    }

    /// As [`Files::settle`], for a file of this directory that was written under a name of its own.
    pub(crate) fn adopt(&self, file: &File, from: &Path, path: &Path) -> io::Result<()> {
        file.sync_all()?;
        self.make_shard(path)?;
        fs::rename(from, path)?;
        self.sync_shard(path)
    }

    /// Where a file of its own name is written that may be gone on with later.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join(TMP).join(format!("{digest}.part"))
    }

    fn make_shard(&self, path: &Path) -> io::Result<()> {
        let shard = path.parent().unwrap_or(&self.root);
        if !shard.exists() {
            fs::create_dir_all(shard)?;
            File::open(&self.root)?.sync_all()?;
        }
        Ok(())
    }

    fn sync_shard(&self, path: &Path) -> io::Result<()> {
        File::open(path.parent().unwrap_or(&self.root))?.sync_all()
    }

    /// Which file stands there now, if it can be an artifact of `bytes` bytes.
    pub(crate) fn identify(
        &self,
        digest: &Digest,
        bytes: u64,
    ) -> Result<(PathBuf, Identity), FetchError> {
        let path = self.path(digest);
        let metadata = fs::symlink_metadata(&path).map_err(|error| read_fault(&path, error))?;
        let found = if !metadata.is_file() {
            Mismatch::Kind
        } else if metadata.len() != bytes {
            Mismatch::Size(metadata.len())
        } else {
            return Ok((path, Identity::of(&metadata)));
        };
        Err(FetchError::Corrupt { path, expected: *digest, found })
    }

    /// Hashes the file and says which file it hashed.
    pub(crate) fn verify(&self, digest: &Digest) -> Result<Identity, FetchError> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|error| read_fault(&path, error))?;
        let metadata = file.metadata().map_err(|error| read_fault(&path, error))?;
        let actual =
            hash::digest(file, metadata.len()).map_err(|error| read_fault(&path, error))?;
        if actual == *digest {
            return Ok(Identity::of(&metadata));
        }
        Err(FetchError::Corrupt { path, expected: *digest, found: Mismatch::Digest(actual) })
    }

    /// Moves a file that is not what its name says out of the way, and says where it went; `None`
    /// when there is none. A sound file that another writer put there meanwhile goes back.
    pub(crate) fn quarantine(&self, digest: &Digest, at_ms: u64) -> io::Result<Option<PathBuf>> {
        let path = self.path(digest);
        let aside = self.root.join(QUARANTINE).join(format!("{digest}-{at_ms}.{EXTENSION}"));
        match fs::rename(&path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        }
        let sound = fs::symlink_metadata(&aside)?.is_file()
            && File::open(&aside).and_then(Digest::of_reader).is_ok_and(|actual| actual == *digest);
        if !sound {
            return Ok(Some(aside));
        }
        // A copy stored since the rename is as good as this one.
        if path.exists() {
            fs::remove_file(&aside)?
        } else {
            fs::rename(&aside, &path)?
        }
        Ok(None)
    }

    /// Removes an artifact's file; `false` when there was none. Readers keep what they opened.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<bool> {
        match fs::remove_file(self.path(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The artifacts that stand here, in the order of their digests, at most `limit` of those behind
    /// `after`. What has another name than an artifact's is not one.
    pub(crate) fn list(&self, after: Option<&Digest>, limit: usize) -> io::Result<Vec<Stored>> {
        let mut found = Vec::new();
        let first = after.map(|digest| digest.to_hex()[..2].to_owned()).unwrap_or_default();
        for shard in 0..=u8::MAX {
            let shard = format!("{shard:02x}");
            if shard < first || found.len() >= limit {
                continue;
            }
            let mut these = self.shard(&shard)?;
            these.retain(|stored| after.is_none_or(|after| *after < stored.digest));
            these.sort_unstable_by_key(|stored| stored.digest);
            found.append(&mut these);
        }
        found.truncate(limit);
        Ok(found)
    }

    fn shard(&self, shard: &str) -> io::Result<Vec<Stored>> {
        let entries = match fs::read_dir(self.root.join(shard)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(digest) = name.to_str().and_then(digest_of_name) else { continue };
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_file() && self.path(&digest) == entry.path() {
                let used = metadata.accessed().unwrap_or(SystemTime::UNIX_EPOCH);
                let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Stored { digest, bytes: metadata.len(), written, used });
            }
        }
        Ok(found)
    }

    /// Removes temporary files that no running writer can still need, and says how many.
    pub(crate) fn collect_orphans(&self, older_than: Duration) -> io::Result<u64> {
        let mut removed = 0;
        for entry in fs::read_dir(self.root.join(TMP))? {
            let entry = entry?;
            let age = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .map(|modified| SystemTime::now().duration_since(modified).unwrap_or_default());
            match age {
                Ok(age) if age < older_than => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                _ => {}
            }
            match fs::remove_file(entry.path()) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

/// Opens a regular file of this length, and nothing that a link or a name of another kind leads to.
/// Blocking.
pub(crate) fn open_regular(path: &Path, bytes: u64) -> Result<File, FetchError> {
    // Without `NONBLOCK` the opening of a pipe would wait for a writer.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let file = opened.map_err(|error| read_fault(path, error))?;
    let metadata = file.metadata().map_err(|error| read_fault(path, error))?;
    if metadata.is_file() && metadata.len() == bytes {
        return Ok(file);
    }
    // It was verified a moment ago and is another file now.
    Err(read_fault(path, io::ErrorKind::InvalidData.into()))
}

/// The digest in the name of an artifact's file, or of its object.
pub(crate) fn digest_of_name(name: &str) -> Option<Digest> {
    name.strip_suffix(".safetensors")?.parse().ok()
}

fn read_fault(path: &Path, error: io::Error) -> FetchError {
    let path = path.to_owned();
    if error.kind() == io::ErrorKind::NotFound {
        return FetchError::NotFound { path };
    }
    FetchError::Read { path, source: error }
}
