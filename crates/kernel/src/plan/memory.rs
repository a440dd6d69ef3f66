//! Where buffers lie in the arena: two share a place when they are never needed at the same time.

use super::lower::{Program, Source};

/// Buffers begin at multiples of this many elements: one cache line.
const ALIGNMENT: usize = 16;

/// First and last step at which a buffer must hold its value.
#[derive(Debug, Clone, Copy)]
struct Lifetime {
    first: usize,
    last: usize,
}

/// The offset of each buffer and the length of the arena.
pub(super) fn lay_out(program: &Program) -> (Vec<usize>, usize) {
    let lifetimes = lifetimes(program);
    let mut offsets = vec![0; program.buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut arena_len = 0;
    // Large buffers first: the small ones then fit into the gaps between them.
    let mut order: Vec<usize> = (0..program.buffers.len()).collect();
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
    (offsets, arena_len)
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
    use super::*;

    #[test]
    fn the_lowest_gap_is_taken() {
        assert_eq!(first_gap(&[], 16), 0);
        assert_eq!(first_gap(&[(16, 16)], 16), 0);
        assert_eq!(first_gap(&[(0, 16), (32, 16)], 16), 16);
        assert_eq!(first_gap(&[(0, 16), (32, 16)], 32), 48);
        assert_eq!(first_gap(&[(0, 64), (16, 16)], 16), 64);
    }
}
