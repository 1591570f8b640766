//! What each command takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{ArgAction, Args};

use crate::linux::{Linux, Scenario};
use crate::machine::{Clock, Cpu, Machine};
use crate::oracle::Oracle;
use crate::progress::Progress;
use crate::qemu::Echo;

/// Reads a length of time in seconds: more than nothing, at most a week.
fn seconds() -> RangedU64ValueParser {
    const WEEK: u64 = 7 * 24 * 60 * 60;
    RangedU64ValueParser::new().range(1..=WEEK)
}

/// Which machine, for how long, and how loud.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// CPU model.
    #[arg(long, value_enum, default_value_t = Cpu::NeoverseN2)]
    pub cpu: Cpu,
    /// Number of CPUs, 1 to 8 [default: 2, with --icount 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub smp: Option<u8>,
    /// Let executed instructions drive the clock: every run is like the other.
    #[arg(long)]
    pub icount: bool,
    /// Show the machine's log as it comes.
    #[arg(long, short, action = ArgAction::SetTrue)]
    pub verbose: bool,
    /// Give up after so many seconds, at most a week.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = seconds())]
    pub timeout: u64,
    /// Do not judge what EL2 executes under the bare-metal host.
    #[arg(long)]
    pub no_oracle: bool,
    /// Keep the trace of what EL2 executes under the bare-metal host in this file.
    #[arg(long, value_name = "FILE", conflicts_with = "no_oracle")]
    pub keep_trace: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct MaintenanceArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Keep the table in docs/maintenance.md.
    #[arg(long)]
    pub write: bool,
}

#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// The trace.
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// No Linux: the bare-metal host asks, and the oracle judges what EL2 executes.
    #[arg(long)]
    pub bare: bool,
    /// Keep the machine's log in this file.
    #[arg(long, value_name = "FILE")]
    pub keep_log: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct TestArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Run only tests whose name starts with this.
    #[arg(default_value = "")]
    pub prefix: String,
}

#[derive(Debug, Args)]
pub struct FuzzMachineArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// What the run is drawn from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Calls and accesses of a run.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    pub calls: u64,
    /// Runs, each with the next seed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Keep the table in docs/benchmark.md.
    #[arg(long)]
    pub write: bool,
    /// Show where the instructions of one call go: the name of a row (share-hyp, check-64, …).
    #[arg(long, value_name = "ROW", conflicts_with = "write")]
    pub profile: Option<String>,
    /// Show the payload's functions by size.
    #[arg(long, conflicts_with_all = ["write", "profile"])]
    pub sizes: bool,
    /// Show the machine's log as it comes.
    #[arg(long, short, action = ArgAction::SetTrue)]
    pub verbose: bool,
    /// Give up after so many seconds, at most a week.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = seconds())]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Targets [default: all].
    pub targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = minutes)]
    pub minutes: f64,
    /// How many targets run at once.
    #[arg(long, value_name = "M", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub jobs: u8,
    /// Let AddressSanitizer watch: slower.
    #[arg(long, action = ArgAction::SetTrue)]
    pub asan: bool,
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
pub struct SeedsArgs {
    /// Bugs [default: all].
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LinuxArgs {
    #[command(flatten)]
    pub machine: LinuxMachineArgs,
    /// What the machine is to show.
    #[arg(long, value_enum, default_value_t = Scenario::Launch)]
    pub scenario: Scenario,
}

#[derive(Debug, Args)]
pub struct LinuxBuiltinArgs {
    #[command(flatten)]
    pub machine: LinuxMachineArgs,
}

#[derive(Debug, Args)]
pub struct LinuxOverlayArgs {
    /// The kernel's tree.
    pub tree: PathBuf,
}

/// Which machine Linux runs on, for how long, and how loud.
#[derive(Debug, Args)]
pub struct LinuxMachineArgs {
    /// CPU model.
    #[arg(long, value_enum, default_value_t = Cpu::NeoverseN2)]
    pub cpu: Cpu,
    /// Number of CPUs, 2 to 8.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub smp: u8,
    /// Show the machine's log as it comes.
    #[arg(long, short, action = ArgAction::SetTrue)]
    pub verbose: bool,
    /// Give up after so many seconds, at most a week.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = seconds())]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct LinuxBenchArgs {
    /// Keep the table in docs/linux.md.
    #[arg(long)]
    pub write: bool,
    /// Give up after so many seconds, for each of two machines.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = seconds())]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct LinuxFaultsArgs {
    /// How long the load runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = seconds())]
    pub seconds: u64,
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Put the payload's image here.
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct HeaderArgs {
    /// Change nothing; fail if the header is not up to date.
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The ELF file.
    pub elf: PathBuf,
    /// The image to write.
    pub image: PathBuf,
}

impl MachineArgs {
    pub fn machine(&self) -> Machine {
        let (clock, cpus) = if self.icount { (Clock::Icount, 1) } else { (Clock::Free, 2) };
        Machine { cpu: self.cpu, cpus: self.smp.unwrap_or(cpus), clock }
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    pub fn oracle(&self) -> Oracle {
        match (&self.keep_trace, self.no_oracle) {
            (Some(file), _) => Oracle::Keep(file.clone()),
            (None, true) => Oracle::Off,
            (None, false) => Oracle::On,
        }
    }

    pub fn echo(&self) -> Echo {
        if self.verbose { Echo::Lines } else { Echo::Silent }
    }

    /// Returns how to show progress: a spinner would run into the lines of the log.
    pub fn progress(&self) -> Progress {
        match self.echo() {
            Echo::Lines => Progress::Plain,
            Echo::Silent => Progress::detect(),
        }
    }
}

impl LinuxMachineArgs {
    pub fn linux(&self, scenario: Scenario, progress: Progress) -> Linux {
        let machine = Machine { cpu: self.cpu, cpus: self.smp, clock: Clock::Free };
        let timeout = Duration::from_secs(self.timeout);
        let (echo, progress) = match self.verbose {
            true => (Echo::Lines, Progress::Plain),
            false => (Echo::Silent, progress),
        };
        Linux { machine, scenario, timeout, echo, progress }
    }
}
