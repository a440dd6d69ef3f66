//! How a small tensor repeats within a large one, found once per plan.

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

    /// Visits (index in the large tensor, index in the small one), in the large one's order.
    pub(super) fn for_each(&self, len: usize, mut visit: impl FnMut(usize, usize)) {
        match self {
            Self::Equal => (0..len).for_each(|at| visit(at, at)),
            Self::Cycle { inner, count } => (0..len).for_each(|at| visit(at, at / inner % count)),
            Self::General(places) => {
                let mut index = vec![0; places.len()];
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
    fn the_general_walk_agrees_with_indices() {
        let mut pairs = Vec::new();
        Pattern::new(&[2, 1, 2], &[2, 2, 2]).for_each(8, |large, small| pairs.push((large, small)));
        assert_eq!(pairs, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 2), (5, 3), (6, 2), (7, 3)]);
    }
}
