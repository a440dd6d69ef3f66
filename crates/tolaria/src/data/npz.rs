//! NumPy `.npz`: an array `x` of rows and an array of labels.

use std::io::Cursor;
use std::path::Path;

use npyz::{DType, NpyFile, TypeChar};

use super::{CLASSES_MAX, Dataset, Division, ROWS_MAX, VALUES_MAX, number_classes};
use crate::error::DataError;

/// The arrays that may hold the features, best first.
const FEATURES: [&str; 4] = ["x", "X", "x_train", "data"];
/// The arrays that may hold the labels when none was named, best first.
const LABELS: [&str; 4] = ["y", "Y", "y_train", "target"];

/// Reads features and labels; rows of more than one dimension are flattened.
///
/// # Errors
/// [`DataError::Npz`] when an array is absent, of an unknown type, or does not fit.
pub fn parse(path: &Path, bytes: &[u8], label: Option<&str>) -> Result<Dataset, DataError> {
    let broken = |reason: String| DataError::Npz { path: path.to_owned(), reason };
    let mut archive = npyz::npz::NpzArchive::new(Cursor::new(bytes))
        .map_err(|error| broken(error.to_string()))?;
    let mut present: Vec<String> = archive.array_names().map(str::to_owned).collect();
    present.sort();
    let pick = |wanted: &[&str]| {
        wanted
            .iter()
            .find(|name| present.iter().any(|array| array == **name))
            .map(|name| (*name).to_owned())
    };
    let labels_name = label.map_or_else(|| pick(&LABELS), |name| pick(&[name]));
    let (Some(features_name), Some(labels_name)) = (pick(&FEATURES), labels_name) else {
        let wanted = label.unwrap_or("y");
        return Err(broken(format!(
            "it needs the arrays x and {wanted}, and has {}",
            present.join(", ")
        )));
    };
    let mut read = |name: &str| -> Result<(Vec<u64>, Vec<f32>), DataError> {
        let file = archive
            .by_name(name)
            .map_err(|error| broken(format!("array {name}: {error}")))?
            .ok_or_else(|| broken(format!("array {name} is absent")))?;
        array(file).map_err(|reason| broken(format!("array {name}: {reason}")))
    };
    let (shape, features) = read(&features_name)?;
    let (label_shape, values) = read(&labels_name)?;
    let rows = shape.first().copied().unwrap_or(0) as usize;
    if label_shape.iter().product::<u64>() as usize != rows || rows == 0 {
        return Err(DataError::RowCounts { path: path.to_owned(), rows, labels: values.len() });
    }
    if rows > ROWS_MAX {
        return Err(DataError::TooLarge { path: path.to_owned(), what: "rows", limit: ROWS_MAX });
    }
    let texts: Vec<String> = values.iter().map(|value| value.to_string()).collect();
    let (labels, classes) = number_classes(&texts);
    if classes.len() > CLASSES_MAX {
        let path = path.to_owned();
        return Err(DataError::TooLarge { path, what: "classes", limit: CLASSES_MAX });
    }
    let columns = (0..features.len() / rows).map(|column| format!("x{column}")).collect();
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    Ok(Dataset { name, columns, features, labels, classes, division: Division::HoldOut })
}

/// The shape and the elements in row-major order.
fn array<R: std::io::Read>(file: NpyFile<R>) -> Result<(Vec<u64>, Vec<f32>), String> {
    let shape = file.shape().to_vec();
    let count = shape.iter().try_fold(1_u64, |count, size| count.checked_mul(*size));
    if count.is_none_or(|count| count > VALUES_MAX as u64) {
        return Err(format!("more than {VALUES_MAX} values"));
    }
    if file.order() == npyz::Order::Fortran && shape.len() > 1 {
        return Err("its order is Fortran's; save it with numpy.ascontiguousarray".to_owned());
    }
    let DType::Plain(kind) = file.dtype() else {
        return Err("its elements are records, not numbers".to_owned());
    };
    macro_rules! read {
        ($number:ty) => {
            file.data::<$number>()
                .map_err(|error| error.to_string())?
                .map(|value| value.map(|value| value as f32).map_err(|error| error.to_string()))
                .collect::<Result<Vec<f32>, String>>()?
        };
    }
    let values = match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 4) => read!(f32),
        (TypeChar::Float, 8) => read!(f64),
        (TypeChar::Int, 1) => read!(i8),
        (TypeChar::Int, 2) => read!(i16),
        (TypeChar::Int, 4) => read!(i32),
        (TypeChar::Int, 8) => read!(i64),
        (TypeChar::Uint, 1) => read!(u8),
        (TypeChar::Uint, 2) => read!(u16),
        (TypeChar::Uint, 4) => read!(u32),
        (TypeChar::Uint, 8) => read!(u64),
        _ => return Err(format!("elements of type {kind} are not supported; save it as float32")),
    };
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(format!("element {index} is not finite"));
    }
    Ok((shape, values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use npyz::WriterBuilder as _;

    fn archive(rows: &[f32], labels: &[i64], names: [&str; 2]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = npyz::npz::NpzWriter::new(&mut bytes);
        let mut x = writer
            .array(names[0], Default::default())
            .unwrap()
            .default_dtype()
            .shape(&[rows.len() as u64 / 2, 2])
            .begin_nd()
            .unwrap();
        x.extend(rows).unwrap();
        x.finish().unwrap();
        let mut y = writer
            .array(names[1], Default::default())
            .unwrap()
            .default_dtype()
            .shape(&[labels.len() as u64])
            .begin_nd()
            .unwrap();
        y.extend(labels).unwrap();
        y.finish().unwrap();
        drop(writer);
        bytes.into_inner()
    }

    #[test]
    fn rows_and_labels_are_read() {
        let bytes = archive(&[1.0, 2.0, 3.0, 4.0], &[5, 2], ["x", "kind"]);
        let data = parse(Path::new("a.npz"), &bytes, Some("kind")).unwrap();
        assert_eq!(data.features, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!((data.labels, data.classes), (vec![1, 0], vec!["2".to_owned(), "5".to_owned()]));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let bytes = archive(&[1.0, 2.0, 3.0, 4.0], &[5, 2, 1], ["x", "y"]);
        assert!(matches!(
            parse(Path::new("a.npz"), &bytes, None),
            Err(DataError::RowCounts { .. })
        ));
        let message = parse(Path::new("a.npz"), &bytes, Some("kind")).unwrap_err().to_string();
        assert!(message.contains("kind") && message.contains("x, y"), "{message}");
        let bytes = archive(&[1.0, f32::NAN], &[5], ["x", "y"]);
        assert!(
            parse(Path::new("a.npz"), &bytes, None).unwrap_err().to_string().contains("not finite")
        );
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let bytes = archive(&[1.0, 2.0, 3.0, 4.0], &[5, 2], ["x", "y"]);
        assert!(parse(Path::new("a.npz"), &bytes[..bytes.len() / 2], None).is_err());
    }
}
