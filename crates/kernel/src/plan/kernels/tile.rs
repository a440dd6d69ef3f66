//! The micro-kernel behind products and direct convolutions: a tile of the result is held in registers while the
//! steps of the sum run past it.
//!
//! `out[i][to + c] = start + sum over k of left(i, k) * right[row(k) + from + c]`, where the rows of the right-hand
//! side are contiguous runs that begin anywhere: at multiples of a width for a matrix, elsewhere for the shifted
//! pictures of a convolution. The tile is 6 rows by 4 vectors or 8 by 2 where there are 32 vector registers, 4 by 2
//! where there are 16. Nothing is copied here; `product` and `direct` say what is worth packing first.

use pulp::{MemMask, Simd, WithSimd};

/// Elements `(i, k)` at `i * row_stride + k * step_stride`, read one at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) step_stride: usize,
}

/// Rows read by vectors: the row of each step begins at a place of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) data: &'a [f32],
    pub(super) table: &'a Table,
}

/// Beginnings of rows, with the largest of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::plan) struct Table {
    places: Vec<usize>,
    largest: usize,
}

impl Table {
    /// `depth` rows at multiples of a width.
    pub(in crate::plan) fn every(width: usize, depth: usize) -> Self {
        Self::new((0..depth).map(|step| step * width).collect())
    }

    pub(super) fn new(places: Vec<usize>) -> Self {
        let largest = places.iter().copied().max().unwrap_or(0);
        Self { places, largest }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

/// Neighbouring columns: where they begin within a row of the right-hand side and within a row of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) len: usize,
}

/// What the sum begins with.
#[derive(Debug, Clone, Copy)]
pub(in crate::plan) enum Start<'a> {
    Zero,
    /// What the result holds.
    Present,
    /// One value for each column of the result.
    Columns(&'a [f32]),
    /// One value for each row of the result.
    Rows(&'a [f32]),
}

/// What is done to a finished sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plan) enum Finish {
    Keep,
    Relu,
}

/// One sum of products over all rows of the left-hand side and all spans.
pub(super) struct Tiles<'a> {
    pub(super) rows: usize,
    pub(super) left: Left<'a>,
    pub(super) right: Right<'a>,
    pub(super) spans: &'a [Span],
    pub(super) start: Start<'a>,
    pub(super) finish: Finish,
    pub(super) out: &'a mut [f32],
    /// Elements from one row of the result to the next.
    pub(super) out_stride: usize,
}

impl Tiles<'_> {
    /// Runs under the widest vectors of this machine.
    ///
    /// # Panics
    /// When an index would leave its slice, which would be a fault of the plan.
    pub(super) fn run(self) {
        pulp::Arch::new().dispatch(self);
    }

    /// Whether every index of every tile lies within its slice.
    fn is_within(&self) -> bool {
        let table = self.right.table;
        let (Some(row), Some(step)) = (self.rows.checked_sub(1), table.len().checked_sub(1)) else {
            return false;
        };
        let from = self.spans.iter().map(|span| span.from + span.len).max().unwrap_or(0);
        let to = self.spans.iter().map(|span| span.to + span.len).max().unwrap_or(0);
        let start = match self.start {
            Start::Zero | Start::Present => true,
            Start::Columns(values) => to <= values.len(),
            Start::Rows(values) => self.rows <= values.len(),
        };
        row * self.left.row_stride + step * self.left.step_stride < self.left.data.len()
            && table.largest + from <= self.right.data.len()
            && row * self.out_stride + to <= self.out.len()
            && start
    }
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        assert!(self.is_within(), "the plan gives tiles that lie within their slices");
        let mut waiting = [Run::new(simd, (0, 0), 0); 4];
        let mut count = 0;
        // As many vectors side by side as registers allow: each element of the left-hand side is read once for all.
        let limit = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        for &Span { from, to, len } in self.spans {
            for start in (0..len).step_by(S::F32_LANES) {
                let lanes = (len - start).min(S::F32_LANES);
                waiting[count] = Run::new(simd, (from + start, to + start), lanes);
                count += 1;
                if count == limit {
                    self.panels(simd, &waiting[..limit]);
                    count = 0;
                }
            }
        }
        self.panels(simd, &waiting[..count]);
    }
}

/// At most a vector of neighbouring columns.
#[derive(Clone, Copy)]
struct Run<S: Simd> {
    from: usize,
    to: usize,
    mask: MemMask<S::m32s>,
    is_whole: bool,
}

impl<S: Simd> Run<S> {
    #[inline(always)]
    fn new(simd: S, (from, to): (usize, usize), lanes: usize) -> Self {
        let mask = MemMask::new(simd.mask_between_m32s(0, lanes as u32).mask());
        Self { from, to, mask, is_whole: lanes == S::F32_LANES }
    }

