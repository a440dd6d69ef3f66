//! The artifact file: same bytes for the same job, and nothing but the true bytes opens.

use std::collections::{BTreeMap, HashMap};

use kernel::artifact::{
    ARTIFACT_BYTES_MAX, ArtifactError, Kernel, Manifest, ParameterProblem, Verified, write_bytes,
};
use kernel::{Digest, Graph, ParamStore, Params, Tensor};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

fn block() -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[8, 32]).unwrap();
    let y = graph.linear_layer(x, "fc", 32).unwrap();
    let y = graph.batch_norm(y, "norm", 0.9, 1e-5).unwrap();
    let y = graph.gelu(y).unwrap();
    let y = graph.dropout(y, 0.1).unwrap();
    graph.output("y", y).unwrap();
    graph
}

fn manifest(graph: &Graph, params: &Params) -> Manifest {
    let parameters = BTreeMap::from([("dropout".to_owned(), 0.2)]);
    let site = serde_json::json!({ "vector": { "features": 32 } });
    Manifest::new("BP004", parameters, site, graph.clone(), params, 1e-5).unwrap()
}

fn written() -> (Vec<u8>, Digest) {
    let graph = block();
    let params = graph.init_params(4);
    write_bytes(&manifest(&graph, &params), &params).unwrap()
}

#[test]
fn the_same_job_gives_the_same_bytes_and_opens() {
    let (bytes, digest) = written();
    assert_eq!((&bytes, digest), (&written().0, written().1));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let kernel = Kernel::open(&path, &digest).unwrap();
    assert_eq!(kernel.digest(), digest);
    assert_eq!(*kernel.graph(), block());
    assert_eq!(*kernel.params(), block().init_params(4));
    assert_eq!(*kernel.manifest(), manifest(&block(), &block().init_params(4)));
    assert_eq!(kernel.manifest().guard.summary(), "float32[8x32]");
    assert!(kernel.verify_probe().unwrap());
    assert_eq!(write_bytes(kernel.manifest(), kernel.params()).unwrap().1, digest);
}

/// Digests pinned so that a change of the format, of an `Init` rule or of the interpreter does not go unnoticed. They are the
/// same on every machine. Change them only together with the format's version or the engine's.
#[test]
fn digests_do_not_drift() {
    let graph = block();
    let params = graph.init_params(4);
    let manifest = manifest(&graph, &params);
    let digests = [manifest.probe_digest.to_hex(), written().1.to_hex()];
    assert_eq!(digests, [PROBE, ARTIFACT]);
}

const PROBE: &str = "ef1497fbca8aa01cd0b9adac07aa403e01e91cea9228ea51657acd1f04e5c18f";
const ARTIFACT: &str = "400065516e2af708280350bce94142629f1d3f3d9e572947128dd4974c9fb632";

