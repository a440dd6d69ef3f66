//! Which blueprints may be proposed for a slot, and how they rank.

use karn::{Blueprint, SafetySheet, Site};
use leyline::ids::BlueprintId;

use crate::weights::Weights;

/// A blueprint that can be built for a slot, with what its score depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The blueprint.
    pub blueprint: &'static Blueprint,
    /// Its place in the catalogue, which is its place among the policy's weights.
    pub index: usize,
    /// Its safety sheet; the sheet's risk stands in for the record's.
    pub sheet: SafetySheet,
    /// Numbers an optimiser can change in its graph for this site.
    pub trainable: usize,
}

impl Candidate {
    /// Every blueprint that karn can build for this site with its parameters at their midpoints.
    /// What may not be grafted is not filtered here: the risk rules decide, and say so.
    pub fn for_site(site: &Site) -> Vec<Self> {
        let catalogue = karn::catalogue().iter().enumerate();
        catalogue
            .filter_map(|(index, blueprint)| {
                let graph = karn::build(blueprint, &blueprint.midpoints(), site).ok()?;
                let trainable = graph.trainable().collect::<std::collections::BTreeSet<_>>();
                let trainable = graph
                    .parameters()
                    .filter(|(name, _)| trainable.contains(name))
                    .map(|(_, shape)| shape.iter().product::<usize>())
                    .sum();
                let sheet = karn::safety_sheet(blueprint);
                Some(Self { blueprint, index, sheet, trainable })
            })
            .collect()
    }

    /// The published candidate score: `max(0, (1 - risk) + 0.05 stage + 0.02 parameters)`.
    pub fn base_score(&self) -> f32 {
        let declared = self.blueprint.parameters().len() as f32;
        ((1.0 - self.sheet.risk) + 0.05 * self.blueprint.stage() as f32 + 0.02 * declared).max(0.0)
    }

    /// The base score as the policy weighs it, plus what the policy knows of this blueprint.
    pub fn score(&self, weights: &Weights) -> f32 {
        let capacity = (1.0 + self.trainable as f32).ln();
        weights.base * self.base_score()
            + weights.capacity * capacity
            + weights.prior.get(self.index).copied().unwrap_or(0.0)
    }
}

/// The best of the candidates that `allowed` admits; of equals the first in the catalogue.
pub fn best<'a>(
    candidates: &'a [Candidate],
    weights: &Weights,
    allowed: impl Fn(&BlueprintId) -> bool,
) -> Option<&'a Candidate> {
    let mut best: Option<(&Candidate, f32)> = None;
    for candidate in candidates.iter().filter(|candidate| allowed(candidate.blueprint.id())) {
        let score = candidate.score(weights);
        if best.is_none_or(|(_, other)| score > other) {
            best = Some((candidate, score));
        }
    }
    best.map(|(candidate, _)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        Candidate::for_site(&Site::Vector { features: 32 })
    }

    #[test]
    fn the_published_formula_ranks_the_identity_first() {
        let all = candidates();
        let identity = all.iter().find(|one| one.blueprint.id().as_str() == "BP001").unwrap();
        assert_eq!(identity.base_score(), 1.0);
        assert_eq!(identity.trainable, 0);
    }

    #[test]
    fn the_built_in_policy_prefers_what_can_learn() {
        let all = candidates();
        let first = best(&all, &Weights::built_in(), |_| true).unwrap();
        assert_eq!(first.blueprint.id().as_str(), "BP009");
        let second = best(&all, &Weights::built_in(), |id| id != first.blueprint.id()).unwrap();
        assert_ne!(second.blueprint.id(), first.blueprint.id());
        assert!(second.trainable > 0);
    }

    #[test]
    fn nothing_is_proposed_when_nothing_is_allowed() {
        assert_eq!(best(&candidates(), &Weights::built_in(), |_| false), None);
    }
}
