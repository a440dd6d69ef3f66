//! Artifact files in memory: one map to read, private copies of it to train on. Pages come from the file as they are
//! touched, so what a kernel weighs does not show when it is attached.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};

use memmap2::{Mmap, MmapMut, MmapOptions};

/// Bytes of one value.
const WORD: usize = size_of::<f32>();

/// A file mapped to be read.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Mmap,
    file: File,
}

impl Mapping {
    /// Maps a whole file.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        // SAFETY: a map is undefined behaviour only when the file changes under it. Artifacts are content-addressed:
        // they are written under another name, renamed once complete, and from then on only ever renamed or removed,
        // which leaves a map as it is.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { map, file })
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file as `f32`, from its first byte.
    pub(crate) fn words(&self) -> &[f32] {
        words(&self.map)
    }

    /// The part of [`Mapping::words`] that these bytes are; `None` where they do not lie on a word's edge or the
    /// machine has another byte order than the file.
    pub(crate) fn range_of(&self, bytes: &[u8]) -> Option<Range<usize>> {
        let start = bytes.as_ptr().addr().checked_sub(self.map.as_ptr().addr())?;
        let end = start + bytes.len();
        let is_whole = start.is_multiple_of(WORD) && end.is_multiple_of(WORD);
        let is_ours = end <= self.map.len() && cfg!(target_endian = "little");
        (is_whole && is_ours).then_some(start / WORD..end / WORD)
    }

    /// A map of the same file that can be written: a page written to becomes this map's own and the file stays as it
    /// is.
    pub(crate) fn copy_on_write(&self) -> io::Result<PrivateMapping> {
        // SAFETY: as for `new`; what is written never reaches the file.
        #[allow(unsafe_code)]
        let map = unsafe { MmapOptions::new().map_copy(&self.file) }?;
        Ok(PrivateMapping { map })
    }
}

/// A file's words to be changed, seen by nobody else.
#[derive(Debug)]
pub(crate) struct PrivateMapping {
    map: MmapMut,
}

impl Deref for PrivateMapping {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        words(&self.map)
    }
}

impl DerefMut for PrivateMapping {
    fn deref_mut(&mut self) -> &mut [f32] {
        let whole = self.map.len() / WORD * WORD;
        bytemuck::cast_slice_mut(&mut self.map[..whole])
    }
}

/// Any bytes are some `f32`, and a map begins on a page's edge.
fn words(bytes: &[u8]) -> &[f32] {
    bytemuck::cast_slice(&bytes[..bytes.len() / WORD * WORD])
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn mapping(values: &[f32]) -> Mapping {
        let mut file = tempfile::tempfile().unwrap();
        for value in values {
            file.write_all(&value.to_le_bytes()).unwrap();
        }
        file.write_all(&[1, 2, 3]).unwrap();
        Mapping::new(file).unwrap()
    }

    #[test]
    fn what_is_written_to_a_copy_stays_there() {
        let mapping = mapping(&[1.0, 2.0, 3.0]);
        let mut copies = [mapping.copy_on_write().unwrap(), mapping.copy_on_write().unwrap()];
        copies[0][1] = 7.0;
        assert_eq!(*copies[0], [1.0, 7.0, 3.0]);
        assert_eq!(*copies[1], [1.0, 2.0, 3.0]);
        assert_eq!(mapping.words(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn only_whole_words_of_the_file_have_a_place_in_it() {
        let mapping = mapping(&[1.0, 2.0, 3.0]);
        let bytes = mapping.bytes();
        assert_eq!(mapping.range_of(&bytes[4..12]), Some(1..3));
        assert_eq!(mapping.range_of(&bytes[5..9]), None);
        assert_eq!(mapping.range_of(&bytes[4..15]), None);
        assert_eq!(mapping.range_of(&bytes.to_vec()[4..12]), None);
    }
}
