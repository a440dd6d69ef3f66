//! Line plots over epochs as inline SVG, coloured by the page's variables so that they follow its light or dark scheme.

use super::html::{escape, legend};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 30.0;

/// One line.
pub(super) struct Series {
    pub(super) name: String,
    /// Colour variable.
    pub(super) colour: &'static str,
    /// One value per epoch, from the first; what is not finite is a gap.
    pub(super) values: Vec<f32>,
}

/// The range of the values shown.
#[derive(Clone, Copy)]
pub(super) enum Range {
    /// From 0 to 1, as percentages.
    Share,
    /// From 0 to the largest value.
    FromZero,
}

/// The horizontal axis, which the plots of a page share.
#[derive(Clone, Copy)]
pub(super) struct Epochs(pub(super) u32);

impl Epochs {
    /// Where an epoch lies.
    pub(super) fn x(self, epoch: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (epoch / f64::from(self.0.max(1))).clamp(0.0, 1.0)
    }

    /// The epochs that are labelled.
    fn ticks(self) -> Vec<u32> {
        let step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000]
            .into_iter()
            .find(|step| self.0 / step <= 10)
            .unwrap_or(10_000);
        (0..=self.0 / step).map(|tick| tick * step).collect()
    }
}

/// Lines over epochs with vertical marks.
pub(super) fn lines(
    title: &str,
    epochs: Epochs,
    range: Range,
    series: &[Series],
    marks: &[u32],
) -> String {
    let top = match range {
        Range::Share => 1.0,
        Range::FromZero => {
            nice(series.iter().flat_map(|line| &line.values).copied().fold(0.0, largest))
        }
    };
    let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (value / top).clamp(0.0, 1.0));
    let mut svg = frame(title, HEIGHT);
    for tick in 0..=4 {
        let value = top * f64::from(tick) / 4.0;
        let label = match range {
            Range::Share => format!("{:.0} %", value * 100.0),
            Range::FromZero => format!("{value:.2}"),
        };
        let at = y(value);
        svg.push_str(&format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT, LEFT - 8.0, at + 4.0
        ));
    }
    svg.push_str(&epoch_axis(epochs, HEIGHT - BOTTOM));
    for mark in marks {
        let x = epochs.x(f64::from(*mark));
        svg.push_str(&format!(
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{}\"/>",
            HEIGHT - BOTTOM
        ));
    }
    for line in series {
        let path = path(&line.values, |index| epochs.x(index as f64 + 1.0), y);
        svg.push_str(&format!(
            "<path class=\"series\" style=\"stroke:var(--{})\" d=\"{path}\"/>",
            line.colour
        ));
    }
    svg.push_str("</svg>");
    let names: Vec<(String, &str)> =
        series.iter().map(|line| (line.name.clone(), line.colour)).collect();
    format!(
        "<figure class=\"panel\">{}{svg}<figcaption>{}</figcaption></figure>",
        legend(&names),
        escape(title)
    )
}

/// The opening of a plot of the page's width.
pub(super) fn frame(title: &str, height: f64) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">", escape(title))
}

/// The labelled axis at a height.
pub(super) fn epoch_axis(epochs: Epochs, y: f64) -> String {
    let mut svg = format!(
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>",
        WIDTH - RIGHT
    );
    for tick in epochs.ticks() {
        let x = epochs.x(f64::from(tick));
        svg.push_str(&format!(
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            y + 18.0
        ));
    }
    svg
}

fn largest(a: f32, b: f32) -> f32 {
    if b.is_finite() { a.max(b) } else { a }
}

/// The next round number above.
fn nice(value: f32) -> f64 {
    let value = f64::from(value).max(1e-6);
    let power = 10_f64.powf(value.log10().floor());
    let factor = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0]
        .into_iter()
        .find(|factor| value <= factor * power);
    factor.unwrap_or(10.0) * power
}

fn path(values: &[f32], x: impl Fn(usize) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let mut pen = 'M';
    for (index, value) in values.iter().enumerate() {
        if value.is_finite() {
            path.push_str(&format!("{pen}{:.1} {:.1}", x(index), y(f64::from(*value))));
            pen = 'L';
        } else {
            pen = 'M';
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_lifts_the_pen() {
        let drawn = path(&[1.0, f32::NAN, 2.0, 3.0], |x| x as f64, |y| y);
        assert_eq!(drawn, "M0.0 1.0M2.0 2.0L3.0 3.0");
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        for (value, top) in [(0.69, 0.8), (1.0, 1.0), (1.2, 1.5), (23.0, 30.0)] {
            assert!((nice(value) - top).abs() < 1e-6, "{value}: {}", nice(value));
        }
    }

    #[test]
    fn a_long_run_has_few_ticks() {
        for epochs in [1, 9, 60, 400, 12_345] {
            assert!((1..=13).contains(&Epochs(epochs).ticks().len()), "{epochs}");
        }
    }
}
