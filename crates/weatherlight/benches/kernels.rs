//! `cargo bench -p weatherlight`: the same as `weatherlight kernels bench`, on a Redis server of its
//! own where one is installed. `cargo bench -p weatherlight -- --quick` says less sooner.

fn main() -> std::process::ExitCode {
    weatherlight::bench_kernels(std::env::args().any(|argument| argument == "--quick"))
}
