//! From the settings to each crate's own configuration. The only place that knows both.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use kernel::signature::{KeyError, SigningKey, TrustedKeys};
use leyline::sign::Keyring;

use crate::settings::{EsperSettings, SecretText};

/// The bus's settings.
pub fn bus_config(settings: &EsperSettings) -> oona::Config {
    let log = match &settings.redis_url {
        Some(url) => oona::LogChoice::Redis { url: url.expose().to_owned() },
        None => oona::LogChoice::Embedded { path: settings.state_dir.join("oona/log.redb") },
    };
    let bands = oona::Config { depth_max: settings.oona_queue_depth_max, ..Default::default() }
        .with_bands_of_depth();
    let emergency_threshold =
        settings.oona_emergency_threshold.unwrap_or(bands.emergency_threshold);
    // The embedded log stands on the same disk: what keeps it from writing keeps a spool as well.
    let spool = settings.redis_url.as_ref().map(|_| oona::SpoolConfig {
        directory: settings.state_dir.join("oona/spool"),
        bytes_max: settings.oona_spool_bytes_max,
        messages_max: settings.oona_spool_messages_max,
    });
    oona::Config {
        log,
        spool,
        redis: oona::RedisAccess {
            password: settings.redis_password.as_ref().map(|secret| secret.expose().to_owned()),
            ca_file: settings.oona_redis_ca_file.clone(),
            cert_file: settings.oona_redis_cert_file.clone(),
            key_file: settings.oona_redis_key_file.clone(),
        },
        durability: settings.oona_durability.clone(),
        durability_timeout: settings.oona_durability_timeout,
        streams: oona::StreamNames {
            normal: settings.oona_normal_stream.clone(),
            emergency: settings.oona_emergency_stream.clone(),
            telemetry: settings.oona_telemetry_stream.clone(),
            policy: settings.oona_policy_stream.clone(),
            kernel_requests: settings.oona_kernel_request_stream.clone(),
            kernel_ready: settings.oona_kernel_ready_stream.clone(),
            kernel_errors: settings.oona_kernel_error_stream.clone(),
            dead_letter: settings.oona_dead_letter_stream.clone(),
        },
        message_bytes_max: settings.oona_message_bytes_max,
        freshness_window: settings.oona_freshness_window,
        kernel_freshness_window: settings.kernel_freshness_window,
        accept_legacy: settings.oona_accept_legacy,
        message_ttl: settings.oona_message_ttl,
        stream_len_max: settings.oona_stream_len_max,
        embedded_bytes_max: settings.oona_embedded_bytes_max,
        attempts_max: settings.oona_attempts_max,
        claim_idle: settings.oona_claim_idle,
        depth_max: settings.oona_queue_depth_max,
        backpressure_threshold: settings
            .oona_backpressure_threshold
            .unwrap_or(bands.backpressure_threshold),
        emergency_threshold,
        recovery_depth: settings.oona_recovery_depth.unwrap_or(emergency_threshold),
        recovery_window: settings.oona_recovery_window,
        emergency_per_min: settings.oona_emergency_per_min,
        ..oona::Config::default()
    }
}

/// The secrets in force; `None` without a secret, which the preflight reports.
pub fn keyring(settings: &EsperSettings) -> Option<Keyring> {
    let current = settings.leyline_secret.as_ref()?.signing();
    let previous = settings.leyline_secret_previous.as_ref().map(|secret| secret.signing());
    Some(Keyring::new(&current, previous.as_ref()))
}

/// The library's settings.
///
/// # Errors
/// When the catalogue's URL cannot be used.
pub fn library_config(settings: &EsperSettings) -> Result<urza::Config, urza::ConfigFault> {
    Ok(urza::Config {
        catalogue: urza::CatalogueUrl::parse(settings.urza_database_url.expose())?,
        artifact_dir: settings.urza_artifact_dir.clone(),
        bucket: bucket_config(settings)?,
        artifact_cache_bytes_max: settings.urza_artifact_cache_bytes_max,
        cache_ttl: settings.urza_cache_ttl,
        ..urza::Config::default()
    })
}

/// How long the library keeps things.
pub fn retention(settings: &EsperSettings) -> urza::Retention {
    urza::Retention {
        quarantined: Some(settings.urza_quarantine_retention),
        superseded: Some(settings.urza_superseded_retention),
        bytes_max: settings.urza_library_bytes_max,
        ..urza::Retention::default()
    }
}

