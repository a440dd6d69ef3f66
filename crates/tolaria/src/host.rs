//! The host network and its slots as graphs: which part the host sees, which part trains.

use kasmina::BlendMode;
use kernel::{Graph, GraphError, NodeId};
use leyline::ids::SeedId;

/// Name of the input that holds the features.
pub(crate) const FEATURES: &str = "features";
/// Name of the input that holds the classes.
pub(crate) const LABELS: &str = "labels";
/// Name of the output that holds the class scores.
pub(crate) const LOGITS: &str = "logits";
/// Name of the scalar that is minimised.
pub(crate) const LOSS: &str = "loss";
/// Group and prefix of the host's first layer.
pub(crate) const EMBED: &str = "host.embed";
/// Group and prefix of the host's last layer.
pub(crate) const HEAD: &str = "host.head";

/// Sizes of a host: `features -> width -> slots in series -> classes`, no activation of its own.
///
/// It begins without hidden units, as the growing networks of the literature do (Fahlman and Lebiere, "The
/// cascade-correlation learning architecture", 1990): whatever cannot be separated by planes is left to the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostShape {
    /// Feature columns.
    pub features: usize,
    /// Width of the representation, which is what kernels take and give.
    pub width: usize,
    /// Classes.
    pub classes: usize,
}

/// What a slot does in the network the host sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the identity.
    Identity,
    /// The identity to the host; its seed trains in a pass of its own.
    Isolated,
    /// Host and seed mixed by alpha; the seed trains, what comes before does not feel it.
    Blended,
    /// The identity to the host; its seed is computed and watched.
    Shadowed,
    /// The seed in full; it trains, what comes before does not feel it.
    Live,
    /// The seed in full, frozen.
    Frozen,
    /// The seed in full, trained as any layer: only in the fixed network of the comparison.
    Joint,
}

impl Mode {
    /// Whether what the host sees depends on the seed.
    pub fn is_seen(self) -> bool {
        match self {
            Self::Blended | Self::Live | Self::Frozen | Self::Joint => true,
            Self::Identity | Self::Isolated | Self::Shadowed => false,
        }
    }

    /// Whether the host's own pass computes the seed, seen or not.
    pub(crate) fn is_computed(self) -> bool {
        match self {
            Self::Blended | Self::Shadowed | Self::Live | Self::Frozen | Self::Joint => true,
            Self::Identity | Self::Isolated => false,
        }
    }

    /// Whether the host's own pass trains the seed.
    fn trains(self) -> bool {
        match self {
            Self::Blended | Self::Live | Self::Joint => true,
            Self::Identity | Self::Isolated | Self::Shadowed | Self::Frozen => false,
        }
    }

    /// Whether layers before the slot get no gradient through it.
    fn detaches(self) -> bool {
        match self {
            Self::Blended | Self::Live => true,
            // A kept seed is a layer of the host like any other, and lets through what an earlier slot needs to learn.
            Self::Frozen => false,
            Self::Identity | Self::Isolated | Self::Shadowed | Self::Joint => false,
        }
    }
}

/// A slot as the composer sees it.
#[derive(Debug, Clone)]
pub(crate) struct Site<'a> {
    pub(crate) seed: &'a SeedId,
    pub(crate) mode: Mode,
    pub(crate) blend: &'a BlendMode,
    /// The kernel's graph; `None` only for [`Mode::Identity`].
    pub(crate) graft: Option<&'a Graph>,
}

/// Name of the scalar input that holds a seed's alpha.
pub(crate) fn alpha_input(seed: &SeedId) -> String {
    format!("alpha/{seed}")
}

/// Names of the outputs that hold the mean squares of a slot's host activation and seed output.
pub(crate) fn square_outputs(seed: &SeedId) -> [String; 2] {
    [format!("host_square/{seed}"), format!("seed_square/{seed}")]
}

/// A graph with the parameters it is to be differentiated by.
#[derive(Debug)]
pub(crate) struct Composed {
    pub(crate) graph: Graph,
    pub(crate) wrt: Vec<String>,
}

