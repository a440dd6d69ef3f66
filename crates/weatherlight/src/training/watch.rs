//! What a person sees of a run: one live line on a terminal, and a line per event everywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use leyline::Stage;
use leyline::ids::SeedId;
use tokio::sync::watch;
use tolaria::{Phase, Progress, SeedView};

/// Without a terminal a line is printed this often.
const LINE_EVERY_EPOCHS: u32 = 25;
/// The live line is drawn at most this often.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Shows a run until it is over.
pub async fn follow(mut progress: watch::Receiver<Progress>, screen: &MultiProgress) {
    let mut watcher = Watcher::new(screen);
    loop {
        let now = progress.borrow_and_update().clone();
        watcher.show(&now);
        if now.phase == Phase::Finished || progress.changed().await.is_err() {
            break;
        }
        tokio::time::sleep(DRAW_EVERY).await;
    }
    watcher.bar.finish_and_clear();
}

struct Watcher<'a> {
    screen: &'a MultiProgress,
    bar: ProgressBar,
    is_live: bool,
    stages: BTreeMap<SeedId, Stage>,
    printed_epoch: u32,
    phase: Phase,
}

impl<'a> Watcher<'a> {
    fn new(screen: &'a MultiProgress) -> Self {
        let bar = screen.add(ProgressBar::new(0));
        let style = ProgressStyle::with_template("{bar:20.green/dim} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            screen,
            bar,
            is_live: Term::stderr().is_term(),
            stages: BTreeMap::new(),
            printed_epoch: 0,
            phase: Phase::Starting,
        }
    }

    fn show(&mut self, now: &Progress) {
        self.announce_stages(now);
        self.announce_phase(now);
        if self.is_live {
            self.bar.set_length(u64::from(now.epochs_max));
            self.bar.set_position(u64::from(now.epoch));
            self.bar.set_message(line(now));
        } else if now.epoch >= self.printed_epoch + LINE_EVERY_EPOCHS {
            self.printed_epoch = now.epoch;
            self.print(&line(now));
        }
    }

    /// A permanent line for every stage a seed enters.
    fn announce_stages(&mut self, now: &Progress) {
        for view in &now.seeds {
            let before = self.stages.insert(view.seed.clone(), view.stage);
            if before.is_some_and(|before| before != view.stage) {
                let blueprint = view.blueprint.as_ref().map_or("", |id| id.as_str());
                let text = format!(
                    "  epoch {:>4}  {}  {blueprint:<6} {}",
                    now.epoch,
                    view.seed,
                    word(view.stage)
                );
                self.print(&text);
            }
        }
    }

    fn announce_phase(&mut self, now: &Progress) {
        if now.phase != self.phase {
            self.phase = now.phase;
            if now.phase == Phase::Comparing {
                self.print("  training what growth is compared with");
            }
        }
    }

    fn print(&self, text: &str) {
        self.screen.suspend(|| eprintln!("{text}"));
    }
}

fn line(now: &Progress) -> String {
    let mut text = format!(
        "epoch {}/{}  loss {:.4}  accuracy {:.1} %  {} parameters",
        now.epoch,
        now.epochs_max,
        now.loss,
        now.accuracy * 100.0,
        now.parameters
    );
    for view in now.seeds.iter().filter(|view| view.stage != Stage::Dormant) {
        text.push_str(&seed(view));
    }
    match now.kernels_in_flight {
        0 => {}
        1 => text.push_str("  1 kernel in flight"),
        many => text.push_str(&format!("  {many} kernels in flight")),
    }
    text
}

fn seed(view: &SeedView) -> String {
    let alpha = if view.stage == Stage::Blending {
        format!(" {:.0} %", view.alpha * 100.0)
    } else {
        String::new()
    };
    format!("  {} {}{alpha}", view.seed, word(view.stage))
}

/// A stage in one word.
pub(super) fn word(stage: Stage) -> String {
    format!("{stage:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_the_seeds_that_live() {
        let view = |seed: &str, stage| SeedView {
            seed: SeedId::from(seed),
            stage,
            alpha: 0.25,
            blueprint: None,
            paused: false,
        };
        let now = Progress {
            epoch: 7,
            epochs_max: 40,
            loss: 0.5,
            accuracy: 0.875,
            parameters: 162,
            seeds: vec![view("slot-a", Stage::Blending), view("slot-b", Stage::Dormant)],
            kernels_in_flight: 1,
            ..Progress::default()
        };
        let expected = "epoch 7/40  loss 0.5000  accuracy 87.5 %  162 parameters  slot-a blending 25 %  1 kernel in flight";
        assert_eq!(line(&now), expected);
    }
}
