//! The plugin: built with plain cargo for this machine, tried once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::OracleError;
use crate::machine::{Host, Machine, comma_safe};
use crate::progress::Progress;
use crate::{artifacts, process, workspace};

const PACKAGE: &str = "pfnguard-plugin";
const FILE: &str = "libpfnguard_plugin.so";

fn command(target_dir: &Path) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace::root());
    command.args(["build", "--package", PACKAGE, "--release", "--target-dir"]).arg(target_dir);
    command
}

/// Builds the plugin, once per process.
///
/// # Errors
/// [`OracleError::Build`].
pub fn build(progress: Progress) -> Result<PathBuf, OracleError> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*built {
        return Ok(path.clone());
    }
    let target_dir = workspace::target_dir().join("plugin");
    let mut step = progress.step("build the plugin for QEMU");
    let mut command = command(&target_dir);
    let (done, output) = process::watch(&mut command, |line| step.note(line));
    if !done {
        let command = process::show(&command);
        return Err(OracleError::Build { command, output: output.join("\n") });
    }
    // A copy: a machine that runs keeps its plugin whatever is built meanwhile.
    let path = workspace::output_dir().join(FILE);
    let fresh = target_dir.join("release").join(FILE);
    let bytes = fs::read(&fresh).map_err(artifacts::file("read", &fresh))?;
    artifacts::put(&path, &bytes)?;
    step.done("");
    *built = Some(path.clone());
    Ok(path)
}

/// Finds out, once per process, whether QEMU loads the plugin.
///
/// # Errors
/// What QEMU said instead.
pub fn probe(plugin: &Path, machine: &Machine) -> Result<(), String> {
    static PROBED: OnceLock<Result<(), String>> = OnceLock::new();
    PROBED.get_or_init(|| load(plugin, machine)).clone()
}

/// Lets QEMU do the least for which it loads plugins.
fn load(plugin: &Path, machine: &Machine) -> Result<(), String> {
    let dtb = workspace::output_dir().join(format!("probe.{}.dtb", workspace::unique()));
    let mut command = machine.dump_dtb(Host::BareMetal, &dtb);
    command.arg("-plugin").arg(comma_safe(plugin));
    let (loaded, output) = process::watch(&mut command, |_| ());
    let _ = fs::remove_file(&dtb);
    if loaded { Ok(()) } else { Err(output.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cpu;

    #[test]
    fn the_plugin_is_built_by_plain_cargo() {
        let shown = process::show(&command(Path::new("t")));
        assert!(shown.ends_with("build --package pfnguard-plugin --release --target-dir t"));
        assert!(!shown.contains("RUSTFLAGS"));
    }

    #[test]
    fn a_qemu_that_cannot_load_the_plugin_says_why() {
        let machine = Machine::parallel(Cpu::CortexA72);
        let why = load(Path::new("/nonexistent/plugin.so"), &machine).unwrap_err();
        assert!(!why.is_empty());
    }
}
