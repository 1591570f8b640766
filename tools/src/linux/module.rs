//! Kernel modules, built out of the kernel's tree and out of this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::packages::{self, Kernel};
use super::{CROSS_COMPILE, LinuxError};
use crate::progress::Progress;
use crate::{artifacts, workspace};

/// Builds the module in the directory `source` under the workspace, with other `files` at the places
/// that they are to have beside its own, and what another module exports to it. Returns the module.
///
/// # Errors
/// [`LinuxError`]: a file, or what the compiler said.
pub fn build(
    kernel: &Kernel,
    source: &str,
    files: &[(&str, &Path)],
    exporter: Option<&Path>,
    progress: Progress,
) -> Result<PathBuf, LinuxError> {
    let name = source.rsplit('/').next().unwrap_or(source);
    let directory = workspace::output_dir().join("modules").join(&kernel.version).join(name);
    let from = workspace::root().join(source);
    let entries = fs::read_dir(&from).map_err(artifacts::file("read", &from))?;
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        copy(&path, &directory.join(path.file_name().unwrap_or_default()))?;
    }
    for (name, path) in files {
        copy(path, &directory.join(name))?;
    }
    let mut step = progress.step(&format!("build the module {name} for {}", kernel.version));
    let mut make = Command::new("make");
    make.arg("-C").arg(kernel.build_dir()?).arg(format!("M={}", directory.display()));
    make.args(["ARCH=arm64", &format!("CROSS_COMPILE={CROSS_COMPILE}"), "W=1", "KCFLAGS=-Werror"]);
    // Type information would need the kernel's own, which is in no package.
    make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    if let Some(exporter) = exporter {
        let symbols = exporter.with_file_name("Module.symvers");
        make.arg(format!("KBUILD_EXTRA_SYMBOLS={}", symbols.display()));
    }
    packages::run(&mut make, &mut step)?;
    step.done("");
    let modules = fs::read_dir(&directory).map_err(artifacts::file("read", &directory))?;
    let mut modules = modules.flatten().map(|entry| entry.path());
    let found = modules.find(|path| path.extension().is_some_and(|extension| extension == "ko"));
    found.ok_or(LinuxError::NoModule(directory))
}

/// Returns pfnguard's `module` as it would find the CPUs of a machine where they differ, of which QEMU
/// has none: where the hypervisor reads `DCZID_EL0`, it gets `MPIDR_EL1` instead.
///
/// # Errors
/// [`LinuxError::File`], [`LinuxError::NoSuchRead`].
pub fn whose_cpus_differ(module: &Path) -> Result<Vec<u8>, LinuxError> {
    let mut bytes = fs::read(module).map_err(artifacts::file("read", module))?;
    match replace_reads(&mut bytes) {
        0 => Err(LinuxError::NoSuchRead(module.to_owned())),
        _ => Ok(bytes),
    }
}

/// Replaces reads of `DCZID_EL0`, and returns how many (Arm ARM, `MRS`; `Rt` is bits 4:0).
fn replace_reads(code: &mut [u8]) -> usize {
    const MRS_DCZID_EL0: u32 = 0xd53b_00e0;
    const MRS_MPIDR_EL1: u32 = 0xd538_00a0;
    const RT: u32 = 0b1_1111;
    let mut replaced = 0;
    for word in code.as_chunks_mut::<4>().0 {
        let instruction = u32::from_le_bytes(*word);
        if instruction & !RT == MRS_DCZID_EL0 {
            *word = (MRS_MPIDR_EL1 | instruction & RT).to_le_bytes();
            replaced += 1;
        }
    }
    replaced
}

/// Copies what has changed: make looks at the time.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), LinuxError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(artifacts::file("create", parent))?;
    }
    let bytes = fs::read(from).map_err(artifacts::file("read", from))?;
    Ok(artifacts::put(to, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_of_one_register_become_reads_of_another() {
        // mrs x3, dczid_el0; mrs x3, ctr_el0
        let mut code = [0xd53b_00e3_u32, 0xd53b_0023].map(u32::to_le_bytes).concat();
        assert_eq!(replace_reads(&mut code), 1);
        // mrs x3, mpidr_el1
        assert_eq!(code, [0xd538_00a3_u32, 0xd53b_0023].map(u32::to_le_bytes).concat());
        assert_eq!(replace_reads(&mut code), 0);
    }
}
