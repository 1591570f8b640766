//! A program under Linux with the hypervisor below: what the initial file system of `cargo run --
//! linux` tries through `/dev/pfnguard`.
//!
//! `program demo` is the main job; the other words are attacks and say nothing if they are withstood.

mod demo;
mod device;
mod pci;
mod vfio;

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let word = std::env::args().nth(1).unwrap_or_default();
    let done = match word.as_str() {
        "demo" => demo::run(),
        _ => Err(io::Error::other(format!("unknown word `{word}`"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("@demo why={}", error.to_string().replace(' ', "-"));
            ExitCode::FAILURE
        }
    }
}
