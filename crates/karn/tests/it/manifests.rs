//! Users' blueprints: the examples, every fault of a bad one, hostile sizes, and what a catalogue makes of them.

use std::collections::BTreeSet;

use karn::{
    BuildError, Catalogue, DrawError, Manifest, Query, Site, Withheld, build, check, examine,
};
use leyline::ids::BlueprintId;

const ADAPTER: &str = include_str!("../../../../examples/blueprints/bottleneck-adapter.toml");
const GATE: &str = include_str!("../../../../examples/blueprints/gated-convolution.toml");

fn parse(text: &str) -> Manifest {
    Manifest::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

fn with_examples() -> Catalogue {
    let catalogue = Catalogue::built_in().with(parse(GATE)).unwrap();
    catalogue.with(parse(ADAPTER)).unwrap()
}

/// Faults of a text, as reading or a catalogue finds them.
fn faults(text: &str) -> Vec<String> {
    let error = match Manifest::parse(text) {
        Err(error) => error,
        Ok(manifest) => Catalogue::built_in().with(manifest).expect_err("it must be refused"),
    };
    error.0.iter().map(ToString::to_string).collect()
}

/// The adapter with one piece of its text replaced.
fn adapter(was: &str, now: &str) -> String {
    assert!(ADAPTER.contains(was), "{was:?} stands in the example");
    ADAPTER.replace(was, now)
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let found = faults(text);
    for part in expected {
        assert!(found.iter().any(|fault| fault.contains(part)), "{part:?} is not in {found:#?}");
    }
}

#[test]
fn the_examples_join_a_catalogue_and_start_as_the_identity() {
    let catalogue = with_examples();
    assert_eq!(catalogue.iter().count(), 52);
    assert_eq!(catalogue.served().count(), 44);
    let ids: Vec<_> = catalogue.iter().skip(50).map(|one| one.id().as_str()).collect();
    assert_eq!(ids, ["bottleneck-adapter", "gated-convolution"], "in the order of their ids");
    let adapter = catalogue.find(&"bottleneck-adapter".into()).unwrap();
    assert!(adapter.autonomous() && adapter.edition().is_some());
    let examination =
        examine(adapter, &adapter.midpoints(), &Site::Vector { features: 32 }).unwrap();
    assert!(examination.identity);
    // 32 features through round(32 / 9) = 4 hidden units: 4 * 32 + 4 and 32 * 4 + 32.
    assert_eq!(examination.parameters, 292);
    let gate = catalogue.find(&"gated-convolution".into()).unwrap();
    assert!(gate.approval_required() && !gate.autonomous(), "experimental needs an approval");
    let site = Site::Image { channels: 4, height: 3, width: 9 };
    assert!(examine(gate, &gate.midpoints(), &site).unwrap().identity);
}

#[test]
fn parameters_change_the_graph_and_are_bounded() {
    let catalogue = with_examples();
    let adapter = catalogue.find(&"bottleneck-adapter".into()).unwrap();
    let site = Site::Sequence { length: 5, width: 24 };
    for parameter in ["reduction", "slope"] {
        let mut other = adapter.midpoints();
        other.insert(parameter, 2.0_f64.min(adapter.largest().get(parameter).unwrap()));
        let (was, now) = (adapter.midpoints(), other);
        assert_ne!(build(adapter, &was, &site), build(adapter, &now, &site), "{parameter}");
    }
    let mut beyond = adapter.midpoints();
    beyond.insert("reduction", 17.0);
    assert!(matches!(check(adapter, &beyond, &site), Err(BuildError::Parameters(_))));
}

#[test]
fn a_site_of_another_kind_is_refused_by_name() {
    let catalogue = with_examples();
    let adapter = catalogue.find(&"bottleneck-adapter".into()).unwrap();
    let image = Site::Image { channels: 4, height: 3, width: 9 };
    let error = check(adapter, &adapter.midpoints(), &image).unwrap_err();
    let BuildError::Manifest { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, DrawError::Kind { .. }));
    assert!(error.full_text().contains("made for vector and sequence sites"), "{error}");
}

#[test]
fn every_fault_is_told_at_once_with_line_and_field() {
    let text = adapter("id = \"bottleneck-adapter\"", "id = \"BP009\"")
        .replace("risk = 0.3", "risk = 1.5")
        .replace("max = 16", "max = 1")
        .replace("[\"down\"]\nby", "[\"dawn\"]\nbye");
    refused(
        &text,
        &[
            "line 6: id: must be lower-case letters",
            "line 9: risk: must be a number from 0 to 1",
            "line 18: parameters.reduction: must be { min = .., max = .. }",
            "nodes.straight.inputs: no node \"dawn\" stands before this one",
            "nodes.straight.by: is missing",
            "nodes.straight.bye: is unknown",
        ],
    );
}

#[test]
fn what_is_no_manifest_is_refused() {
    refused("id = ", &["line 1: file"]);
    refused("", &["id: is missing", "nodes: is missing"]);
    refused(&adapter("stage = 2", "stage = 2\nzeal = 1"), &["line 11: zeal: is unknown"]);
    refused(&adapter("tier = \"safe\"", "tier = \"high_risk\""), &["tier: must be"]);
    refused(&adapter("vector[32]", "vector[0]"), &["sites: "]);
    refused(&adapter("op = \"silu\"", "op = \"exec\""), &["there is no operator \"exec\""]);
    refused(&adapter("round(features", "round(depth"), &["unknown in it: depth; there are"]);
    refused(&adapter("round(features", "system(features"), &["there is no function system"]);
    refused(&adapter("reduction = {", "width = {"), &["parameters.width: is no name"]);
    refused(&adapter("output = \"sum\"", "output = \"end\""), &["output: there is no node"]);
    refused(&adapter("name = \"bent\"", "name = \"down\""), &["\"down\" is taken"]);
    refused(&adapter("[\"bent\", \"straight\"]", "[\"bent\"]"), &["add takes 2, found 1"]);
    refused(&format!("#{}", "x".repeat(70_000)), &["at most 65536 may be"]);
}

