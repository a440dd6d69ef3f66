//! The page around the plots. Every text from outside is escaped; nothing is loaded from anywhere.

use std::fmt::Write as _;

use leyline::Stage;

use super::{Facts, ReportError, plots};
use crate::progress::{End, Figures, Journey, Outcome};

const STYLE: &str = include_str!("style.css");

pub(super) fn page(facts: &Facts, outcome: &Outcome) -> Result<String, ReportError> {
    let mut html = String::with_capacity(256 * 1024);
    let title = escape(&facts.title);
    html.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    put(
        &mut html,
        format_args!("<title>{title}: report</title><style>{STYLE}</style></head><body>"),
    );
    head(&mut html, facts, outcome);
    section(&mut html, "What was reached", &networks(outcome));
    section(&mut html, "Test accuracy", &plots::accuracy(outcome)?);
    section(&mut html, "Loss", &plots::loss(outcome)?);
    let alphas = plots::alpha(facts, outcome)?;
    let stages = plots::stages(facts, outcome)?;
    section(&mut html, "Stage of each seed", &(stages + &legend()));
    section(&mut html, "Alpha: how much of each seed the host sees", &alphas);
    if let (Some(before), Some(after)) = (&outcome.boundary_before, &outcome.boundary_after) {
        let pair = format!(
            "<div class=\"pair\"><figure>{}<figcaption>before growth</figcaption></figure>\
             <figure>{}<figcaption>after</figcaption></figure></div>\
             <p class=\"note\">Colour: the class the network holds each point for; points: test rows.</p>",
            plots::boundary(facts, before)?,
            plots::boundary(facts, after)?,
        );
        section(&mut html, "Decision boundary", &pair);
    }
    section(&mut html, "Every seed's journey", &journeys(outcome));
    section(&mut html, "How to do it again", &again(facts, outcome));
    html.push_str("</body></html>\n");
    Ok(html)
}

fn put(html: &mut String, arguments: std::fmt::Arguments<'_>) {
    html.write_fmt(arguments).expect("writing to a string cannot fail");
}

fn section(html: &mut String, title: &str, body: &str) {
    put(html, format_args!("<section><h2>{title}</h2>{body}</section>"));
}

fn head(html: &mut String, facts: &Facts, outcome: &Outcome) {
    let kept = outcome.journeys.iter().filter(|journey| journey.is_kept()).count();
    let [train, validation, test] = facts.rows;
    put(
        html,
        format_args!(
            "<header><h1>{}</h1><p class=\"headline\"><span>{}</span> &#8594; <strong>{}</strong></p>\
             <p>test accuracy when growth began, and at the end; {} to {} parameters, {kept} of {} seeds kept. {}</p>\
             <p class=\"note\">run {}, seed {}, version {}; {train} rows to train, {validation} to decide, {test} to judge; \
             {} features, {} classes</p></header>",
            escape(&facts.title),
            percent(outcome.before.accuracy),
            percent(outcome.grown.accuracy),
            outcome.before.parameters,
            outcome.grown.parameters,
            outcome.journeys.len(),
            ended(outcome.end),
            escape(&facts.run),
            facts.seed,
            escape(&facts.version),
            facts.features.len(),
            facts.classes.len(),
        ),
    );
}

fn ended(end: End) -> &'static str {
    match end {
        End::Settled => "It ended because there was nothing left to gain.",
        End::EpochsUsed => "It ended because all its epochs were used.",
        End::Stopped => "It was stopped before its end.",
    }
}

fn networks(outcome: &Outcome) -> String {
    let mut rows = String::new();
    let mut row = |name: &str, figures: &Figures| {
        put(
            &mut rows,
            format_args!(
                "<tr><th scope=\"row\">{name}</th><td>{}</td><td>{:.4}</td><td>{}</td><td>{}</td><td>{:.1}</td></tr>",
                percent(figures.accuracy),
                figures.loss,
                figures.parameters,
                figures.epochs,
                figures.seconds
            ),
        );
    };
    row("host when growth began", &outcome.before);
    row("<strong>grown network</strong>", &outcome.grown);
    if let Some(alone) = &outcome.host_alone {
        row("the same host without growth", alone);
    }
    if let Some(fixed) = &outcome.fixed {
        row("a fixed network of the grown size", fixed);
    }
    let mut table = format!(
        "<div class=\"scroll\"><table><thead><tr><th>network</th><th>test accuracy</th><th>test loss</th>\
         <th>parameters</th><th>epochs</th><th>seconds</th></tr></thead><tbody>{rows}</tbody></table></div>"
    );
    if outcome.host_alone.is_none() {
        table.push_str("<p class=\"note\">The comparison runs were left out.</p>");
    }
    table
}

/// Every stage with its colour and name: colour alone says nothing to some readers.
fn legend() -> String {
    let mut items = String::from("<ul class=\"legend\">");
    for stage in Stage::ALL {
        let plotters::style::RGBColor(r, g, b) = plots::stage_colour(stage);
        put(
            &mut items,
            format_args!("<li><i style=\"background:rgb({r},{g},{b})\"></i>{}</li>", stage.name()),
        );
    }
    items.push_str("</ul>");
    items
}

fn journeys(outcome: &Outcome) -> String {
    if outcome.journeys.is_empty() {
        return "<p>No seed was germinated.</p>".to_owned();
    }
    let rows: String = outcome.journeys.iter().map(journey).collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr><th>seed</th><th>blueprint</th><th>end</th><th>parameters</th>\
         <th>kernel after</th><th>validation loss</th><th>stages: epoch (seconds)</th></tr></thead>\
         <tbody>{rows}</tbody></table></div>"
    )
}

