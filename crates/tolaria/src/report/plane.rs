//! The decision boundary over a plane of two features.

use super::html::escape;
use crate::data::Dataset;
use crate::progress::Boundary;

/// Edge of the plot.
const SIZE: f32 = 420.0;
/// Steps between one class and the other.
const LEVELS: usize = 9;
/// Points drawn at most; a page need not hold a whole data set.
const POINTS_MAX: usize = 1500;

/// The plane with the data on it.
pub(super) fn plane(boundary: &Boundary, data: &Dataset, caption: &str) -> String {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {SIZE} {SIZE}\" role=\"img\" aria-label=\"{}\">",
        escape(caption)
    );
    for level in 0..LEVELS {
        let share = level as f32 / (LEVELS - 1) as f32;
        let (colour, strength) = if share < 0.5 {
            ("class-a", 1.0 - 2.0 * share)
        } else {
            ("class-b", 2.0 * share - 1.0)
        };
        let path = cells(boundary, level);
        if !path.is_empty() && strength > 0.0 {
            svg.push_str(&format!(
                "<path style=\"fill:var(--{colour})\" fill-opacity=\"{:.2}\" d=\"{path}\"/>",
                0.42 * strength
            ));
        }
    }
    for (class, colour) in [(0, "class-a"), (1, "class-b")] {
        svg.push_str(&format!(
            "<path style=\"stroke:var(--{colour})\" fill=\"none\" stroke-width=\"4\" stroke-linecap=\"round\" d=\"{}\"/>",
            dots(boundary, data, class)
        ));
    }
    svg.push_str("</svg>");
    format!("<figure class=\"panel\">{svg}<figcaption>{}</figcaption></figure>", escape(caption))
}

/// All cells of one level, runs of neighbours joined, as one path.
fn cells(boundary: &Boundary, level: usize) -> String {
    let count = boundary.resolution;
    let side = SIZE / count as f32;
    let level_of =
        |probability: f32| (probability.clamp(0.0, 1.0) * (LEVELS - 1) as f32).round() as usize;
    let mut path = String::new();
    for (row, values) in boundary.probability.chunks(count).enumerate() {
        let top = SIZE - (row + 1) as f32 * side;
        let mut column = 0;
        while column < values.len() {
            let run =
                values[column..].iter().take_while(|value| level_of(**value) == level).count();
            if run > 0 {
                let (left, width) = (column as f32 * side, run as f32 * side);
                path.push_str(&format!("M{left:.1} {top:.1}h{width:.1}v{side:.2}h-{width:.1}z"));
            }
            column += run.max(1);
        }
    }
    path
}

/// Every point of one class as a line without length, which round caps make a dot.
fn dots(boundary: &Boundary, data: &Dataset, class: u32) -> String {
    let at = |value: f32, axis: usize| {
        let (low, high) = boundary.range[axis];
        (value - low) / (high - low) * SIZE
    };
    let mut path = String::new();
    for row in (0..data.rows().min(POINTS_MAX)).filter(|row| data.labels[*row] == class) {
        let values = data.row(row);
        path.push_str(&format!("M{:.1} {:.1}h0", at(values[0], 0), SIZE - at(values[1], 1)));
    }
    path
}
