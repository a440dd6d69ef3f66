//! Generated files: the wire types of `leyline`. Each generator returns the text, so that one
//! function writes it and another compares it with what is committed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One generated file: where it stands and what it must hold.
pub struct Generated {
    /// Path from the workspace root.
    pub path: PathBuf,
    /// The expected text.
    pub text: String,
}

/// Writes every generated file.
pub fn write(root: &Path) -> Result<()> {
    for file in all(root)? {
        fs::write(root.join(&file.path), &file.text)
            .with_context(|| format!("cannot write {}", file.path.display()))?;
        println!("wrote {}", file.path.display());
    }
    Ok(())
}

/// Fails, naming every stale file, unless all committed files are what the generators make.
pub fn check(root: &Path) -> Result<()> {
    let stale: Vec<String> = all(root)?
        .into_iter()
        .filter(|file| {
            fs::read_to_string(root.join(&file.path)).ok().as_deref() != Some(&file.text)
        })
        .map(|file| file.path.display().to_string())
        .collect();
    if !stale.is_empty() {
        bail!("stale: {}; run `cargo xtask gen` and commit the result", stale.join(", "));
    }
    Ok(())
}

fn all(root: &Path) -> Result<Vec<Generated>> {
    Ok(vec![wire_types(root)?])
}

/// Rust types from `leyline.proto`, by a compiler written in Rust: no `protoc` is needed.
fn wire_types(root: &Path) -> Result<Generated> {
    let directory = root.join("crates/leyline/proto");
    let descriptors = protox::compile(["leyline.proto"], [&directory])
        .map_err(|error| anyhow::anyhow!("leyline.proto does not compile: {error:?}"))?;
    let out = std::env::temp_dir().join(format!("leyline-gen-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    prost_build::Config::new()
        .btree_map(["."])
        .out_dir(&out)
        .compile_fds(descriptors)
        .context("prost-build refused the descriptors")?;
    let text = fs::read_to_string(out.join("esper.leyline.v1.rs"))?;
    fs::remove_dir_all(&out)?;
    Ok(Generated { path: PathBuf::from("crates/leyline/src/wire.rs"), text })
}
