//! Karn owns which blueprints exist: their bounds, tiers, rules of selection and graphs. It does no I/O and keeps
//! no state: its table is compiled in. Compiling a graph is `tezzeret`'s, deciding what to grow is `tamiyo`'s.
//!
//! Reading order: [`Blueprint`] (one template), [`catalogue`] (all of them), [`Parameters`], [`select`] (who gets
//! which), [`safety_sheet`], [`Site`] and [`build`] (the graph of a template for a site).

mod blueprint;
mod build;
mod catalogue;
mod parameters;
mod safety;
mod select;
mod site;
mod table;

pub use blueprint::{Blueprint, Clearance, GRAFT_RISK_LIMIT, Parameter, Tier};
pub use build::{BATCH, BuildError, INPUT, OUTPUT, build, build_in_quarantine};
pub use catalogue::{catalogue, find};
pub use parameters::{ParameterFault, Parameters, ParametersError};
pub use safety::{SafetySheet, safety_sheet};
pub use select::{
    CONSERVATIVE_POOL_MAX, Caution, Destination, Query, SelectError, Selection, select,
};
pub use site::{Site, SiteError};