fn journey(journey: &Journey) -> String {
    let stages: Vec<String> = journey
        .milestones
        .iter()
        .map(|step| format!("{} {} ({:.2})", step.stage.name(), step.epoch, step.at_ms / 1000.0))
        .collect();
    let end = match &journey.reason {
        Some(reason) => format!("{}: {}", journey.stage().name(), escape(reason)),
        None => journey.stage().name().to_owned(),
    };
    let fetch = match (journey.fetch_ms, journey.late_epochs) {
        (None, _) => "never came".to_owned(),
        (Some(ms), 0) => format!("{ms:.1} ms"),
        (Some(ms), late) => format!("{ms:.1} ms, {late} epochs late"),
    };
    let losses = match journey.losses {
        Some((before, after)) => format!("{before:.4} &#8594; {after:.4}"),
        None => "not measured".to_owned(),
    };
    format!(
        "<tr><th scope=\"row\">{}</th><td>{}</td><td>{end}</td><td>{}</td><td>{fetch}</td><td>{losses}</td>\
         <td class=\"stages\">{}</td></tr>",
        escape(journey.seed.as_str()),
        escape(journey.blueprint.as_str()),
        journey.parameters,
        stages.join(" &#8594; ")
    )
}

fn again(facts: &Facts, outcome: &Outcome) -> String {
    let promise = if outcome.is_repeatable() {
        "The same command gives the same curve to the last bit on this build."
    } else {
        "A kernel came later than its place in the schedule, or the run was stopped: the same command may give another curve."
    };
    let mut settings = String::new();
    for (name, value) in &facts.settings {
        put(
            &mut settings,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
                escape(name),
                escape(value)
            ),
        );
    }
    format!(
        "<pre>{}</pre><p>{promise}</p><p class=\"note\">Optimiser step {:.1} &#181;s, epoch hook (state, decision, command) \
         {:.1} &#181;s, medians of this run. Host restored after a cull: {}. Messages that found the outbox full: {}.</p>\
         <details><summary>Settings</summary><table>{settings}</table></details>",
        escape(&facts.command),
        outcome.step_us,
        outcome.hook_us,
        outcome.rollbacks,
        outcome.dropped_messages
    )
}

fn percent(part: f32) -> String {
    format!("{:.1} %", part * 100.0)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use leyline::ids::{BlueprintId, SeedId};

    use super::*;
    use crate::progress::{Boundary, Epoch, Milestone};

    fn figures(accuracy: f32) -> Figures {
        Figures { accuracy, loss: 0.5, parameters: 162, epochs: 3, seconds: 1.5 }
    }

    fn outcome() -> Outcome {
        let epoch = |epoch: u32| Epoch {
            epoch,
            training_loss: 0.7,
            validation_loss: 0.6,
            validation_accuracy: 0.5,
            test_accuracy: 0.55,
            parameters: 162,
            alphas: vec![0.0],
            stages: vec![1],
        };
        let boundary = Boundary {
            resolution: 4,
            range: [(-1.0, 1.0), (-1.0, 1.0)],
            probability: vec![0.3; 16],
        };
        Outcome {
            end: End::Settled,
            before: figures(0.57),
            grown: figures(0.993),
            host_alone: Some(figures(0.58)),
            fixed: None,
            journeys: vec![Journey {
                seed: SeedId::from("slot-a"),
                blueprint: BlueprintId::from("BP<9>"),
                milestones: vec![Milestone {
                    stage: Stage::Fossilized,
                    epoch: 2,
                    step: 20,
                    at_ms: 1234.0,
                }],
                fetch_ms: Some(3.2),
                late_epochs: 0,
                losses: Some((0.6, 0.1)),
                parameters: 99,
                reason: None,
            }],
            history: (1..=3).map(epoch).collect(),
            host_alone_accuracy: vec![0.5, 0.55, 0.56],
            fixed_accuracy: Vec::new(),
            boundary_before: Some(boundary.clone()),
            boundary_after: Some(boundary),
            rollbacks: 0,
            timing_findings: 0,
            dropped_messages: 0,
            step_us: 40.0,
            hook_us: 80.0,
        }
    }

    fn facts() -> Facts {
        Facts {
            title: "<script>alert(1)</script>".to_owned(),
            command: "weatherlight demo --seed 1 && echo \"x\"".to_owned(),
            slots: vec!["slot-a".to_owned()],
            classes: vec!["a".to_owned(), "b".to_owned()],
            points: vec![(0.1, 0.2, 0), (0.3, -0.2, 1)],
            ..Facts::default()
        }
    }

    #[test]
    fn what_was_reached_stands_on_the_page() {
        let html = page(&facts(), &outcome()).unwrap();
        for text in ["57.0 %", "99.3 %", "slot-a", "fossilized 2 (1.23)", "3.2 ms", "before growth"]
        {
            assert!(html.contains(text), "{text} is missing");
        }
        assert_eq!(html.matches("<svg").count(), 6);
    }

    #[test]
    fn text_from_outside_is_escaped_and_nothing_is_loaded() {
        let html = page(&facts(), &outcome()).unwrap();
        assert!(!html.contains("<script"));
        assert!(html.contains("BP&lt;9&gt;"));
        for word in ["src=", "href=", "@import", "url("] {
            assert!(!html.contains(word), "{word} would load something");
        }
    }

    #[test]
    fn a_run_without_epochs_still_has_a_report() {
        let mut empty = outcome();
        empty.history.clear();
        empty.journeys.clear();
        empty.host_alone_accuracy.clear();
        assert!(page(&facts(), &empty).unwrap().contains("No seed was germinated"));
    }
}
