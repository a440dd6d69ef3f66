//! An honest artifact, tampered with where it hurts: its header, its manifest, its numbers. The bytes always have the
//! digest asked for, so whatever is refused is refused by what it says.
//!
//! Compiled twice: for libFuzzer, and as a module of the engine's tests, which run seeded inputs on stable.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use kernel::artifact::{Kernel, Manifest, write_bytes};
use kernel::{Digest, Graph};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use super::bytes::Bytes;

/// A graph with most kinds of operators: products, a convolution, statistics, dropout, layout.
static HONEST: LazyLock<(Manifest, kernel::Params)> = LazyLock::new(|| {
    let mut graph = Graph::new();
    let x = graph.input("x", &[2, 8]).expect("a fresh graph takes an input");
    let y = graph.linear_layer(x, "fc", 8).expect("rank 2");
    let y = graph.batch_norm(y, "norm", 0.9, 1e-5).expect("rank 2");
    let y = graph.gelu(y).expect("any shape");
    let y = graph.dropout(y, 0.1).expect("a rate below 1");
    let map = graph.reshape(y, &[2, 2, 2]).expect("eight features");
    let conv = kernel::op::Conv { padding: [1, 1], ..Default::default() };
    let map = graph.conv2d_layer(map, "conv", 2, 3, conv).expect("two channels");
    let y = graph.reshape(map, &[8]).expect("eight features");
    let y = graph.softmax(y).expect("rank 2");
    graph.output("y", y).expect("the name is free");
    let params = graph.init_params(1);
    let site = serde_json::json!({ "vector": { "features": 8 } });
    let manifest = Manifest::new("BP009", BTreeMap::new(), site, graph, &params, 1e-4);
    (manifest.expect("an honest kernel"), params)
});

/// Whether it was opened.
///
/// # Panics
/// When the engine does, or opens what is not sound.
pub fn run(bytes: &[u8]) -> bool {
    let mut bytes = Bytes::new(bytes);
    let file = match bytes.choice(4) {
        0 => tampered_bytes(&mut bytes),
        1 => tampered_header(&mut bytes),
        _ => tampered_manifest(&mut bytes),
    };
    let Ok(opened) = Kernel::parse(&file, &Digest::of(&file)) else { return false };
    assert!(opened.params().iter().all(|(_, tensor)| tensor.is_finite()), "not finite");
    assert_eq!(opened.graph().parameters().count(), opened.params().len(), "foreign parameters");
    let written = write_bytes(opened.manifest(), opened.params());
    let (again, digest) = written.expect("what opens can be written");
    let again = Kernel::parse(&again, &digest).expect("what was written opens");
    assert_eq!(again, opened_as(&opened, digest), "written as something else");
    true
}

/// The same kernel under the digest of its canonical spelling.
fn opened_as(kernel: &Kernel, digest: Digest) -> Kernel {
    let (bytes, found) = write_bytes(kernel.manifest(), kernel.params()).expect("written before");
    assert_eq!(found, digest, "the same kernel has two spellings");
    Kernel::parse(&bytes, &digest).expect("opened before")
}

fn honest_bytes() -> Vec<u8> {
    let (manifest, params) = &*HONEST;
    write_bytes(manifest, params).expect("an honest kernel is written").0
}

/// Bytes exchanged, cut, put in between and put behind.
fn tampered_bytes(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut file = honest_bytes();
    for _ in 0..=bytes.choice(4) {
        let at = usize::from(bytes.short()) % file.len().max(1);
        match bytes.choice(4) {
            0 => file.truncate(at),
            1 => file.extend_from_slice(bytes.take(8)),
            2 => drop(file.splice(at..at, bytes.take(4).iter().copied())),
            _ => {
                if let Some(place) = file.get_mut(at) {
                    *place = bytes.byte();
                }
            }
        }
    }
    file
}

/// The length of the header and what it says of the tensors.
fn tampered_header(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let file = honest_bytes();
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let (header, body) = rest.split_at(length);
    let mut header: Value = serde_json::from_slice(header).expect("written by us");
    for _ in 0..=bytes.choice(3) {
        tamper(&mut header, bytes);
    }
    let text = header.to_string();
    let claimed = match bytes.choice(8) {
        0 => u64::MAX,
        1 => text.len() as u64 + 1,
        2 => 0,
        _ => text.len() as u64,
    };
    [&claimed.to_le_bytes()[..], text.as_bytes(), body].concat()
}

/// The manifest as a tree, with everything else as it should be.
fn tampered_manifest(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let (manifest, params) = &*HONEST;
    let mut manifest = serde_json::to_value(manifest).expect("a manifest is JSON");
    for _ in 0..=bytes.choice(3) {
        tamper(&mut manifest, bytes);
    }
    let data: Vec<(&str, Vec<usize>, Vec<u8>)> = params
        .iter()
        .map(|(name, tensor)| {
            let data = tensor.data().iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, tensor.shape().to_vec(), data)
        })
        .collect();
    let views = data.iter().map(|(name, shape, data)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), data).expect("sized by its shape"))
    });
    let metadata = HashMap::from([("esper.manifest".to_owned(), manifest.to_string())]);
    safetensors::serialize(views, Some(metadata)).expect("sound tensors")
}

/// Walks down by the fuzzer's choices and changes what it comes to.
fn tamper(value: &mut Value, bytes: &mut Bytes<'_>) {
    let goes_on = bytes.choice(8) != 0;
    match value {
        Value::Object(map) if goes_on && !map.is_empty() => {
            let key = map.keys().nth(bytes.choice(map.len())).cloned().expect("within its length");
            match bytes.choice(16) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert("unheard_of".to_owned(), Value::Null)),
                _ => tamper(&mut map[&key], bytes),
            }
        }
        Value::Array(items) if goes_on && !items.is_empty() => {
            let at = bytes.choice(items.len());
            match bytes.choice(16) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.swap(0, at),
                _ => tamper(&mut items[at], bytes),
            }
        }
        _ => *value = edge(bytes),
    }
}

/// Values that have broken readers before.
fn edge(bytes: &mut Bytes<'_>) -> Value {
    let numbers: [Value; 14] = [
        Value::Null,
        true.into(),
        0.into(),
        1.into(),
        2.into(),
        (-1).into(),
        u64::MAX.into(),
        (1_u64 << 32).into(),
        1e308.into(),
        1e-320.into(),
        0.5.into(),
        (1_u64 << 28).into(),
        "".into(),
        "../../etc/passwd\0".into(),
    ];
    match bytes.choice(numbers.len() + 4) {
        at if at < numbers.len() => numbers[at].clone(),
        at if at == numbers.len() => Value::Array(vec![]),
        at if at == numbers.len() + 1 => Value::Object(serde_json::Map::new()),
        at if at == numbers.len() + 2 => Value::Array(vec![u64::from(bytes.short()).into(); 64]),
        _ => u64::from(bytes.short()).into(),
    }
}