/// Where artifacts live beyond the directory, if they do.
fn bucket_config(
    settings: &EsperSettings,
) -> Result<Option<urza::store::BucketConfig>, urza::ConfigFault> {
    let Some(url) = &settings.urza_artifact_url else { return Ok(None) };
    let secret = |secret: &Option<SecretText>| secret.as_ref().map(|it| it.expose().to_owned());
    let access = urza::store::BucketAccess {
        endpoint: settings.aws_endpoint.as_ref().map(|url| url.expose().to_owned()),
        region: settings.aws_region.clone(),
        key_id: secret(&settings.aws_access_key_id),
        secret_key: secret(&settings.aws_secret_access_key),
        session_token: secret(&settings.aws_session_token),
        ca_file: settings.aws_ca_bundle.clone(),
    };
    let url = urza::store::BucketUrl::parse(url.expose())?;
    Ok(Some(urza::store::BucketConfig::new(url, access)))
}

/// How a trainer has kernels fetched.
pub fn prefetch_config(settings: &EsperSettings) -> kasmina::PrefetchConfig {
    let token = settings.kasmina_kernel_token.as_ref();
    let fetcher = urza::fetch::FetcherConfig {
        token: token.map(|token| token.expose().to_owned()),
        ca_file: settings.kasmina_kernel_ca_file.clone(),
        cache_bytes_max: settings.kasmina_kernel_cache_bytes_max,
        ..urza::fetch::FetcherConfig::at(settings.kasmina_kernel_cache_dir.clone())
    };
    let trusted = trusted_keys(settings).expect("settings are checked before they are used");
    kasmina::PrefetchConfig {
        fetcher: Some(fetcher),
        trusted,
        ..kasmina::PrefetchConfig::default()
    }
}

/// Whose signature a kernel must bear, if that is set.
///
/// # Errors
/// When the keys are none.
pub fn trusted_keys(settings: &EsperSettings) -> Result<Option<TrustedKeys>, KeyError> {
    let text = settings.kasmina_trusted_keys.as_ref();
    text.map(|text| TrustedKeys::from_pem(text.expose())).transpose()
}

/// The key that the forge signs with, if one is set.
///
/// # Errors
/// When it is none.
pub fn signing_key(settings: &EsperSettings) -> Result<Option<SigningKey>, KeyError> {
    let text = settings.tezzeret_signing_key.as_ref();
    text.map(|text| SigningKey::from_pem(text.expose())).transpose()
}

/// The forge's settings.
pub fn forge_config(settings: &EsperSettings) -> tezzeret::Config {
    tezzeret::Config {
        jobs_max: settings.tezzeret_jobs_max,
        deadline: settings.tezzeret_deadline,
        attempts_max: settings.tezzeret_attempts_max,
        // A key that is none is a fault of the settings, which are checked before anything is built.
        signer: signing_key(settings).ok().flatten().map(Arc::new),
        // The settings admit the names of strategies only.
        strategy: settings.tezzeret_strategy.parse().unwrap_or_default(),
        ..tezzeret::Config::default()
    }
}

/// Where the forge's queue stands.
pub fn queue_dir(settings: &EsperSettings) -> PathBuf {
    let beside = || settings.urza_artifact_dir.parent().map(|parent| parent.join("forge/jobs"));
    let set = settings.tezzeret_queue_dir.clone().or_else(beside);
    set.unwrap_or_else(|| settings.urza_artifact_dir.join("forge/jobs"))
}

/// The prefetch worker's settings.
pub fn serving_config(settings: &EsperSettings, group: &str) -> urza::PrefetchConfig {
    urza::PrefetchConfig {
        group: group.to_owned(),
        compiling_after: settings.urza_compiling_after,
        lease: settings.urza_lease,
        public_url: settings.urza_public_url.as_ref().map(|url| url.expose().to_owned()),
        ..urza::PrefetchConfig::default()
    }
}

/// Which job makes a kernel with parameters or at a site of the asker's choice: what is not named is
/// the forge's own.
pub fn variants(config: &tezzeret::Config) -> urza::Variants {
    let config = config.clone();
    urza::Variants::new(move |want| {
        let refused = |reason: &str, detail: String| urza::Unfit::Refused {
            reason: reason.to_owned(),
            detail,
        };
        let blueprint = config.catalogue.find(&want.blueprint).ok_or(urza::Unfit::Unknown)?;
        if !blueprint.graftable() {
            let detail = format!("{} is built under quarantine only", want.blueprint);
            return Err(refused(urza::QUARANTINED, detail));
        }
        let site = want.site.as_deref().map_or(Ok(config.site), str::parse::<karn::Site>);
        let site = site.map_err(|fault| refused(urza::INCOMPATIBLE, fault.to_string()))?;
        let mut parameters = blueprint.midpoints();
        for (name, value) in want.parameters() {
            parameters.insert(name, value);
        }
        let job = tezzeret::Job::with(blueprint, parameters, site, &config)
            .map_err(|fault| refused(urza::INCOMPATIBLE, fault.to_string()))?;
        Ok(job.key())
    })
}

