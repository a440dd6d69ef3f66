//! A buffer that begins on a cache line, so that vectors of a whole line never lie across two.

use std::ops::{Deref, DerefMut};

/// One cache line, in elements.
const LINE: usize = 16;

/// Zeros at first; as long as it was made.
#[derive(Debug)]
pub(super) struct Aligned {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        let values = vec![0.0_f32; len + LINE - 1];
        // A platform that cannot tell gives the buffer as it lies: slower, and right.
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
        Self { values, start, len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_on_a_line_and_is_zero() {
        for len in [0, 1, 16, 1000] {
            let mut buffer = Aligned::zeros(len);
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
            assert_eq!(&*buffer, vec![0.0; len]);
            buffer.fill(1.0);
            assert_eq!(&*buffer, vec![1.0; len]);
        }
    }
}
