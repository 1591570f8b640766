//! The main job: every combination of mode, type and permission asked for on every BAR, each
//! decision judged against the specification, each grant against the CPU.

mod judge;
mod table;

use std::path::Path;
use std::time::Duration;

use miette::{Context, IntoDiagnostic, miette};

use crate::machine::{Host, Machine};
use crate::oracle::Oracle;
use crate::progress::Progress;
use crate::qemu::{Echo, Job, Run};
use crate::{artifacts, setup};

pub use judge::{Judged, judge};

/// How the main job is run.
#[derive(Clone, Debug)]
pub struct Demo {
    /// The machine.
    pub machine: Machine,
    /// When to give up.
    pub timeout: Duration,
    /// Whether to show the UART.
    pub echo: Echo,
    /// How to show progress.
    pub progress: Progress,
    /// Whether what is executed is judged.
    pub oracle: Oracle,
}

/// A judged run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run.
    pub run: Run,
    /// Its decisions, each with what the specification says of it.
    pub decisions: Vec<Judged>,
    /// Everything that is not as it must be.
    pub differences: Vec<String>,
}

impl Demo {
    /// Sets up, builds, boots and judges.
    ///
    /// # Errors
    /// Set-up, a build, the manifest or QEMU failed, so that there is nothing to judge.
    pub fn run(&self) -> miette::Result<Outcome> {
        setup::ensure(self.progress)?;
        let artifacts = artifacts::build(self.progress)?;
        let (machine, timeout) = (self.machine, self.timeout);
        let (echo, progress) = (self.echo, self.progress);
        let host = Host::BareMetal;
        let job = Job { machine, host, bootargs: "demo", ram: None, timeout, echo, progress };
        let run = job.run_under(&self.oracle, &artifacts)?;
        Ok(Outcome::of(machine, host, run))
    }
}

impl Outcome {
    /// Judges a run of a host that did the main job.
    pub fn of(machine: Machine, host: Host, run: Run) -> Self {
        let (decisions, mut differences) = judge(machine.cpu, host, &run.transcript, &run.manifest);
        let mut problems = run.problems();
        problems.append(&mut differences);
        Self { run, decisions, differences: problems }
    }

    /// Keeps the machine's log in a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_log(&self, path: &Path) -> miette::Result<()> {
        let log = self.run.log.join("\n") + "\n";
        let problem = || format!("cannot keep the log in {}", path.display());
        std::fs::write(path, log).into_diagnostic().wrap_err_with(problem)
    }

    /// Returns the table of all decisions, and a summary.
    pub fn table(&self) -> String {
        let mut table = table::render(&self.run.transcript, &self.decisions);
        let judged = self.run.oversight.to_string();
        if !judged.is_empty() {
            table.push_str(&format!("\noracle: {judged}"));
        }
        table
    }

    /// Turns differences into an error that names them, with the end of the machine's log.
    ///
    /// # Errors
    /// Anything differs.
    pub fn check(&self) -> miette::Result<()> {
        if self.differences.is_empty() {
            return Ok(());
        }
        let list = self.differences.join("\n  ");
        let count = self.differences.len();
        Err(miette!("{count} things are not as specified:\n  {list}\n{}", self.run.tail()))
    }
}
