//! `cargo bench`: prints the table of instructions per call and fails if a target is missed.

use pfnguard_tools::bench::Bench;

fn main() -> miette::Result<()> {
    let measured = Bench::plain().run()?;
    println!("\n{}", measured.table());
    measured.check()
}
