//! Finding one of very many records, for `cargo run --release -p urza --example lookups [RECORDS]`.

use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let records: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let config = urza::Config::at(directory.path());
    let measured = urza::bench::lookups(config, records, 10_000).await?;
    println!("{} records written in {:.0?}", measured.records, measured.filled_in);
    for way in measured.ways.iter().chain([&measured.bare]) {
        println!("by {}: p50 {:.0?}, p99 {:.0?}", way.by, way.p50, way.p99);
    }
    Ok(())
}
