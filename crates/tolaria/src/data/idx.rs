//! IDX, the format of the MNIST files: two zero bytes, a type, a number of dimensions, their
//! sizes as big-endian `u32`, the elements in big-endian order (Y. LeCun, "The MNIST database").

use std::path::Path;

use super::{CLASSES_MAX, Dataset, Division, ROWS_MAX, VALUES_MAX, number_classes};
use crate::error::DataError;

/// More dimensions than this are no table of images.
const RANK_MAX: usize = 4;

/// Whether the bytes begin like an IDX file.
pub fn is_idx(bytes: &[u8]) -> bool {
    bytes.len() >= 4
        && bytes[..2] == [0, 0]
        && element_size(bytes[2]).is_some()
        && (1..=RANK_MAX).contains(&usize::from(bytes[3]))
}

/// Joins images and their labels; each image becomes one flat row.
///
/// # Errors
/// [`DataError::Idx`] when either file is damaged or they do not belong together.
pub fn parse(
    path: &Path,
    images: &[u8],
    label_path: &Path,
    labels: &[u8],
) -> Result<Dataset, DataError> {
    let images = Array::parse(path, images)?;
    let labels = Array::parse(label_path, labels)?;
    if labels.shape.len() != 1 {
        return Err(broken(label_path, "labels must have one dimension"));
    }
    if images.shape[0] != labels.shape[0] {
        return Err(DataError::RowCounts {
            path: path.to_owned(),
            rows: images.shape[0],
            labels: labels.shape[0],
        });
    }
    let width: usize = images.shape[1..].iter().product();
    let texts: Vec<String> = labels.values.iter().map(|value| value.to_string()).collect();
    let (labels, classes) = number_classes(&texts);
    if classes.len() > CLASSES_MAX {
        let path = label_path.to_owned();
        return Err(DataError::TooLarge { path, what: "classes", limit: CLASSES_MAX });
    }
    Ok(Dataset {
        name: path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into()),
        columns: (0..width).map(|pixel| format!("pixel {pixel}")).collect(),
        features: images.values,
        labels,
        classes,
        division: Division::HoldOut,
    })
}

struct Array {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Array {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DataError> {
        if !is_idx(bytes) {
            return Err(broken(path, "it does not begin like an IDX file"));
        }
        let (kind, rank) = (bytes[2], usize::from(bytes[3]));
        let header = 4 + 4 * rank;
        let sizes =
            bytes.get(4..header).ok_or_else(|| broken(path, "it ends within its header"))?;
        let shape: Vec<usize> = sizes
            .chunks_exact(4)
            .map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize)
            .collect();
        let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        let count = count.filter(|count| *count <= VALUES_MAX && shape[0] <= ROWS_MAX).ok_or_else(
            || DataError::TooLarge { path: path.to_owned(), what: "values", limit: VALUES_MAX },
        )?;
        let size = element_size(kind).unwrap_or(1);
        let body = &bytes[header..];
        if body.len() != count * size {
            return Err(broken(path, "its length does not match its header"));
        }
        let values: Vec<f32> = body.chunks_exact(size).map(|chunk| element(kind, chunk)).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(broken(path, "it holds a value that is not finite"));
        }
        Ok(Self { shape, values })
    }
}

fn element_size(kind: u8) -> Option<usize> {
    match kind {
        0x08 | 0x09 => Some(1),
        0x0b => Some(2),
        0x0c | 0x0d => Some(4),
        0x0e => Some(8),
        _ => None,
    }
}

fn element(kind: u8, bytes: &[u8]) -> f32 {
    match (kind, bytes) {
        (0x08, [a]) => f32::from(*a),
        (0x09, [a]) => f32::from(i8::from_be_bytes([*a])),
        (0x0b, [a, b]) => f32::from(i16::from_be_bytes([*a, *b])),
        (0x0c, [a, b, c, d]) => i32::from_be_bytes([*a, *b, *c, *d]) as f32,
        (0x0d, [a, b, c, d]) => f32::from_be_bytes([*a, *b, *c, *d]),
        (_, [a, b, c, d, e, f, g, h]) => {
            f64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as f32
        }
        _ => unreachable!("chunks have the size of their kind"),
    }
}

fn broken(path: &Path, reason: &'static str) -> DataError {
    DataError::Idx { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2];
        bytes.extend([10, 20, 30, 40]);
        bytes
    }

    fn labels() -> Vec<u8> {
        vec![0, 0, 8, 1, 0, 0, 0, 2, 7, 3]
    }

    fn parsed(images: &[u8], labels: &[u8]) -> Result<Dataset, DataError> {
        parse(Path::new("images"), images, Path::new("labels"), labels)
    }

    #[test]
    fn images_become_rows() {
        let data = parsed(&images(), &labels()).unwrap();
        assert_eq!((data.width(), data.features.clone()), (2, vec![10.0, 20.0, 30.0, 40.0]));
        assert_eq!(
            (data.labels.clone(), data.classes.clone()),
            (vec![1, 0], vec!["3".into(), "7".into()])
        );
    }

    #[test]
    fn every_cut_is_refused() {
        let whole = images();
        for length in 0..whole.len() {
            assert!(parsed(&whole[..length], &labels()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn labels_of_other_images_are_refused() {
        let other = [0, 0, 8, 1, 0, 0, 0, 3, 7, 3, 1];
        assert!(matches!(parsed(&images(), &other), Err(DataError::RowCounts { .. })));
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused_before_it_is_read() {
        let mut bytes = vec![0, 0, 8, 3];
        bytes.extend([0xff; 12]);
        assert!(matches!(parsed(&bytes, &labels()), Err(DataError::TooLarge { .. })));
    }
}
