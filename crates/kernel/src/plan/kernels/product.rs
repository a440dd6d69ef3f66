//! Matrix products by the `gemm` crate, on one thread.

use gemm::Parallelism;

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
