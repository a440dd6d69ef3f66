//! What a person asks for on the command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use leyline::ids::RunId;
use tolaria::data::Source;
use tolaria::data::toy::{Moons, Spirals};
use tolaria::{Comparison, Config};

/// A task that needs no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// Two interleaved spirals.
    Spirals,
    /// Two interleaved half circles.
    Moons,
    /// Exclusive or.
    Xor,
}

impl Task {
    fn word(self) -> &'static str {
        match self {
            Self::Spirals => "spirals",
            Self::Moons => "moons",
            Self::Xor => "xor",
        }
    }
}

/// Options of a training run.
#[derive(Debug, Clone, Args)]
pub struct Ask {
    /// What is learnt
    #[arg(long, value_enum, default_value = "spirals", conflicts_with = "data")]
    pub task: Task,
    /// Learn from a file: CSV, .npz, or IDX (MNIST's format); each may be gzipped
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Label column of a CSV (name or number), label array of an .npz, or label file of an IDX
    #[arg(long, value_name = "COLUMN", requires = "data")]
    pub label: Option<String>,
    /// Decides everything random: the same seed gives the same curve
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Epochs after which the run ends in any case
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub epochs: Option<u32>,
    /// Where the report is written
    #[arg(long, default_value = "report.html", value_name = "FILE")]
    pub report: PathBuf,
    /// Do not train the two networks that growth is compared with
    #[arg(long)]
    pub no_compare: bool,
}

impl Ask {
    /// The settings of the run.
    pub fn config(&self, run: RunId) -> Config {
        let source = match (&self.data, self.task) {
            (Some(path), _) => Source::File { path: path.clone(), label: self.label.clone() },
            (None, Task::Spirals) => Source::Spirals(Spirals::default()),
            (None, Task::Moons) => Source::Moons(Moons::default()),
            (None, Task::Xor) => Source::Xor,
        };
        let mut config = Config::new(run, source, self.seed);
        if let Some(epochs) = self.epochs {
            config.epochs_max = epochs;
        }
        if self.no_compare {
            config.comparison = Comparison::Skip;
        }
        config
    }

    /// The command that does it again.
    pub fn command(&self, name: &str) -> String {
        let mut command = format!("weatherlight {name}");
        match &self.data {
            Some(path) => {
                command.push_str(&format!(" --data {}", path.display()));
                if let Some(label) = &self.label {
                    command.push_str(&format!(" --label {label}"));
                }
            }
            None => command.push_str(&format!(" --task {}", self.task.word())),
        }
        command.push_str(&format!(" --seed {}", self.seed));
        if let Some(epochs) = self.epochs {
            command.push_str(&format!(" --epochs {epochs}"));
        }
        command
    }
}