/// The seed manager's settings.
pub fn seed_config(settings: &EsperSettings) -> kasmina::Config {
    kasmina::Config {
        embargo: settings.kasmina_embargo,
        fetch_deadline: settings.kasmina_fetch_deadline,
        ..kasmina::Config::default()
    }
}

/// The policy's settings.
pub fn policy_config(settings: &EsperSettings) -> tamiyo::Config {
    let defaults = tamiyo::Config::default();
    tamiyo::Config {
        policy_dir: settings.tamiyo_policy_dir.clone(),
        report_dir: settings.tamiyo_report_dir.clone(),
        operator: if settings.tamiyo_conservative_mode {
            tamiyo::Operator::Conservative
        } else {
            tamiyo::Operator::Normal
        },
        limits: tamiyo::Limits { step_timeout: settings.tamiyo_step_timeout, ..defaults.limits },
        updates: tamiyo::UpdateSettings {
            verification: if settings.tamiyo_verify_updates {
                tamiyo::Verification::Strict
            } else {
                tamiyo::Verification::PayloadOnly
            },
            freshness: settings.tamiyo_update_freshness,
            ..defaults.updates
        },
        reports: tamiyo::ReportSettings {
            window_epochs: settings.tamiyo_observation_epochs,
            retention: settings.tamiyo_field_report_retention,
            retries_max: settings.tamiyo_field_report_retries_max,
            backoff: settings.tamiyo_retry_backoff,
            backoff_factor: settings.tamiyo_retry_backoff_factor,
            ..defaults.reports
        },
        ..defaults
    }
}

/// What was asked for, and where its weights are kept: every run has a directory of its own, so
/// that none writes over what another learnt.
pub fn training_config(settings: &EsperSettings, asked: tolaria::Config) -> tolaria::Config {
    let is_kept = settings.tolaria_checkpoint_epochs > 0;
    let directory = settings.tolaria_checkpoint_dir.join(asked.run.as_str());
    tolaria::Config {
        checkpoints: is_kept.then_some(directory),
        checkpoint_epochs: settings.tolaria_checkpoint_epochs.max(1),
        ..asked
    }
}

