//! Random runs: the bare-metal host makes random calls and accesses on the whole machine, and the
//! executable specification says what each must have brought. At the end, the page tables in the
//! machine's RAM are compared with the specified state.

mod guest;
pub mod log;
mod ram;
pub mod replay;

use std::fmt;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use miette::{IntoDiagnostic, WrapErr, miette};
use pfnguard_model::Platform;
use pfnguard_model::machine::Machine as Specified;
use pfnguard_model::state::State;
use pfnguard_shared::info::{Capabilities, InfoSelector};
use pfnguard_shared::manifest::{Entry, Header, PlatformFlags};
use pfnguard_shared::{HostFunction, PAGE_SHIFT};
use zerocopy::FromBytes;

use crate::machine::{Clock, Host, Machine, RAM};
use crate::oracle::{Oracle, Oversight};
use crate::progress::Progress;
use crate::qemu::{Echo, Job, Run};
use crate::{artifacts, setup, workspace};

use log::{Registers, Step};
use ram::Ram;
use replay::Tally;

/// A random run.
#[derive(Clone, Debug)]
pub struct RandomRun {
    /// The machine.
    pub machine: Machine,
    /// What the run is drawn from.
    pub seed: u64,
    /// Calls and accesses.
    pub calls: u64,
    /// When to give up.
    pub timeout: Duration,
    /// Whether to show the UART.
    pub echo: Echo,
    /// How to show progress.
    pub progress: Progress,
    /// Whether what is executed is judged.
    pub oracle: Oracle,
}

/// A run that went as specified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was compared on the way.
    pub tally: Tally,
    /// Runs of equal leaves that were read from RAM, or why none were.
    pub leaves: Result<usize, String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.leaves {
            Ok(leaves) => write!(f, "{}, {leaves} runs of leaves in RAM: as specified", self.tally),
            Err(why) => write!(f, "{}: as specified; tables NOT compared: {why}", self.tally),
        }
    }
}

/// A file that goes when it is let go of.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Where it is gone already, it need not go.
        let _ = fs::remove_file(&self.0);
    }
}

impl RandomRun {
    /// Sets up, builds, runs and compares.
    ///
    /// # Errors
    /// Set-up, a build or QEMU failed; or something was not as specified: then with the command
    /// that does it again.
    pub fn run(&self) -> miette::Result<Verdict> {
        setup::ensure(self.progress)?;
        let artifacts = artifacts::build(self.progress)?;
        let file = Temporary(workspace::output_dir().join(format!("ram.{}", workspace::unique())));
        File::create(&file.0).map_err(artifacts::file("create", &file.0))?;
        let (machine, timeout) = (self.machine, self.timeout);
        let bootargs = format!("fuzz={},{}", self.seed, self.calls);
        let (bootargs, ram) = (bootargs.as_str(), Some(file.0.as_path()));
        let (echo, progress) = (self.echo, self.progress);
        let host = Host::BareMetal;
        let job = Job { machine, host, bootargs, ram, timeout, echo, progress };
        let run = job.run_under(&self.oracle, &artifacts)?;
        let ram = Ram::open(&file.0).into_diagnostic().wrap_err("the machine's RAM")?;
        self.judge(&run, &ram).map_err(|problems| {
            miette!("{}\nagain: {}\n{}", problems.join("\n"), self.command(), run.tail())
        })
    }

    /// Returns the command that makes this run; with one CPU and `--icount` it is always the same.
    pub fn command(&self) -> String {
        let Machine { cpu, cpus, clock } = self.machine;
        let (seed, calls) = (self.seed, self.calls);
        let clock = match clock {
            Clock::Icount => " --icount".to_owned(),
            Clock::Free => format!(" (on {cpus} CPUs; `--icount` makes the same run every time)"),
        };
        format!(
            "cargo run -- fuzz-machine --seed {seed} --calls {calls} --cpu {}{clock}",
            cpu.name()
        )
    }

