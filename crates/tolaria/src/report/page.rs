//! The page, from top to bottom.

use leyline::Stage;

use super::About;
use super::chart::{Epochs, Range, Series, lines};
use super::html::{escape, grouped, percent, table};
use super::plane::plane;
use super::timeline::timeline;
use crate::progress::{End, Figures, Journey, Outcome};

const STYLE: &str = include_str!("style.css");
/// Colours of the slots' alphas, in turn.
const SLOTS: [&str; 5] = ["grown", "test", "alone", "fixed", "training"];

pub(super) fn page(about: &About<'_>, outcome: &Outcome) -> String {
    let name = escape(&about.prepared.data.name);
    let sections = [
        head(about, outcome),
        cards(outcome),
        comparison(outcome),
        plots(about, outcome),
        planes(about, outcome),
        journeys(outcome),
        metadata(about, outcome),
    ];
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{name}: a network that grew</title><style>{STYLE}</style></head>\
         <body><main>{}</main></body></html>\n",
        sections.concat()
    )
}

fn head(about: &About<'_>, outcome: &Outcome) -> String {
    let kept = outcome.journeys.iter().filter(|journey| journey.is_kept()).count();
    let tried = outcome.journeys.len();
    let grafts = match (tried, kept) {
        (0, _) => "No graft was tried".to_owned(),
        (1, 1) => "One graft was tried and kept".to_owned(),
        (1, _) => "One graft was tried and not kept".to_owned(),
        (_, 0) => format!("{tried} grafts were tried, none was kept"),
        (_, 1) => format!("{tried} grafts were tried, one was kept"),
        _ => format!("{tried} grafts were tried, {kept} were kept"),
    };
    let how = match outcome.end {
        End::Settled => "The run ended when there was nothing left to gain or to try.",
        End::EpochsUsed => "The run ended with its last epoch.",
        End::Stopped => "The run was stopped before its end.",
    };
    let mut html = format!(
        "<h1>{}: from {} to {}</h1><p>{grafts} while the host was training, from {} to {} parameters in {} epochs and {:.1} s. {how}</p>",
        escape(&about.prepared.data.name),
        percent(outcome.before.accuracy),
        percent(outcome.grown.accuracy),
        grouped(outcome.before.parameters),
        grouped(outcome.grown.parameters),
        outcome.grown.epochs,
        outcome.grown.seconds,
    );
    let late: Vec<&Journey> =
        outcome.journeys.iter().filter(|journey| journey.late_epochs > 0).collect();
    if !late.is_empty() {
        html.push_str(&format!(
            "<p class=\"note\">{} came later than the schedule allows for, so this very curve need not come again.</p>",
            if late.len() == 1 { "A kernel".to_owned() } else { format!("{} kernels", late.len()) }
        ));
    }
    html
}

fn cards(outcome: &Outcome) -> String {
    let card = |name: &str, colour: &str, figures: &Figures| {
        format!(
            "<div class=\"card\" style=\"--mark:var(--{colour})\"><span class=\"soft\">{name}</span><b>{}</b><span class=\"soft\">{} parameters</span></div>",
            percent(figures.accuracy),
            grouped(figures.parameters)
        )
    };
    let mut html = String::from("<div class=\"cards\">");
    html.push_str(&card("Before growth", "train", &outcome.before));
    html.push_str(&card("Grown", "grown", &outcome.grown));
    if let Some(figures) = &outcome.host_alone {
        html.push_str(&card("Host alone, as long", "alone", figures));
    }
    if let Some(figures) = &outcome.fixed {
        html.push_str(&card("Fixed network, grown size", "fixed", figures));
    }
    html.push_str("</div>");
    html
}

