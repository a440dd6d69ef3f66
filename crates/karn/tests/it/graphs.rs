//! Graphs of the templates: shapes, parameters, refusals. What they compute stands in `computed`.

use std::collections::BTreeMap;

use karn::{BuildError, INPUT, OUTPUT, Parameters, Site, Tier, build, catalogue, find};
use kernel::{Graph, to_canonical_json};

/// Sites of every kind: the published one, an image, a sequence, and small, odd, prime and flat ones.
pub const SITES: [Site; 10] = [
    Site::Vector { features: 32 },
    Site::Vector { features: 36 },
    Site::Vector { features: 31 },
    Site::Vector { features: 1 },
    Site::Image { channels: 8, height: 8, width: 8 },
    Site::Image { channels: 3, height: 5, width: 2 },
    Site::Image { channels: 1, height: 1, width: 1 },
    Site::Sequence { length: 12, width: 16 },
    Site::Sequence { length: 1, width: 7 },
    Site::Sequence { length: 5, width: 1 },
];

/// Every served template, for every site, at its midpoints.
pub fn each_graph(mut check: impl FnMut(&str, Site, &Graph)) {
    for blueprint in catalogue().iter().filter(|blueprint| blueprint.graftable()) {
        for site in SITES {
            let graph = build(blueprint, &blueprint.midpoints(), &site)
                .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
            check(blueprint.id().as_str(), site, &graph);
        }
    }
}

fn bytes(id: &str, parameters: &Parameters, site: Site) -> String {
    let blueprint = find(&id.into()).expect("the test names a blueprint of the catalogue");
    let graph = build(blueprint, parameters, &site).expect("the test asks for what can be built");
    to_canonical_json(&graph).expect("a graph is JSON")
}

#[test]
fn the_shape_of_every_site_is_preserved_at_every_batch() {
    each_graph(|id, site, graph| {
        for batch in [1, 8, 13] {
            let graph =
                graph.with_batch(batch).unwrap_or_else(|error| panic!("{id} {site}: {error}"));
            let input = graph.input_node(INPUT).unwrap();
            let output = graph.output_node(OUTPUT).unwrap();
            assert_eq!(graph.shape(input), site.shape(batch), "{id} {site}");
            assert_eq!(graph.shape(output), site.shape(batch), "{id} {site}");
            assert_eq!(graph.outputs().len(), 1, "{id} {site}");
        }
    });
}

#[test]
fn the_same_arguments_give_the_same_bytes_and_unlike_templates_unlike_graphs() {
    for site in [SITES[0], SITES[4], SITES[7]] {
        let mut seen = BTreeMap::new();
        for blueprint in catalogue().iter().filter(|blueprint| blueprint.graftable()) {
            let id = blueprint.id().as_str();
            let once = bytes(id, &blueprint.midpoints(), site);
            assert_eq!(once, bytes(id, &blueprint.midpoints(), site), "{id} {site}");
            if let Some(other) = seen.insert(once, id) {
                panic!("{id} and {other} have the same graph for {site}");
            }
        }
        assert_eq!(seen.len(), catalogue().iter().filter(|one| one.graftable()).count());
    }
}

#[test]
fn every_parameter_changes_the_graph() {
    for site in [SITES[0], SITES[4], SITES[7]] {
        for blueprint in catalogue().iter().filter(|blueprint| blueprint.graftable()) {
            for parameter in blueprint.parameters() {
                let at = |value| {
                    let mut parameters = blueprint.midpoints();
                    parameters.insert(parameter.name, value);
                    bytes(blueprint.id().as_str(), &parameters, site)
                };
                let values = [parameter.min, parameter.midpoint(), parameter.max].map(at);
                assert_ne!(values[0], values[2], "{} {} {site}", blueprint.id(), parameter.name);
            }
        }
    }
}

#[test]
fn depth_is_a_number_of_layers() {
    for (depth, layers) in [(1.0, 1), (1.6, 2), (2.5, 3), (4.0, 4)] {
        let parameters = [("depth", depth)].into_iter().collect();
        let graph = build(find(&"BP009".into()).unwrap(), &parameters, &SITES[0]).unwrap();
        assert_eq!(graph.trainable().count(), 4 * layers, "depth {depth}");
    }
}

#[test]
fn templates_without_a_graph_refuse_by_name() {
    for blueprint in catalogue().iter().filter(|blueprint| !blueprint.graftable()) {
        let id = blueprint.id().clone();
        let name = blueprint.name();
        let expected = if blueprint.tier() == Tier::HighRisk {
            BuildError::Stressor { blueprint: id, name }
        } else {
            BuildError::NotYetBuilt { blueprint: id, name }
        };
        let error = build(blueprint, &blueprint.midpoints(), &SITES[0]).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error, expected);
    }
}

#[test]
fn bad_parameters_and_bad_sites_are_refused() {
    let block = find(&"BP009".into()).unwrap();
    let none = Parameters::new();
    assert!(matches!(build(block, &none, &SITES[0]), Err(BuildError::Parameters(_))));
    let sites = [
        Site::Vector { features: 0 },
        Site::Vector { features: usize::MAX },
        Site::Image { channels: 8, height: 0, width: 16 },
        Site::Image { channels: 1 << 20, height: 1 << 20, width: 1 << 20 },
        Site::Sequence { length: 4, width: 0 },
    ];
    for blueprint in catalogue().iter().filter(|blueprint| blueprint.graftable()) {
        for site in sites {
            let error = build(blueprint, &blueprint.midpoints(), &site).unwrap_err();
            let fits = matches!(error, BuildError::Site { .. } | BuildError::TooLarge { .. });
            assert!(fits, "{error}");
        }
    }
}