    /// Compares; the first divergence comes first, for what follows it may be its consequence.
    fn judge(&self, run: &Run, ram: &Ram) -> Result<Verdict, Vec<String>> {
        let steps = log::read(&run.transcript.fuzz).map_err(|error| vec![error.to_string()]);
        let outcome = steps.and_then(|steps| {
            let (machine, mut state) = launch(run, &steps)?;
            let diverged = |divergence: replay::Divergence| vec![divergence.to_string()];
            let tally = replay::replay(&machine, &mut state, &steps).map_err(diverged)?;
            Ok((machine, state, tally))
        });
        let mut problems = outcome.as_ref().err().cloned().unwrap_or_default();
        problems.extend(run.problems());
        let (machine, state, tally) = match outcome {
            Ok(outcome) if problems.is_empty() => outcome,
            Ok(_) | Err(_) => return Err(problems),
        };
        let leaves = match &run.oversight {
            Oversight::Judged(judgement) => {
                let translations = &judgement.report.translations;
                let (mut wrong, leaves) = ram::compare(&machine, &state, ram, translations);
                wrong.extend(ram.failure().map(|cause| format!("RAM cannot be read: {cause}")));
                if !wrong.is_empty() {
                    return Err(wrong);
                }
                Ok(leaves)
            }
            Oversight::Skipped(why) | Oversight::Refused(why) => Err(why.clone()),
            Oversight::Off => Err("the oracle is off, which sees where they are".to_owned()),
        };
        Ok(Verdict { tally, leaves })
    }
}

/// The specified machine, from what the hypervisor said of it, and the state at launch.
fn launch(run: &Run, steps: &[Step]) -> Result<(Specified, State), Vec<String>> {
    let missing = |what: &str| vec![format!("{what} is missing in the log")];
    let info = |selector: InfoSelector| answer(steps, HostFunction::Info, selector.raw());
    let platform = info(InfoSelector::Platform).ok_or_else(|| missing("INFO Platform"))?;
    let memory = info(InfoSelector::Memory).ok_or_else(|| missing("INFO Memory"))?;
    let own = run.log.iter().find_map(|line| banner(line)).ok_or_else(|| missing("the banner"))?;
    let (header, entries) =
        manifest(&run.manifest).ok_or_else(|| missing("a readable manifest"))?;
    let [_, capabilities, pa_bits, ipa_bits, vmid_bits, ..] = platform;
    let small = |bits: u64| u32::try_from(bits).unwrap_or(u32::MAX);
    let machine = Specified {
        platform: Platform {
            capabilities: Capabilities::from_raw(capabilities).unwrap_or_default(),
            flags: PlatformFlags::from_raw(header.flags).unwrap_or_default(),
            ram: vec![RAM],
        },
        entries,
        sha256: header.sha256,
        pa_bits: small(pa_bits),
        guest_ipa_bits: small(ipa_bits),
        vmid_bits: small(vmid_bits),
        vmemmap_bytes: memory[2],
        trace_pages: (0..)
            .map_while(|cpu| answer(steps, HostFunction::TraceInfo, cpu))
            .map(|answer| answer[1]..answer[1] + answer[2])
            .collect(),
    };
    let state = machine.launch(&[own]);
    Ok((machine, state))
}

/// Returns the first answer to a call that succeeded.
fn answer(steps: &[Step], function: HostFunction, x1: u64) -> Option<Registers> {
    let [function, success] = [u64::from(function.raw()), 0];
    steps.iter().find_map(|step| match step {
        Step::Call(call) if call.regs[0] == function && call.regs[1] == x1 => {
            call.answer.filter(|answer| answer[0] == success)
        }
        Step::Call(_) | Step::Touch(_) => None,
    })
}

/// Reads the pages of the hypervisor's memory from its log.
fn banner(line: &str) -> Option<std::ops::Range<u64>> {
    let (_, range) = line.split_once("EL2 memory 0x")?;
    let (start, end) = range.trim_end().split_once("..0x")?;
    let page = |address| u64::from_str_radix(address, 16).ok().map(|address| address >> PAGE_SHIFT);
    Some(page(start)?..page(end)?)
}

fn manifest(bytes: &[u8]) -> Option<(Header, Vec<Entry>)> {
    let (header, mut rest) = Header::read_from_prefix(bytes).ok()?;
    let mut entries = Vec::new();
    for _ in 0..header.entries {
        let (entry, tail) = Entry::read_from_prefix(rest).ok()?;
        entries.push(entry);
        rest = tail;
    }
    Some((header, entries))
}
