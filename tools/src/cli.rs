//! The command line.

mod args;

use std::fs;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::artifacts;
use crate::bench::{self, Bench, Keep, Profiler};
use crate::demo::Demo;
use crate::files::{self, say};
use crate::fuzz::{Campaign, Sanitizer};
use crate::fuzz_machine::RandomRun;
use crate::header::{self, Action};
use crate::linux::{self, Linux, Scenario};
use crate::oracle::{self, Maintenance, Oracle, Oversight, Symbols};
use crate::progress::Progress;
use crate::qemu::Echo;
use crate::seeds;
use crate::suite::Suite;
use crate::viewer::map::{self, MapArgs};
use crate::viewer::trace::{self, TraceArgs};
use crate::{manifest, setup};

use args::{
    BenchArgs, BuildArgs, DemoArgs, FuzzArgs, FuzzMachineArgs, HeaderArgs, ImageArgs, JudgeArgs,
    LinuxArgs, LinuxBenchArgs, LinuxBuiltinArgs, LinuxFaultsArgs, LinuxOverlayArgs,
    MaintenanceArgs, SeedsArgs, TestArgs,
};

/// pfnguard: a small protected hypervisor that decides which memory type a guest gets.
///
/// Without a command, it does the main job: boots a stock Debian kernel on a machine with real PCI
/// devices in QEMU, puts the hypervisor under it, asks through /dev/pfnguard for every combination of
/// mode, type and permissions R, RW, RX on every BAR, and prints each decision with the memory type
/// that the CPU itself reports. Exit code 0 means that every decision is the one that the
/// specification gives.
#[derive(Debug, Parser)]
#[command(
    name = "pfnguard",
    version,
    bin_name = "cargo run --",
    args_conflicts_with_subcommands = true
)]
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
    Build(BuildArgs),
    /// Counts what calls cost in instructions, beside Linux pKVM; fails if a target is missed.
    Bench(BenchArgs),
    /// Runs the bare-metal host's tests on one machine.
    TestMachine(TestArgs),
    /// Makes random calls and accesses on one machine, each compared with the specification.
    FuzzMachine(FuzzMachineArgs),
    /// Counts TLB, barrier and cache operations of each kind of call in a run of all tests.
    Maintenance(MaintenanceArgs),
    /// Judges a trace that `test-machine --keep-trace` has kept.
    Judge(JudgeArgs),
    /// Fuzzes calls and file formats, each target for some minutes; installs cargo-fuzz if needed.
    Fuzz(FuzzArgs),
    /// Plants each bug of tests/seeds in a copy of the tree, and fails if no test sees one.
    Seeds(SeedsArgs),
    /// Generates the C header of the ABI.
    Header(HeaderArgs),
    /// Launches the hypervisor under a stock Debian kernel and tries it.
    Linux(LinuxArgs),
    /// Builds Debian's kernel source with the hypervisor linked in, boots it and tries it.
    LinuxBuiltin(LinuxBuiltinArgs),
    /// Puts the sources and the hypervisor's image into a kernel's tree, to be linked in.
    LinuxOverlay(LinuxOverlayArgs),
    /// Measures what Linux costs under the hypervisor, beside KVM's; fails if a target is missed.
    LinuxBench(LinuxBenchArgs),
    /// Counts the host's stage-2 faults of a boot and of minutes of load after it.
    LinuxFaults(LinuxFaultsArgs),
    /// Fetches a stock Debian kernel's headers and builds pfnguard.ko for it.
    Kmod,
    /// Shows what the hypervisor has written down of calls, decisions, pages and faults.
    Trace(TraceArgs),
    /// Shows who owns which memory, with which type, as the kernel module knows it.
    Map(MapArgs),
    /// Makes a flat image of an ELF file.
    Image(ImageArgs),
    /// Compiles, derives, checks and shows manifests.
    #[command(subcommand)]
    Manifest(manifest::Command),
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
                say(format!("ready: {} {version}", setup::QEMU))?;
                Ok(())
            }
            Some(Command::Build(args)) => build(&args, progress),
            Some(Command::Bench(args)) => bench(args),
            Some(Command::TestMachine(args)) => test_machine(args),
            Some(Command::FuzzMachine(args)) => fuzz_machine(&args),
            Some(Command::Maintenance(args)) => maintenance(args),
            Some(Command::Judge(args)) => {
                say(oracle::judge_file(&args.file, progress)?)?;
                Ok(())
            }
            Some(Command::Fuzz(args)) => fuzz(args),
            Some(Command::Seeds(args)) => plant(args),
            Some(Command::Header(args)) => {
                header::run(if args.check { Action::Check } else { Action::Write })
            }
            Some(Command::Linux(args)) => run_linux(&args, progress),
            Some(Command::LinuxBuiltin(args)) => build_linux(&args, progress),
            Some(Command::LinuxOverlay(args)) => linux::overlay::install(&args.tree, progress),
            Some(Command::LinuxBench(args)) => bench_linux(&args, progress),
            Some(Command::LinuxFaults(args)) => {
                say(format!("\n{}", linux::faults::count(args.seconds, progress)?))?;
                Ok(())
            }
            Some(Command::Kmod) => {
                let (_, module) = linux::build_module(progress)?;
                say(module.display())?;
                Ok(())
            }
            Some(Command::Trace(args)) => trace::run(args),
            Some(Command::Map(args)) => map::run(&args),
            Some(Command::Image(args)) => image(&args),
            Some(Command::Manifest(command)) => manifest::run(command),
        }
    }
}

