//! From the settings to each crate's own configuration. The only place that knows both.

use crate::settings::EsperSettings;

/// The library's settings.
///
/// # Errors
/// When the catalogue's URL cannot be used.
pub fn library_config(settings: &EsperSettings) -> Result<urza::Config, urza::ConfigFault> {
    Ok(urza::Config {
        catalogue: urza::CatalogueUrl::parse(&settings.urza_database_url)?,
        artifact_dir: settings.urza_artifact_dir.clone(),
        cache_ttl: settings.urza_cache_ttl,
        ..urza::Config::default()
    })
}