fn comparison(outcome: &Outcome) -> String {
    let row = |name: &str, figures: &Figures| {
        vec![
            name.to_owned(),
            percent(figures.accuracy),
            format!("{:.4}", figures.loss),
            grouped(figures.parameters),
            figures.epochs.to_string(),
            format!("{:.1}", figures.seconds),
        ]
    };
    let mut rows =
        vec![row("Host when growth began", &outcome.before), row("Grown network", &outcome.grown)];
    rows.extend(
        outcome.host_alone.as_ref().map(|figures| row("Host alone, trained as long", figures)),
    );
    rows.extend(
        outcome
            .fixed
            .as_ref()
            .map(|figures| row("Fixed network of the grown size, trained as long", figures)),
    );
    let head = ["Network", "Test accuracy", "Test loss", "Parameters", "Epochs", "Seconds"];
    format!(
        "<h2>Comparison</h2>{}<p class=\"soft\">Test rows were never looked at by any decision. The grown network's time includes the pauses that let a person watch; the others had none.</p>",
        table(&head, &[1, 2, 3, 4, 5], &rows)
    )
}

fn plots(about: &About<'_>, outcome: &Outcome) -> String {
    let history = &outcome.history;
    if history.is_empty() {
        return String::new();
    }
    let epochs = Epochs(history.last().map_or(1, |last| last.epoch));
    let series =
        |name: &str, colour, values: Vec<f32>| Series { name: name.to_owned(), colour, values };
    let marks: Vec<u32> = outcome
        .journeys
        .iter()
        .flat_map(|journey| &journey.milestones)
        .filter(|milestone| {
            matches!(milestone.stage, Stage::Blending | Stage::Fossilized | Stage::Culled)
        })
        .map(|milestone| milestone.epoch)
        .collect();
    let mut accuracy = vec![series(
        "grown, test",
        "grown",
        history.iter().map(|epoch| epoch.test_accuracy).collect(),
    )];
    if !outcome.host_alone_accuracy.is_empty() {
        accuracy.push(series("host alone, test", "alone", outcome.host_alone_accuracy.clone()));
    }
    if !outcome.fixed_accuracy.is_empty() {
        accuracy.push(series("fixed, test", "fixed", outcome.fixed_accuracy.clone()));
    }
    let loss = [
        series("training", "train", history.iter().map(|epoch| epoch.training_loss).collect()),
        series("validation", "test", history.iter().map(|epoch| epoch.validation_loss).collect()),
    ];
    let slots = about.prepared.config.seed_ids();
    let alphas: Vec<Series> = slots
        .iter()
        .enumerate()
        .map(|(slot, seed)| Series {
            name: seed.to_string(),
            colour: SLOTS[slot % SLOTS.len()],
            values: history
                .iter()
                .map(|epoch| epoch.alphas.get(slot).copied().unwrap_or(f32::NAN))
                .collect(),
        })
        .collect();
    let mut html = String::from("<h2>Over the epochs</h2>");
    html.push_str(&lines(
        "Accuracy by epoch; dotted: a seed blends in, is kept or is removed",
        epochs,
        Range::Share,
        &accuracy,
        &marks,
    ));
    html.push_str(&lines("Loss by epoch, in nats", epochs, Range::FromZero, &loss, &marks));
    html.push_str(&lines(
        "Alpha by epoch: how much of each slot's seed the host sees",
        epochs,
        Range::Share,
        &alphas,
        &[],
    ));
    if !outcome.journeys.is_empty() {
        html.push_str(&timeline(&outcome.journeys, epochs));
    }
    html
}

fn planes(about: &About<'_>, outcome: &Outcome) -> String {
    let (Some(before), Some(after)) = (&outcome.boundary_before, &outcome.boundary_after) else {
        return String::new();
    };
    let data = &about.prepared.data;
    format!(
        "<h2>Decision boundary</h2><div class=\"pair\">{}{}</div>",
        plane(before, data, "When growth began"),
        plane(after, data, "At the end")
    )
}

