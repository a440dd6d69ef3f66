//! The plots, as SVG. Colours that must follow the reader's theme are marked with stand-ins that the
//! page's style sheet replaces: [`INK`] for axes, [`PAPER`] for the background of points.

use leyline::Stage;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Facts, ReportError};
use crate::progress::{Boundary, Epoch, Outcome};

/// Stand-in for the text colour.
pub(super) const INK: RGBColor = RGBColor(119, 119, 119);
/// Stand-in for the page colour.
pub(super) const PAPER: RGBColor = RGBColor(254, 254, 254);

const GROWN: RGBColor = RGBColor(47, 128, 197);
const ALONE: RGBColor = RGBColor(211, 117, 46);
const FIXED: RGBColor = RGBColor(122, 110, 190);
/// First and last class of a decision boundary.
const CLASSES: [RGBColor; 2] = [RGBColor(47, 128, 197), RGBColor(217, 119, 43)];
const SLOTS: [RGBColor; 4] = [
    RGBColor(47, 128, 197),
    RGBColor(43, 150, 110),
    RGBColor(190, 90, 140),
    RGBColor(150, 120, 40),
];
const WIDTH: u32 = 860;
/// Steps of probability a decision boundary is drawn in.
const LEVELS: f32 = 24.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One curve: what it is, its values by epoch, its colour.
type Curve<'a> = (&'a str, Vec<f32>, RGBColor);

/// The colour of a stage, the same as on the service's page.
pub(super) fn stage_colour(stage: Stage) -> RGBColor {
    match stage {
        Stage::Dormant => RGBColor(128, 134, 139),
        Stage::Germinated => RGBColor(104, 134, 48),
        Stage::Training => RGBColor(42, 110, 170),
        Stage::Blending => RGBColor(96, 80, 190),
        Stage::Shadowing => RGBColor(130, 84, 140),
        Stage::Probationary => RGBColor(168, 112, 20),
        Stage::Fossilized => RGBColor(24, 122, 76),
        Stage::Culled => RGBColor(178, 52, 44),
        Stage::Embargoed => RGBColor(136, 84, 66),
        Stage::Resetting => RGBColor(100, 96, 92),
        Stage::Terminated => RGBColor(70, 70, 70),
    }
}

fn draw(
    plot: &'static str,
    size: (u32, u32),
    paint: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        paint(&area)
            .and_then(|()| Ok(area.present()?))
            .map_err(|error| ReportError::Plot { plot, reason: error.to_string() })?;
    }
    // Fixed sizes do not fit a phone; the view box keeps the proportions.
    let (width, height) = size;
    let sized = format!("<svg width=\"{width}\" height=\"{height}\"");
    let label = format!("<svg role=\"img\" aria-label=\"{plot}\"");
    Ok(svg.replacen(&sized, &label, 1))
}

