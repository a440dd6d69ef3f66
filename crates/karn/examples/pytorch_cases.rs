//! Writes every served template, at a small site of each kind, as an artifact with its parameters moved away from their
//! start: what `python/make_fixtures.py` runs in PyTorch. Give it a directory.

use std::path::PathBuf;

use karn::{build, catalogue};
use kernel::artifact::{Manifest, write_bytes};

#[path = "../tests/it/pytorch/cases.rs"]
mod cases;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("give a directory")?);
    std::fs::create_dir_all(&directory)?;
    for blueprint in catalogue().iter().filter(|blueprint| blueprint.graftable()) {
        for site in cases::SITES {
            let graph = build(blueprint, &blueprint.midpoints(), &site)?;
            let params = cases::params(&graph);
            let (id, place) = (blueprint.id().as_str(), serde_json::to_value(site)?);
            let manifest =
                Manifest::new(id, Default::default(), place, graph, &params, cases::TOLERANCE)?;
            let (bytes, _) = write_bytes(&manifest, &params)?;
            std::fs::write(directory.join(format!("{id} {site}.safetensors")), bytes)?;
        }
    }
    Ok(())
}