#[test]
fn what_the_file_system_may_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    let digest = Digest::of("x");
    assert!(matches!(Kernel::open(&path, &digest), Err(ArtifactError::Read { .. })));
    assert!(matches!(Kernel::open(folder.path(), &digest), Err(ArtifactError::Read { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(Kernel::open(&path, &digest), Err(ArtifactError::Length { found: 0, .. })));
    // A sparse file: the size is judged before a byte is read.
    std::fs::File::create(&path).unwrap().set_len(ARTIFACT_BYTES_MAX + 1).unwrap();
    assert!(matches!(Kernel::open(&path, &digest), Err(ArtifactError::Length { .. })));
}

/// Bytes that have the digest asked for, but were not written by us.
fn parse(bytes: &[u8]) -> Result<Kernel, ArtifactError> {
    Kernel::parse(bytes, &Digest::of(bytes))
}

/// A safetensors file with any manifest text and tensors.
fn forged(text: Option<String>, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let metadata = text.map(|text| HashMap::from([("esper.manifest".to_owned(), text)]));
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize(views, metadata).unwrap()
}

fn manifest_value() -> serde_json::Value {
    let graph = block();
    serde_json::to_value(manifest(&graph, &graph.init_params(4))).unwrap()
}

fn forged_tensors(change: impl Fn(&mut (&'static str, Dtype, Vec<usize>, Vec<u8>))) -> Vec<u8> {
    let shapes: [(&'static str, Vec<usize>); 6] = [
        ("fc.weight", vec![32, 32]),
        ("fc.bias", vec![32]),
        ("norm.weight", vec![32]),
        ("norm.bias", vec![32]),
        ("norm.running_mean", vec![32]),
        ("norm.running_variance", vec![32]),
    ];
    let tensors: Vec<_> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let data = vec![0; 4 * shape.iter().product::<usize>()];
            let mut tensor = (name, Dtype::F32, shape, data);
            change(&mut tensor);
            tensor
        })
        .collect();
    forged(Some(manifest_value().to_string()), &tensors)
}

fn problem(bytes: &[u8]) -> (String, ParameterProblem) {
    match parse(bytes) {
        Err(ArtifactError::Parameter { name, problem }) => (name, problem),
        other => panic!("expected a fault of a parameter, found {other:?}"),
    }
}

#[test]
fn tensors_must_be_those_of_the_graph() {
    parse(&forged_tensors(|_| {})).unwrap();
    let renamed = forged_tensors(|tensor| {
        if tensor.0 == "fc.bias" {
            tensor.0 = "fc.b";
        }
    });
    assert_eq!(problem(&renamed), ("fc.bias".to_owned(), ParameterProblem::Missing));
    let whole_numbers = forged_tensors(|tensor| {
        if tensor.0 == "fc.bias" {
            tensor.1 = Dtype::I32;
        }
    });
    assert_eq!(
        problem(&whole_numbers),
        ("fc.bias".to_owned(), ParameterProblem::ElementType("I32".to_owned()))
    );
    let reshaped = forged_tensors(|tensor| {
        if tensor.0 == "fc.bias" {
            tensor.2 = vec![4, 8];
        }
    });
    assert!(matches!(problem(&reshaped), (_, ParameterProblem::Shape { .. })));
    let infinite = forged_tensors(|tensor| {
        if tensor.0 == "fc.bias" {
            tensor.3[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        }
    });
    assert_eq!(problem(&infinite), ("fc.bias".to_owned(), ParameterProblem::NotFinite));
}

#[test]
fn manifests_must_agree_with_themselves() {
    let refuse = |change: fn(&mut serde_json::Value)| {
        let mut value = manifest_value();
        change(&mut value);
        parse(&forged(Some(value.to_string()), &[])).unwrap_err()
    };
    assert!(matches!(parse(&forged(None, &[])), Err(ArtifactError::NoManifest)));
    assert!(matches!(
        parse(&forged(Some("{".to_owned()), &[])),
        Err(ArtifactError::Manifest { .. })
    ));
    assert!(matches!(
        refuse(|value| value["format"] = 3.into()),
        ArtifactError::Version { found: 3 }
    ));
    assert!(matches!(refuse(|value| value["more"] = 2.into()), ArtifactError::Manifest { .. }));
    assert!(matches!(
        refuse(|value| value["guard"][0]["shape"][1] = 16.into()),
        ArtifactError::Contradiction { field: "guard" }
    ));
    assert!(matches!(
        refuse(|value| value["guard_digest"] = Digest::of("x").to_hex().into()),
        ArtifactError::Contradiction { field: "guard digest" }
    ));
    assert!(matches!(
        refuse(|value| value["cost"]["operations"] = 1.into()),
        ArtifactError::Contradiction { field: "cost" }
    ));
    assert!(matches!(
        refuse(|value| value["graph"]["nodes"][0]["operands"] = serde_json::json!([5])),
        ArtifactError::Manifest { .. }
    ));
    assert!(matches!(
        refuse(|value| value["graph"]["outputs"][0]["node"] = 1_000_000.into()),
        ArtifactError::Manifest { .. }
    ));
}

#[test]
fn hostile_headers_are_refused() {
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let hostile = [
        u64::MAX.to_le_bytes().to_vec(),
        vec![0; 7],
        header("{}"),
        header("[]"),
        header(&"[".repeat(100_000)),
        header(r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#),
        header(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#),
        header(r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#),
    ];
    for bytes in hostile {
        assert!(parse(&bytes).is_err(), "{:?}", &bytes[..bytes.len().min(64)]);
    }
}

#[test]
fn what_could_not_be_opened_is_not_written() {
    let graph = block();
    let mut params = graph.init_params(4);
    let fine = manifest(&graph, &params);
    let mut wrong = fine.clone();
    wrong.tolerance = f32::NAN;
    assert!(matches!(
        write_bytes(&wrong, &params),
        Err(ArtifactError::Contradiction { field: "tolerance" })
    ));
    params.insert("more", Tensor::scalar(1.0));
    assert!(matches!(
        write_bytes(&fine, &params),
        Err(ArtifactError::Parameter { problem: ParameterProblem::Unexpected, .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any change of the bytes is noticed by the digest.
    #[test]
    fn changed_bytes_never_open(at in any::<prop::sample::Index>(), flip in 1_u8..=255, cut in any::<prop::sample::Index>()) {
        let (bytes, digest) = written();
        let mut flipped = bytes.clone();
        flipped[at.index(bytes.len())] ^= flip;
        let is_corrupt = |bytes: &[u8]| matches!(Kernel::parse(bytes, &digest), Err(ArtifactError::Corrupt { .. }));
        prop_assert!(is_corrupt(&flipped));
        let cut = cut.index(bytes.len());
        let is_refused = Kernel::parse(&bytes[..cut], &digest).is_err();
        prop_assert!(is_refused);
    }

    /// Even bytes whose digest was asked for never panic, and what opens is sound.
    #[test]
    fn forged_bytes_never_panic(at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 1..12)) {
        let (mut bytes, _) = written();
        let at = at.index(bytes.len());
        let end = (at + with.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&with[..end - at]);
        if let Ok(kernel) = parse(&bytes) {
            prop_assert!(kernel.params().iter().all(|(_, tensor)| tensor.is_finite()));
            prop_assert_eq!(kernel.graph().parameters().count(), kernel.params().len());
        }
    }
}

/// Two megabytes of parameters: enough to be mapped instead of copied.
fn large() -> (Graph, Params) {
    let mut graph = Graph::new();
    let x = graph.input("x", &[2, 512]).unwrap();
    let y = graph.linear_layer(x, "wide", 1024).unwrap();
    let y = graph.relu(y).unwrap();
    graph.output("y", y).unwrap();
    let params = graph.init_params(1);
    (graph, params)
}

#[test]
fn a_large_kernel_stays_in_its_file_until_it_is_changed() {
    let (graph, params) = large();
    let (bytes, digest) = write_bytes(&manifest(&graph, &params), &params).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, &bytes).unwrap();
    let verified = Verified::open(&path, &digest).unwrap();
    let kernel = verified.load().unwrap();
    assert_eq!(*kernel.params(), params);

    let mut stores = [0, 1].map(|_| {
        let mut store = ParamStore::with_group("host", &block().init_params(4)).unwrap();
        store.add_group("seed", &kernel.params().prefixed("seed")).unwrap();
        store
    });
    let weight = params.get("wide.weight").unwrap().data();
    assert_eq!(stores[0].get("seed.wide.weight").unwrap(), weight);
    stores[0].get_mut("seed.wide.weight").unwrap()[7] = 42.0;
    assert_eq!(stores[0].get("seed.wide.weight").unwrap()[7], 42.0);
    assert_eq!(stores[1].get("seed.wide.weight").unwrap(), weight);

    // What is mapped outlives the file's name, and the file is as it was.
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(*verified.load().unwrap().params(), params);
    assert_eq!(stores[0].remove_group("host").unwrap(), block().init_params(4));
    assert_eq!(stores[0].get("seed.wide.weight").unwrap()[7], 42.0);
}

#[test]
fn a_large_kernel_is_judged_like_a_small_one() {
    let (graph, params) = large();
    let (bytes, digest) = write_bytes(&manifest(&graph, &params), &params).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    assert!(matches!(Kernel::open(&path, &digest), Err(ArtifactError::Corrupt { .. })));

    let mut poisoned = bytes;
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &poisoned).unwrap();
    let found = Verified::open(&path, &Digest::of(&poisoned));
    let Err(ArtifactError::Parameter { problem, .. }) = found else { panic!("{found:?}") };
    assert_eq!(problem, ParameterProblem::NotFinite);
}

/// A manifest of the format before this one has no host, no job and no tolerances of operators.
#[test]
fn the_format_before_this_one_is_read() {
    let (bytes, _) = written();
    let mut value = manifest_value();
    let map = value.as_object_mut().unwrap();
    map.insert("format".to_owned(), 1.into());
    for field in ["host", "tolerances"] {
        map.remove(field).unwrap();
    }
    let provenance = map["provenance"].as_object_mut().unwrap();
    provenance.retain(|field, _| field == "engine");
    let current = parse(&bytes).unwrap();
    let views: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = current
        .params()
        .iter()
        .map(|(name, tensor)| {
            let bytes = tensor.data().iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, Dtype::F32, tensor.shape().to_vec(), bytes)
        })
        .collect();
    let old = parse(&forged(Some(value.to_string()), &views)).unwrap();
    assert_eq!((old.manifest().format, old.manifest().host.as_str()), (1, "any"));
    assert_eq!(old.params(), current.params());
    value["format"] = 3.into();
    let newer = parse(&forged(Some(value.to_string()), &views));
    assert!(matches!(newer, Err(ArtifactError::Version { found: 3 })), "{newer:?}");
}
