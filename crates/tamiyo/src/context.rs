//! What a decision needs beside the state packet. The policy itself reads no clock, no disk and no
//! random numbers; whoever calls it does.

use std::collections::{BTreeMap, BTreeSet};

use leyline::ids::{BlueprintId, CommandId, SeedId};

/// Everything a decision depends on beside the packet. The same packets in the same contexts give
/// the same decisions.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// The wall clock in Unix milliseconds: when a command is issued.
    pub now_unix_ms: u64,
    /// Number of the epoch that just ended; plateaus, cool-downs and observations count it.
    pub epoch: u32,
    /// Id of the command, if there is to be one. Fresh for every decision.
    pub command_id: CommandId,
    /// Which blueprints can be had for the slots.
    pub candidates: Candidates,
    /// What was culled where before this policy began to look, as a checkpoint knows it.
    pub culled: Vec<(SeedId, BlueprintId)>,
    /// Whether a seed germinated now could still be judged before the run ends.
    pub horizon: Horizon,
}

/// Whether growing is still worth while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Horizon {
    /// There is time left.
    #[default]
    Open,
    /// The run ends too soon: nothing is germinated any more.
    Short,
}

/// Which blueprints can be had: those with a graph for the host's site and a kernel in the library
/// or on its way. What cannot be grafted at all is left out by the policy whatever stands here.
#[derive(Debug, Clone, PartialEq)]
pub enum Candidates {
    /// Every blueprint that the policy grafts by itself, in no preference.
    Any,
    /// These for every slot, the preferred ones first.
    Listed(Vec<BlueprintId>),
    /// These for each slot, the preferred ones first. A slot not listed takes nothing.
    BySlot(BTreeMap<SeedId, Vec<BlueprintId>>),
    /// The list did not come in time: nothing is grown, and risk rule 6 reports it.
    Late,
}

impl Candidates {
    /// The blueprints grafted by the policy itself that karn can build for this site at their midpoints, ranked: by
    /// the published score, the numbers that can be trained (`0.1·ln(1 + n)`), and a liking for
    /// residual blocks and gates, which change the least where they know nothing yet. Blueprints
    /// without a trainable number come last. Builds graphs: call it once per run.
    pub fn for_site(site: &karn::Site) -> Vec<BlueprintId> {
        Self::of(&karn::Catalogue::built_in(), site)
    }

    /// The same of another catalogue.
    pub fn of(catalogue: &karn::Catalogue, site: &karn::Site) -> Vec<BlueprintId> {
        let mut ranked: Vec<(bool, f32, BlueprintId)> = catalogue
            .iter()
            .filter(|blueprint| blueprint.autonomous())
            .filter_map(|blueprint| {
                let trainable = trainable(blueprint, site)?;
                let score = crate::candidate::published_score(blueprint)
                    + 0.1 * (trainable as f32).ln_1p()
                    + match blueprint.id().as_str() {
                        "BP009" => 2.0,
                        "BP014" => 1.0,
                        "BP002" => 0.5,
                        _ => 0.0,
                    };
                Some((trainable > 0, score, blueprint.id().clone()))
            })
            .collect();
        ranked.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)).then_with(|| a.2.cmp(&b.2)));
        ranked.into_iter().map(|(_, _, id)| id).collect()
    }
}

/// Numbers an optimiser can change; `None` when the blueprint cannot be built for the site.
fn trainable(blueprint: &karn::Blueprint, site: &karn::Site) -> Option<usize> {
    let graph = karn::build(blueprint, &blueprint.midpoints(), site).ok()?;
    let names: BTreeSet<_> = graph.trainable().collect();
    let shapes = graph.parameters().filter(|(name, _)| names.contains(name));
    Some(shapes.map(|(_, shape)| shape.iter().product::<usize>()).sum())
}

impl Context {
    /// A context with a fresh command id, now.
    pub fn now(epoch: u32, candidates: Candidates) -> Self {
        Self {
            now_unix_ms: leyline::time::now_unix_ms(),
            epoch,
            command_id: CommandId::fresh(),
            candidates,
            culled: Vec::new(),
            horizon: Horizon::Open,
        }
    }
}