    /// Reads the run's lanes. A masked load takes a slot of the ports that multiply, so whole vectors go without.
    ///
    /// # Safety
    /// The lanes of the mask must be readable at `at`; all lanes where `WHOLE`, which is for whole runs only.
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn load<const WHOLE: bool>(&self, simd: S, at: *const f32) -> S::f32s {
        // SAFETY: the caller's promise; `f32s` is plain data.
        unsafe {
            if WHOLE {
                at.cast::<S::f32s>().read_unaligned()
            } else {
                simd.mask_load_ptr_f32s(self.mask, at)
            }
        }
    }

    /// Writes the run's lanes.
    ///
    /// # Safety
    /// As [`Run::load`], and writable.
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn store<const WHOLE: bool>(&self, simd: S, at: *mut f32, values: S::f32s) {
        // SAFETY: the caller's promise.
        unsafe {
            if WHOLE {
                at.cast::<S::f32s>().write_unaligned(values);
            } else {
                simd.mask_store_ptr_f32s(self.mask, at, values);
            }
        }
    }
}

impl Tiles<'_> {
    /// All rows of up to four vectors of columns.
    #[inline(always)]
    fn panels<S: Simd>(&mut self, simd: S, mut runs: &[Run<S>]) {
        if S::REGISTER_COUNT >= 32
            && let [a, b, c, d] = *runs
            && runs.iter().all(|run| run.is_whole)
        {
            self.panel::<S, true, 4>(simd, [a, b, c, d]);
            return;
        }
        while let [a, b, rest @ ..] = runs {
            if a.is_whole && b.is_whole {
                self.panel::<S, true, 2>(simd, [*a, *b]);
            } else {
                self.panel::<S, false, 2>(simd, [*a, *b]);
            }
            runs = rest;
        }
        if let [run] = runs {
            self.panel::<S, false, 1>(simd, [*run]);
        }
    }

    /// All rows of some columns: blocks as high as the registers allow, then lower ones.
    #[inline(always)]
    fn panel<S: Simd, const WHOLE: bool, const N: usize>(&mut self, simd: S, runs: [Run<S>; N]) {
        let mut row = 0;
        if S::REGISTER_COUNT >= 32 {
            if N == 4 {
                while row + 6 <= self.rows {
                    self.tile::<S, WHOLE, 6, N>(simd, row, &runs);
                    row += 6;
                }
            } else {
                while row + 8 <= self.rows {
                    self.tile::<S, WHOLE, 8, N>(simd, row, &runs);
                    row += 8;
                }
            }
        }
        while row + 4 <= self.rows {
            self.tile::<S, WHOLE, 4, N>(simd, row, &runs);
            row += 4;
        }
        if row + 2 <= self.rows {
            self.tile::<S, WHOLE, 2, N>(simd, row, &runs);
            row += 2;
        }
        if row < self.rows {
            self.tile::<S, WHOLE, 1, N>(simd, row, &runs);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const WHOLE: bool, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        runs: &[Run<S>; N],
    ) {
        let Left { data, row_stride, step_stride } = self.left;
        let places = &self.right.table.places[..];
        // SAFETY: `with_simd` has asserted `is_within` before the first tile: the largest row, step and column
        // together lie within each slice, every index here is at most that large, and masked lanes are not
        // accessed. `out` is borrowed mutably, so it overlaps no operand.
        #[allow(unsafe_code)]
        unsafe {
            let left: [*const f32; M] =
                std::array::from_fn(|i| data.as_ptr().add((row + i) * row_stride));
            let right: [*const f32; N] =
                std::array::from_fn(|j| self.right.data.as_ptr().add(runs[j].from));
            let out: [*mut f32; M] =
                std::array::from_fn(|i| self.out.as_mut_ptr().add((row + i) * self.out_stride));
            let zero = simd.splat_f32s(0.0);
            let mut sums = [[zero; N]; M];
            match self.start {
                Start::Zero => {}
                Start::Present => {
                    for i in 0..M {
                        for j in 0..N {
                            sums[i][j] = runs[j].load::<WHOLE>(simd, out[i].add(runs[j].to));
                        }
                    }
                }
                Start::Columns(values) => {
                    for j in 0..N {
                        let start = runs[j].load::<WHOLE>(simd, values.as_ptr().add(runs[j].to));
                        for sums in &mut sums {
                            sums[j] = start;
                        }
                    }
                }
                Start::Rows(values) => {
                    for (i, sums) in sums.iter_mut().enumerate() {
                        *sums = [simd.splat_f32s(*values.get_unchecked(row + i)); N];
                    }
                }
            }
            for (step, &offset) in places.iter().enumerate() {
                let right: [S::f32s; N] =
                    std::array::from_fn(|j| runs[j].load::<WHOLE>(simd, right[j].add(offset)));
                let at = step * step_stride;
                for i in 0..M {
                    let value = simd.splat_f32s(*left[i].add(at));
                    for j in 0..N {
                        sums[i][j] = simd.mul_add_e_f32s(value, right[j], sums[i][j]);
                    }
                }
            }
            for i in 0..M {
                for j in 0..N {
                    let mut value = sums[i][j];
                    if self.finish == Finish::Relu {
                        value = simd.select_f32s(simd.less_than_f32s(value, zero), zero, value);
                    }
                    runs[j].store::<WHOLE>(simd, out[i].add(runs[j].to), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|index| (index * 37 % 101) as f32 / 50.0 - 1.0).collect()
    }

    /// Sizes that use every height of a block, whole and ragged vectors, and tables out of order.
    fn check(rows: usize, depth: usize, columns: &[usize], start: Start<'_>, run: fn(Tiles<'_>)) {
        let left = values(rows * depth);
        let right = values(depth * 200);
        let table = Table::new((0..depth).map(|step| (step * 7 % depth) * 200).collect());
        let mut spans = Vec::new();
        let (mut from, mut to) = (3, 0);
        for &len in columns {
            spans.push(Span { from, to, len });
            (from, to) = (from + len + 1, to + len);
        }
        let before = values(rows * (to + 2));
        let even = Table::every(200, depth);
        for (table, finish) in [(&even, Finish::Keep), (&table, Finish::Relu)] {
            let mut out = before.clone();
            run(Tiles {
                rows,
                left: Left { data: &left, row_stride: 1, step_stride: rows },
                right: Right { data: &right, table },
                spans: &spans,
                start,
                finish,
                out: &mut out,
                out_stride: to + 2,
            });
            let mut expected = before.clone();
            for row in 0..rows {
                for column in 0..to {
                    let span = spans.iter().find(|span| column < span.to + span.len).unwrap();
                    let from = span.from + column - span.to;
                    let at = row * (to + 2) + column;
                    let mut sum = match start {
                        Start::Zero => 0.0,
                        Start::Present => f64::from(before[at]),
                        Start::Columns(values) => f64::from(values[column]),
                        Start::Rows(values) => f64::from(values[row]),
                    };
                    for step in 0..depth {
                        let place = table.places[step];
                        sum += f64::from(left[step * rows + row]) * f64::from(right[place + from]);
                    }
                    expected[at] = if finish == Finish::Relu { sum.max(0.0) } else { sum } as f32;
                }
            }
            for (index, (found, expected)) in out.iter().zip(&expected).enumerate() {
                let close = (found - expected).abs() <= 1e-5 * (1.0 + expected.abs());
                assert!(
                    close,
                    "{rows} rows, {columns:?}: element {index} is {found}, not {expected}"
                );
            }
        }
    }

    fn check_all(run: fn(Tiles<'_>)) {
        let starts = values(200);
        for rows in 1..14 {
            check(rows, 5, &[16, 48], Start::Zero, run);
            check(rows, 1, &[64, 7], Start::Present, run);
            check(rows, 9, &[3, 1, 70], Start::Columns(&starts), run);
            check(rows, 30, &[10, 10, 10], Start::Rows(&starts), run);
        }
    }

    /// The vectors of this machine, and those of lesser ones it can do too.
    #[test]
    fn every_width_of_vectors_agrees() {
        check_all(|tiles| tiles.run());
        check_all(|tiles| Simd::vectorize(pulp::Scalar, tiles));
        #[cfg(target_arch = "x86_64")]
        if pulp::x86::V3::try_new().is_some() {
            check_all(|tiles| {
                let simd = pulp::x86::V3::try_new().unwrap();
                Simd::vectorize(simd, tiles);
            });
        }
    }

    #[test]
    #[should_panic(expected = "within their slices")]
    fn a_tile_beyond_its_slices_is_refused() {
        let (left, right) = (values(4), values(8));
        Tiles {
            rows: 2,
            left: Left { data: &left, row_stride: 2, step_stride: 1 },
            right: Right { data: &right, table: &Table::every(5, 2) },
            spans: &[Span { from: 0, to: 0, len: 4 }],
            start: Start::Zero,
            finish: Finish::Keep,
            out: &mut [0.0; 8],
            out_stride: 4,
        }
        .run();
    }
}
