//! A program under Linux with the hypervisor below: what the initial file system of `cargo run --
//! linux` tries through `/dev/pfnguard`.
//!
//! `program demo` is the main job; the other words are attacks and say nothing if they are withstood.

mod arguments;
mod attacks;
mod demo;
mod device;
mod kexec;
mod memory;
mod outcome;
mod pci;
mod random;
mod units;
mod vfio;

use std::process::ExitCode;

fn main() -> ExitCode {
    let word = std::env::args().nth(1).unwrap_or_default();
    let done = match word.as_str() {
        "demo" => demo::run(),
        "arguments" => arguments::run(),
        "memlock" => arguments::memlock(),
        "mappings" => attacks::mappings(),
        "races" => attacks::races(),
        "killed" => attacks::killed(),
        "exhaust" => attacks::exhaust(),
        "kexec" => kexec::run(),
        "random" => random::run(),
        "units" => units::run(),
        "hold" => attacks::hold(),
        _ => Err(format!("unknown word `{word}`").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("@demo why={}", error.to_string().replace(' ', "-"));
            ExitCode::FAILURE
        }
    }
}
