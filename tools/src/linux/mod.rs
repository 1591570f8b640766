//! Linux as the host: a stock Debian kernel under which the module launches the hypervisor.
//!
//! The machine is the one of the bare-metal tests, with a disk and a network. Its first program,
//! `tests/linux/init`, tries what a scenario is about and prints `@` lines like the bare-metal host.

pub mod builtin;
pub mod cost;
pub mod faults;
mod initramfs;
mod module;
pub mod overlay;
mod packages;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use miette::Diagnostic;
use thiserror::Error;

use crate::artifacts::{self, ArtifactError};
use crate::demo::Outcome;
use crate::machine::{El2, Host, LinuxBoot, Machine};
use crate::oracle::Oversight;
use crate::progress::Progress;
use crate::qemu::{Echo, Job, Run};
use crate::suite::{Tally, verdict};
use crate::uart::Transcript;
use crate::{manifest, process, setup, workspace};

use initramfs::Initramfs;
pub use packages::Kernel;

/// What the tools of the compiler begin with.
const CROSS_COMPILE: &str = "aarch64-linux-gnu-";
/// Modules of the stock kernel for the machine's disk and network, and to give devices to programs, in
/// the order to load them.
const STOCK_MODULES: &[&str] = &[
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/vfio/vfio",
    "drivers/vfio/vfio_iommu_type1",
    "drivers/vfio/pci/vfio-pci-core",
    "drivers/vfio/pci/vfio-pci",
];
/// Modules of `tests/linux`.
const TEST_MODULES: &[&str] = &["attack", "client", "hog"];
/// Bytes of the machine's disk.
const DISK: u64 = 16 << 20;

/// Why there is no Linux to run.
#[derive(Debug, Error, Diagnostic)]
pub enum LinuxError {
    /// A command failed.
    #[error("`{command}` failed:\n{output}")]
    Command {
        /// The command.
        command: String,
        /// The end of what it said.
        output: String,
    },
    /// The mirrors have no such kernel.
    #[error("no packages of Linux {series} for arm64:\n{output}")]
    #[diagnostic(help(
        "the command was:  {command}\napt's sources must name a Debian mirror with its security suite"
    ))]
    NoKernel {
        /// The series.
        series: &'static str,
        /// The command that lists them.
        command: String,
        /// What it said.
        output: String,
    },
    /// The compiler made no module.
    #[error("no module was made in {0}")]
    NoModule(PathBuf),
    /// The module is not what its test takes it for.
    #[error("{0} never reads DCZID_EL0: it cannot be made to find CPUs that differ")]
    NoSuchRead(PathBuf),
    /// There is nothing to put the sources into.
    #[error("{tree} is no kernel's tree: it has no {file}")]
    NoTree {
        /// The directory.
        tree: PathBuf,
        /// What every tree has.
        file: &'static str,
    },
    /// The tree is another one than the patch was made for; it is as it was.
    #[error("{0}")]
    #[diagnostic(help("add these lines by hand, and run this again:{1}"))]
    NoPatch(String, String),
    /// Kconfig knows better.
    #[error("the kernel's configuration lacks what {file} asks for:\n{lines}")]
    Config {
        /// What was asked for.
        file: &'static str,
        /// The lines that are not in the configuration.
        lines: String,
    },
    /// The archive could not be made.
    #[error("the initial file system cannot be made: {0}")]
    Archive(#[from] io::Error),
    /// A file.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] ArtifactError),
}

/// What the machine is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A launch; then the main job through /dev/pfnguard, on the devices that the kernel has found.
    #[value(skip)]
    Demo,
    /// Refusals, then a launch; hotplug, load, disk and network under the hypervisor; an attack.
    Launch,
    /// A launch; then kexec, which becomes a restart.
    Kexec,
    /// No launch: the kernel itself runs at EL2.
    Vhe,
    /// No launch: KVM owns EL2.
    Kvm,
    /// No launch: the machine has no EL2.
    NoEl2,
    /// No launch: the kernel drives the GIC's ITS.
    Its,
    /// Ten minutes of load, disk and hotplug under the hypervisor; it needs a longer --timeout.
    Stress,
    /// What jobs cost, before and after a launch.
    Cost,
    /// What they cost with KVM's protected hypervisor at EL2 instead.
    CostKvm,
    /// Nothing to launch: the hypervisor is linked into the kernel, which is not the stock one.
    #[value(skip)]
    Builtin,
}

