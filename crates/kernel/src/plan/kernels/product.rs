//! Matrix products on one thread: by the `gemm` crate, or by our own tiles where packing costs more than it saves.

use gemm::Parallelism;

use super::tile::{Finish, Left, Right, Span, Start, Table, Tiles};
use super::transpose::transpose;

/// A matrix within a slice: element `(row, column)` at `row * row_stride + column * column_stride`.
#[derive(Debug, Clone, Copy)]
pub(in crate::plan) struct Matrix<'a> {
    pub(in crate::plan) data: &'a [f32],
    pub(in crate::plan) row_stride: usize,
    pub(in crate::plan) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix, or its transpose, with `width` elements per stored row.
    pub(in crate::plan) fn stored(data: &'a [f32], width: usize, transposed: bool) -> Self {
        let (row_stride, column_stride) = if transposed { (1, width) } else { (width, 1) };
        Self { data, row_stride, column_stride }
    }

    /// Whether every element of `rows` by `columns` lies within the slice.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows > 0
            && columns > 0
            && (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// Whether the product replaces what is there or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plan) enum Into {
    /// Replace.
    Fresh,
    /// Add.
    Sum,
}

/// `out [m, n]`, row-major: `a [m, k]` times `b [k, n]`.
///
/// # Panics
/// When a matrix does not lie within its slice, which would be a fault of the plan.
pub(in crate::plan) fn product(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    into: Into,
) {
    assert!(
        a.holds(m, k) && b.holds(k, n) && out.len() == m * n,
        "the plan gives products operands of the right sizes"
    );
    let signed = |stride: usize| {
        isize::try_from(stride).expect("a stride is within a slice, so within isize")
    };
    // SAFETY: `gemm` reads rows x columns elements of each operand at the strides given and writes `m * n` elements
    // of the result. The assertion above bounds every one of those indices by the length of its slice; the result
    // is borrowed mutably, so it overlaps neither operand.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            signed(n),
            into == Into::Sum,
            a.data.as_ptr(),
            signed(a.column_stride),
            signed(a.row_stride),
            b.data.as_ptr(),
            signed(b.column_stride),
            signed(b.row_stride),
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Columns of a right-hand side that are copied side by side at a time: the widest tile. The copy is used while it is
/// still in the first cache.
const PANEL: usize = 64;

/// Elements of scratch [`tiled_product`] needs.
pub(in crate::plan) fn tiled_scratch_len((_, n, k): Sizes, b_is_transposed: bool) -> usize {
    if b_is_transposed { k * panel_width(n) } else { 0 }
}

/// Where the rows of the right-hand side of [`tiled_product`] begin, in its copy if it is transposed.
pub(in crate::plan) fn tiled_table((_, n, k): Sizes, b_is_transposed: bool) -> Table {
    Table::every(if b_is_transposed { panel_width(n) } else { n }, k)
}

fn panel_width(columns: usize) -> usize {
    columns.next_multiple_of(16).min(PANEL)
}

/// Rows, columns and steps of a product.
pub(in crate::plan) type Sizes = (usize, usize, usize);

/// What a product begins and ends with.
#[derive(Debug, Clone, Copy)]
pub(in crate::plan) struct Ends<'a> {
    pub(in crate::plan) start: Start<'a>,
    pub(in crate::plan) finish: Finish,
}

/// The same product by tiles, `b` with the rows of [`tiled_table`]. Its columns are copied side by side first where
/// they are not already.
///
/// # Panics
/// As [`product`].
pub(in crate::plan) fn tiled_product(
    (m, n, k): Sizes,
    a: Matrix<'_>,
    b: Matrix<'_>,
    (Ends { start, finish }, table): (Ends<'_>, &Table),
    out: &mut [f32],
    scratch: &mut [f32],
) {
    assert!(
        b.holds(k, n) && table.len() == k,
        "the plan gives products operands of the right sizes"
    );
    let mut run = |data: &[f32], span: Span| {
        Tiles {
            rows: m,
            left: Left { data: a.data, row_stride: a.row_stride, step_stride: a.column_stride },
            right: Right { data, table },
            spans: &[span],
            start,
            finish,
            out: &mut *out,
            out_stride: n,
        }
        .run();
    };
    if b.column_stride == 1 {
        run(b.data, Span { from: 0, to: 0, len: n });
        return;
    }
    let width = panel_width(n);
    for column in (0..n).step_by(PANEL) {
        let len = (n - column).min(PANEL);
        let columns = (&b.data[column * b.column_stride..], b.column_stride);
        transpose((len, k), columns, (&mut *scratch, width));
        run(scratch, Span { from: 0, to: column, len });
    }
}
