//! How a small tensor repeats within a large one, found once per plan.

use crate::shape::RANK_MAX;

/// Which element of a small tensor belongs to each element of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Element `i` to element `i`.
    Equal,
    /// Element `(i / inner) % count`: a scalar, rows, columns, or one value per channel.
    Cycle { inner: usize, count: usize },
    /// The sizes of the large tensor with the small one's stride for each.
    General(Vec<(usize, usize)>),
}

impl Pattern {
    /// How `small` broadcasts to `large`; shape inference has checked that it does.
    pub(super) fn new(small: &[usize], large: &[usize]) -> Self {
        let mut places: Vec<(usize, usize)> = Vec::with_capacity(large.len());
        let lead = large.len() - small.len();
        let mut stride = 1;
        for (axis, &size) in large.iter().enumerate().rev() {
            let own = if axis < lead { 1 } else { small[axis - lead] };
            places.push((size, if own == 1 { 0 } else { stride }));
            stride *= own;
        }
        places.reverse();
        places.retain(|&(size, _)| size != 1);
        Self::of_places(places)
    }

    fn of_places(places: Vec<(usize, usize)>) -> Self {
        let count = |part: &[(usize, usize)]| part.iter().map(|&(size, _)| size).product::<usize>();
        let first = places.iter().position(|&(_, stride)| stride > 0);
        let Some(first) = first else {
            return Self::Cycle { inner: count(&places).max(1), count: 1 };
        };
        let last = places.iter().rposition(|&(_, stride)| stride > 0).unwrap_or(first);
        if places[first..=last].iter().any(|&(_, stride)| stride == 0) {
            return Self::General(places);
        }
        let (kept, inner) = (count(&places[first..=last]), count(&places[last + 1..]));
        if first == 0 && last + 1 == places.len() {
            return Self::Equal;
        }
        Self::Cycle { inner, count: kept }
    }

    /// Whether every stretch that begins at a multiple of `block` elements shows the same values.
    pub(super) fn repeats_within(&self, block: usize) -> bool {
        match *self {
            Self::Cycle { inner: 1, count } => block.is_multiple_of(count),
            Self::Cycle { count, .. } => count == 1,
            Self::Equal | Self::General(_) => false,
        }
    }

    /// Writes the elements of `small` that belong to those of the large tensor from `start` on.
    pub(super) fn expand(&self, small: &[f32], start: usize, out: &mut [f32]) {
        match self {
            Self::Equal => out.copy_from_slice(&small[start..][..out.len()]),
            Self::Cycle { count: 1, .. } => out.fill(small[0]),
            &Self::Cycle { inner, count } => {
                let mut at = 0;
                while at < out.len() {
                    let run = (start + at) / inner;
                    let (first, left) = (run % count, (run + 1) * inner - (start + at));
                    let len;
                    if inner == 1 {
                        len = (count - first).min(out.len() - at);
                        out[at..at + len].copy_from_slice(&small[first..first + len]);
                    } else {
                        len = left.min(out.len() - at);
                        out[at..at + len].fill(small[first]);
                    }
                    at += len;
                }
            }
            Self::General(places) => {
                let mut index = [0; RANK_MAX];
                let index = &mut index[..places.len()];
                let mut rest = start;
                for (position, &(size, _)) in index.iter_mut().zip(places).rev() {
                    *position = rest % size;
                    rest /= size;
                }
                for out in out {
                    let at = index.iter().zip(places).map(|(at, (_, stride))| at * stride);
                    *out = small[at.sum::<usize>()];
                    for (position, &(size, _)) in index.iter_mut().zip(places).rev() {
                        *position += 1;
                        if *position < size {
                            break;
                        }
                        *position = 0;
                    }
                }
            }
        }
    }

    /// Visits (index in the large tensor, index in the small one), in the large one's order.
    pub(super) fn for_each(&self, len: usize, mut visit: impl FnMut(usize, usize)) {
        match self {
            Self::Equal => (0..len).for_each(|at| visit(at, at)),
            Self::Cycle { inner, count } => (0..len).for_each(|at| visit(at, at / inner % count)),
            Self::General(places) => {
                let mut index = [0; RANK_MAX];
                let index = &mut index[..places.len()];
                let mut small = 0;
                for at in 0..len {
                    visit(at, small);
                    for (position, &(size, stride)) in index.iter_mut().zip(places).rev() {
                        *position += 1;
                        small += stride;
                        if *position < size {
                            break;
                        }
                        small -= stride * size;
                        *position = 0;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(small: &[usize], large: &[usize], expected: &Pattern) {
        let pattern = Pattern::new(small, large);
        assert_eq!(pattern, *expected, "{small:?} in {large:?}");
    }

    #[test]
    fn common_cases_are_cycles() {
        check(&[2, 3], &[2, 3], &Pattern::Equal);
        check(&[], &[2, 3], &Pattern::Cycle { inner: 6, count: 1 });
        check(&[3], &[2, 3], &Pattern::Cycle { inner: 1, count: 3 });
        check(&[2, 1], &[2, 3], &Pattern::Cycle { inner: 3, count: 2 });
        check(&[4, 1, 1], &[2, 4, 5, 6], &Pattern::Cycle { inner: 30, count: 4 });
        check(&[2, 1, 3], &[2, 4, 3], &Pattern::General(vec![(2, 3), (4, 0), (3, 1)]));
    }

    #[test]
    fn an_expansion_from_anywhere_agrees_with_the_walk() {
        let cases: [(&[usize], &[usize]); 7] = [
            (&[2, 3, 4], &[2, 3, 4]),
            (&[], &[2, 3, 4]),
            (&[4], &[2, 3, 4]),
            (&[2, 1, 1], &[2, 3, 4]),
            (&[3, 1], &[2, 3, 4]),
            (&[2, 1, 4], &[2, 3, 4]),
            (&[3, 4], &[2, 3, 4]),
        ];
        for (small, large) in cases {
            let pattern = Pattern::new(small, large);
            let values: Vec<f32> = (0..small.iter().product()).map(|at| at as f32).collect();
            let mut whole = [0.0; 24];
            pattern.for_each(24, |at, from| whole[at] = values[from]);
            for start in 0..24 {
                for end in start..24 {
                    let mut part = vec![-1.0; end - start];
                    pattern.expand(&values, start, &mut part);
                    assert_eq!(part, whole[start..end], "{small:?} in {large:?}, {start}..{end}");
                }
                if start > 0 && pattern.repeats_within(start) {
                    let len = start.min(24 - start);
                    assert_eq!(whole[..len], whole[start..start + len], "{small:?} by {start}");
                }
            }
        }
    }

    #[test]
    fn the_general_walk_agrees_with_indices() {
        let mut pairs = Vec::new();
        Pattern::new(&[2, 1, 2], &[2, 2, 2]).for_each(8, |large, small| pairs.push((large, small)));
        assert_eq!(pairs, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 2), (5, 3), (6, 2), (7, 3)]);
    }
}
