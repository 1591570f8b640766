//! The machine of the benchmark: the counted main target, with a region of one GiB in slot 5.

use std::path::PathBuf;
use std::process::Command;

use super::BenchError;
use crate::artifacts::{self, Artifacts};
use crate::machine::{Boot, Cpu, Machine};
use crate::qemu::Job;
use crate::{manifest, workspace};

/// The text that grants the benchmark its region.
const GRANTS: &str = "tools/manifests/qemu-virt-bench.grants.toml";
/// Further arguments of QEMU. The clock ticks once an instruction: executed instructions drive it
/// in nanoseconds, and the counter has as many a second.
const ARGUMENTS: &[&str] = &[
    "-cpu",
    "neoverse-n2,cntfrq=1000000000",
    "-object",
    "memory-backend-ram,id=gib,size=1G,share=off",
    "-device",
    "ivshmem-plain,memdev=gib,addr=5",
];

/// Returns the machine that [`ARGUMENTS`] add to.
pub const fn base() -> Machine {
    Machine::counted(Cpu::NeoverseN2)
}

/// Writes the manifest and returns the command that boots the benchmark.
///
/// # Errors
/// The manifest compiler's report, or QEMU wrote no device tree, or a file cannot be written.
pub fn command(job: &Job<'_>, artifacts: &Artifacts) -> miette::Result<Command> {
    // PCI functions are not in the device tree: the base machine's tree is this machine's.
    let dtb = job.device_tree().map_err(BenchError::from)?;
    let grants = workspace::root().join(GRANTS);
    let text = std::fs::read_to_string(&grants)
        .map_err(artifacts::file("read", &grants))
        .map_err(BenchError::from)?;
    let manifest = manifest::derive_from_dtb(&dtb, GRANTS, &text)?;
    let path = path("manifest.bin");
    artifacts::put(&path, &manifest).map_err(BenchError::from)?;
    let (payload, host) = (&artifacts.payload, &artifacts.host);
    let boot = Boot { payload, host, manifest: &path, bootargs: job.bootargs, ram: None };
    let mut command = base().boot(&boot);
    command.args(ARGUMENTS);
    Ok(command)
}

/// Returns where a file of the benchmark is kept until its next run.
pub fn path(name: &str) -> PathBuf {
    workspace::output_dir().join(format!("bench-{name}"))
}
