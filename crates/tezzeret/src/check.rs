//! The engine's check, as the forge reports its faults. Every template is put to it here.

use kernel::check::CheckError;

pub use kernel::check::TOLERANCE;

use crate::error::CompileError;

impl From<CheckError> for CompileError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Graph(source) => source.into(),
            CheckError::Run(source) => source.into(),
            CheckError::Store(source) => source.into(),
            CheckError::NotFinite { value } => Self::NotFinite { value },
        }
    }
}

#[cfg(test)]
mod tests {
    use kernel::check::{Check, Report};
    use kernel::{Graph, Params};

    use super::*;

    fn report(graph: &Graph, params: &Params, probe: u64) -> Result<Report, CompileError> {
        let check = Check { probe, ..Check::new(graph, params, karn::INPUT, karn::OUTPUT) };
        Ok(check.run()?)
    }

    #[test]
    fn every_graftable_template_agrees_with_its_plan() {
        let sites = [
            karn::Site::Vector { features: 32 },
            karn::Site::Image { channels: 4, height: 6, width: 5 },
            karn::Site::Sequence { length: 6, width: 8 },
        ];
        for blueprint in karn::catalogue().iter().filter(|blueprint| blueprint.graftable()) {
            for site in sites {
                let graph = karn::build(blueprint, &blueprint.midpoints(), &site).unwrap();
                let found = report(&graph, &graph.init_params(9), 0);
                let report =
                    found.unwrap_or_else(|error| panic!("{} {site}: {error}", blueprint.id()));
                assert_eq!(report.fault, None, "{} {site}", blueprint.id());
                let difference = report.difference();
                println!("{} {site}: {difference:.1e}", blueprint.id());
                // Rounding adds up with depth: four layers of BP023 come to a seventh of the tolerance.
                assert!(difference <= TOLERANCE / 3.0, "{} {site} {difference}", blueprint.id());
            }
        }
    }

    #[test]
    fn a_wide_deep_block_is_checked_on_numbers_that_do_not_explode() {
        let block = karn::find(&"BP009".into()).unwrap();
        let site = karn::Site::Vector { features: 160 };
        let deepest = [("depth", 4.0)].into_iter().collect();
        let graph = karn::build(block, &deepest, &site).unwrap();
        let report = report(&graph, &graph.init_params(1), 0).unwrap();
        assert_eq!(report.fault, None);
        assert!(report.difference() <= TOLERANCE / 10.0);
    }
}
