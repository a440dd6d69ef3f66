//! What has come of a kernel so far: a file that outlives a broken connection and this process. Blocking.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use kernel::Digest;
use sha2::{Digest as _, Sha256};

use super::fault::FetchFault;
use crate::files::{Files, Identity};
use crate::store::WriteFault;

/// Bytes read at a time while what is there is hashed.
const READ_BYTES: usize = 256 * 1024;

/// The beginning of a kernel.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    /// Of what is in the file.
    hasher: Sha256,
    len: u64,
    bytes_max: u64,
}

impl Part {
    /// Takes up what an earlier attempt left, if nobody else is at it; else begins a file of its own.
    pub(super) fn open(files: &Files, digest: &Digest, bytes_max: u64) -> Result<Self, FetchFault> {
        let shared = files.partial(digest);
        match Self::open_at(shared.clone(), bytes_max) {
            Ok(Some(part)) => return Ok(part),
            Ok(None) => {}
            Err(error) => return Err(WriteFault::read(&shared, 0, error).into()),
        }
        // Somebody else is at it, who may be slow or hang; this one is gone on with by nobody.
        let unique = RandomState::new().build_hasher().finish();
        let own = shared.with_extension(format!("{unique:016x}.part"));
        match Self::open_at(own.clone(), bytes_max) {
            Ok(Some(part)) => Ok(part),
            Ok(None) => Err(FetchFault::disk(own, io::ErrorKind::WouldBlock.into())),
            Err(error) => Err(WriteFault::read(&own, 0, error).into()),
        }
    }

    /// `None` when another process holds it.
    fn open_at(path: PathBuf, bytes_max: u64) -> io::Result<Option<Self>> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        // The name is ours; a link of this name is not.
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).mode(0o644);
        let file = options.open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        let mut part = Self { path, file, hasher: Sha256::new(), len: 0, bytes_max };
        part.take_up()?;
        Ok(Some(part))
    }

    /// Hashes what is there.
    fn take_up(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                count => {
                    self.hasher.update(&buffer[..count]);
                    self.len += count as u64;
                }
            }
            if self.bytes_max < self.len {
                return self.restart();
            }
        }
    }

    /// How much is there.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.hasher, self.len) = (Sha256::new(), 0);
        Ok(())
    }

    /// Puts more behind it. After a fault the file ends where it ended before.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FetchFault> {
        if let Err(error) = self.file.write_all(bytes) {
            let ended = self.file.set_len(self.len);
            let ended = ended.and_then(|()| self.file.seek(io::SeekFrom::End(0)));
            if let Err(error) = ended {
                return Err(FetchFault::disk(self.path.clone(), error));
            }
            return Err(WriteFault::read(&self.path, bytes.len() as u64, error).into());
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Whether it is what the digest says.
    pub(super) fn check(&self, digest: &Digest) -> Result<(), FetchFault> {
        let actual = Digest::from(<[u8; 32]>::from(self.hasher.clone().finalize()));
        if actual == *digest {
            return Ok(());
        }
        Err(FetchFault::Corrupt { expected: *digest, actual })
    }

    /// Makes it durable and gives it its name.
    pub(super) fn settle(self, files: &Files, digest: &Digest) -> Result<Identity, FetchFault> {
        let path = files.path(digest);
        let settled = self.file.metadata().map(|metadata| Identity::of(&metadata));
        let settled = settled.and_then(|identity| {
            files.adopt(&self.file, &self.path, &path)?;
            Ok(identity)
        });
        settled.map_err(|error| WriteFault::read(&path, self.len, error).into())
    }
}
