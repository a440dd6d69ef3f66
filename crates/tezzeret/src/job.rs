//! A compile job: what it builds, its key, and the seed of its weights.

use karn::{Blueprint, Parameters, ParametersError, Site};
use kernel::Digest;
use urza::{JobKey, Role};

use crate::config::Config;

/// Version of what the forge makes: graphs of the templates, starting weights and file format. It is part of every job's
/// key, so that a newer forge builds everything anew instead of handing out what an older one made.
pub const ENGINE: &str = "weatherlight-2";

/// What to compile.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    blueprint: &'static Blueprint,
    parameters: Parameters,
    site: Site,
    seed: u64,
}

impl Job {
    /// The default artifact of a blueprint: its midpoints, at the forge's site.
    pub fn of(blueprint: &'static Blueprint, config: &Config) -> Self {
        let parameters = blueprint.midpoints();
        Self { blueprint, parameters, site: config.site, seed: config.seed }
    }

    /// A blueprint with these parameters at this site.
    ///
    /// # Errors
    /// [`ParametersError`] names every parameter at fault.
    pub fn with(
        blueprint: &'static Blueprint,
        parameters: Parameters,
        site: Site,
        config: &Config,
    ) -> Result<Self, ParametersError> {
        blueprint.check(&parameters)?;
        Ok(Self { blueprint, parameters, site, seed: config.seed })
    }

    /// The blueprint.
    pub fn blueprint(&self) -> &'static Blueprint {
        self.blueprint
    }

    /// Checked parameter values.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The site it is built for.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// What makes two jobs the same: blueprint, parameters, site, and the engine with its seed number and, for a
    /// user's blueprint, the digest of its manifest.
    pub fn key(&self) -> JobKey {
        JobKey {
            blueprint: self.blueprint.id().clone(),
            parameters: self
                .parameters
                .iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            site: self.site.to_string(),
            engine: match self.blueprint.edition() {
                None => Self::engine(self.seed),
                Some(manifest) => {
                    format!("{}+manifest-{}", Self::engine(self.seed), manifest.to_hex())
                }
            },
        }
    }

    /// The engine as job keys spell it, with the seed number of its weights.
    fn engine(seed: u64) -> String {
        format!("{ENGINE}+seed{seed}")
    }

    /// The engine in the keys of all jobs of a forge with this configuration.
    pub fn engine_of(config: &Config) -> String {
        Self::engine(config.seed)
    }

    /// Whether the artifact answers whoever asks for its blueprint alone.
    pub fn role(&self, config: &Config) -> Role {
        if *self == Self::of(self.blueprint, config) { Role::Default } else { Role::Variant }
    }

    /// Seed of the starting weights: the first 8 bytes, big-endian, of the key's digest. It follows from blueprint,
    /// parameters, site, engine and seed number, and from nothing else.
    pub fn weight_seed(&self) -> u64 {
        let digest: Digest = self.key().digest();
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> Job {
        let blueprint = karn::find(&id.into()).unwrap();
        Job::of(blueprint, &Config::default())
    }

    #[test]
    fn the_weights_depend_on_everything_in_the_key() {
        let block = job("BP009");
        let deeper = [("depth", 4.0)].into_iter().collect();
        let config = Config::default();
        let wider = Config { site: Site::Vector { features: 33 }, ..config.clone() };
        let others = [
            job("BP008"),
            Job::with(block.blueprint, deeper, config.site, &config).unwrap(),
            Job::of(block.blueprint, &wider),
            Job::of(block.blueprint, &Config { seed: 1, ..config.clone() }),
        ];
        assert_eq!(block.weight_seed(), job("BP009").weight_seed());
        for other in others {
            assert_ne!(other.weight_seed(), block.weight_seed(), "{other:?}");
            assert_ne!(other.key().digest(), block.key().digest(), "{other:?}");
        }
    }

    #[test]
    fn another_manifest_is_another_job() {
        let text = include_str!("../../../examples/blueprints/bottleneck-adapter.toml");
        let key = |text: &str| {
            let manifest = karn::Manifest::parse(text).unwrap();
            let catalogue = karn::Catalogue::built_in().with(manifest).unwrap();
            let blueprint = catalogue.find(&"bottleneck-adapter".into()).unwrap();
            Job::of(blueprint, &Config::default()).key().digest()
        };
        assert_eq!(key(text), key(text));
        assert_ne!(key(text), key(&text.replace("stage = 2", "stage = 3")));
    }

    #[test]
    fn only_midpoints_at_the_configured_site_are_the_default() {
        let (config, block) = (Config::default(), job("BP009"));
        assert_eq!(block.role(&config), Role::Default);
        let same = Job::with(block.blueprint, block.blueprint.midpoints(), config.site, &config);
        assert_eq!(same.unwrap().role(&config), Role::Default);
        let deeper = [("depth", 4.0)].into_iter().collect();
        let deeper = Job::with(block.blueprint, deeper, config.site, &config).unwrap();
        assert_eq!(deeper.role(&config), Role::Variant);
        let unknown = [("dept", 4.0)].into_iter().collect();
        assert!(Job::with(block.blueprint, unknown, config.site, &config).is_err());
    }
}