impl Scenario {
    /// Returns its name, for people and for the machine.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Launch => "launch",
            Self::Kexec => "kexec",
            Self::Vhe => "vhe",
            Self::Kvm => "kvm",
            Self::NoEl2 => "no-el2",
            Self::Its => "its",
            Self::Stress => "stress",
            Self::Cost => "cost",
            Self::CostKvm => "cost-kvm",
            Self::Builtin => "builtin",
        }
    }

    const fn el2(self) -> El2 {
        match self {
            Self::NoEl2 => El2::Absent,
            Self::Demo
            | Self::Launch
            | Self::Kexec
            | Self::Vhe
            | Self::Kvm
            | Self::Its
            | Self::Stress
            | Self::Cost
            | Self::CostKvm
            | Self::Builtin => El2::Present,
        }
    }

    /// Returns what the kernel is told: what is not needed on a CPU does no harm there.
    const fn parameters(self) -> &'static str {
        match self {
            Self::Demo | Self::Launch | Self::Kexec | Self::NoEl2 | Self::Stress | Self::Cost => {
                "kvm-arm.mode=none id_aa64mmfr1.vh=0 irqchip.gicv3_nolpi=1"
            }
            Self::Vhe => "kvm-arm.mode=none irqchip.gicv3_nolpi=1",
            Self::Kvm | Self::CostKvm => {
                "kvm-arm.mode=protected id_aa64mmfr1.vh=0 irqchip.gicv3_nolpi=1"
            }
            Self::Its => "kvm-arm.mode=none id_aa64mmfr1.vh=0",
            Self::Builtin => "id_aa64mmfr1.vh=0 irqchip.gicv3_nolpi=1",
        }
    }
}

/// A run of Linux.
#[derive(Clone, Copy, Debug)]
pub struct Linux {
    /// The machine.
    pub machine: Machine,
    /// What it is to show.
    pub scenario: Scenario,
    /// When to give up.
    pub timeout: Duration,
    /// Whether to show the UART.
    pub echo: Echo,
    /// How to show progress.
    pub progress: Progress,
}

/// Fetches the kernel and builds the hypervisor's module for it. Returns the kernel and the module.
///
/// # Errors
/// Set-up, a build, [`LinuxError`].
pub fn build_module(progress: Progress) -> miette::Result<(Kernel, PathBuf)> {
    setup::ensure_cross_compiler(progress)?;
    let payload = artifacts::build(progress)?.payload;
    let _lock = workspace::lock("linux").map_err(LinuxError::from)?;
    let kernel = Kernel::fetch(progress)?;
    let header = crate::header::path();
    let files = [("payload.img", payload.as_path()), ("../include/pfnguard.h", header.as_path())];
    let module = module::build(&kernel, "host-interface/kmod", &files, None, progress)?;
    Ok((kernel, module))
}

/// Builds a module of `tests/linux`, which may use what pfnguard's `module` exports.
fn test_module(
    kernel: &Kernel,
    name: &str,
    module: &Path,
    progress: Progress,
) -> Result<PathBuf, LinuxError> {
    let api = workspace::root().join("host-interface/kmod/api.h");
    let header = crate::header::path();
    let files = [("api.h", api.as_path()), ("pfnguard.h", header.as_path())];
    let _lock = workspace::lock("linux")?;
    module::build(kernel, &format!("tests/linux/{name}"), &files, Some(module), progress)
}

impl Linux {
    /// Sets up, builds and runs.
    ///
    /// # Errors
    /// As [`build_module`]; the machine did not start; a test failed or the run broke off: then with
    /// the failing tests and the end of the machine's log.
    pub fn run(&self) -> miette::Result<Tally> {
        verdict(&self.listen()?)
    }

    /// Does the main job under Linux.
    ///
    /// # Errors
    /// As [`Self::run`], where there is nothing to judge.
    pub fn demo(&self) -> miette::Result<Outcome> {
        Ok(Outcome::of(self.machine, Host::Linux, self.listen()?))
    }

    /// Returns where the last run's log is kept.
    pub fn log(&self) -> PathBuf {
        self.disk().with_extension("log")
    }

    /// Returns where the last run's disk is kept: of [`Scenario::Launch`] an archive of what debugfs
    /// said while a VM had a page and a BAR.
    pub fn disk(&self) -> PathBuf {
        let name = format!("linux-{}.disk", self.scenario.name());
        workspace::output_dir().join(self.machine.to_string()).join(name)
    }

    fn listen(&self) -> miette::Result<Run> {
        self.listen_with(&[], "")
    }

    /// Runs with a variable of the first program set, while QEMU writes of every exception to a file.
    fn watched(&self, exceptions: &Path, variable: &str) -> miette::Result<Run> {
        let file = crate::machine::comma_safe(exceptions);
        self.listen_with(&["-d", "int", "-D", &file], variable)
    }