/// The network the host sees, with its loss.
pub(crate) fn host_pass(
    shape: HostShape,
    sites: &[Site<'_>],
    batch: usize,
) -> Result<Composed, GraphError> {
    let mut graph = Graph::new();
    let logits = forward(&mut graph, shape, sites, None, batch)?;
    finish(&mut graph, logits, batch)?;
    let wrt = host_trains(sites).iter().flat_map(|prefix| trainable(&graph, prefix)).collect();
    Ok(Composed { graph, wrt })
}

/// Prefixes of the parameters that the host's pass trains.
pub(crate) fn host_trains<'a>(sites: &[Site<'a>]) -> Vec<&'a str> {
    let mut trained = vec![HEAD];
    // Once a seed takes part, what it was trained on must not move under it.
    if !sites.iter().any(|site| site.mode.is_seen() && site.mode != Mode::Joint) {
        trained.push(EMBED);
    }
    for (index, site) in sites.iter().enumerate() {
        let cut_later = sites[index + 1..].iter().any(|later| later.mode.detaches());
        if site.mode.trains() && !cut_later {
            trained.push(site.seed.as_str());
        }
    }
    trained
}

/// Prefixes of the parameters that a seed's pass of its own gives gradients for. The host's first layer is among them, so
/// that its gradient can be seen to be zero.
pub(crate) fn isolated_trains(alone: &SeedId) -> [&str; 2] {
    [alone.as_str(), EMBED]
}