/// The ingest worker's settings.
pub fn ingest_config(settings: &EsperSettings) -> nissa::IngestConfig {
    let defaults = nissa::IngestConfig::default();
    let features = settings.nissa_coverage_features.split(',').map(str::trim);
    nissa::IngestConfig {
        replica: settings.nissa_replica.clone(),
        thresholds: nissa::Thresholds {
            coverage_min: settings.nissa_coverage_min,
            coverage_samples: NonZeroU32::new(settings.nissa_coverage_samples)
                .unwrap_or(NonZeroU32::MIN),
            elevated_risk: settings.nissa_elevated_risk,
            ..defaults.thresholds
        },
        coverage_features: features.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, resolve};

    /// The table's defaults and the crates' own must not drift apart.
    #[test]
    fn the_defaults_are_those_of_the_crates() {
        let settings = resolve(&Sources::default()).unwrap().settings;
        let ours = bus_config(&settings);
        let theirs = oona::Config { consumer: ours.consumer.clone(), ..oona::Config::default() };
        assert_eq!(ours, theirs);
        assert_eq!(library_config(&settings).unwrap(), urza::Config::default());
        assert_eq!(retention(&settings), urza::Retention::default());
        assert_eq!(forge_config(&settings), tezzeret::Config::default());
        let prefetch = serving_config(&settings, "weatherlight");
        assert_eq!(prefetch, urza::PrefetchConfig::default());
        assert_eq!(seed_config(&settings), kasmina::Config::default());
        assert_eq!(policy_config(&settings), tamiyo::Config::default());
        assert_eq!(ingest_config(&settings), nissa::IngestConfig::default());
        let run = leyline::ids::RunId::new("run");
        let asked = tolaria::Config::new(run, tolaria::data::Source::Xor, 1);
        let trained = training_config(&settings, asked.clone());
        assert_eq!(tolaria::Config { checkpoints: None, ..trained }, asked);
    }

    #[test]
    fn the_forges_queue_stands_beside_the_artifacts_or_where_it_is_set() {
        let queue = |overrides: &[&str]| {
            let overrides = overrides.iter().map(|one| (*one).to_owned()).collect();
            queue_dir(&resolve(&Sources { overrides, ..Sources::default() }).unwrap().settings)
        };
        assert_eq!(queue(&[]), PathBuf::from("./var/urza/forge/jobs"));
        assert_eq!(queue(&["URZA_ARTIFACT_DIR=/a/b"]), PathBuf::from("/a/forge/jobs"));
        assert_eq!(queue(&["TEZZERET_QUEUE_DIR=/q"]), PathBuf::from("/q"));
    }

    #[test]
    fn a_variant_is_keyed_as_the_forge_keys_it_or_refused_with_a_reason() {
        let config = tezzeret::Config::default();
        let variants = variants(&config);
        let want = |blueprint: &str, site: Option<&str>, parameters: Option<&str>| urza::Want {
            blueprint: blueprint.into(),
            site: site.map(str::to_owned),
            parameters: parameters.map(str::to_owned),
            digest: None,
        };
        let wide = tezzeret::Job::with(
            karn::find(&"BP009".into()).unwrap(),
            karn::find(&"BP009".into()).unwrap().midpoints(),
            karn::Site::Vector { features: 64 },
            &config,
        );
        let named = variants.job(&want("BP009", Some("vector[64]"), None));
        assert_eq!(named.unwrap(), wide.unwrap().key());
        let reason = |want| match variants.job(&want).unwrap_err() {
            urza::Unfit::Unknown => "unknown".to_owned(),
            urza::Unfit::Refused { reason, detail } => {
                assert!(!detail.is_empty());
                reason
            }
        };
        assert_eq!(reason(want("BP099", Some("vector[64]"), None)), "unknown");
        assert_eq!(reason(want("BP043", Some("vector[64]"), None)), "quarantined");
        assert_eq!(reason(want("BP009", Some("vector"), None)), "incompatible");
        assert_eq!(reason(want("BP009", None, Some(r#"{"nonesuch":1.0}"#))), "incompatible");
    }

    #[test]
    fn only_redis_has_a_spool() {
        let spool = |overrides: &[&str]| {
            let overrides = overrides.iter().map(|one| (*one).to_owned()).collect();
            let sources = Sources { overrides, ..Sources::default() };
            bus_config(&resolve(&sources).unwrap().settings).spool
        };
        assert_eq!(spool(&[]), None);
        let redis = ["REDIS_URL=redis://localhost", "WEATHERLIGHT_STATE_DIR=/state"];
        assert_eq!(spool(&redis), Some(oona::SpoolConfig::new("/state/oona/spool")));
    }

    /// Whoever sets the limit alone gets every band in proportion.
    #[test]
    fn bands_that_are_not_set_follow_the_limit() {
        let bus = |overrides: &[&str]| {
            let overrides = overrides.iter().map(|one| (*one).to_owned()).collect();
            let sources = Sources { overrides, ..Sources::default() };
            let bus = bus_config(&resolve(&sources).unwrap().settings);
            (bus.backpressure_threshold, bus.emergency_threshold, bus.recovery_depth)
        };
        assert_eq!(bus(&["OONA_QUEUE_DEPTH_MAX=2000"]), (1_500, 1_000, 1_000));
        let both = ["OONA_QUEUE_DEPTH_MAX=2000", "OONA_EMERGENCY_THRESHOLD=600"];
        assert_eq!(bus(&both), (1_500, 600, 600));
    }

    #[test]
    fn no_epochs_between_checkpoints_means_none() {
        let mut settings = resolve(&Sources::default()).unwrap().settings;
        let run = leyline::ids::RunId::new("run");
        let asked = tolaria::Config::new(run, tolaria::data::Source::Xor, 1);
        let kept = training_config(&settings, asked.clone()).checkpoints.unwrap();
        assert!(kept.ends_with("tolaria/checkpoints/run"), "{kept:?}");
        settings.tolaria_checkpoint_epochs = 0;
        let trained = training_config(&settings, asked);
        assert_eq!((trained.checkpoints.clone(), trained.check()), (None, Vec::new()));
    }
    #[test]
    fn each_replica_observes_as_a_group_of_its_own() {
        let sources =
            Sources { overrides: vec!["NISSA_REPLICA=two".to_owned()], ..Sources::default() };
        let settings = resolve(&sources).unwrap().settings;
        assert_eq!(ingest_config(&settings).group(), "nissa-service-two");
    }
}
