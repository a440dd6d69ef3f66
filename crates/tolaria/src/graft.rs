//! From a fetched artifact to a graft.

use kasmina::FetchedKernel;
use kernel::artifact::Kernel;

use crate::error::GraftError;
use crate::network::Graft;

/// Opens a fetched artifact, verifying its digest once more: what trains is what was verified, whatever happened to
/// the file in between. Every call gives an instance of its own.
///
/// # Errors
/// [`GraftError::Open`]
pub fn open(kernel: &FetchedKernel) -> Result<Graft, GraftError> {
    let opened = Kernel::open(&kernel.path, &kernel.digest).map_err(|source| GraftError::Open {
        path: kernel.path.clone(),
        source: Box::new(source),
    })?;
    Ok(Graft { graph: opened.graph().clone(), params: opened.params().clone() })
}
