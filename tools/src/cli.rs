//! The command line.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use miette::{IntoDiagnostic, WrapErr};

use crate::artifacts::{self, ArtifactError};
use crate::bench::{self, Bench, Keep, Profiler};
use crate::demo::Demo;
use crate::fuzz::{Campaign, Sanitizer};
use crate::fuzz_machine::RandomRun;
use crate::header::{self, Action};
use crate::linux::{self, Linux, Scenario};
use crate::machine::{Clock, Cpu, Machine};
use crate::oracle::{self, Maintenance, Oracle, Oversight, Symbols};
use crate::progress::Progress;
use crate::qemu::Echo;
use crate::seeds;
use crate::suite::Suite;
use crate::viewer::map::{self, MapArgs};
use crate::viewer::trace::{self, TraceArgs};
use crate::{manifest, setup};

/// pfnguard: a small protected hypervisor that decides which memory type a guest gets.
///
/// Without a command, it does the main job: boots a stock Debian kernel on a machine with real PCI
/// devices in QEMU, puts the hypervisor under it, asks through /dev/pfnguard for every combination of
/// mode, type and permissions R, RW, RX on every BAR, and prints each decision with the memory type
/// that the CPU itself reports. Exit code 0 means that every decision is the one that the
/// specification gives.
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
    /// Do not judge what EL2 executes under the bare-metal host.
    #[arg(long)]
    no_oracle: bool,
    /// Keep the trace of what EL2 executes under the bare-metal host in this file.
    #[arg(long, value_name = "FILE", conflicts_with = "no_oracle")]
    keep_trace: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct MaintenanceArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Keep the table in docs/maintenance.md.
    #[arg(long)]
    write: bool,
}

#[derive(Debug, Args)]
struct JudgeArgs {
    /// The trace.
    file: PathBuf,
}

#[derive(Debug, Args)]
struct DemoArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// No Linux: the bare-metal host asks, and the oracle judges what EL2 executes.
    #[arg(long)]
    bare: bool,
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
struct FuzzMachineArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// What the run is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Calls and accesses of a run.
    #[arg(long, default_value_t = 500)]
    calls: u64,
    /// Runs, each with the next seed.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// Keep the table in docs/benchmark.md.
    #[arg(long)]
    write: bool,
    /// Show where the instructions of one call go: the name of a row (share-hyp, check-64, …).
    #[arg(long, value_name = "ROW", conflicts_with = "write")]
    profile: Option<String>,
    /// Show the payload's functions by size.
    #[arg(long, conflicts_with_all = ["write", "profile"])]
    sizes: bool,
    /// Show the machine's log as it comes.
    #[arg(long, short, action = ArgAction::SetTrue)]
    verbose: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

#[derive(Debug, Args)]
struct FuzzArgs {
    /// Targets [default: all].
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
    /// How many targets run at once.
    #[arg(long, value_name = "M", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
    /// Let AddressSanitizer watch: slower.
    #[arg(long, action = ArgAction::SetTrue)]
    asan: bool,
}

/// Reads a length of time in minutes: more than nothing, at most a week.
fn minutes(text: &str) -> Result<f64, String> {
    const WEEK: f64 = 7.0 * 24.0 * 60.0;
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= WEEK => Ok(minutes),
        Ok(_) | Err(_) => Err(format!("minutes, more than 0 and at most {WEEK}")),
    }
}

#[derive(Debug, Args)]
struct SeedsArgs {
    /// Bugs [default: all].
    names: Vec<String>,
}

#[derive(Debug, Args)]
struct LinuxArgs {
    #[command(flatten)]
    machine: LinuxMachineArgs,
    /// What the machine is to show.
    #[arg(long, value_enum, default_value_t = Scenario::Launch)]
    scenario: Scenario,
}

#[derive(Debug, Args)]
struct LinuxBuiltinArgs {
    #[command(flatten)]
    machine: LinuxMachineArgs,
}

#[derive(Debug, Args)]
struct LinuxOverlayArgs {
    /// The kernel's tree.
    tree: PathBuf,
}

/// Which machine Linux runs on, for how long, and how loud.
#[derive(Debug, Args)]
struct LinuxMachineArgs {
    /// CPU model.
    #[arg(long, value_enum, default_value_t = Cpu::NeoverseN2)]
    cpu: Cpu,
    /// Number of CPUs.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    smp: u8,
    /// Show the machine's log as it comes.
    #[arg(long, short, action = ArgAction::SetTrue)]
    verbose: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

#[derive(Debug, Args)]
struct LinuxBenchArgs {
    /// Keep the table in docs/linux.md.
    #[arg(long)]
    write: bool,
    /// Give up after so many seconds, for each of two machines.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

#[derive(Debug, Args)]
struct LinuxFaultsArgs {
    /// How long the load runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Put the payload's image here.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
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

