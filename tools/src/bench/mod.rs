//! The benchmark: what calls cost in instructions, beside Linux pKVM, and where they go.

mod elf;
mod machine;
mod profile;
mod rows;
mod table;
mod trace;

use std::path::PathBuf;
use std::time::Duration;

use miette::{Diagnostic, miette};
use thiserror::Error;

use crate::artifacts::{self, ArtifactError};
use crate::machine::Host;
use crate::progress::Progress;
use crate::qemu::{Echo, Job, RunError};
use crate::uart::Transcript;
use crate::{process, setup, workspace};
use elf::Elf;
use rows::{IMAGE, SPECS, Sample, Samples};
use table::Verdict;

pub use profile::{Profiler, sizes};

/// The document that holds the table.
const DOCUMENT: &str = "docs/benchmark.md";

/// Why there is no benchmark.
#[derive(Debug, Error, Diagnostic)]
pub enum BenchError {
    /// The machine did not run.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] RunError),
    /// A file of the run.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] ArtifactError),
    /// A line of the machine's.
    #[error(transparent)]
    Line(#[from] rows::Malformed),
    /// A linked file does not say what it must.
    #[error("{path}: {cause}")]
    Symbols {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The trace.
    #[error("tracing: {0}")]
    Trace(String),
    /// The document has no place for the table.
    #[error("{DOCUMENT} has no section for the table")]
    Document,
}

/// Whether the document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The table goes to the document.
    Document,
    /// It is only printed.
    Nothing,
}

/// A run of the benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Whether the document is written.
    pub keep: Keep,
    /// When to give up.
    pub timeout: Duration,
    /// Whether to show the UART.
    pub echo: Echo,
    /// How to show progress.
    pub progress: Progress,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured(Samples);

impl Bench {
    /// Returns the benchmark as `cargo bench` runs it.
    pub fn plain() -> Self {
        let timeout = Duration::from_secs(300);
        Self { keep: Keep::Nothing, timeout, echo: Echo::Silent, progress: Progress::detect() }
    }

    fn job<'a>(&self, bootargs: &'a str) -> Job<'a> {
        let (timeout, echo, progress) = (self.timeout, self.echo, self.progress);
        Job {
            machine: machine::base(),
            host: Host::BareMetal,
            bootargs,
            ram: None,
            timeout,
            echo,
            progress,
        }
    }

    /// Sets up, builds, boots and measures.
    ///
    /// # Errors
    /// Set-up, a build, the manifest or QEMU failed, or the run did not go to its end.
    pub fn run(&self) -> miette::Result<Measured> {
        setup::ensure(self.progress)?;
        let artifacts = artifacts::build(self.progress)?;
        let job = self.job("bench");
        let mut command = machine::command(&job, &artifacts)?;
        let mut step = self.progress.step("measure");
        let (log, ending) =
            job.listen(&mut command, |line| step.note(line)).map_err(BenchError::from)?;
        let kept = machine::path("log");
        artifacts::put(&kept, (log.join("\n") + "\n").as_bytes()).map_err(BenchError::from)?;
        let (mut samples, rest) = rows::read(&log).map_err(BenchError::from)?;
        let mut problems: Vec<String> = ending.problem().into_iter().collect();
        problems.extend(complaints(&Transcript::read(&rest)));
        if !problems.is_empty() {
            let (command, tail) = (process::show(&command), process::tail(&log, 40));
            return Err(miette!("{}\nmachine: {command}\n{tail}", problems.join("\n")));
        }
        let bytes = Elf::read(&artifacts::payload_elf())?.read_only_bytes()?;
        let sample = Sample { calls: 1, items: 1, least: bytes, most: bytes };
        samples.insert(IMAGE.to_owned(), sample);
        step.done("");
        let measured = Measured(samples);
        match self.keep {
            Keep::Document => measured.write()?,
            Keep::Nothing => {}
        }
        Ok(measured)
    }
}

/// Returns what a run says went wrong.
fn complaints(transcript: &Transcript) -> Vec<String> {
    let mut problems = transcript.problems.clone();
    for test in &transcript.tests {
        problems.push(format!("{}: {:?}", test.name, test.outcome));
    }
    if transcript.end.is_none() {
        problems.push("the host never printed `@end`: it broke off".to_owned());
    }
    problems
}

impl Measured {
    /// Returns the table.
    pub fn table(&self) -> String {
        table::plain(&self.0)
    }

    /// Passes if every target is met.
    ///
    /// # Errors
    /// Names the rows that miss their target or were not measured.
    pub fn check(&self) -> miette::Result<()> {
        let bad = |spec: &&rows::Spec| match table::verdict(spec, &self.0) {
            Verdict::Met | Verdict::Reported => false,
            Verdict::Missed | Verdict::Absent => true,
        };
        let names: Vec<&str> = SPECS.iter().filter(bad).map(|spec| spec.name).collect();
        match names.as_slice() {
            [] => Ok(()),
            names => Err(miette!(
                help = "see where the instructions go:  cargo run -- bench --profile ROW",
                "{} targets missed: {}",
                names.len(),
                names.join(" ")
            )),
        }
    }

    fn write(&self) -> Result<(), BenchError> {
        let path = workspace::root().join(DOCUMENT);
        let text = std::fs::read_to_string(&path).map_err(artifacts::file("read", &path))?;
        let text = table::insert(&text, &self.0).ok_or(BenchError::Document)?;
        Ok(artifacts::put(&path, text.as_bytes())?)
    }
}
