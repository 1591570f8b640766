//! The command line.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::artifacts::{self, ArtifactError};
use crate::demo::Demo;
use crate::header::{self, Action};
use crate::machine::{Clock, Cpu, Machine};
use crate::progress::Progress;
use crate::qemu::Echo;
use crate::suite::Suite;
use crate::{manifest, setup};

/// pfnguard: a small protected hypervisor that decides which memory type a guest gets.
///
/// Without a command, it does the main job: boots a machine with real PCI devices in QEMU, asks
/// for every combination of mode, type and permission on every BAR, and prints each decision with
/// the memory type that the CPU itself reports. Exit code 0 means that every decision is the one
/// that the specification gives.
#[derive(Debug, Parser)]
#[command(name = "pfnguard", bin_name = "cargo run --", args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: DemoArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Installs what is missing (QEMU, Rust components), and nothing else.
    Setup,
    /// Builds the payload and the bare-metal host as images.
    Build,
    /// Runs the bare-metal host's tests on one machine.
    TestMachine(TestArgs),
    /// Generates the C header of the ABI.
    Header(HeaderArgs),
    /// Makes a flat image of an ELF file.
    Image(ImageArgs),
    /// Compiles, derives, checks and shows manifests.
    #[command(subcommand)]
    Manifest(manifest::Command),
}

/// Which machine, for how long, and how loud.
#[derive(Debug, Args)]
struct MachineArgs {
    /// CPU model.
    #[arg(long, value_enum, default_value_t = Cpu::NeoverseN2)]
    cpu: Cpu,
    /// Number of CPUs [default: 2, with --icount 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    smp: Option<u8>,
    /// Let executed instructions drive the clock: every run is like the other.
    #[arg(long)]
    icount: bool,
    /// Show the machine's log as it comes.
    #[arg(long, short, action = ArgAction::SetTrue)]
    verbose: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

#[derive(Debug, Args)]
struct DemoArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Keep the machine's log in this file.
    #[arg(long, value_name = "FILE")]
    keep_log: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct TestArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Run only tests whose name starts with this.
    #[arg(default_value = "")]
    prefix: String,
}

#[derive(Debug, Args)]
struct HeaderArgs {
    /// Change nothing; fail if the header is not up to date.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
struct ImageArgs {
    /// The ELF file.
    elf: PathBuf,
    /// The image to write.
    image: PathBuf,
}

impl MachineArgs {
    fn machine(&self) -> Machine {
        let (clock, cpus) = if self.icount { (Clock::Icount, 1) } else { (Clock::Free, 2) };
        Machine { cpu: self.cpu, cpus: self.smp.unwrap_or(cpus), clock }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    fn echo(&self) -> Echo {
        if self.verbose { Echo::Lines } else { Echo::Silent }
    }

    /// Returns how to show progress: a spinner would run into the lines of the log.
    fn progress(&self) -> Progress {
        match self.echo() {
            Echo::Lines => Progress::Plain,
            Echo::Silent => Progress::detect(),
        }
    }
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// The command's own.
    pub fn run(self) -> miette::Result<()> {
        let progress = Progress::detect();
        match self.command {
            None => demo(self.demo),
            Some(Command::Setup) => {
                let version = setup::ensure(progress)?;
                println!("ready: {} {version}", setup::QEMU);
                Ok(())
            }
            Some(Command::Build) => build(progress),
            Some(Command::TestMachine(args)) => test_machine(args),
            Some(Command::Header(args)) => {
                header::run(if args.check { Action::Check } else { Action::Write })
            }
            Some(Command::Image(args)) => Ok(image(&args)?),
            Some(Command::Manifest(command)) => manifest::run(command),
        }
    }
}

fn demo(args: DemoArgs) -> miette::Result<()> {
    let progress = args.machine.progress();
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, keep_log) = (args.machine.echo(), args.keep_log);
    let outcome = Demo { machine, timeout, echo, keep_log, progress }.run()?;
    println!("\n{}", outcome.table());
    outcome.check()
}

fn build(progress: Progress) -> miette::Result<()> {
    let artifacts = artifacts::build(progress)?;
    println!("{}\n{}", artifacts.payload.display(), artifacts.host.display());
    Ok(())
}

fn test_machine(args: TestArgs) -> miette::Result<()> {
    let progress = args.machine.progress();
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, prefix) = (args.machine.echo(), args.prefix);
    let tally = Suite { machine, prefix, timeout, echo, progress }.run()?;
    println!("{machine}: {tally}");
    Ok(())
}

fn image(args: &ImageArgs) -> Result<(), ArtifactError> {
    let image = artifacts::flatten(&args.elf)?;
    fs::write(&args.image, &image.bytes).map_err(artifacts::file("write", &args.image))?;
    println!("{} bytes, linked for {:#x}", image.bytes.len(), image.base);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn machine(arguments: &[&str]) -> Machine {
        let arguments = std::iter::once(&"tools").chain(arguments);
        Cli::try_parse_from(arguments).unwrap().demo.machine.machine()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_default_machine_is_the_main_target_with_two_cpus() {
        assert_eq!(machine(&[]), Machine::parallel(Cpu::NeoverseN2));
        assert_eq!(machine(&["--cpu", "cortex-a72"]), Machine::parallel(Cpu::CortexA72));
    }

    #[test]
    fn a_counted_machine_has_one_cpu_unless_told_otherwise() {
        assert_eq!(machine(&["--icount"]), Machine::counted(Cpu::NeoverseN2));
        assert_eq!(machine(&["--icount", "--smp", "2"]).cpus, 2);
    }

    #[test]
    fn unknown_cpus_are_refused() {
        assert!(Cli::try_parse_from(["tools", "--cpu", "z80"]).is_err());
    }
}
