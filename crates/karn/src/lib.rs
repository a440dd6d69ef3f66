//! Karn owns which blueprints exist: their bounds, tiers, rules of selection and graphs. It does no I/O and keeps
//! no state: its table is compiled in. Compiling a graph is `tezzeret`'s, deciding what to grow is `tamiyo`'s.
//!
//! Reading order: [`Blueprint`] (one template), [`Catalogue`] (all of them, and those that users bring as a [`Manifest`]), [`Parameters`], [`select`] (who gets
//! which), [`safety_sheet`], [`Site`] and [`build`] (the graph of a template for a site).

mod blueprint;
mod build;
mod catalogue;
mod examine;
mod manifest;
mod parameters;
mod safety;
mod select;
mod site;
mod table;

pub use blueprint::{Blueprint, Clearance, GRAFT_RISK_LIMIT, Parameter, Tier};
pub use build::{
    BATCH, BuildError, INPUT, OUTPUT, SITE_LEN_MAX, TENSOR_LEN_MAX, WEIGHTS_MAX, build,
    build_in_quarantine, check,
};
pub use catalogue::{Catalogue, USER_BLUEPRINTS_MAX, Withheld, catalogue, find};
pub use examine::{Examination, ExamineError, examine};
pub use manifest::{
    DrawError, MANIFEST_BYTES_MAX, MANIFEST_NODES_MAX, MANIFEST_TENSOR_MAX, MANIFEST_WEIGHTS_MAX,
    Manifest, ManifestError, ManifestFault,
};
pub use parameters::{ParameterFault, Parameters, ParametersError};
pub use safety::{SafetySheet, safety_sheet};
pub use select::{
    CONSERVATIVE_POOL_MAX, Caution, Destination, Query, SelectError, Selection, select,
};
pub use site::{Site, SiteError};
