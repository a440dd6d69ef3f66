//! The `weatherlight` command.
fn main() {}
