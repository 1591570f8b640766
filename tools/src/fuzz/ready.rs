//! What a campaign needs beside the project: a nightly compiler and cargo-fuzz.

use std::process::{Command, Stdio};

use crate::progress::Progress;
use crate::setup::{SetupError, run};

/// Installs what is missing; changes nothing where both are there.
///
/// # Errors
/// [`SetupError::Install`] where rustup or cargo failed.
pub(super) fn ensure(progress: Progress) -> Result<(), SetupError> {
    if !succeeds(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])) {
        let install = ["toolchain", "install", "nightly", "--profile", "minimal"];
        run(progress, Command::new("rustup").args(install))?;
    }
    if !succeeds(Command::new("cargo").args(["fuzz", "--version"])) {
        run(progress, Command::new("cargo").args(["install", "--locked", "cargo-fuzz"]))?;
    }
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
