//! Checkpoints: all weights of a run as one safetensors file, which other tools read too. Written beside the training
//! thread; one that comes while the last is still being written is left out.
//!
//! A checkpoint holds what was learnt, not where the run stood: it can be used, but a run cannot go on from it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use kernel::{Params, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tracing::{debug, warn};

use crate::error::CheckpointError;

/// Name of the file within its directory.
const FILE: &str = "checkpoint.safetensors";

/// The weights of a run at the end of an epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Id of the run.
    pub run: String,
    /// The seed of the run.
    pub seed: u64,
    /// The epoch that had ended.
    pub epoch: u32,
    /// Every parameter; those of a grown seed begin with the id of its slot.
    pub params: Params,
}

impl Checkpoint {
    /// The file of a run that keeps its checkpoints in `directory`.
    pub fn path(directory: &Path) -> PathBuf {
        directory.join(FILE)
    }

    /// Writes the file so that a crash leaves the old one or the new one, whole.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]
    pub fn write(&self, directory: &Path) -> Result<PathBuf, CheckpointError> {
        let path = Self::path(directory);
        let bytes = self.to_bytes(&path)?;
        replace(directory, &path, &bytes)
            .map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
        Ok(path)
    }

    /// Reads a file back and checks all of it.
    ///
    /// # Errors
    /// [`CheckpointError`]
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = fs::read(path)
            .map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        let unusable = |reason: String| CheckpointError::Unusable { path: path.to_owned(), reason };
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| unusable(error.to_string()))?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| unusable(error.to_string()))?;
        let entry = |key: &str| {
            let found = header.metadata().as_ref().and_then(|metadata| metadata.get(key));
            found.cloned().ok_or_else(|| unusable(format!("its metadata lacks {key}")))
        };
        let number = |key: &str| {
            entry(key)?
                .parse::<u64>()
                .map_err(|_| unusable(format!("its {key} is no whole number")))
        };
        let params = tensors
            .iter()
            .map(|(name, view)| {
                let tensor =
                    read_tensor(&view).map_err(|reason| unusable(format!("{name} is {reason}")))?;
                Ok((name.to_owned(), tensor))
            })
            .collect::<Result<Params, CheckpointError>>()?;
        let epoch = u32::try_from(number("epoch")?)
            .map_err(|_| unusable("its epoch is too large".to_owned()))?;
        Ok(Self { run: entry("run")?, seed: number("seed")?, epoch, params })
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, CheckpointError> {
        let data: Vec<(&str, &[usize], Vec<u8>)> = self
            .params
            .iter()
            .map(|(name, tensor)| {
                let bytes = tensor.data().iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, tensor.shape(), bytes)
            })
            .collect();
        let unusable = |error: safetensors::SafeTensorError| CheckpointError::Unusable {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let views = data
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(unusable)?;
        let metadata = HashMap::from([
            ("run".to_owned(), self.run.clone()),
            ("seed".to_owned(), self.seed.to_string()),
            ("epoch".to_owned(), self.epoch.to_string()),
        ]);
        safetensors::serialize(views, Some(metadata)).map_err(unusable)
    }
}

fn read_tensor(view: &TensorView<'_>) -> Result<Tensor, String> {
    if view.dtype() != Dtype::F32 {
        return Err(format!("{:?}, not F32", view.dtype()));
    }
    let values: Vec<f32> = view
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    let tensor = Tensor::new(view.shape().to_vec(), values).map_err(|error| error.to_string())?;
    if tensor.is_finite() { Ok(tensor) } else { Err("not finite".to_owned()) }
}

fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Writes checkpoints on a thread of its own; dropping it waits for the one in hand.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    sender: Option<SyncSender<Checkpoint>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(directory: PathBuf) -> io::Result<Self> {
        let (sender, receiver) = sync_channel::<Checkpoint>(1);
        let thread = std::thread::Builder::new().name("checkpoints".to_owned()).spawn(move || {
            for checkpoint in receiver {
                match checkpoint.write(&directory) {
                    Ok(path) => debug!(path = %path.display(), epoch = checkpoint.epoch, "checkpoint written"),
                    Err(error) => warn!(error = &error as &dyn std::error::Error, epoch = checkpoint.epoch, "checkpoint not written"),
                }
            }
        })?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    /// Hands a checkpoint over without waiting.
    pub(crate) fn offer(&self, checkpoint: Checkpoint) {
        let Some(sender) = &self.sender else { return };
        match sender.try_send(checkpoint) {
            Ok(()) => {}
            Err(TrySendError::Full(left_out) | TrySendError::Disconnected(left_out)) => {
                debug!(
                    epoch = left_out.epoch,
                    "checkpoint left out, the last is still being written"
                );
            }
        }
    }

    /// Hands the last one over, waits for its place and until it is written.
    pub(crate) fn finish(mut self, last: Checkpoint) {
        if let Some(sender) = self.sender.take() {
            // The thread ends only when this end is dropped, so there is a reader.
            let _ = sender.send(last);
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.sender.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the checkpoint thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let tensor = Tensor::new(vec![2, 1], vec![1.5, -2.0]).unwrap();
        let params = [("host.head.weight".to_owned(), tensor)].into_iter().collect();
        Checkpoint { run: "run".to_owned(), seed: 7, epoch: 25, params }
    }

    #[test]
    fn what_is_written_is_read_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = checkpoint().write(directory.path()).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint());
        let later = Checkpoint { epoch: 50, ..checkpoint() };
        later.write(directory.path()).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), later);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn every_cut_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = checkpoint().write(directory.path()).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Checkpoint::read(&path).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_last_one_is_there_when_the_writer_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let writer = Checkpointer::start(directory.path().join("new")).unwrap();
        for epoch in 0..20 {
            writer.offer(Checkpoint { epoch, ..checkpoint() });
        }
        writer.finish(checkpoint());
        assert_eq!(Checkpoint::read(&directory.path().join("new").join(FILE)).unwrap().epoch, 25);
    }
}