    fn listen_with(&self, options: &[&str], variable: &str) -> miette::Result<Run> {
        setup::ensure(self.progress)?;
        let (kernel, module) = build_module(self.progress)?;
        let mut archive = archive(&kernel.busybox(), self.progress)?;
        archive.copy("pfnguard.ko", &module)?;
        archive.file("differs.ko", module::whose_cpus_differ(&module)?);
        archive.file("lib/firmware/unsafe.bin", unsafe_manifest()?);
        for name in TEST_MODULES {
            let built = test_module(&kernel, name, &module, self.progress)?;
            archive.copy(&format!("{name}.ko"), &built)?;
        }
        for (index, stock) in STOCK_MODULES.iter().enumerate() {
            let name = stock.rsplit('/').next().unwrap_or(stock);
            archive.copy(&format!("modules/{index}-{name}.ko.xz"), &kernel.module(stock))?;
        }
        self.boot(&kernel.image(), archive, options, variable)
    }

    /// Boots a kernel with an archive, to which the manifest is added.
    fn boot(
        &self,
        image: &Path,
        mut archive: Initramfs,
        options: &[&str],
        variable: &str,
    ) -> miette::Result<Run> {
        let scenario = self.scenario.name();
        let name = format!("linux-{scenario}");
        let (bootargs, timeout) = (name.as_str(), self.timeout);
        let (machine, echo, progress) = (self.machine, self.echo, self.progress);
        let host = Host::Linux;
        let job = Job { machine, host, bootargs, ram: None, timeout, echo, progress };
        let manifest = job.manifest()?;
        let directory = workspace::output_dir().join(machine.to_string());
        let initrd = directory.join(format!("{name}.cpio"));
        archive.file("lib/firmware/pfnguard/manifest.bin", manifest.clone());
        let archive = archive.bytes().map_err(LinuxError::from)?;
        artifacts::put(&initrd, &archive).map_err(LinuxError::from)?;
        let disk = Disk::create(directory.join(format!("{name}.{}.disk", workspace::unique())))?;
        let parameters = self.scenario.parameters();
        // What the kernel does not know becomes a variable of its first program.
        let parameters =
            format!("console=ttyAMA0 panic=-1 {parameters} scenario={scenario} {variable}");
        let boot = LinuxBoot { image, initrd: &initrd, parameters: &parameters, disk: &disk.0 };
        let mut command = machine.boot_linux(&boot, self.scenario.el2());
        command.args(options);
        let mut step = progress.step(&format!("run {name} on {machine}"));
        let (log, ending) = job.listen(&mut command, |line| step.note(line))?;
        disk.keep(&self.disk()).map_err(LinuxError::from)?;
        let kept = self.log();
        artifacts::put(&kept, (log.join("\n") + "\n").as_bytes()).map_err(LinuxError::from)?;
        let transcript = Transcript::read(&log);
        let (command, oversight) = (process::show(&command), Oversight::Off);
        let run = Run { log, kept, transcript, ending, command, manifest, oversight };
        if run.problems().is_empty() {
            step.done("");
        }
        Ok(run)
    }
}

/// Returns a manifest that only the launch can refuse.
fn unsafe_manifest() -> miette::Result<Vec<u8>> {
    let path = workspace::root().join("tests/linux/unsafe.toml");
    let text = fs::read_to_string(&path).map_err(artifacts::file("read", &path));
    manifest::compile("unsafe.toml", &text.map_err(LinuxError::from)?)
}

/// Returns what every kernel starts with.
fn archive(busybox: &Path, progress: Progress) -> Result<Initramfs, LinuxError> {
    let mut archive = Initramfs::new();
    for directory in
        ["bin", "proc", "sys", "tmp", "modules", "lib", "lib/firmware", "lib/firmware/pfnguard"]
    {
        archive.directory(directory);
    }
    archive.copy("bin/busybox", busybox)?;
    archive.copy("bin/program", &artifacts::linux_program(progress)?)?;
    archive.copy("init", &workspace::root().join("tests/linux/init"))?;
    Ok(archive)
}

/// A disk, deleted when it is let go of.
struct Disk(PathBuf);

impl Disk {
    fn create(path: PathBuf) -> Result<Self, LinuxError> {
        let file = fs::File::create(&path).map_err(artifacts::file("create", &path))?;
        file.set_len(DISK).map_err(artifacts::file("extend", &path))?;
        Ok(Self(path))
    }

    /// Keeps what the machine has left on it.
    fn keep(&self, path: &Path) -> Result<(), ArtifactError> {
        fs::rename(&self.0, path).map_err(artifacts::file("keep", path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Another run makes its own.
        let _ = fs::remove_file(&self.0);
    }
}
