//! Data sets: where they come from ([`toy`], [`table`], [`npz`], [`idx`]) and how they are split
//! and standardised ([`split`]). Everything is a table of numbers with one class per row.

pub mod idx;
pub mod npz;
pub mod split;
pub mod table;
pub mod toy;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::error::DataError;

pub use split::{Part, Split, Standardiser};

/// More rows than this are refused: the training loop holds the data set in memory.
pub const ROWS_MAX: usize = 1_000_000;
/// More classes than this are refused: the label column is then most likely a measurement.
pub const CLASSES_MAX: usize = 256;
/// More numbers than this (rows times columns; 1 GiB of `f32`) are refused.
pub const VALUES_MAX: usize = 1 << 28;

/// A classification data set in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// What it is called in reports.
    pub name: String,
    /// Name of each feature column.
    pub columns: Vec<String>,
    /// Row-major features, `rows * columns` of them, all finite.
    pub features: Vec<f32>,
    /// Class of each row, an index into `classes`.
    pub labels: Vec<u32>,
    /// Name of each class.
    pub classes: Vec<String>,
    /// How rows are divided.
    pub division: Division,
}

/// How a data set is divided into training, validation and test rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// A share is held out, at random by the run's seed.
    HoldOut,
    /// Every row serves for everything: a complete truth table has nothing to hold out.
    WholeTable,
}

impl Dataset {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Number of feature columns.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// One row's features.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.features[index * self.width()..(index + 1) * self.width()]
    }

    /// Checks what every source must deliver: at least two classes and enough rows to divide.
    ///
    /// # Errors
    /// [`DataError::TooFew`] when there is nothing to learn from.
    pub(crate) fn checked(self) -> Result<Self, DataError> {
        let (rows, classes, columns) = (self.rows(), self.classes.len(), self.width());
        let rows_min = match self.division {
            Division::HoldOut => split::ROWS_MIN,
            Division::WholeTable => 2,
        };
        if rows < rows_min || classes < 2 || columns == 0 {
            return Err(DataError::TooFew { name: self.name, rows, rows_min, classes, columns });
        }
        Ok(self)
    }
}

/// Where a run's data comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Two interleaved spirals: the classic task of the growing-network literature.
    Spirals(toy::Spirals),
    /// Two interleaved half circles.
    Moons(toy::Moons),
    /// The truth table of exclusive or.
    Xor,
    /// A file: CSV, `.npz`, or IDX images with a second file of labels; each may be gzipped.
    File {
        /// The data.
        path: PathBuf,
        /// Label column (CSV), label array (`.npz`) or label file (IDX).
        label: Option<String>,
    },
}

impl Source {
    /// Makes or reads the data set. `seed` decides what is random.
    ///
    /// # Errors
    /// [`DataError`] names the file and, where there is one, the line and column at fault.
    pub fn load(&self, seed: u64) -> Result<Dataset, DataError> {
        match self {
            Self::Spirals(spirals) => spirals.generate(seed).checked(),
            Self::Moons(moons) => moons.generate(seed).checked(),
            Self::Xor => toy::xor().checked(),
            Self::File { path, label } => load_file(path, label.as_deref()),
        }
    }

    /// Short name for reports and metrics.
    pub fn name(&self) -> String {
        match self {
            Self::Spirals(_) => "two spirals".to_owned(),
            Self::Moons(_) => "two moons".to_owned(),
            Self::Xor => "xor".to_owned(),
            Self::File { path, .. } => {
                path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into())
            }
        }
    }
}

/// Reads a file in whichever of the known formats it is, told by its first bytes.
fn load_file(path: &Path, label: Option<&str>) -> Result<Dataset, DataError> {
    let bytes = read(path)?;
    if bytes.starts_with(b"PK\x03\x04") {
        return npz::parse(path, &bytes, label)?.checked();
    }
    if idx::is_idx(&bytes) {
        let Some(label) = label else {
            return Err(DataError::LabelMissing { path: path.to_owned(), wants: "a label file" });
        };
        let label_path = Path::new(label);
        let labels = read(label_path)?;
        return idx::parse(path, &bytes, label_path, &labels)?.checked();
    }
    let Some(label) = label else {
        return Err(DataError::LabelMissing { path: path.to_owned(), wants: "a label column" });
    };
    table::parse(path, &bytes, label)?.checked()
}

/// Reads a whole file, unpacking gzip. Bounded, so that a small file cannot unpack without end.
fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let limit = (VALUES_MAX * 4) as u64;
    let mut packed = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut packed))
        .map_err(failed)?;
    let bytes = if packed.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        let decoder = flate2::read::MultiGzDecoder::new(packed.as_slice());
        decoder.take(limit + 1).read_to_end(&mut unpacked).map_err(failed)?;
        unpacked
    } else {
        packed
    };
    if bytes.len() as u64 > limit {
        return Err(DataError::TooLarge {
            path: path.to_owned(),
            what: "bytes",
            limit: limit as usize,
        });
    }
    if bytes.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Numbers the classes in a stable order: by value when all of them are numbers, else by text.
pub(crate) fn number_classes(texts: &[String]) -> (Vec<u32>, Vec<String>) {
    let mut classes: Vec<String> = texts.to_vec();
    classes.sort();
    classes.dedup();
    if classes.iter().all(|class| class.parse::<f64>().is_ok_and(f64::is_finite)) {
        let value = |class: &String| class.parse::<f64>().unwrap_or(0.0);
        classes.sort_by(|a, b| value(a).total_cmp(&value(b)).then_with(|| a.cmp(b)));
    }
    let numbers: std::collections::HashMap<&str, u32> =
        classes.iter().zip(0..).map(|(class, number)| (class.as_str(), number)).collect();
    let labels = texts.iter().map(|text| numbers[text.as_str()]).collect();
    (labels, classes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_are_numbers_are_ordered_by_value() {
        let texts: Vec<String> = ["10", "9", "10", "-1"].map(str::to_owned).into();
        let (labels, classes) = number_classes(&texts);
        assert_eq!(classes, ["-1", "9", "10"]);
        assert_eq!(labels, [2, 1, 2, 0]);
    }

    #[test]
    fn classes_that_are_words_are_ordered_by_text() {
        let texts: Vec<String> = ["dog", "cat", "10"].map(str::to_owned).into();
        assert_eq!(number_classes(&texts).1, ["10", "cat", "dog"]);
    }
}
