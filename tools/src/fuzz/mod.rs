//! Fuzzing campaigns: the targets of `fuzz/`, each for so many minutes, with a summary.
//!
//! Inputs that reach something new are kept under the build directory, so that a campaign goes on
//! where the last one ended; the checked-in corpus is where the first one starts.

mod log;
mod ready;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use std::{fmt, fs, thread};

use miette::Diagnostic;
use thiserror::Error;

use crate::progress::Progress;
use crate::setup::SetupError;
use crate::{process, workspace};

pub use log::Stats;

/// What cargo-fuzz builds for, here.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What watches a target beside its own checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitizer {
    /// Nothing: a bad access would have to be outside simulated memory to be seen.
    Off,
    /// AddressSanitizer, without its search for leaks, which reads all of simulated memory.
    Address,
}

/// A campaign.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Targets; empty for all.
    pub targets: Vec<String>,
    /// How long each target runs.
    pub each: Duration,
    /// How many run at once.
    pub jobs: usize,
    /// What watches.
    pub sanitizer: Sanitizer,
    /// How to show that it goes on.
    pub progress: Progress,
}

/// What came of one target.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name.
    pub target: String,
    /// The fuzzer, which also runs one input again.
    pub binary: PathBuf,
    /// What the fuzzer said at the end.
    pub stats: Stats,
    /// How it ended.
    pub end: End,
}

/// How a target's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its time was over.
    Clean,
    /// It found something: the input, if it was written, and the end of the log.
    Found(Option<PathBuf>, String),
}

/// Why there is no campaign, or what it found.
#[derive(Debug, Error, Diagnostic)]
pub enum FuzzError {
    /// Nightly or cargo-fuzz cannot be had.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Setup(#[from] SetupError),
    /// No such target.
    #[error("there is no target `{0}`")]
    #[diagnostic(help("targets: {1}"))]
    Target(String, String),
    /// The targets do not build.
    #[error("the fuzz targets do not build:\n{0}")]
    Build(String),
    /// A folder cannot be made or read.
    #[error("{0}: {1}")]
    Folder(String, std::io::Error),
    /// A target found something.
    #[error("found: {0}")]
    #[diagnostic(help("{1}"))]
    Found(String, String),
}

/// Every run of a campaign.
#[derive(Clone, Debug)]
pub struct Outcome(pub Vec<Run>);

impl Campaign {
    /// Runs it.
    ///
    /// # Errors
    /// [`FuzzError`] where the campaign cannot begin. What it finds is in the outcome.
    pub fn run(&self) -> Result<Outcome, FuzzError> {
        ready::ensure(self.progress)?;
        let targets = self.chosen()?;
        self.build()?;
        let queue = Mutex::new(VecDeque::from(targets));
        let runs = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    while let Some(target) = next(&queue) {
                        let run = self.fuzz(target);
                        runs.lock().expect("a job panicked").push(run);
                    }
                });
            }
        });
        let runs = runs.into_inner().expect("a job panicked");
        runs.into_iter().collect::<Result<Vec<_>, _>>().map(Outcome)
    }

    fn chosen(&self) -> Result<Vec<String>, FuzzError> {
        let known = targets()?;
        if self.targets.is_empty() {
            return Ok(known);
        }
        match self.targets.iter().find(|target| !known.contains(target)) {
            Some(unknown) => Err(FuzzError::Target(unknown.clone(), known.join(", "))),
            None => Ok(self.targets.clone()),
        }
    }

    fn fuzz(&self, target: String) -> Result<Run, FuzzError> {
        let working = folder(&corpora().join(&target))?;
        let artifacts = folder(&workspace::output_dir().join("fuzz-findings").join(&target))?;
        let mut fuzzer = Command::new(self.binary(&target));
        fuzzer.env("ASAN_OPTIONS", "detect_leaks=0");
        fuzzer.arg(&working).arg(root().join("corpus").join(&target));
        // 0 would be without end.
        fuzzer.arg(format!("-max_total_time={}", self.each.as_secs().max(1)));
        fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
        fuzzer.args(["-print_final_stats=1", "-timeout=25"]);
        let mut step = self.progress.step(&format!("fuzz {target}"));
        let mut stats = Stats::default();
        let (clean, lines) = process::watch(&mut fuzzer, |line| {
            if stats.read(line) {
                step.note(&stats.to_string());
            }
        });
        let end =
            if clean { End::Clean } else { End::Found(log::finding(&lines), log::why(&lines)) };
        if clean {
            step.done(&stats.to_string());
        }
        Ok(Run { binary: self.binary(&target), target, stats, end })
    }

    fn build(&self) -> Result<(), FuzzError> {
        let mut step = self.progress.step("build the fuzz targets");
        let mut cargo = Command::new("cargo");
        cargo.args(["+nightly", "fuzz", "build", "--fuzz-dir"]).arg(root());
        cargo.arg("--target-dir").arg(self.sanitizer.build_dir());
        cargo.args(self.sanitizer.arguments()).current_dir(workspace::root());
        cargo.env("RUSTC_WRAPPER", root().join("rustc-instrumented"));
        // Set by the cargo that runs this program; they would choose the wrong toolchain.
        cargo.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        let (built, lines) = process::watch(&mut cargo, |line| step.note(line));
        if !built {
            return Err(FuzzError::Build(process::tail(&lines, 20)));
        }
        step.done("");
        Ok(())
    }

    fn binary(&self, target: &str) -> PathBuf {
        self.sanitizer.build_dir().join(TRIPLE).join("release").join(target)
    }
}

