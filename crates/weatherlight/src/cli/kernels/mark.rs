//! `weatherlight kernels tag|pin|lease`: what people say of a kernel.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use urza::{Library, StoreError};

use super::super::failure::Failure;
use super::super::table;
use super::{open, show};
use crate::settings::EsperSettings;

/// A kernel and its tags.
#[derive(Debug, Clone, Args)]
pub struct Tag {
    /// Start of a digest, id, or blueprint
    kernel: String,
    /// Tags to add
    tags: Vec<String>,
    /// Tags to remove, in whatever case
    #[arg(long, value_name = "TAG")]
    remove: Vec<String>,
}

/// A kernel to keep, or to let go.
#[derive(Debug, Clone, Args)]
pub struct Pin {
    /// Start of a digest, id, or blueprint
    kernel: String,
    /// Let it go
    #[arg(long)]
    remove: bool,
}

/// A lease from outside.
#[derive(Debug, Clone, Args)]
pub struct Lease {
    /// Start of a digest, id, or blueprint
    kernel: String,
    /// Who uses it
    #[arg(long)]
    holder: String,
    /// What for
    #[arg(long, default_value = "by hand")]
    purpose: String,
    /// How long it holds; give the command again to renew it
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    seconds: u64,
    /// Give it back
    #[arg(long)]
    release: bool,
}

fn failure(error: StoreError) -> Failure {
    match &error {
        StoreError::Catalogue(_) => Failure::unavailable_because(&error),
        _ => Failure::data(&error),
    }
}

fn done(library_says: &str, digest: &kernel::Digest, as_json: bool) {
    if as_json {
        table::print_json(&json!({ "checksum": digest.to_hex(), "outcome": library_says }));
    } else {
        table::print(&format!("{} {library_says}", &digest.to_hex()[..12]));
    }
}

pub(super) async fn tag(settings: &EsperSettings, tag: &Tag, as_json: bool) -> Result<u8, Failure> {
    let library: Library = open(settings).await?;
    let record = show::named(&library, &tag.kernel).await?;
    // All of them first: nothing is half done.
    for name in tag.tags.iter().chain(&tag.remove) {
        urza::check_tag(name).map_err(|error| Failure::data(&error))?;
    }
    for name in &tag.tags {
        library.add_tag(&record, name).await.map_err(failure)?;
    }
    for name in &tag.remove {
        library.remove_tag(&record, name).await.map_err(failure)?;
    }
    let tags = library.tags(std::slice::from_ref(&record)).await;
    let tags = tags.map_err(|error| Failure::unavailable_because(&error))?;
    library.close().await;
    let tags: Vec<String> = tags.into_values().flatten().collect();
    if as_json {
        let digest = record.digest.to_hex();
        table::print_json(&json!({ "checksum": digest, "outcome": "tagged", "tags": tags }));
    } else {
        let tags = if tags.is_empty() { "-".to_owned() } else { tags.join(", ") };
        done(&format!("tagged: {tags}"), &record.digest, as_json);
    }
    Ok(0)
}

pub(super) async fn pin(settings: &EsperSettings, pin: &Pin, as_json: bool) -> Result<u8, Failure> {
    let library = open(settings).await?;
    let record = show::named(&library, &pin.kernel).await?;
    let outcome =
        if pin.remove { library.unpin(&record).await } else { library.pin(&record).await };
    outcome.map_err(failure)?;
    library.close().await;
    done(if pin.remove { "unpinned" } else { "pinned" }, &record.digest, as_json);
    Ok(0)
}

pub(super) async fn lease(
    settings: &EsperSettings,
    lease: &Lease,
    as_json: bool,
) -> Result<u8, Failure> {
    let library = open(settings).await?;
    let record = show::named(&library, &lease.kernel).await?;
    let outcome = if lease.release {
        let released = library.release(Some(&record.digest), &lease.holder).await;
        // Giving back twice is no fault, and is said so.
        let told = |released| if released > 0 { "released" } else { "was not leased" };
        released.map(told).map_err(StoreError::from)
    } else {
        let ttl = Duration::from_secs(lease.seconds);
        let leased = library.lease(&record.digest, &lease.holder, &lease.purpose, ttl).await;
        leased.map(|()| "leased")
    };
    let outcome = outcome.map_err(failure)?;
    library.close().await;
    done(outcome, &record.digest, as_json);
    Ok(0)
}
