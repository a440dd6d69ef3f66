//! What somebody looks for in the catalogue.

use std::collections::BTreeMap;

use leyline::ids::BlueprintId;
use leyline::wire::BlueprintTier;

/// Which records are wanted; every field that is set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Of this blueprint.
    pub blueprint: Option<BlueprintId>,
    /// Built for this site.
    pub site: Option<String>,
    /// Of this engine.
    pub engine: Option<String>,
    /// With exactly these parameters.
    pub parameters: Option<BTreeMap<String, f64>>,
    /// Of this tier.
    pub tier: Option<BlueprintTier>,
    /// Of this stage of the curriculum, where the safety sheet names one.
    pub stage: Option<u32>,
    /// With this tag, in whatever case.
    pub tag: Option<String>,
    /// In this state.
    pub state: Option<StateFilter>,
    /// Whose SHA-256 begins like this: 1 to 64 hex digits.
    pub digest: Option<String>,
}

/// A state without what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFilter {
    /// May be offered.
    Active,
    /// Was found missing or corrupt.
    Quarantined,
}

impl StateFilter {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Longest tag, in bytes.
const TAG_LEN_MAX: usize = 64;

/// A tag that cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{tag:?} is no tag; use 1 to {TAG_LEN_MAX} bytes without blanks, commas or control characters"
)]
pub struct TagError {
    /// The text.
    pub tag: String,
}

/// Whether a text is a tag.
///
/// # Errors
/// [`TagError`]
pub fn check_tag(tag: &str) -> Result<(), TagError> {
    folded(tag).map(drop)
}

/// How a tag is found: without regard to case.
///
/// # Errors
/// [`TagError`] for a text that is no tag.
pub(crate) fn folded(tag: &str) -> Result<String, TagError> {
    let refused = |c: char| c.is_whitespace() || c.is_control() || c == ',';
    let folded = tag.to_lowercase();
    if tag.is_empty() || TAG_LEN_MAX < folded.len() || tag.chars().any(refused) {
        return Err(TagError { tag: tag.to_owned() });
    }
    Ok(folded)
}
