//! The toolchain's parts that `rust-toolchain.toml` asks for.
//!
//! rustup fetches them when it installs the toolchain, but not into one that is there already.

use std::path::PathBuf;
use std::process::Command;

use super::SetupError;
use crate::progress::Progress;
use crate::{artifacts, process, workspace};

/// Adds the components and targets that are missing.
///
/// # Errors
/// [`SetupError::Missing`] without rustup, [`SetupError::Install`] where rustup failed.
pub(super) fn ensure(progress: Progress) -> Result<(), SetupError> {
    // Without `rustc` this program could not have been built; if it is gone, the build will say so.
    let Some(sysroot) = sysroot() else { return Ok(()) };
    let rustlib = sysroot.join("lib/rustlib");
    if !rustlib.join("src/rust/library/Cargo.lock").exists() {
        add(progress, ["component", "add", "rust-src"])?;
    }
    if !rustlib.join(artifacts::TARGET).exists() {
        add(progress, ["target", "add", artifacts::TARGET])?;
    }
    Ok(())
}

fn sysroot() -> Option<PathBuf> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "sysroot"]).current_dir(workspace::root()).output().ok()?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn add(progress: Progress, arguments: [&str; 3]) -> Result<(), SetupError> {
    let mut rustup = Command::new("rustup");
    rustup.args(arguments).current_dir(workspace::root());
    if !process::exists("rustup") {
        return Err(SetupError::Missing {
            what: format!("the Rust toolchain lacks `{}`, and there is no rustup", arguments[2]),
            line: "your system's installation of it, or rustup from https://rustup.rs".to_owned(),
        });
    }
    super::run(progress, &mut rustup)
}