    fn oracle(&self) -> Oracle {
        match (&self.keep_trace, self.no_oracle) {
            (Some(file), _) => Oracle::Keep(file.clone()),
            (None, true) => Oracle::Off,
            (None, false) => Oracle::On,
        }
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

impl LinuxMachineArgs {
    fn linux(&self, scenario: Scenario, progress: Progress) -> Linux {
        let machine = Machine { cpu: self.cpu, cpus: self.smp, clock: Clock::Free };
        let timeout = Duration::from_secs(self.timeout);
        let (echo, progress) = match self.verbose {
            true => (Echo::Lines, Progress::Plain),
            false => (Echo::Silent, progress),
        };
        Linux { machine, scenario, timeout, echo, progress }
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
            Some(Command::Build(args)) => build(&args, progress),
            Some(Command::Bench(args)) => bench(args),
            Some(Command::TestMachine(args)) => test_machine(args),
            Some(Command::FuzzMachine(args)) => fuzz_machine(&args),
            Some(Command::Maintenance(args)) => maintenance(args),
            Some(Command::Judge(args)) => {
                println!("{}", oracle::judge_file(&args.file, progress)?);
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
                println!("\n{}", linux::faults::count(args.seconds, progress)?);
                Ok(())
            }
            Some(Command::Kmod) => {
                let (_, module) = linux::build_module(progress)?;
                println!("{}", module.display());
                Ok(())
            }
            Some(Command::Trace(args)) => trace::run(args),
            Some(Command::Map(args)) => map::run(&args),
            Some(Command::Image(args)) => Ok(image(&args)?),
            Some(Command::Manifest(command)) => manifest::run(command),
        }
    }
}

fn demo(args: DemoArgs) -> miette::Result<()> {
    let progress = args.machine.progress();
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, keep_log, oracle) = (args.machine.echo(), args.keep_log, args.machine.oracle());
    if !args.bare && matches!(oracle, Oracle::Keep(_)) {
        return Err(miette::miette!("--keep-trace: the oracle does not watch Linux; add --bare"));
    }
    let outcome = match args.bare {
        true => Demo { machine, timeout, echo, progress, oracle }.run()?,
        false => Linux { machine, scenario: Scenario::Demo, timeout, echo, progress }.demo()?,
    };
    if let Some(path) = keep_log {
        outcome.keep_log(&path)?;
    }
    println!("\n{}", outcome.table());
    outcome.check()
}

fn run_linux(args: &LinuxArgs, progress: Progress) -> miette::Result<()> {
    let linux = args.machine.linux(args.scenario, progress);
    println!("{}: {}", linux.machine, linux.run()?);
    Ok(())
}

fn build_linux(args: &LinuxBuiltinArgs, progress: Progress) -> miette::Result<()> {
    let linux = args.machine.linux(Scenario::Builtin, progress);
    println!("{}: {}", linux.machine, linux::builtin::run(&linux)?);
    Ok(())
}

fn bench_linux(args: &LinuxBenchArgs, progress: Progress) -> miette::Result<()> {
    let costs = linux::cost::measure(Duration::from_secs(args.timeout), progress)?;
    if args.write {
        costs.write()?;
    }
    println!("\n{costs}");
    costs.check()
}

fn build(args: &BuildArgs, progress: Progress) -> miette::Result<()> {
    let artifacts = artifacts::build(progress)?;
    if let Some(path) = &args.payload {
        let failed = || format!("cannot write {}", path.display());
        fs::copy(&artifacts.payload, path).into_diagnostic().wrap_err_with(failed)?;
    }
    println!("{}\n{}", artifacts.payload.display(), artifacts.host.display());
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
        println!("\n{}", Profiler { bench, row }.run()?);
        return Ok(());
    }
    if args.sizes {
        println!("\n{}", bench::sizes(&bench)?);
        return Ok(());
    }
    let measured = bench.run()?;
    println!("\n{}", measured.table());
    measured.check()
}

fn test_machine(args: TestArgs) -> miette::Result<()> {
    let progress = args.machine.progress();
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, prefix, oracle) = (args.machine.echo(), args.prefix, args.machine.oracle());
    let tally = Suite { machine, prefix, timeout, echo, progress, oracle }.run()?;
    println!("{machine}: {tally}");
    Ok(())
}

fn fuzz_machine(args: &FuzzMachineArgs) -> miette::Result<()> {
    let (machine, timeout) = (args.machine.machine(), args.machine.timeout());
    let (echo, calls) = (args.machine.echo(), args.calls);
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let (oracle, progress) = (args.machine.oracle(), args.machine.progress());
        let verdict = RandomRun { machine, seed, calls, timeout, echo, progress, oracle }.run()?;
        println!("{machine}, seed {seed}: {verdict}");
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
            println!("{document}");
            Ok(())
        }
    }
}

fn fuzz(args: FuzzArgs) -> miette::Result<()> {
    let (progress, jobs) = (Progress::detect(), usize::from(args.jobs));
    let each = Duration::from_secs_f64(args.minutes * 60.0);
    let sanitizer = if args.asan { Sanitizer::Address } else { Sanitizer::Off };
    let outcome = Campaign { targets: args.targets, each, jobs, sanitizer, progress }.run()?;
    println!("\n{outcome}");
    Ok(outcome.check()?)
}

fn plant(args: SeedsArgs) -> miette::Result<()> {
    let campaign = seeds::Campaign { names: args.names, progress: Progress::detect() };
    let outcome = campaign.run()?;
    println!("\n{outcome}");
    Ok(outcome.check()?)
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
