//! Where buffers lie in the arena: two share a place when they are never needed at the same time.

use super::lower::{Program, Source};
use super::step::Kernel;

/// Buffers begin at multiples of this many elements: one cache line.
const ALIGNMENT: usize = 16;

/// First and last step at which a buffer must hold its value.
#[derive(Debug, Clone, Copy)]
struct Lifetime {
    first: usize,
    last: usize,
}

/// Where buffers lie, and how much memory they need together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Of each buffer, in elements from the arena's start.
    pub(super) offsets: Vec<usize>,
    /// Elements of the whole arena.
    pub(super) arena_len: usize,
}

/// Lays the buffers out. Chains whose operand is needed no longer are changed to work where that operand lies.
pub(super) fn lay_out(program: &mut Program) -> Layout {
    let mut lifetimes = lifetimes(program);
    let place_of = take_over(program, &mut lifetimes);
    let mut offsets = vec![0; program.buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut arena_len = 0;
    // Large buffers first: the small ones then fit into the gaps between them.
    let mut order: Vec<usize> =
        (0..program.buffers.len()).filter(|&buffer| place_of[buffer] == buffer).collect();
    order.sort_by_key(|&buffer| {
        (std::cmp::Reverse(program.buffers[buffer]), lifetimes[buffer].first, buffer)
    });
    for buffer in order {
        let len = program.buffers[buffer].next_multiple_of(ALIGNMENT);
        let mut neighbours: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&other| overlap(lifetimes[buffer], lifetimes[other]))
            .map(|&other| (offsets[other], program.buffers[other].next_multiple_of(ALIGNMENT)))
            .collect();
        neighbours.sort_unstable();
        offsets[buffer] = first_gap(&neighbours, len);
        arena_len = arena_len.max(offsets[buffer] + len);
        placed.push(buffer);
    }
    for buffer in 0..program.buffers.len() {
        offsets[buffer] = offsets[place_of[buffer]];
    }
    Layout { offsets, arena_len }
}

/// For each buffer the one whose place it has: its own, or that of an operand which its chain uses up. The lifetime of
/// a place becomes that of all who have it.
fn take_over(program: &mut Program, lifetimes: &mut [Lifetime]) -> Vec<usize> {
    let mut place_of: Vec<usize> = (0..program.buffers.len()).collect();
    let constants: Vec<usize> = program.constants.iter().map(|(buffer, _)| *buffer).collect();
    let own = lifetimes.to_vec();
    for (index, step) in program.steps.iter_mut().enumerate() {
        let Kernel::Chain(chain) = &mut step.kernel else { continue };
        let len = program.buffers[step.out];
        let dying = step.operands.iter().enumerate().find_map(|(position, operand)| {
            let &Source::Buffer(buffer) = operand else { return None };
            let is_last = own[buffer].last == index + 1 && !constants.contains(&buffer);
            let fits = program.buffers[buffer] == len && chain.reads_only_whole(position);
            (is_last && fits).then_some((position, buffer))
        });
        if let Some((position, buffer)) = dying {
            chain.work_in_place_of(position);
            let place = place_of[buffer];
            place_of[step.out] = place;
            lifetimes[place].last = own[step.out].last;
        }
    }
    place_of
}

/// The lowest offset at which `len` elements fit between neighbours (offset, length), sorted by offset.
fn first_gap(neighbours: &[(usize, usize)], len: usize) -> usize {
    let mut end = 0;
    for &(start, size) in neighbours {
        if end + len <= start {
            break;
        }
        end = end.max(start + size);
    }
    end
}

fn overlap(a: Lifetime, b: Lifetime) -> bool {
    a.first <= b.last && b.first <= a.last
}