fn demo(args: DemoArgs) -> miette::Result<()> {
    let progress = args.machine.progress();
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, keep_log, oracle) = (args.machine.echo(), args.keep_log, args.machine.oracle());
    if !args.bare && oracle != Oracle::On {
        let options = "--keep-trace and --no-oracle";
        return Err(miette::miette!("{options}: the oracle does not watch Linux; add --bare"));
    }
    if let Some(path) = &keep_log {
        files::ensure_writable(path)?;
    }
    let outcome = match args.bare {
        true => Demo { machine, timeout, echo, progress, oracle }.run()?,
        false => Linux { machine, scenario: Scenario::Demo, timeout, echo, progress }.demo()?,
    };
    if let Some(path) = keep_log {
        outcome.keep_log(&path)?;
    }
    say(format!("\n{}", outcome.table()))?;
    outcome.check()
}

fn run_linux(args: &LinuxArgs, progress: Progress) -> miette::Result<()> {
    let linux = args.machine.linux(args.scenario, progress);
    say(format!("{}: {}", linux.machine, linux.run()?))?;
    Ok(())
}

fn build_linux(args: &LinuxBuiltinArgs, progress: Progress) -> miette::Result<()> {
    let linux = args.machine.linux(Scenario::Builtin, progress);
    say(format!("{}: {}", linux.machine, linux::builtin::run(&linux)?))?;
    Ok(())
}

fn bench_linux(args: &LinuxBenchArgs, progress: Progress) -> miette::Result<()> {
    let costs = linux::cost::measure(Duration::from_secs(args.timeout), progress)?;
    if args.write {
        costs.write()?;
    }
    say(format!("\n{costs}"))?;
    costs.check()
}

fn build(args: &BuildArgs, progress: Progress) -> miette::Result<()> {
    let artifacts = artifacts::build(progress)?;
    if let Some(path) = &args.payload {
        let payload = fs::read(&artifacts.payload);
        let payload = payload.map_err(artifacts::file("read", &artifacts.payload))?;
        files::write(&[(path, &payload)], &[])?;
    }
    say(format!("{}\n{}", artifacts.payload.display(), artifacts.host.display()))?;
    Ok(())
}

fn bench(args: BenchArgs) -> miette::Result<()> {
    let (echo, progress) = match args.verbose {
        true => (Echo::Lines, Progress::Plain),
        false => (Echo::Silent, Progress::detect()),
    };
    let keep = if args.write { Keep::Document } else { Keep::Nothing };
    let bench = Bench { keep, timeout: Duration::from_secs(args.timeout), echo, progress };
    if let Some(row) = args.profile {
        say(format!("\n{}", Profiler { bench, row }.run()?))?;
        return Ok(());
    }
    if args.sizes {
        say(format!("\n{}", bench::sizes(&bench)?))?;
        return Ok(());
    }
    let measured = bench.run()?;
    say(format!("\n{}", measured.table()))?;
    measured.check()
}

fn test_machine(args: TestArgs) -> miette::Result<()> {
    let progress = args.machine.progress();
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, prefix, oracle) = (args.machine.echo(), args.prefix, args.machine.oracle());
    let tally = Suite { machine, prefix, timeout, echo, progress, oracle }.run()?;
    say(format!("{machine}: {tally}"))?;
    Ok(())
}

fn fuzz_machine(args: &FuzzMachineArgs) -> miette::Result<()> {
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, calls) = (args.machine.echo(), args.calls);
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let (oracle, progress) = (args.machine.oracle(), args.machine.progress());
        let verdict = RandomRun { machine, seed, calls, timeout, echo, progress, oracle }.run()?;
        say(format!("{machine}, seed {seed}: {verdict}"))?;
    }
    Ok(())
}

fn maintenance(args: MaintenanceArgs) -> miette::Result<()> {
    let progress = args.machine.progress();
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, prefix, oracle) = (args.machine.echo(), String::new(), Oracle::On);
    let tally = Suite { machine, prefix, timeout, echo, progress, oracle }.run()?;
    let Oversight::Judged(judgement) = tally.oversight else {
        return Err(miette::miette!("this QEMU cannot load plugins: there is nothing to count"));
    };
    let symbols = Symbols::read(&artifacts::payload_elf())?;
    let document = Maintenance::new(&judgement.report, &symbols).document(&machine.to_string());
    match args.write {
        true => Ok(artifacts::put(&oracle::document(), document.as_bytes())?),
        false => {
            say(document)?;
            Ok(())
        }
    }
}

fn fuzz(args: FuzzArgs) -> miette::Result<()> {
    let (progress, jobs) = (Progress::detect(), usize::from(args.jobs));
    let each = Duration::from_secs_f64(args.minutes * 60.0);
    let sanitizer = if args.asan { Sanitizer::Address } else { Sanitizer::Off };
    let outcome = Campaign { targets: args.targets, each, jobs, sanitizer, progress }.run()?;
    say(format!("\n{outcome}"))?;
    Ok(outcome.check()?)
}

fn plant(args: SeedsArgs) -> miette::Result<()> {
    let campaign = seeds::Campaign { names: args.names, progress: Progress::detect() };
    let outcome = campaign.run()?;
    say(format!("\n{outcome}"))?;
    Ok(outcome.check()?)
}

fn image(args: &ImageArgs) -> miette::Result<()> {
    let image = artifacts::flatten(&args.elf)?;
    files::write(&[(&args.image, &image.bytes)], &[&args.elf])?;
    say(format!("{} bytes, linked for {:#x}", image.bytes.len(), image.base))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::machine::{Cpu, Machine};

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