fn ink(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// Accuracy of the grown network and of what it is compared with, by epoch.
pub(super) fn accuracy(outcome: &Outcome) -> Result<String, ReportError> {
    let grown = outcome.history.iter().map(|epoch| epoch.test_accuracy * 100.0).collect();
    let percent = |values: &[f32]| values.iter().map(|value| value * 100.0).collect();
    let mut curves: Vec<Curve<'_>> = Vec::new();
    if !outcome.host_alone_accuracy.is_empty() {
        curves.push(("host alone", percent(&outcome.host_alone_accuracy), ALONE));
    }
    if !outcome.fixed_accuracy.is_empty() {
        curves.push(("fixed network", percent(&outcome.fixed_accuracy), FIXED));
    }
    curves.push(("grown", grown, GROWN));
    draw("test accuracy by epoch", (WIDTH, 260), |area| {
        lines(area, &outcome.history, &curves, None, "test accuracy, %")
    })
}

/// Training and validation loss by epoch.
pub(super) fn loss(outcome: &Outcome) -> Result<String, ReportError> {
    let history = &outcome.history;
    let curves = [
        ("training", history.iter().map(|epoch| epoch.training_loss).collect(), ALONE),
        ("validation", history.iter().map(|epoch| epoch.validation_loss).collect(), GROWN),
    ];
    draw("loss by epoch", (WIDTH, 240), |area| lines(area, history, &curves, Some(0.0), "loss"))
}

/// How much of each seed the host sees, by epoch.
pub(super) fn alpha(facts: &Facts, outcome: &Outcome) -> Result<String, ReportError> {
    let curves: Vec<Curve<'_>> = facts
        .slots
        .iter()
        .enumerate()
        .map(|(slot, name)| {
            let of = |epoch: &Epoch| epoch.alphas.get(slot).copied().unwrap_or(0.0);
            (name.as_str(), outcome.history.iter().map(of).collect(), SLOTS[slot % SLOTS.len()])
        })
        .collect();
    draw("alpha by epoch", (WIDTH, 190), |area| {
        lines(area, &outcome.history, &curves, Some(0.0), "alpha")
    })
}

fn lines(
    area: &Area<'_>,
    history: &[Epoch],
    curves: &[Curve<'_>],
    floor: Option<f32>,
    title: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let values = || curves.iter().flat_map(|(_, values, _)| values).filter(|v| v.is_finite());
    let high = values().copied().fold(f32::MIN, f32::max);
    let low = floor.unwrap_or_else(|| values().copied().fold(f32::MAX, f32::min));
    if high <= f32::MIN {
        return Ok(());
    }
    let margin = ((high - low) * 0.06).max(0.02);
    let bottom = if floor.is_some() { low } else { low - margin };
    let last = epochs(history, curves);
    let mut chart = ChartBuilder::on(area)
        .margin_right(16)
        .margin_top(8)
        .x_label_area_size(30)
        .y_label_area_size(52)
        .build_cartesian_2d(1.0..last, bottom..high + margin)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.mix(0.6))
        .label_style(ink(12))
        .axis_desc_style(ink(12))
        .x_desc("epoch")
        .y_desc(title)
        .x_labels(12)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    for (name, values, colour) in curves {
        let points = values.iter().enumerate().filter(|(_, value)| value.is_finite());
        let points = points.map(|(index, value)| (index as f32 + 1.0, *value));
        let colour = *colour;
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?.label(*name).legend(
            move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)),
        );
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(ink(12))
        .border_style(TRANSPARENT)
        .background_style(PAPER.mix(0.7))
        .draw()?;
    Ok(())
}

/// The last epoch of any curve, at least the second, so that there is an axis.
fn epochs(history: &[Epoch], curves: &[Curve<'_>]) -> f32 {
    let longest = curves.iter().map(|(_, values, _)| values.len()).max().unwrap_or(0);
    longest.max(history.len()).max(2) as f32
}

/// A strip for each slot: the stage of its seed by epoch.
pub(super) fn stages(facts: &Facts, outcome: &Outcome) -> Result<String, ReportError> {
    const STRIP: i32 = 22;
    const STEP: i32 = 32;
    const LEFT: i32 = 68;
    let count = i32::try_from(facts.slots.len()).unwrap_or(0);
    let height = u32::try_from(count * STEP + 26).unwrap_or(60);
    let width = i32::try_from(WIDTH).unwrap_or(860) - LEFT - 16;
    let last = outcome.history.len().max(1);
    let at = |epoch: usize| LEFT + (width as usize * epoch / last) as i32;
    draw("stage of each seed by epoch", (WIDTH, height), |area| {
        for (slot, name) in facts.slots.iter().enumerate() {
            let top = i32::try_from(slot).unwrap_or(0) * STEP + 2;
            let style = ink(12).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(name.clone(), (LEFT - 8, top + STRIP / 2), style))?;
            for (stage, from, to) in strips(&outcome.history, slot) {
                let corners = [(at(from), top), (at(to), top + STRIP)];
                area.draw(&Rectangle::new(corners, stage_colour(stage).filled()))?;
                if at(to) - at(from) > 8 * stage.name().len() as i32 {
                    let style = ("sans-serif", 12)
                        .into_font()
                        .color(&WHITE)
                        .pos(Pos::new(HPos::Left, VPos::Center));
                    area.draw(&Text::new(stage.name(), (at(from) + 6, top + STRIP / 2), style))?;
                }
            }
        }
        let foot = count * STEP + 14;
        for part in 0..=4 {
            let epoch = last * part / 4;
            let style = ink(12).pos(Pos::new(HPos::Center, VPos::Center));
            area.draw(&Text::new(format!("{epoch}"), (at(epoch), foot), style))?;
        }
        Ok(())
    })
}

