//! Several elementwise operators in one pass: block by block, so that what is between them never leaves the cache.
//!
//! Each element goes through the same operations in the same order as it would one operator at a time, so the
//! result is the same to the bit.

use super::elementwise;
use crate::dropout::Mask;
use crate::op::{Binary, Unary};
use crate::plan::pattern::Pattern;

/// Elements worked on at a time: a dozen registers of them lie in the first-level cache.
const BLOCK: usize = 512;

/// What a chain reads from outside.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::plan) enum Leaf {
    /// What lies in the result already: of the loop before, or of an operand that is needed no longer.
    Out,
    /// An operand of the step, by position, repeated by a pattern.
    Operand(usize, Pattern),
}

/// What an operation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plan) enum Argument {
    Leaf(usize),
    /// The result of an earlier operation.
    Result(usize),
}

/// One operation on a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::plan) enum Deed {
    Unary(Unary, Argument),
    UnaryGradient(Unary, Argument, Argument),
    Binary(Binary, Argument, Argument),
    /// With the operand, by position, that holds the seed.
    Dropout {
        rate: f32,
        stream: u32,
        x: Argument,
        seed: usize,
    },
}

/// Operations, each on leaves and earlier results; the last one gives the chain's.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::plan) struct Chain {
    pub(in crate::plan) leaves: Vec<Leaf>,
    pub(in crate::plan) deeds: Vec<Deed>,
}

impl Chain {
    /// Whether an operand is read element by element, and in no other way.
    pub(in crate::plan) fn reads_only_whole(&self, position: usize) -> bool {
        let is_seed = |deed: &Deed| matches!(deed, Deed::Dropout { seed, .. } if *seed == position);
        let mut own = self
            .leaves
            .iter()
            .filter(|leaf| matches!(leaf, Leaf::Operand(at, _) if *at == position))
            .peekable();
        own.peek().is_some()
            && own.all(|leaf| matches!(leaf, Leaf::Operand(_, Pattern::Equal)))
            && !self.deeds.iter().any(is_seed)
    }

    /// Reads an operand from the result's own place from now on: both lie there.
    pub(in crate::plan) fn work_in_place_of(&mut self, position: usize) {
        for leaf in &mut self.leaves {
            if matches!(leaf, Leaf::Operand(at, _) if *at == position) {
                *leaf = Leaf::Out;
            }
        }
    }

    #[cfg(test)]
    pub(in crate::plan) fn is_in_place(&self) -> bool {
        self.leaves.contains(&Leaf::Out)
    }

    /// Elements of scratch a run needs: one block for each leaf and each deed.
    pub(in crate::plan) fn scratch_len(&self) -> usize {
        (self.leaves.len() + self.deeds.len()) * BLOCK
    }

    /// The length of blocks that every row-wise operand fits into without remainder, if one fits.
    fn block(&self) -> usize {
        let widths = self.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Operand(_, Pattern::Cycle { inner: 1, count }) if *count <= BLOCK => Some(*count),
            _ => None,
        });
        widths.max().map_or(BLOCK, |width| BLOCK / width * width)
    }

    /// Runs all operations, block by block.
    pub(in crate::plan) fn run<'a>(
        &self,
        operand: &impl Fn(usize) -> &'a [f32],
        out: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (leaves, results) = scratch.split_at_mut(self.leaves.len() * BLOCK);
        let block = self.block();
        let mut start = 0;
        while start < out.len() {
            let end = out.len().min(start + block);
            let len = end - start;
            for (leaf, register) in self.leaves.iter().zip(leaves.chunks_exact_mut(BLOCK)) {
                match leaf {
                    Leaf::Out => register[..len].copy_from_slice(&out[start..end]),
                    Leaf::Operand(_, Pattern::Equal) => {}
                    Leaf::Operand(position, pattern) => {
                        let is_steady = pattern.repeats_within(block);
                        if start == 0 || !is_steady {
                            pattern.expand(operand(*position), start, &mut register[..len]);
                        }
                    }
                }
            }
            let leaves = &*leaves;
            let leaf = |index: usize| match &self.leaves[index] {
                Leaf::Operand(position, Pattern::Equal) => &operand(*position)[start..end],
                Leaf::Operand(..) | Leaf::Out => &leaves[index * BLOCK..][..len],
            };
            let last = self.deeds.len() - 1;
            for (index, deed) in self.deeds.iter().enumerate() {
                let (earlier, rest) = results.split_at_mut(index * BLOCK);
                let argument = |argument: Argument| match argument {
                    Argument::Leaf(index) => leaf(index),
                    Argument::Result(index) => &earlier[index * BLOCK..][..len],
                };
                let target = if index == last { &mut out[start..end] } else { &mut rest[..len] };
                deed.run(argument, operand, start, target);
            }
            start = end;
        }
    }
}

impl Deed {
    #[inline]
    fn run<'a, 'b>(
        self,
        argument: impl Fn(Argument) -> &'b [f32],
        operand: &impl Fn(usize) -> &'a [f32],
        start: usize,
        out: &mut [f32],
    ) {
        match self {
            Self::Unary(function, x) => elementwise::unary(function, argument(x), out),
            Self::UnaryGradient(function, v, g) => {
                elementwise::unary_gradient(function, argument(v), argument(g), out);
            }
            Self::Binary(function, a, b) => elementwise::binary(
                function,
                (argument(a), &Pattern::Equal),
                (argument(b), &Pattern::Equal),
                out,
            ),
            Self::Dropout { rate, stream, x, seed } => {
                let mask = Mask::new(rate, stream, operand(seed)[0]);
                let factor = mask.factor();
                for (index, (out, &x)) in out.iter_mut().zip(argument(x)).enumerate() {
                    *out = if mask.keeps(start + index) { x * factor } else { 0.0 };
                }
            }
        }
    }
}