#[test]
fn a_graph_that_does_not_do_is_refused_with_operator_and_shapes() {
    refused(
        &adapter("output = \"sum\"", "output = \"down\""),
        &["its shape is [8, 16]; it must be the input's, [8, 32]"],
    );
    refused(
        &adapter(
            "out = \"features\"\nstart = \"zero\"",
            "out = \"features + 1\"\nstart = \"zero\"",
        ),
        &["nodes.sum: node 12, add of nodes [0, 11]: input shapes [[8, 32], [8, 33]] do not fit"],
    );
    refused(
        &adapter("max(1, round(features / reduction))", "features / reduction"),
        &["nodes.down.out is", "a whole number from 1 to 65536 is needed"],
    );
    refused(&adapter("op = \"silu\"", "op = \"log\""), &["is not finite on ordinary numbers"]);
    let unused = adapter(
        "[[nodes]]\nname = \"sum\"",
        "[[nodes]]\nname = \"idle\"\nop = \"weight\"\nshape = [3]\nstart = \"one\"\n\n[[nodes]]\nname = \"sum\"",
    );
    refused(&unused, &["weight \"idle\" has no effect"]);
}

#[test]
fn hostile_sizes_are_refused_before_anything_of_them_is_allocated() {
    let out = "max(1, round(features / reduction))";
    refused(&adapter(out, "65536 * 65536"), &["nodes.down.out is 4294967296"]);
    refused(&adapter(out, "1 / 0"), &["nodes.down.out is inf"]);
    refused(&adapter(out, "0 / 0"), &["nodes.down.out is NaN"]);
    let vector = |text: &str| text.replace("vector[32]", "vector[65536]");
    refused(&vector(&adapter(out, "65536")), &["numbers in all weights; at most 4194304 may be"]);
    let weight = "[[nodes]]\nname = \"big\"\nop = \"weight\"\nshape = [65536, 65536, 65536]\n\
        start = \"one\"\n\n[[nodes]]\nname = \"sum\"";
    refused(&adapter("[[nodes]]\nname = \"sum\"", weight), &["nodes.big", "all weights"]);
    let many = "[[nodes]]\nname = \"x\"\nop = \"relu\"\ninputs = [\"input\"]\n".repeat(300);
    refused(&format!("{ADAPTER}{many}"), &["nodes: there are 306; 1 to 256 may be"]);
    let deep = format!("{ADAPTER}\n[x]\ny = {}{}", "[".repeat(20_000), "]".repeat(20_000));
    refused(&deep, &["file"]);
}

#[test]
fn an_id_is_taken_once() {
    let error = with_examples().with(parse(ADAPTER)).unwrap_err();
    assert!(error.to_string().contains("there is a blueprint bottleneck-adapter already"));
}

#[test]
fn another_text_is_another_edition() {
    let other = adapter("stage = 2", "stage = 3");
    let edition = |text: &str| {
        let catalogue = Catalogue::built_in().with(parse(text)).unwrap();
        catalogue.find(&"bottleneck-adapter".into()).unwrap().edition()
    };
    assert_eq!(edition(ADAPTER), edition(ADAPTER));
    assert_ne!(edition(ADAPTER), edition(&other));
}

#[test]
fn users_blueprints_are_selected_under_the_same_rules() {
    let catalogue = with_examples();
    let id = |id: &str| Some(BlueprintId::from(id));
    let adapter = catalogue.find(&"bottleneck-adapter".into()).unwrap();
    let by_id = Query {
        blueprint: id("bottleneck-adapter"),
        parameters: adapter.midpoints(),
        ..Query::default()
    };
    assert_eq!(catalogue.select(&by_id).unwrap().blueprint, adapter);
    assert!(Catalogue::built_in().select(&by_id).is_err(), "ours alone do not have it");
    let gate = catalogue.find(&"gated-convolution".into()).unwrap();
    let unapproved =
        Query { blueprint: id("gated-convolution"), parameters: gate.midpoints(), ..by_id };
    assert!(catalogue.select(&unapproved).is_err());
    let approved = BTreeSet::from([gate.id().clone()]);
    assert!(catalogue.select(&Query { approved, ..unapproved }).is_ok());
}

#[test]
fn approvals_free_what_needs_one_and_never_what_is_quarantined() {
    let catalogue = with_examples();
    let none = catalogue.withheld(&BTreeSet::new());
    assert_eq!(none.len(), 7 + 8 + 1);
    assert_eq!(none[&BlueprintId::from("BP036")], Withheld::ApprovalRequired);
    assert_eq!(none[&BlueprintId::from("BP045")], Withheld::QuarantineOnly);
    let all = catalogue.iter().map(|blueprint| blueprint.id().clone()).collect();
    let left = catalogue.withheld(&all);
    assert_eq!(left.len(), 8);
    assert!(left.values().all(|&reason| reason == Withheld::QuarantineOnly));
}
