//! `weatherlight kernels verify`: hashing what the library holds, and having built again what is not sound.

use std::path::PathBuf;

use karn::Site;
use serde_json::{Value, json};
use tezzeret::{Job, QueueError};
use urza::{FetchError, Filter, Library, Record, Remedy, StateFilter};

use super::super::failure::Failure;
use super::super::table;
use super::{list, open, show};
use crate::blueprints::Blueprints;
use crate::settings::EsperSettings;
use crate::supervisor::chain;
use crate::wiring;

/// Exit code when a kernel is not what its record says.
const UNSOUND: u8 = 1;

pub(super) async fn run(
    settings: &EsperSettings,
    names: &[String],
    repair: bool,
    as_json: bool,
) -> Result<u8, Failure> {
    let repair = if repair { Some(Repair::new(settings)?) } else { None };
    let library = open(settings).await?;
    let records = if names.is_empty() {
        let active = Filter { state: Some(StateFilter::Active), ..Filter::default() };
        list::select(&library, &active).await?
    } else {
        let mut records = Vec::new();
        for name in names {
            records.push(show::named(&library, name).await?);
        }
        records
    };
    let mut found = Findings { as_json, ..Findings::default() };
    for record in &records {
        match library.scrub(record).await {
            Ok(_) => found.sound(record),
            Err(fault) => {
                let outcome = match &repair {
                    _ if fault.remedy() == Remedy::Retry => Outcome::Unreadable,
                    None => Outcome::Unsound,
                    Some(repair) => repair.repair(&library, record, &fault).await?,
                };
                found.unsound(record, &fault, outcome);
            }
        }
    }
    library.close().await;
    found.end(repair.as_ref())
}

/// Where rebuilds are ordered.
struct Repair {
    queue: PathBuf,
    config: tezzeret::Config,
}

/// What was done about a kernel that is not sound.
enum Outcome {
    /// It cannot be read now.
    Unreadable,
    /// Nothing.
    Unsound,
    /// It was quarantined, and its rebuild stands in the forge's queue.
    Ordered,
    /// It was quarantined, and nobody builds such a kernel any more.
    NotBuilt(String),
    /// It was quarantined, and the queue did not take the order.
    NotOrdered(QueueError),
}

impl Repair {
    fn new(settings: &EsperSettings) -> Result<Self, Failure> {
        let blueprints = Blueprints::load(settings)
            .map_err(|faults| Failure::configuration(faults.to_string()))?;
        let config = blueprints.forge(wiring::forge_config(settings));
        Ok(Self { queue: wiring::queue_dir(settings), config })
    }

    /// Takes a kernel out of offer and orders another, before the next one is looked at: what a broken-off command has
    /// quarantined is ordered.
    async fn repair(
        &self,
        library: &Library,
        record: &Record,
        fault: &FetchError,
    ) -> Result<Outcome, Failure> {
        let marked = library.quarantine(record, fault).await;
        marked.map_err(|error| Failure::unavailable_because(&error))?;
        let job = match self.job(record) {
            Ok(job) => job,
            Err(why) => return Ok(Outcome::NotBuilt(why)),
        };
        Ok(match tezzeret::detach(&self.queue, [&job], &self.config) {
            Ok(()) => Outcome::Ordered,
            Err(error) => Outcome::NotOrdered(error),
        })
    }

    /// The job that makes the kernel of a record, as this engine does it.
    fn job(&self, record: &Record) -> Result<Job, String> {
        let key = &record.job;
        let blueprint = self.config.catalogue.find(&key.blueprint);
        let blueprint = blueprint
            .filter(|blueprint| blueprint.graftable())
            .ok_or_else(|| format!("there is no blueprint {} to be served", key.blueprint))?;
        let site: Site = key.site.parse().map_err(|fault| chain(&fault))?;
        let parameters = key.parameters.iter().map(|(name, value)| (name.as_str(), *value));
        Job::with(blueprint, parameters.collect(), site, &self.config)
            .map_err(|fault| chain(&fault))
    }
}

/// What was found so far, printed line by line, or as one array at the end.
#[derive(Default)]
struct Findings {
    as_json: bool,
    told: Vec<Value>,
    sound: usize,
    unsound: usize,
    ordered: usize,
    not_ordered: Option<QueueError>,
}

impl Findings {
    fn sound(&mut self, record: &Record) {
        self.sound += 1;
        self.told.push(about(record, "sound"));
    }

    fn unsound(&mut self, record: &Record, fault: &FetchError, outcome: Outcome) {
        self.unsound += 1;
        let name = match outcome {
            Outcome::Unreadable => "unreadable",
            Outcome::Unsound => "unsound",
            Outcome::Ordered | Outcome::NotBuilt(_) | Outcome::NotOrdered(_) => "quarantined",
        };
        let fault = chain(fault);
        let mut told = about(record, name);
        told["fault"] = fault.clone().into();
        let (id, digest) = (record.job.blueprint.as_str(), &record.digest.to_hex()[..12]);
        self.say(&format!("{id} {digest}: {name}: {fault}"));
        match outcome {
            Outcome::Unreadable | Outcome::Unsound => {}
            Outcome::Ordered => {
                self.ordered += 1;
                told["rebuild"] = "ordered".into();
                self.say(&format!("{id} {digest}: rebuild ordered"));
            }
            Outcome::NotBuilt(why) => {
                told["rebuild"] = "not_built".into();
                told["rebuild_fault"] = why.clone().into();
                self.say(&format!("{id} {digest}: NOT built again: {why}"));
            }
            Outcome::NotOrdered(error) => {
                told["rebuild"] = "not_ordered".into();
                told["rebuild_fault"] = chain(&error).into();
                self.say(&format!("{id} {digest}: rebuild NOT ordered"));
                self.not_ordered = Some(error);
            }
        }
        self.told.push(told);
    }

    fn end(self, repair: Option<&Repair>) -> Result<u8, Failure> {
        if self.as_json {
            table::print_json(&self.told);
        }
        self.say(&format!("{} sound, {} not", self.sound, self.unsound));
        match repair {
            None if self.unsound > 0 => {
                self.say("`weatherlight kernels verify --repair` has them built again");
            }
            Some(repair) if self.ordered > 0 => self.say(&format!(
                "{} ordered in {}: the forge of a running service builds them within seconds, \
                 one that is started later at its start; `weatherlight kernels build` does it now",
                if self.ordered == 1 {
                    "1 rebuild".to_owned()
                } else {
                    format!("{} rebuilds", self.ordered)
                },
                repair.queue.display()
            )),
            _ => {}
        }
        match self.not_ordered {
            Some(error) => Err(Failure::unavailable_because(&error)),
            None => Ok(if self.unsound > 0 { UNSOUND } else { 0 }),
        }
    }

    fn say(&self, line: &str) {
        if !self.as_json {
            table::print(line);
        }
    }
}

fn about(record: &Record, outcome: &str) -> Value {
    json!({
        "blueprint_id": record.job.blueprint.as_str(),
        "checksum": record.digest.to_hex(),
        "outcome": outcome,
    })
}
