//! The stages of every graft over the epochs, one bar each.

use leyline::Stage;

use super::chart::{Epochs, epoch_axis, frame};
use super::html::{escape, legend};
use crate::progress::Journey;

const ROW: f64 = 30.0;
const TOP: f64 = 6.0;
const AXIS: f64 = 30.0;

/// The bars, with a legend of stages.
pub(super) fn timeline(journeys: &[Journey], epochs: Epochs) -> String {
    let title = "Stages of each graft, from command to end";
    let height = TOP + ROW * journeys.len() as f64 + AXIS;
    let mut svg = frame(title, height);
    for (row, journey) in journeys.iter().enumerate() {
        svg.push_str(&bar(journey, TOP + ROW * row as f64, epochs));
    }
    svg.push_str(&epoch_axis(epochs, height - AXIS));
    svg.push_str("</svg>");
    let stages = [
        Stage::Germinated,
        Stage::Training,
        Stage::Blending,
        Stage::Shadowing,
        Stage::Probationary,
        Stage::Fossilized,
        Stage::Culled,
    ];
    let names = stages.map(|stage| (stage.name().to_owned(), stage.name()));
    format!(
        "<figure class=\"panel\">{}{svg}<figcaption>{title}</figcaption></figure>",
        legend(&names)
    )
}

fn bar(journey: &Journey, top: f64, epochs: Epochs) -> String {
    let mut svg = String::new();
    let last = f64::from(epochs.0);
    for (index, milestone) in journey.milestones.iter().enumerate() {
        let from = epochs.x(f64::from(milestone.epoch));
        let ends = journey.milestones.get(index + 1).map(|next| f64::from(next.epoch));
        let to = match milestone.stage {
            Stage::Culled => from + 6.0,
            _ => epochs.x(ends.unwrap_or(last)),
        };
        // A stage shorter than an epoch stays visible.
        let width = (to - from).max(3.0);
        svg.push_str(&format!(
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"16\" rx=\"2\" style=\"fill:var(--{})\"><title>{}, {} from epoch {}</title></rect>",
            top + 11.0,
            milestone.stage.name(),
            escape(journey.seed.as_str()),
            milestone.stage.name(),
            milestone.epoch
        ));
    }
    let label = format!("{} {}", journey.seed, journey.blueprint);
    let x = journey.milestones.first().map_or(0.0, |first| epochs.x(f64::from(first.epoch)));
    let (x, anchor) = if x > 480.0 { (x - 6.0, "end") } else { (x, "start") };
    let y = if anchor == "end" { top + 23.0 } else { top + 8.0 };
    svg.push_str(&format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(&label)
    ));
    svg
}
