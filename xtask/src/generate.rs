//! Generated files. Each generator returns the text, so that one function writes it and another
//! compares it with what is committed.
//!
//! The settings pages are made by `weatherlight` from its own table; here they are only compared.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::metrics_page;
use crate::pitfalls;
use crate::run::cargo;

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
    let mut files = vec![wire_types(root)?];
    files.push(Generated { path: metrics_page::path(), text: metrics_page::page(root)? });
    files.push(Generated { path: pitfalls::path(), text: pitfalls::page(root)? });
    files.extend(settings_pages(root)?);
    Ok(files)
}

/// What comes from the program's own tables, of settings and of codes.
const SETTINGS_PAGES: [&str; 5] = [
    "docs/settings.md",
    ".env.example",
    "weatherlight.example.toml",
    "docs/weatherlight.schema.json",
    "docs/errors.md",
];

/// The pages of the settings, written by the program into a directory of their own.
fn settings_pages(root: &Path) -> Result<Vec<Generated>> {
    let out = std::env::temp_dir().join(format!("weatherlight-gen-{}", std::process::id()));
    fs::create_dir_all(out.join("docs"))?;
    let directory = out.to_string_lossy();
    let write = ["config", "docs", "--write", &directory];
    cargo(
        root,
        &[&["run", "--quiet", "--locked", "-p", "weatherlight", "--"], &write[..]].concat(),
    )?;
    let read = |path: &str| -> Result<Generated> {
        let text = fs::read_to_string(out.join(path)).with_context(|| format!("no {path}"))?;
        Ok(Generated { path: PathBuf::from(path), text })
    };
    let pages = SETTINGS_PAGES.into_iter().map(read).collect::<Result<_>>()?;
    fs::remove_dir_all(&out)?;
    Ok(pages)
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