impl Sanitizer {
    /// Returns cargo-fuzz's arguments. Debug assertions, the core library's too, cost two thirds of
    /// the speed: they are there where speed is not the point.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Off => &["--sanitizer", "none", "--release"],
            Self::Address => &["--sanitizer", "address"],
        }
    }

    fn build_dir(self) -> PathBuf {
        workspace::target_dir().join(match self {
            Self::Off => "fuzz",
            Self::Address => "fuzz-asan",
        })
    }
}

impl Outcome {
    /// Returns nothing where no target found anything.
    ///
    /// # Errors
    /// [`FuzzError::Found`] with the first finding and how to see it again.
    pub fn check(&self) -> Result<(), FuzzError> {
        let found = self.0.iter().find_map(|run| match &run.end {
            End::Found(input, why) => Some((run, input, why)),
            End::Clean => None,
        });
        let Some((run, input, why)) = found else { return Ok(()) };
        let again = match input {
            Some(path) => {
                format!("see it again:  {} {}", run.binary.display(), path.display())
            }
            None => "the fuzzer wrote no input".to_owned(),
        };
        Err(FuzzError::Found(format!("{}\n{why}", run.target), again))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["target", "executions", "per second", "edges", "inputs"];
        let [target, count, speed, edges, inputs] = titles;
        writeln!(f, "{target:<16} {count:>12} {speed:>11} {edges:>8} {inputs:>8}  verdict")?;
        for Run { target, stats, end, .. } in &self.0 {
            let verdict = if *end == End::Clean { "clean" } else { "FOUND" };
            let Stats { executions, per_second, edges, inputs } = stats;
            writeln!(
                f,
                "{target:<16} {executions:>12} {per_second:>11} {edges:>8} {inputs:>8}  {verdict}"
            )?;
        }
        Ok(())
    }
}

fn next(queue: &Mutex<VecDeque<String>>) -> Option<String> {
    queue.lock().expect("a job panicked").pop_front()
}

/// Returns the names of all targets, sorted.
///
/// # Errors
/// [`FuzzError::Folder`] where `fuzz/fuzz_targets` cannot be read.
pub fn targets() -> Result<Vec<String>, FuzzError> {
    let path = root().join("fuzz_targets");
    let failed = |cause| FuzzError::Folder(path.display().to_string(), cause);
    let mut names = Vec::new();
    for file in fs::read_dir(&path).map_err(failed)? {
        let file = file.map_err(failed)?.path();
        names.extend(file.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn root() -> PathBuf {
    workspace::root().join("fuzz")
}

fn corpora() -> PathBuf {
    workspace::output_dir().join("fuzz-corpus")
}

fn folder(path: &Path) -> Result<PathBuf, FuzzError> {
    let failed = |cause| FuzzError::Folder(path.display().to_string(), cause);
    fs::create_dir_all(path).map_err(failed)?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus_to_start_from() {
        let names = targets().unwrap();
        assert!(!names.is_empty());
        for name in names {
            let corpus = root().join("corpus").join(&name);
            let inputs = fs::read_dir(&corpus).map(Iterator::count);
            assert!(inputs.is_ok_and(|count| count > 0), "{}", corpus.display());
        }
    }

    #[test]
    fn an_unknown_target_is_refused_with_the_known_ones() {
        let campaign = Campaign {
            targets: vec!["nothing".to_owned()],
            each: Duration::ZERO,
            jobs: 1,
            sanitizer: Sanitizer::Off,
            progress: Progress::Plain,
        };
        let refusal = campaign.chosen().unwrap_err();
        assert!(matches!(&refusal, FuzzError::Target(name, known)
            if name == "nothing" && known.contains("manifest_bytes")));
    }
}
