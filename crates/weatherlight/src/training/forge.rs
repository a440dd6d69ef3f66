//! Waiting for the forge, with a progress bar.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tezzeret::Progress;
use tokio::sync::watch;

/// The catalogue takes seconds; whatever takes longer is a fault that the training goes on without.
const WAIT_MAX: Duration = Duration::from_secs(180);

/// Waits until every blueprint of the catalogue is compiled or given up, and says how that went in
/// one line. Training can begin without: what is missing is compiled when it is asked for.
pub async fn wait_for_kernels(
    mut progress: watch::Receiver<Progress>,
    screen: &MultiProgress,
) -> String {
    let begun = Instant::now();
    let bar = screen.add(ProgressBar::new(0));
    let style = ProgressStyle::with_template("{prefix} {bar:30.cyan/dim} {pos}/{len} {msg:.dim}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix("compiling the catalogue");
    let watched = async {
        loop {
            let now = progress.borrow_and_update().clone();
            show(&bar, &now);
            if now.finished && now.total > 0 {
                break;
            }
            if progress.changed().await.is_err() {
                break;
            }
        }
    };
    let in_time = tokio::time::timeout(WAIT_MAX, watched).await.is_ok();
    bar.finish_and_clear();
    screen.remove(&bar);
    let now = progress.borrow().clone();
    let mut line = format!(
        "{} kernels ready ({} were compiled before) in {:.1} s",
        now.done,
        now.found,
        begun.elapsed().as_secs_f64()
    );
    for (blueprint, reason) in &now.failures {
        line.push_str(&format!("\n  {blueprint} was given up: {reason}"));
    }
    if !in_time {
        line.push_str("\n  the forge is still at work; training begins without the rest");
    }
    line
}

fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.total as u64);
    bar.set_position((progress.done + progress.failed) as u64);
    let current: Vec<&str> = progress.current.iter().map(|id| id.as_str()).collect();
    bar.set_message(current.join(" "));
}