/// The pass in which one seed trains alone: the host as it is, the seed in full at its slot, gradients for the seed's
/// parameters, and for what [`isolated_trains`] adds.
pub(crate) fn isolated_pass(
    shape: HostShape,
    sites: &[Site<'_>],
    alone: &SeedId,
    batch: usize,
) -> Result<Composed, GraphError> {
    let mut graph = Graph::new();
    let logits = forward(&mut graph, shape, sites, Some(alone), batch)?;
    finish(&mut graph, logits, batch)?;
    let wrt = isolated_trains(alone).iter().flat_map(|prefix| trainable(&graph, prefix)).collect();
    Ok(Composed { graph, wrt })
}

fn finish(graph: &mut Graph, logits: NodeId, batch: usize) -> Result<(), GraphError> {
    let labels = graph.input(LABELS, &[batch])?;
    let loss = graph.cross_entropy(logits, labels)?;
    graph.output(LOGITS, logits)?;
    graph.output(LOSS, loss)
}

fn forward(
    graph: &mut Graph,
    shape: HostShape,
    sites: &[Site<'_>],
    alone: Option<&SeedId>,
    batch: usize,
) -> Result<NodeId, GraphError> {
    let features = graph.input(FEATURES, &[batch, shape.features])?;
    let mut h = graph.linear_layer(features, EMBED, shape.width)?;
    for site in sites {
        let isolated = alone == Some(site.seed);
        h = slot(graph, h, site, isolated)?;
    }
    graph.linear_layer(h, HEAD, shape.classes)
}

fn slot(
    graph: &mut Graph,
    h: NodeId,
    site: &Site<'_>,
    isolated: bool,
) -> Result<NodeId, GraphError> {
    let Some(graft) = site.graft else { return Ok(h) };
    if isolated {
        let detached = graph.stop_gradient(h)?;
        let seed = inline(graph, graft, site, detached)?;
        return in_full(graph, site, detached, seed);
    }
    match site.mode {
        Mode::Identity | Mode::Isolated => Ok(h),
        Mode::Joint => {
            let seed = inline(graph, graft, site, h)?;
            in_full(graph, site, h, seed)
        }
        Mode::Frozen => {
            // In the form for use: a kept seed changes nothing any more, running statistics included.
            let seed = inline(graph, &graft.inference()?, site, h)?;
            in_full(graph, site, h, seed)
        }
        Mode::Shadowed => {
            let detached = graph.stop_gradient(h)?;
            let seed = inline(graph, &graft.inference()?, site, detached)?;
            watch(graph, site, detached, seed)?;
            Ok(h)
        }
        Mode::Live => {
            let detached = graph.stop_gradient(h)?;
            let seed = inline(graph, graft, site, detached)?;
            watch(graph, site, detached, seed)?;
            in_full(graph, site, detached, seed)
        }
        Mode::Blended => {
            let detached = graph.stop_gradient(h)?;
            let seed = inline(graph, graft, site, detached)?;
            watch(graph, site, detached, seed)?;
            blend(graph, site, detached, seed)
        }
    }
}

fn inline(
    graph: &mut Graph,
    graft: &Graph,
    site: &Site<'_>,
    h: NodeId,
) -> Result<NodeId, GraphError> {
    let outputs = graph.inline(graft, &[(karn::INPUT, h)], site.seed.as_str())?;
    outputs.get(karn::OUTPUT).copied().ok_or_else(|| GraphError::UnknownName {
        kind: "output",
        name: karn::OUTPUT.to_owned(),
        known: outputs.keys().cloned().collect(),
    })
}

/// Mixes as [`BlendMode::mix`] does. The modes that need class scores or channel weights at a
/// hidden slot fall back to the convex blend, as the contract has it for what cannot be computed.
fn blend(
    graph: &mut Graph,
    site: &Site<'_>,
    h: NodeId,
    seed: NodeId,
) -> Result<NodeId, GraphError> {
    let alpha = graph.scalar_input(&alpha_input(site.seed))?;
    let change = match site.blend {
        BlendMode::Residual => seed,
        BlendMode::Convex | BlendMode::Channel { .. } | BlendMode::Confidence(_) => {
            graph.sub(seed, h)?
        }
    };
    let change = graph.mul(change, alpha)?;
    graph.add(h, change)
}

/// The blend at alpha 1.
fn in_full(
    graph: &mut Graph,
    site: &Site<'_>,
    h: NodeId,
    seed: NodeId,
) -> Result<NodeId, GraphError> {
    match site.blend {
        BlendMode::Residual => graph.add(h, seed),
        BlendMode::Convex | BlendMode::Channel { .. } | BlendMode::Confidence(_) => Ok(seed),
    }
}

fn watch(graph: &mut Graph, site: &Site<'_>, h: NodeId, seed: NodeId) -> Result<(), GraphError> {
    for (name, node) in square_outputs(site.seed).iter().zip([h, seed]) {
        let square = graph.square(node)?;
        let mean = graph.mean_all(square)?;
        graph.output(name, mean)?;
    }
    Ok(())
}

/// Whether a parameter belongs to the group of this prefix.
pub(crate) fn is_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

fn trainable(graph: &Graph, prefix: &str) -> Vec<String> {
    graph.trainable().filter(|name| is_of(name, prefix)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graft() -> Graph {
        let blueprint = karn::find(&"BP009".into()).unwrap();
        karn::build(blueprint, &blueprint.midpoints(), &karn::Site::Vector { features: 8 }).unwrap()
    }

    const SHAPE: HostShape = HostShape { features: 2, width: 8, classes: 2 };

    fn names(composed: &Composed, prefix: &str) -> bool {
        composed.wrt.iter().any(|name| name.starts_with(prefix))
    }

    /// Which parts train in the host's pass, for the mode of the second of two slots.
    #[track_caller]
    fn check(mode: Mode, embed: bool, first: bool, second: bool) {
        let (a, b, blend, graft) =
            (SeedId::from("a"), SeedId::from("b"), BlendMode::Convex, graft());
        let first_mode = if mode == Mode::Joint { Mode::Joint } else { Mode::Live };
        let sites = [
            Site { seed: &a, mode: first_mode, blend: &blend, graft: Some(&graft) },
            Site { seed: &b, mode, blend: &blend, graft: Some(&graft) },
        ];
        let pass = host_pass(SHAPE, &sites, 4).unwrap();
        assert!(names(&pass, HEAD));
        let found = (names(&pass, EMBED), names(&pass, "a."), names(&pass, "b."));
        assert_eq!(found, (embed, first, second), "{mode:?}");
    }

    #[test]
    fn what_trains_follows_from_the_modes() {
        check(Mode::Identity, false, true, false);
        check(Mode::Isolated, false, true, false);
        check(Mode::Shadowed, false, true, false);
        check(Mode::Blended, false, false, true);
        check(Mode::Live, false, false, true);
        check(Mode::Frozen, false, true, false);
        check(Mode::Joint, true, true, true);
    }

    #[test]
    fn an_empty_host_trains_as_a_whole() {
        let (a, blend) = (SeedId::from("a"), BlendMode::Convex);
        let sites = [Site { seed: &a, mode: Mode::Identity, blend: &blend, graft: None }];
        let pass = host_pass(SHAPE, &sites, 4).unwrap();
        assert!(names(&pass, EMBED) && names(&pass, HEAD));
    }
}
