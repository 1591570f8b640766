//! What a campaign needs beside the project: a nightly compiler, cargo-fuzz, and a C++ compiler for
//! libFuzzer.

use std::process::{Command, Stdio};

use crate::progress::Progress;
use crate::setup::{SetupError, run};

/// Installs what is missing; changes nothing where all is there.
///
/// # Errors
/// [`SetupError::Install`] where rustup, cargo or apt failed.
pub(super) fn ensure(progress: Progress) -> Result<(), SetupError> {
    if !succeeds(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])) {
        let install = ["toolchain", "install", "nightly", "--profile", "minimal"];
        run(progress, Command::new("rustup").args(install))?;
    }
    if !succeeds(Command::new("cargo").args(["fuzz", "--version"])) {
        run(progress, Command::new("cargo").args(["install", "--locked", "cargo-fuzz"]))?;
    }
    if !succeeds(Command::new("c++").arg("--version")) {
        let install = ["install", "-y", "--no-install-recommends", "g++"];
        run(progress, Command::new("apt-get").args(install))?;
    }
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