/// Runs of one stage in a slot: stage, first epoch, epoch after the last.
fn strips(history: &[Epoch], slot: usize) -> Vec<(Stage, usize, usize)> {
    let mut strips: Vec<(Stage, usize, usize)> = Vec::new();
    for (index, epoch) in history.iter().enumerate() {
        let number = epoch.stages.get(slot).copied().unwrap_or(0);
        let stage = Stage::try_from(number).unwrap_or(Stage::Dormant);
        match strips.last_mut() {
            Some((last, _, end)) if *last == stage => *end = index + 1,
            _ => strips.push((stage, index, index + 1)),
        }
    }
    strips
}

/// The plane of both features, coloured by what the network holds each point for, with the test rows.
pub(super) fn boundary(facts: &Facts, boundary: &Boundary) -> Result<String, ReportError> {
    let [(x0, x1), (y0, y1)] = boundary.range;
    let resolution = boundary.resolution.max(1);
    let step = |range: (f32, f32)| (range.1 - range.0) / resolution as f32;
    let (dx, dy) = (step((x0, x1)), step((y0, y1)));
    draw("decision boundary", (420, 400), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .x_label_area_size(24)
            .y_label_area_size(34)
            .build_cartesian_2d(x0..x1, y0..y1)?;
        for (row, values) in boundary.probability.chunks(resolution).enumerate() {
            let bottom = y0 + dy * row as f32;
            for (level, from, to) in levels(values) {
                let colour = mixed(level / LEVELS);
                let corners = [(x0 + dx * from as f32, bottom), (x0 + dx * to as f32, bottom + dy)];
                chart.draw_series([Rectangle::new(corners, colour.filled())])?;
            }
        }
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(INK.mix(0.6))
            .label_style(ink(11))
            .x_labels(5)
            .y_labels(5)
            .draw()?;
        let last = facts.classes.len().saturating_sub(1).max(1);
        let points = facts.points.iter().map(|(x, y, class)| {
            let colour = CLASSES[usize::from(*class == last)];
            EmptyElement::at((*x, *y))
                + Circle::new((0, 0), 3, WHITE.filled())
                + Circle::new((0, 0), 2, colour.filled())
        });
        chart.draw_series(points)?;
        Ok(())
    })
}

/// Runs of one level of probability along a row: level, first column, column after the last.
fn levels(values: &[f32]) -> Vec<(f32, usize, usize)> {
    let mut runs: Vec<(f32, usize, usize)> = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let level = (value.clamp(0.0, 1.0) * LEVELS).round();
        match runs.last_mut() {
            Some((last, _, end)) if *last == level => *end = index + 1,
            _ => runs.push((level, index, index + 1)),
        }
    }
    runs
}

/// Between the two classes by way of white, and pale, so that the points stand out.
fn mixed(probability: f32) -> RGBColor {
    let certain = (probability - 0.5).abs() * 2.0 * 0.55;
    let RGBColor(r, g, b) = CLASSES[usize::from(probability > 0.5)];
    let part = |channel: u8| (255.0 - (255.0 - f32::from(channel)) * certain) as u8;
    RGBColor(part(r), part(g), part(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_stage_make_one_strip() {
        let epoch = |stage: Stage| Epoch {
            epoch: 0,
            training_loss: 0.0,
            validation_loss: 0.0,
            validation_accuracy: 0.0,
            test_accuracy: 0.0,
            parameters: 0,
            alphas: vec![0.0],
            stages: vec![stage.wire() as i32],
        };
        let history = [
            epoch(Stage::Dormant),
            epoch(Stage::Dormant),
            epoch(Stage::Training),
            epoch(Stage::Dormant),
        ];
        let expected = [(Stage::Dormant, 0, 2), (Stage::Training, 2, 3), (Stage::Dormant, 3, 4)];
        assert_eq!(strips(&history, 0), expected);
    }

    #[test]
    fn a_row_of_one_certainty_is_one_rectangle() {
        assert_eq!(levels(&[0.0, 0.001, 1.0, 1.0]), [(0.0, 0, 2), (24.0, 2, 4)]);
    }
}
