//! pfnguard's command-line program.

#![forbid(unsafe_code)]

use clap::Parser;
use miette::MietteHandlerOpts;
use pfnguard_tools::cli::Cli;

fn main() -> miette::Result<()> {
    // Errors hold lines to be copied and the machine's log: neither is to be broken.
    miette::set_hook(Box::new(|_| {
        Box::new(MietteHandlerOpts::new().wrap_lines(false).break_words(false).build())
    }))?;
    Cli::parse().run()
}
