//! Prints what the first verification of an artifact costs on this machine:
//! `cargo run --release -p urza --example verification [MIB]`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib: usize = std::env::args().nth(1).map_or(Ok(64), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let measured = urza::bench::verification(directory.path(), mib << 20, 15)?;
    println!(
        "{mib} MiB: SHA-256 over memory {:.0} MB/s, first verification {:.0} MB/s, ratio {:.3}",
        measured.memory_rate / 1e6,
        measured.file_rate / 1e6,
        measured.ratio()
    );
    Ok(())
}
