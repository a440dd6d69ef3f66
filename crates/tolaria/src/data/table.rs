//! CSV: a header, numeric features, one label column. Everything wrong names file, line and column.

use std::path::Path;

use super::{CLASSES_MAX, Dataset, Division, ROWS_MAX, VALUES_MAX, number_classes};
use crate::error::{CellFault, DataError};

/// Reads a table. `label` is the name of a column or its number counting from 1.
///
/// # Errors
/// [`DataError`] for an absent label column, a ragged row, an empty cell, a feature that is not a
/// finite number, no rows, too many rows or classes.
pub fn parse(path: &Path, bytes: &[u8], label: &str) -> Result<Dataset, DataError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(bytes);
    let malformed = |source| DataError::Csv { path: path.to_owned(), source };
    let header: Vec<String> =
        reader.headers().map_err(malformed)?.iter().map(str::to_owned).collect();
    let label_column = find_label(path, &header, label)?;

    let mut features = Vec::new();
    let mut texts = Vec::new();
    for record in reader.records() {
        let record = record.map_err(malformed)?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() != header.len() {
            let (expected, found) = (header.len(), record.len());
            return Err(DataError::Ragged { path: path.to_owned(), line, expected, found });
        }
        for (column, cell) in record.iter().enumerate() {
            let bad = |fault| DataError::Cell {
                path: path.to_owned(),
                line,
                column: header[column].clone(),
                fault,
            };
            if cell.is_empty() {
                return Err(bad(CellFault::Empty));
            }
            if column == label_column {
                texts.push(cell.to_owned());
            } else {
                features.push(number(cell).map_err(bad)?);
            }
        }
        if texts.len() > ROWS_MAX || features.len() > VALUES_MAX {
            return Err(DataError::TooLarge {
                path: path.to_owned(),
                what: "rows",
                limit: ROWS_MAX,
            });
        }
    }
    if texts.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    let (labels, classes) = number_classes(&texts);
    if classes.len() > CLASSES_MAX {
        let path = path.to_owned();
        return Err(DataError::TooLarge { path, what: "classes", limit: CLASSES_MAX });
    }
    let mut columns = header;
    columns.remove(label_column);
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    Ok(Dataset { name, columns, features, labels, classes, division: Division::HoldOut })
}

fn find_label(path: &Path, header: &[String], label: &str) -> Result<usize, DataError> {
    if let Some(column) = header.iter().position(|name| name == label) {
        return Ok(column);
    }
    let by_number = label.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    by_number.filter(|column| *column < header.len()).ok_or_else(|| DataError::NoSuchColumn {
        path: path.to_owned(),
        label: label.to_owned(),
        columns: header.join(", "),
    })
}

fn number(cell: &str) -> Result<f32, CellFault> {
    let value: f32 = cell.parse().map_err(|_| CellFault::NotANumber(shorten(cell)))?;
    if value.is_finite() { Ok(value) } else { Err(CellFault::NotFinite(shorten(cell))) }
}

/// A cell comes from outside and may be long.
fn shorten(cell: &str) -> String {
    const CHARACTERS_MAX: usize = 40;
    let mut text: String = cell.chars().take(CHARACTERS_MAX).collect();
    if text.len() < cell.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, label: &str) -> String {
        parse(Path::new("some.csv"), text.as_bytes(), label).unwrap_err().to_string()
    }

    #[test]
    fn a_good_table_is_read() {
        let text = "\u{feff}a,kind,b\n1,cat,2.5\n -3e1 ,dog,0\n7,cat,1\n";
        for label in ["kind", "2"] {
            let data = parse(Path::new("some.csv"), text.as_bytes(), label).unwrap();
            assert_eq!(data.columns, ["a", "b"]);
            assert_eq!(data.features, [1.0, 2.5, -30.0, 0.0, 7.0, 1.0]);
            assert_eq!(data.labels, [0, 1, 0]);
            assert_eq!(data.classes, ["cat", "dog"]);
        }
    }

    #[test]
    fn a_bad_cell_names_file_line_and_column() {
        for (cell, why) in
            [("x", "not a number"), ("nan", "not finite"), ("inf", "not finite"), ("", "empty")]
        {
            let message = refused(&format!("a,b,kind\n1,2,cat\n3,{cell},dog\n"), "kind");
            for part in ["some.csv", "line 3", "column b", why] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn a_quoted_line_break_does_not_shift_the_line() {
        let message = refused("a,kind\n1,\"c\nat\"\nx,dog\n", "kind");
        assert!(message.contains("line 4"), "{message}");
    }

    #[test]
    fn a_ragged_row_names_file_and_line() {
        let message = refused("a,b,kind\n1,2,cat\n3,dog\n", "kind");
        for part in ["some.csv", "line 3", "2", "3"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn an_absent_label_column_is_named_with_those_present() {
        for label in ["sort", "0", "4"] {
            let message = refused("a,b,kind\n1,2,cat\n", label);
            assert!(message.contains(label) && message.contains("a, b, kind"), "{message}");
        }
    }

    #[test]
    fn a_table_without_rows_is_refused() {
        assert!(refused("a,kind\n", "kind").contains("some.csv"));
    }

    #[test]
    fn a_measurement_is_no_label() {
        let mut text = "a,kind\n".to_owned();
        for row in 0..300 {
            text.push_str(&format!("{row},{row}.5\n"));
        }
        assert!(refused(&text, "kind").contains("classes"));
    }
}
