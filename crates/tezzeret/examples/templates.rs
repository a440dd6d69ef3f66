//! Prints every template at its midpoints, forward and backward, by plan and by interpreter, as the table of
//! `docs/engine.md`: `cargo run --release -p tezzeret --example templates [STEPS]`. Ends with 1 if a plan is slower.

use std::process::ExitCode;

use kernel::bench::passes;

fn main() -> ExitCode {
    let steps: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(30);
    let sites = [
        karn::Site::Vector { features: 64 },
        karn::Site::Sequence { length: 16, width: 32 },
        karn::Site::Image { channels: 16, height: 8, width: 8 },
    ];
    let (mut slower, mut count) = (0, 0);
    println!("| blueprint | site | nodes | loops | plan, us | interpreter, us | ratio |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    for blueprint in karn::catalogue().iter().filter(|blueprint| blueprint.graftable()) {
        for site in sites {
            let graph = match karn::build(blueprint, &blueprint.midpoints(), &site) {
                Ok(graph) => graph,
                Err(error) => {
                    println!("| {} | {site} | not built: {error} | | | | |", blueprint.id());
                    continue;
                }
            };
            let params = graph.init_params(1);
            let names = (karn::INPUT, karn::OUTPUT);
            let found = match passes(&graph, &params, names, steps, steps.div_ceil(10)) {
                Ok(found) => found,
                Err(error) => {
                    eprintln!("{} {site}: {error}", blueprint.id());
                    return ExitCode::FAILURE;
                }
            };
            let [plan, interpreter] =
                [found.plan, found.interpreter].map(|time| time.as_secs_f64() * 1e6);
            count += 1;
            slower += u32::from(plan >= interpreter);
            println!(
                "| {} | {site} | {} | {} | {plan:.0} | {interpreter:.0} | {:.0} |",
                blueprint.id(),
                found.nodes,
                found.steps,
                interpreter / plan
            );
        }
    }
    eprintln!("{count} rows, the plan is slower in {slower}");
    if slower == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