/// Step `i` of the program is time `i + 1`; inputs are written at time 0 and outputs read after the last step.
fn lifetimes(program: &Program) -> Vec<Lifetime> {
    let end = program.steps.len() + 1;
    let mut lifetimes = vec![Lifetime { first: 0, last: 0 }; program.buffers.len()];
    for (index, step) in program.steps.iter().enumerate() {
        lifetimes[step.out] = Lifetime { first: index + 1, last: index + 1 };
        for operand in &step.operands {
            if let Source::Buffer(buffer) = operand {
                lifetimes[*buffer].last = index + 1;
            }
        }
    }
    // Constants are written once, when the plan is made, so nothing may ever lie over them.
    for (buffer, _) in &program.constants {
        lifetimes[*buffer] = Lifetime { first: 0, last: end };
    }
    for port in program.outputs.iter().chain(&program.updates) {
        lifetimes[port.buffer].last = end;
    }
    lifetimes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gradient::differentiate_trainable;
    use crate::graph::Graph;
    use crate::optimise::optimise;
    use crate::plan::lower::lower;

    /// A network of random elementwise operators, products, softmaxes and norms, each on values made before.
    fn network(choices: &[(u8, usize, usize)]) -> Graph {
        let mut graph = Graph::new();
        let mut values = vec![graph.input("x", &[4, 8]).unwrap()];
        for (index, &(kind, a, b)) in choices.iter().enumerate() {
            let (a, b) = (values[a % values.len()], values[b % values.len()]);
            let name = format!("layer{index}");
            values.push(
                match kind % 9 {
                    0 => graph.linear_layer(a, &name, 8),
                    1 => graph.add(a, b),
                    2 => graph.mul(a, b),
                    3 => graph.tanh(a),
                    4 => graph.layer_norm(a, &name, 1e-3),
                    5 => graph.softmax(a),
                    6 => graph.dropout(a, 0.3),
                    7 => graph.gelu(a),
                    _ => graph.sub(a, b),
                }
                .unwrap(),
            );
        }
        let last = values[values.len() - 1];
        let loss = graph.linear_layer(last, "head", 1).unwrap();
        let loss = graph.mean_all(loss).unwrap();
        graph.output("loss", loss).unwrap();
        graph.output("last", last).unwrap();
        differentiate_trainable(&graph, "loss").unwrap()
    }

    /// Plays a program through on an arena whose elements know whose they are: every operand must still be whole when
    /// it is read, and every output in the end.
    fn play(program: &Program, layout: &Layout) -> Result<(), String> {
        let mut owners: Vec<Option<usize>> = vec![None; layout.arena_len];
        let range = |buffer: usize| {
            layout.offsets[buffer]..layout.offsets[buffer] + program.buffers[buffer]
        };
        let ports = || program.outputs.iter().chain(&program.updates).map(|port| port.buffer);
        let constants = || program.constants.iter().map(|(buffer, _)| *buffer);
        for buffer in constants().chain(program.inputs.iter().map(|port| port.buffer)) {
            owners[range(buffer)].fill(Some(buffer));
        }
        let whole = |owners: &[Option<usize>], buffer: usize, when: &str| {
            let is_whole = owners[range(buffer)].iter().all(|&owner| owner == Some(buffer));
            if is_whole { Ok(()) } else { Err(format!("buffer {buffer} is overwritten {when}")) }
        };
        for (index, step) in program.steps.iter().enumerate() {
            for operand in &step.operands {
                let &Source::Buffer(buffer) = operand else { continue };
                whole(&owners, buffer, &format!("before step {index}"))?;
                let shares = range(buffer).start < range(step.out).end
                    && range(step.out).start < range(buffer).end;
                let in_place = layout.offsets[buffer] == layout.offsets[step.out]
                    && matches!(&step.kernel, Kernel::Chain(chain) if chain.is_in_place());
                if shares && !in_place {
                    return Err(format!("step {index} writes over its operand {buffer}"));
                }
            }
            owners[range(step.out)].fill(Some(step.out));
        }
        ports().chain(constants()).try_for_each(|buffer| whole(&owners, buffer, "in the end"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_live_buffer_is_written_over(
            choices in prop::collection::vec((any::<u8>(), any::<usize>(), any::<usize>()), 1..24),
        ) {
            let graph = network(&choices);
            for graph in [graph.clone(), optimise(&graph).unwrap()] {
                let mut program = lower(&graph, None);
                let layout = lay_out(&mut program);
                prop_assert_eq!(play(&program, &layout), Ok(()));
            }
        }
    }

    #[test]
    fn the_player_notices_what_is_written_over() {
        let graph = network(&[(0, 0, 0), (3, 1, 0), (2, 2, 1)]);
        let mut program = lower(&graph, None);
        let mut layout = lay_out(&mut program);
        assert_eq!(play(&program, &layout), Ok(()));
        layout.offsets.fill(0);
        assert!(play(&program, &layout).is_err());
    }

    #[test]
    fn a_chain_works_where_its_operand_dies() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[16, 64]).unwrap();
        let y = graph.tanh(x).unwrap();
        let y = graph.sigmoid(y).unwrap();
        graph.output("y", y).unwrap();
        let mut program = lower(&graph, None);
        let layout = lay_out(&mut program);
        assert_eq!((program.steps.len(), layout.arena_len), (1, 16 * 64));
        assert!(matches!(&program.steps[0].kernel, Kernel::Chain(chain) if chain.is_in_place()));
    }

    #[test]
    fn the_lowest_gap_is_taken() {
        assert_eq!(first_gap(&[], 16), 0);
        assert_eq!(first_gap(&[(16, 16)], 16), 0);
        assert_eq!(first_gap(&[(0, 16), (32, 16)], 16), 16);
        assert_eq!(first_gap(&[(0, 16), (32, 16)], 32), 48);
        assert_eq!(first_gap(&[(0, 64), (16, 16)], 16), 64);
    }
}