fn journeys(outcome: &Outcome) -> String {
    if outcome.journeys.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = outcome.journeys.iter().map(journey).collect();
    let head =
        ["Slot", "Blueprint", "Parameters", "Kernel in hand", "Journey", "Validation loss", "End"];
    format!(
        "<h2>Every seed's journey</h2>{}<p class=\"soft\">A number behind a stage is the epoch in which it began. \"Kernel in hand\" is the time from order to verified kernel over the bus; training went on meanwhile.</p>",
        table(&head, &[2, 3], &rows)
    )
}

fn journey(journey: &Journey) -> Vec<String> {
    let milestones: Vec<String> = journey
        .milestones
        .iter()
        .map(|milestone| {
            format!(
                "{} {}&nbsp;<span class=\"soft\">({:.2}&nbsp;s)</span>",
                milestone.stage.name(),
                milestone.epoch,
                milestone.at_ms / 1e3
            )
        })
        .collect();
    let end = match (&journey.reason, journey.is_kept()) {
        (_, true) => "kept".to_owned(),
        (Some(reason), _) => format!("removed: {}", escape(reason)),
        (None, false) => "unfinished".to_owned(),
    };
    let late = match journey.late_epochs {
        0 => String::new(),
        epochs => format!("<br>{epochs} epochs late"),
    };
    vec![
        escape(journey.seed.as_str()),
        blueprint(journey),
        grouped(journey.parameters),
        journey.fetch_ms.map_or_else(|| "none".to_owned(), |ms| format!("{ms:.1}&nbsp;ms{late}")),
        milestones.join(" &rarr; "),
        journey
            .losses
            .map_or_else(String::new, |(before, after)| format!("{before:.4} &rarr; {after:.4}")),
        end,
    ]
}

fn blueprint(journey: &Journey) -> String {
    let name = karn::find(&journey.blueprint).map_or("", karn::Blueprint::name);
    format!(
        "{}<br><span class=\"soft\">{}</span>",
        escape(journey.blueprint.as_str()),
        escape(name)
    )
}

fn metadata(about: &About<'_>, outcome: &Outcome) -> String {
    let config = &about.prepared.config;
    let split = &about.prepared.split;
    let entries = [
        ("Run", config.run.to_string()),
        ("Seed", config.seed.to_string()),
        (
            "Rows",
            format!(
                "{} training, {} validation, {} test",
                split.train.rows(),
                split.validation.rows(),
                split.test.rows()
            ),
        ),
        (
            "Features and classes",
            format!("{} and {}", about.prepared.data.width(), about.prepared.data.classes.len()),
        ),
        (
            "Host",
            format!(
                "{} features, {} wide without activation, {} slots in series",
                about.prepared.shape.features, config.width, config.slots
            ),
        ),
        (
            "Optimiser",
            format!(
                "Adam, rate {}, {} rows per step, {} steps per epoch",
                config.rate, about.prepared.batch, about.prepared.epoch_steps
            ),
        ),
        ("Step, median", format!("{:.0} µs", outcome.step_us)),
        ("Epoch hook, median", format!("{:.0} µs (state, decision, command)", outcome.hook_us)),
        ("Host brought back", format!("{} times", outcome.rollbacks)),
        (
            "Rules on measured times",
            format!("spoke {} times; they only report", outcome.timing_findings),
        ),
        ("Messages dropped", outcome.dropped_messages.to_string()),
        (
            "Repeatable",
            if outcome.is_repeatable() {
                "yes: the same seed gives this curve again".to_owned()
            } else {
                "no".to_owned()
            },
        ),
        ("Program", about.version.to_owned()),
        ("Ended", utc(about.ended_unix_ms)),
    ];
    let list: String = entries
        .iter()
        .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value)))
        .collect();
    format!(
        "<h2>The run</h2><div class=\"panel\"><dl>{list}</dl></div><h2>Again</h2><pre>{}</pre>",
        escape(about.command)
    )
}

/// Date and time in UTC, by the civil-from-days rule of the proleptic Gregorian calendar.
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(seconds * 1000), text);
        }
    }
}
