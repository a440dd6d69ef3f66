//! A training step allocates nothing once it has run: counted by an allocator of this test binary's own.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kernel::bench::Workload;
use kernel::op::Conv;
use kernel::optimiser::{Adam, Optimiser, Sgd};
use kernel::{Algorithm, Choice, Choices, Graph, ParamStore, Plan, differentiate_trainable};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks for.
struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged. The counter has no destructor and no lazy
// initialisation, so that touching it allocates nothing; where a thread is ending it is not touched.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, so from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    let before = COUNT.with(Cell::get);
    run();
    COUNT.with(Cell::get) - before
}

/// What goes to the `gemm` crate is left out: it takes its packing buffers anew at each call. By rule those are products
/// with a right-hand side of more than 2^16 elements or of more than 2^24 multiplications, which [`own_loops`] takes back,
/// and convolutions that no direct loop fits, of which there are none here.
///
/// Convolution, norms, pooling, dropout, attention's products, a blend and a loss: most loops there are.
fn network() -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", &[4, 3, 8, 8]).unwrap();
    let conv = Conv { padding: [1, 1], ..Conv::default() };
    let y = graph.conv2d_layer(x, "conv", 6, 3, conv).unwrap();
    let y = graph.batch_norm(y, "norm", 0.9, 1e-5).unwrap();
    let y = graph.relu(y).unwrap();
    let deep = graph.conv2d_layer(y, "deep", 6, 3, conv).unwrap();
    let deep = graph.dropout(deep, 0.2).unwrap();
    let alpha = graph.scalar_input("alpha").unwrap();
    let kept = graph.neg(alpha).unwrap();
    let kept = graph.offset(kept, 1.0).unwrap();
    let [grown, host] = [graph.mul(alpha, deep).unwrap(), graph.mul(kept, y).unwrap()];
    let y = graph.add(grown, host).unwrap();
    let y = graph.reshape(y, &[6, 64]).unwrap();
    let y = graph.layer_norm(y, "rows", 1e-5).unwrap();
    let y = graph.self_attention_layer(y, "attention", 4).unwrap();
    let y = graph.mean(y, &[1]).unwrap();
    let logits = graph.linear_layer(y, "head", 5).unwrap();
    let labels = graph.input("labels", &[4]).unwrap();
    let loss = graph.cross_entropy(logits, labels).unwrap();
    graph.output("loss", loss).unwrap();
    differentiate_trainable(&graph, "loss").unwrap()
}

/// The plan with every product by the engine's own loops.
fn own_loops(graph: &Graph) -> Plan {
    let plan = Plan::compile(graph).unwrap();
    let own = |choice: &Choice| Choice {
        algorithm: match choice.algorithm {
            Algorithm::Gemm => Algorithm::Tiles,
            other => other,
        },
        ..choice.clone()
    };
    let choices: Vec<Choice> = plan.choices().iter().map(own).collect();
    Plan::compile_with(graph, &Choices::from(choices)).unwrap()
}

fn check(graph: &Graph, inputs: &[(&str, &[f32])], mut optimiser: Optimiser) {
    let mut store = ParamStore::with_group("all", &graph.init_params(1)).unwrap();
    optimiser.add_group("all", 1e-3).unwrap();
    let mut plan = own_loops(graph);
    let mut step = || {
        let outputs = plan.run(&store, inputs).unwrap();
        let norm = outputs.gradient_norm();
        assert!(norm.is_finite());
        optimiser.step(&mut store, &outputs, 1.0).unwrap();
        store.absorb(&outputs).unwrap();
    };
    // The optimiser's state and the products' packing buffers come with the first steps.
    let warm_up = allocations(|| (0..3).for_each(|_| step()));
    assert!(warm_up > 0, "the counter counts");
    assert_eq!(allocations(|| (0..100).for_each(|_| step())), 0);
}

#[test]
fn a_step_allocates_nothing() {
    let x: Vec<f32> = (0..32 * 64 * 16).map(|index| (index % 23) as f32 / 11.0 - 1.0).collect();
    let inputs: [(&str, &[f32]); 4] = [
        ("x", &x[..4 * 3 * 64]),
        ("alpha", &[0.4]),
        ("labels", &[0.0, 4.0, 2.0, 1.0]),
        ("step", &[7.0]),
    ];
    check(&network(), &inputs, Optimiser::adam(Adam::default()));
    check(&network(), &inputs, Optimiser::sgd(Sgd::default()));
    check(&Workload::transformer().unwrap().graph, &[("x", &x)], Optimiser::adam(Adam::default()));
}
