//! Transposed copies of small matrices, so that what is read by vectors lies side by side.

/// `to[c * to_stride + r] = from[r * from_stride + c]` for `rows` by `columns` elements.
///
/// # Panics
/// When an index leaves its slice, which would be a fault of the plan.
pub(super) fn transpose(
    (rows, columns): (usize, usize),
    (from, from_stride): (&[f32], usize),
    (to, to_stride): (&mut [f32], usize),
) {
    #[cfg(target_arch = "x86_64")]
    if let pulp::Arch::V4(simd) = pulp::Arch::new() {
        simd.vectorize(
            #[inline(always)]
            || wide::transpose(simd, (rows, columns), (from, from_stride), (to, to_stride)),
        );
        return;
    }
    by_blocks((rows, columns), (from, from_stride), (to, to_stride));
}

/// One element at a time, in blocks small enough that the lines written stay in the first cache.
fn by_blocks(
    (rows, columns): (usize, usize),
    (from, from_stride): (&[f32], usize),
    (to, to_stride): (&mut [f32], usize),
) {
    const BLOCK: usize = 16;
    for column in (0..columns).step_by(BLOCK) {
        let columns = column..(column + BLOCK).min(columns);
        for row in 0..rows {
            let from = &from[row * from_stride..][columns.clone()];
            for (column, &value) in columns.clone().zip(from) {
                to[column * to_stride + row] = value;
            }
        }
    }
}

/// Sixteen by sixteen elements at a time in AVX-512 registers: 64 shuffles instead of 256 loads and stores.
#[cfg(target_arch = "x86_64")]
mod wide {
    use pulp::Simd;
    use pulp::x86::V4;

    const SIDE: usize = 16;
    type Vector = <V4 as Simd>::f32s;

    #[inline(always)]
    pub(super) fn transpose(
        simd: V4,
        (rows, columns): (usize, usize),
        (from, from_stride): (&[f32], usize),
        (to, to_stride): (&mut [f32], usize),
    ) {
        for row in (0..rows).step_by(SIDE) {
            let height = (rows - row).min(SIDE);
            for column in (0..columns).step_by(SIDE) {
                let width = (columns - column).min(SIDE);
                let from = &from[row * from_stride + column..];
                let to = &mut to[column * to_stride + row..];
                if height == SIDE && width == SIDE {
                    whole(simd, (from, from_stride), (to, to_stride));
                } else {
                    ragged(simd, (height, width), (from, from_stride), (to, to_stride));
                }
            }
        }
    }

    /// The loops run over a constant number of vectors, so that all of them stay in registers.
    #[inline(always)]
    fn whole(simd: V4, (from, from_stride): (&[f32], usize), (to, to_stride): (&mut [f32], usize)) {
        let mut block = [simd.splat_f32s(0.0); SIDE];
        for (index, vector) in block.iter_mut().enumerate() {
            let row: [f32; SIDE] =
                from[index * from_stride..][..SIDE].try_into().unwrap_or_default();
            *vector = pulp::cast(row);
        }
        for (index, &vector) in turn(simd, block).iter().enumerate() {
            let column: [f32; SIDE] = pulp::cast(vector);
            to[index * to_stride..][..SIDE].copy_from_slice(&column);
        }
    }

    #[inline(always)]
    fn ragged(
        simd: V4,
        (height, width): (usize, usize),
        (from, from_stride): (&[f32], usize),
        (to, to_stride): (&mut [f32], usize),
    ) {
        let mut block = [simd.splat_f32s(0.0); SIDE];
        for (index, vector) in block.iter_mut().enumerate() {
            if index < height {
                *vector = simd.partial_load_f32s(&from[index * from_stride..][..width]);
            }
        }
        for (index, &vector) in turn(simd, block).iter().enumerate() {
            if index < width {
                simd.partial_store_f32s(&mut to[index * to_stride..][..height], vector);
            }
        }
    }

    /// The transposed block: pairs of rows are interleaved, then fours, then quarters of vectors change places.
    #[inline(always)]
    fn turn(simd: V4, rows: [Vector; SIDE]) -> [Vector; SIDE] {
        let avx = simd.avx512f;
        let rows = rows.map(pulp::cast);
        let mut pairs = rows;
        for at in (0..SIDE).step_by(2) {
            pairs[at] = avx._mm512_unpacklo_ps(rows[at], rows[at + 1]);
            pairs[at + 1] = avx._mm512_unpackhi_ps(rows[at], rows[at + 1]);
        }
        // Now quarter `q` of `fours[4 i + j]` is column `4 q + j` of rows `4 i` to `4 i + 3`.
        let mut fours = rows;
        for at in (0..SIDE).step_by(4) {
            fours[at] = avx._mm512_shuffle_ps::<0x44>(pairs[at], pairs[at + 2]);
            fours[at + 1] = avx._mm512_shuffle_ps::<0xEE>(pairs[at], pairs[at + 2]);
            fours[at + 2] = avx._mm512_shuffle_ps::<0x44>(pairs[at + 1], pairs[at + 3]);
            fours[at + 3] = avx._mm512_shuffle_ps::<0xEE>(pairs[at + 1], pairs[at + 3]);
        }
        let mut columns = rows;
        for j in 0..4 {
            let even_upper = avx._mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]);
            let odd_upper = avx._mm512_shuffle_f32x4::<0xDD>(fours[j], fours[4 + j]);
            let even_lower = avx._mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j]);
            let odd_lower = avx._mm512_shuffle_f32x4::<0xDD>(fours[8 + j], fours[12 + j]);
            columns[j] = avx._mm512_shuffle_f32x4::<0x88>(even_upper, even_lower);
            columns[4 + j] = avx._mm512_shuffle_f32x4::<0x88>(odd_upper, odd_lower);
            columns[8 + j] = avx._mm512_shuffle_f32x4::<0xDD>(even_upper, even_lower);
            columns[12 + j] = avx._mm512_shuffle_f32x4::<0xDD>(odd_upper, odd_lower);
        }
        columns.map(pulp::cast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_finds_its_place() {
        for (rows, columns) in [(16, 16), (1, 1), (3, 40), (33, 17), (64, 10), (5, 0)] {
            let (from_stride, to_stride) = (columns + 3, rows + 2);
            let from: Vec<f32> = (0..rows * from_stride).map(|value| value as f32).collect();
            for way in [transpose, by_blocks] {
                let mut to = vec![-1.0; columns * to_stride];
                way((rows, columns), (&from, from_stride), (&mut to, to_stride));
                for (index, &value) in to.iter().enumerate() {
                    let (column, row) = (index / to_stride, index % to_stride);
                    let expected = if row < rows { from[row * from_stride + column] } else { -1.0 };
                    assert_eq!(value, expected, "{rows} by {columns}, element {index}");
                }
            }
        }
    }
}
