//! One template of the catalogue: what may be asked of it and how far it is trusted.

use std::collections::BTreeMap;

use kernel::Digest;
use leyline::ids::BlueprintId;
use leyline::wire;
use serde::Serialize;

use crate::manifest::Manifest;
use crate::parameters::{Parameters, ParametersError};
use crate::table::Row;

/// Smallest risk that the policy answers with something milder than a graft. It grafts by itself
/// only what lies below it.
pub const GRAFT_RISK_LIMIT: f32 = 0.5;

/// A parameterised template from which kernels are compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    id: BlueprintId,
    row: &'static Row,
    parameters: Vec<Parameter>,
    /// Its definition, where a user brought it.
    manifest: Option<&'static Manifest>,
}

/// How far a blueprint is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// For production.
    Safe,
    /// Works, but only with somebody's approval.
    Experimental,
    /// Stressors that exist to test our own gates.
    HighRisk,
}

/// What must be settled before a blueprint is used: the two flags of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clearance {
    /// Nothing.
    Open,
    /// An approval (`approval_required`).
    Approval,
    /// An approval, and even then only in quarantine (`approval_required`, `quarantine_only`).
    Quarantine,
}

/// One declared parameter with its closed interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Name, unique within its blueprint.
    pub name: &'static str,
    /// Smallest permitted value.
    pub min: f64,
    /// Largest permitted value.
    pub max: f64,
}

impl Parameter {
    /// Middle of the interval: the value at which the forge compiles unless told otherwise.
    pub fn midpoint(&self) -> f64 {
        f64::midpoint(self.min, self.max)
    }

    /// Whether `value` lies in the closed interval. NaN does not.
    pub fn admits(&self, value: f64) -> bool {
        (self.min..=self.max).contains(&value)
    }
}

impl Blueprint {
    pub(crate) fn from_row(row: &'static Row) -> Self {
        let parameters =
            row.parameters.iter().map(|&(name, min, max)| Parameter { name, min, max });
        let (id, parameters) = (BlueprintId::from(row.id), parameters.collect());
        Self { id, row, parameters, manifest: None }
    }

    /// A user's blueprint. A catalogue is read once and never changes while a process lives, so what it is made of
    /// is never freed.
    pub(crate) fn of_manifest(manifest: Manifest) -> &'static Self {
        let manifest: &'static Manifest = Box::leak(Box::new(manifest));
        let bounds = manifest.parameters.iter().map(|(name, min, max)| (name.as_str(), *min, *max));
        let row = Row {
            id: &manifest.id,
            name: &manifest.name,
            tier: manifest.tier,
            parameters: bounds.collect::<Vec<_>>().leak(),
            risk: manifest.risk,
            stage: manifest.stage,
            clearance: manifest.clearance,
            description: &manifest.description,
        };
        let blueprint = Self::from_row(Box::leak(Box::new(row)));
        Box::leak(Box::new(Self { manifest: Some(manifest), ..blueprint }))
    }

    pub(crate) fn manifest(&self) -> Option<&'static Manifest> {
        self.manifest
    }

    /// Digest of the manifest that a user brought it in; `None` for one of ours, whose edition is that of the forge. It
    /// is part of every job's key: a changed manifest is built anew.
    pub fn edition(&self) -> Option<Digest> {
        self.manifest.map(|manifest| manifest.digest)
    }

    /// Primary key, `BP001` to `BP050`, or what a user chose.
    pub fn id(&self) -> &BlueprintId {
        &self.id
    }

    /// Name in snake case.
    pub fn name(&self) -> &'static str {
        self.row.name
    }

    /// How far it is trusted.
    pub fn tier(&self) -> Tier {
        self.row.tier
    }

    /// Declared parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Risk from 0 to 1.
    pub fn risk(&self) -> f32 {
        self.row.risk
    }

    /// Maturity in the curriculum, 0 to 6. Not a stage of a seed's life.
    pub fn stage(&self) -> u32 {
        self.row.stage
    }

    /// What must be settled before it is used.
    pub fn clearance(&self) -> Clearance {
        self.row.clearance
    }

    /// Whether it may run in quarantine only.
    pub fn quarantine_only(&self) -> bool {
        self.row.clearance == Clearance::Quarantine
    }

    /// Whether somebody must approve its use.
    pub fn approval_required(&self) -> bool {
        self.row.clearance != Clearance::Open
    }

    /// What it is, for people.
    pub fn description(&self) -> &'static str {
        self.row.description
    }

    /// Whether a kernel of it may be attached in a production host at all: tier SAFE or EXPERIMENTAL, not for
    /// quarantine only, and with a graph. The forge compiles these and the prefetch worker serves them. Whether one
    /// may be germinated is asked further: [`Blueprint::approval_required`], [`Blueprint::autonomous`].
    pub fn graftable(&self) -> bool {
        self.tier() != Tier::HighRisk && !self.quarantine_only() && crate::build::is_drawn(self)
    }

    /// Whether the policy grafts it of its own accord: graftable, tier SAFE and risk strictly below
    /// [`GRAFT_RISK_LIMIT`], which leaves 18 of the catalogue (`BP001` to `BP018`).
    ///
    /// The 17 SAFE templates at exactly 0.5 are served and may be ordered by a command, but the policy does not
    /// choose them: its rule reads "0.5 and more is downgraded", and other programs act on it.
    pub fn autonomous(&self) -> bool {
        self.graftable() && self.tier() == Tier::Safe && self.risk() < GRAFT_RISK_LIMIT
    }

    /// The middle of every interval.
    pub fn midpoints(&self) -> Parameters {
        self.parameters.iter().map(|parameter| (parameter.name, parameter.midpoint())).collect()
    }

    /// The least value of every parameter.
    pub fn least(&self) -> Parameters {
        self.parameters.iter().map(|parameter| (parameter.name, parameter.min)).collect()
    }

    /// The largest value of every parameter.
    pub fn largest(&self) -> Parameters {
        self.parameters.iter().map(|parameter| (parameter.name, parameter.max)).collect()
    }

    /// Checks that every declared parameter is given, finite and inside its interval, and that
    /// nothing else is given.
    ///
    /// # Errors
    /// [`ParametersError`] lists every fault, not only the first.
    pub fn check(&self, parameters: &Parameters) -> Result<(), ParametersError> {
        ParametersError::find(self, parameters).map_or(Ok(()), Err)
    }

    /// The record as it crosses the bus.
    pub fn descriptor(&self) -> wire::BlueprintDescriptor {
        wire::BlueprintDescriptor::from(self)
    }
}

impl From<Tier> for wire::BlueprintTier {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Safe => Self::Safe,
            Tier::Experimental => Self::Experimental,
            Tier::HighRisk => Self::HighRisk,
        }
    }
}

impl From<&Blueprint> for wire::BlueprintDescriptor {
    fn from(blueprint: &Blueprint) -> Self {
        let bounds = |parameter: &Parameter| wire::BlueprintParameterBounds {
            min_value: parameter.min,
            max_value: parameter.max,
        };
        let allowed: BTreeMap<_, _> = blueprint
            .parameters
            .iter()
            .map(|parameter| (parameter.name.to_owned(), bounds(parameter)))
            .collect();
        Self {
            blueprint_id: blueprint.id.to_string(),
            name: blueprint.name().to_owned(),
            tier: wire::BlueprintTier::from(blueprint.tier()).into(),
            allowed_parameters: allowed,
            risk: blueprint.risk(),
            stage: blueprint.stage(),
            quarantine_only: blueprint.quarantine_only(),
            approval_required: blueprint.approval_required(),
            description: blueprint.description().to_owned(),
        }
    }
}
