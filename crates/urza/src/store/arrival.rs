//! An artifact on its way in: written to a temporary file and hashed on a thread of its own while it
//! comes, named only when it is what was asked for.

use std::io::{self, Write as _};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use kernel::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::space::WriteFault;
use crate::error::Mismatch;
use crate::files::{Files, Identity};

/// Pieces that may wait between the network and the disk.
const PIECES_MAX: usize = 16;

/// What becomes of the bytes when they are the right ones.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// They become a file.
    Keep(Files),
    /// They were only to be hashed.
    Check,
}

/// Why nothing came of it.
#[derive(Debug)]
pub(crate) enum ArrivalFault<E> {
    /// The source failed.
    Source(E),
    /// It was something else.
    Mismatch(Mismatch),
    /// It could not be written.
    Write(WriteFault),
    /// The runtime is ending.
    Ending,
}

enum Piece {
    Bytes(Bytes),
    End,
}

/// Takes `source` in. `None` when it was only hashed.
pub(crate) async fn receive<E>(
    purpose: Purpose,
    digest: Digest,
    bytes: u64,
    source: impl Stream<Item = Result<Bytes, E>>,
) -> Result<Option<Identity>, ArrivalFault<E>> {
    let (pieces, arriving) = mpsc::channel(PIECES_MAX);
    let taking = tokio::task::spawn_blocking(move || take(&purpose, &digest, bytes, arriving));
    let mut source = std::pin::pin!(source);
    while let Some(piece) = source.next().await {
        let piece = piece.map_err(ArrivalFault::Source)?;
        // A taker that has gone says below why.
        if pieces.send(Piece::Bytes(piece)).await.is_err() {
            break;
        }
    }
    let _ = pieces.send(Piece::End).await;
    match taking.await {
        Ok(Ok(identity)) => Ok(identity),
        Ok(Err(Taken::Mismatch(mismatch))) => Err(ArrivalFault::Mismatch(mismatch)),
        Ok(Err(Taken::Write(fault))) => Err(ArrivalFault::Write(fault)),
        Ok(Err(Taken::Abandoned)) => Err(ArrivalFault::Ending),
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ArrivalFault::Ending),
        },
    }
}

enum Taken {
    Mismatch(Mismatch),
    Write(WriteFault),
    Abandoned,
}

fn take(
    purpose: &Purpose,
    digest: &Digest,
    bytes: u64,
    mut arriving: mpsc::Receiver<Piece>,
) -> Result<Option<Identity>, Taken> {
    let fault = |files: &Files, error: io::Error| {
        Taken::Write(WriteFault::read(&files.path(digest), bytes, error))
    };
    let mut kept = match purpose {
        Purpose::Keep(files) => {
            Some((files, files.temporary().map_err(|error| fault(files, error))?))
        }
        Purpose::Check => None,
    };
    let mut hasher = Sha256::new();
    let mut taken = 0_u64;
    loop {
        let piece = match arriving.blocking_recv() {
            Some(Piece::Bytes(piece)) => piece,
            Some(Piece::End) => break,
            None => return Err(Taken::Abandoned),
        };
        taken = taken.saturating_add(piece.len() as u64);
        if bytes < taken {
            return Err(Taken::Mismatch(Mismatch::Size(taken)));
        }
        hasher.update(&piece);
        if let Some((files, temporary)) = &mut kept {
            temporary.write_all(&piece).map_err(|error| fault(files, error))?;
        }
    }
    if taken != bytes {
        return Err(Taken::Mismatch(Mismatch::Size(taken)));
    }
    let actual = Digest::from(<[u8; 32]>::from(hasher.finalize()));
    if actual != *digest {
        return Err(Taken::Mismatch(Mismatch::Digest(actual)));
    }
    let Some((files, temporary)) = kept else { return Ok(None) };
    let identity = temporary.as_file().metadata().map(|metadata| Identity::of(&metadata));
    let identity = identity.map_err(|error| fault(files, error))?;
    files.settle(temporary, &files.path(digest)).map_err(|error| fault(files, error))?;
    Ok(Some(identity))
}
