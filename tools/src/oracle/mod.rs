//! Runs under the oracle: a plugin in QEMU writes down what EL2 executes, and while the machine
//! runs a thread of ours holds it against the architecture.

mod listener;
mod maintenance;
mod plugin;
mod symbols;

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use miette::{Diagnostic, miette};
use pfnguard_oracle::record::{self, BuildId, Record};
use pfnguard_oracle::{Checker, Config, Report, Times};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::artifacts::{self, ArtifactError, Artifacts};
use crate::machine::{Machine, RAM};
use crate::progress::Progress;
use crate::workspace;

pub use listener::Listener;
pub use maintenance::Maintenance;
pub use symbols::Symbols;

/// Where the payload is loaded: QEMU's place for a kernel with offset 0.
pub const PAYLOAD_BASE: u64 = 0x4020_0000;
/// First virtual address of EL2's windows (ARCHITECTURE.md, "Memory").
const WINDOWS: u64 = 0xff80_0000_0000;
/// Broken rules that are shown; the others are counted.
const SHOWN: usize = 3;
/// Bytes of the trace that are read at once.
const CHUNK: usize = 1 << 20;

/// Whether a run is judged by what it executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// It is.
    On,
    /// It is, and the trace is kept in this file.
    Keep(PathBuf),
    /// It is not.
    Off,
}

/// What the oracle says of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oversight {
    /// Nothing: it was switched off.
    Off,
    /// Nothing, because this QEMU cannot load the plugin.
    Skipped(String),
    /// Nothing that counts: the trace is no whole trace of this build.
    Refused(String),
    /// Which rules were broken.
    Judged(Judgement),
}

/// What there is to say beside a verdict; nothing where nothing was asked for.
impl fmt::Display for Oversight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Judged(judgement) => write!(f, "{} steps of EL2 judged", judgement.records),
            Self::Skipped(why) => write!(f, "NOT judged by the oracle: {why}"),
            Self::Off | Self::Refused(_) => Ok(()),
        }
    }
}

/// A judged trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Records in the trace.
    pub records: u64,
    /// Rules that were broken.
    pub count: u64,
    /// The first of them, in words.
    pub violations: Vec<String>,
    /// What calls cost.
    pub report: Report,
}

/// Why the oracle cannot work.
#[derive(Debug, Error, Diagnostic)]
pub enum OracleError {
    /// The plugin was not built.
    #[error("building the plugin for QEMU failed:\n{output}")]
    #[diagnostic(help("the command was:  {command}\n`--no-oracle` runs without it"))]
    Build {
        /// The command.
        command: String,
        /// What cargo said.
        output: String,
    },
    /// The payload's symbols are missing.
    #[error("{path}: {cause}")]
    Symbols {
        /// The ELF file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The socket cannot be opened.
    #[error("cannot take a trace at {path}: {cause}")]
    Socket {
        /// The socket, or the file of a kept trace.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] ArtifactError),
}

/// Whether QEMU can be watched.
#[derive(Debug)]
pub enum Readiness {
    /// It can.
    Ready(Box<Watch>),
    /// It cannot, because of this.
    CannotLoad(String),
}

/// What is needed to watch machines that boot one payload.
#[derive(Clone, Debug)]
pub struct Watch {
    plugin: PathBuf,
    symbols: Symbols,
    build: BuildId,
    /// How often the machine's CPUs need each TLB invalidation.
    tlbi: Times,
}

impl Oversight {
    /// Returns everything that makes a run fail.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Off => Vec::new(),
            Self::Skipped(why) if is_ci() => vec![format!("oracle: {why}")],
            Self::Skipped(_) => Vec::new(),
            Self::Refused(why) => vec![format!("oracle: {why}")],
            Self::Judged(judgement) => judgement.problems(),
        }
    }
}

impl Judgement {
    /// Returns the rules that were broken, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.violations.iter().map(|violation| format!("oracle: {violation}")).collect();
        if self.count > 1 {
            problems.push(format!("oracle: {} rules were broken in all", self.count));
        }
        problems
    }
}

/// Returns whether a run without the oracle is a failure: in CI nobody reads warnings.
fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}

impl Watch {
    /// Builds the plugin and finds out whether QEMU loads it. If not, says so where people look.
    ///
    /// # Errors
    /// [`OracleError::Build`], [`OracleError::Symbols`], [`OracleError::File`].
    pub fn prepare(
        artifacts: &Artifacts,
        machine: &Machine,
        progress: Progress,
    ) -> Result<Readiness, OracleError> {
        let plugin = plugin::build(progress)?;
        if let Err(why) = plugin::probe(&plugin, machine) {
            if !is_ci() {
                eprintln!("warning: the oracle is off, this QEMU cannot load plugins: {why}");
            }
            return Ok(Readiness::CannotLoad(why));
        }
        let symbols = Symbols::read(&artifacts::payload_elf())?;
        let build = build_id(&artifacts.payload)?;
        let tlbi = machine.cpu.tlbi();
        Ok(Readiness::Ready(Box::new(Self { plugin, symbols, build, tlbi })))
    }

    /// Waits for the trace of one machine.
    ///
    /// # Errors
    /// [`OracleError::Socket`].
    pub fn listen(&self, oracle: &Oracle) -> Result<Listener, OracleError> {
        Listener::open(self, oracle)
    }

    /// Judges a trace while it comes.
    fn judge(&self, source: impl std::io::Read) -> Oversight {
        let mut checker = Checker::new(Config { ram: RAM, windows: WINDOWS, tlbi: self.tlbi });
        let source = BufReader::with_capacity(CHUNK, source);
        match record::read(source, self.build, |record| checker.see(record)) {
            Ok(records) => Oversight::Judged(self.judgement(&checker, records)),
            Err(cause) => Oversight::Refused(self.refusal(&checker, &cause)),
        }
    }

    fn judgement(&self, checker: &Checker, records: u64) -> Judgement {
        let (violations, count) = checker.violations();
        let mut violations: Vec<String> = violations
            .iter()
            .map(|violation| {
                let mut text = violation.describe(&|pc| self.symbols.place(pc));
                text += "\n  the CPU's last steps:";
                let recent = violation.history.iter();
                recent.for_each(|record| text += &format!("\n{}", self.line(record)));
                text
            })
            .take(SHOWN)
            .collect();
        violations.dedup();
        Judgement { records, count, violations, report: checker.report().clone() }
    }

    /// A trace that broke off may still say why.
    fn refusal(&self, checker: &Checker, cause: &record::TraceError) -> String {
        let broken = self.judgement(checker, 0).problems();
        [vec![cause.to_string()], broken].concat().join("\n")
    }

    fn line(&self, record: &Record) -> String {
        format!("    {}  {}", symbols::step(record), self.symbols.function(record.pc))
    }
}

/// Returns the SHA-256 of the image.
fn build_id(image: &Path) -> Result<BuildId, ArtifactError> {
    let bytes = fs::read(image).map_err(artifacts::file("read", image))?;
    Ok(BuildId(Sha256::digest(&bytes).into()))
}

/// Returns where the table of maintenance per call is kept.
pub fn document() -> PathBuf {
    workspace::root().join("docs/maintenance.md")
}

/// Judges a kept trace of the payload as it is built now.
///
/// # Errors
/// The build failed, the trace is cut short or of another build, or rules were broken.
pub fn judge_file(path: &Path, progress: Progress) -> miette::Result<String> {
    let file = File::open(path).map_err(artifacts::file("open", path))?;
    let artifacts = artifacts::build(progress)?;
    let symbols = Symbols::read(&artifacts::payload_elf())?;
    let build = build_id(&artifacts.payload)?;
    // The trace does not say which CPUs it is of.
    let watch = Watch { plugin: PathBuf::new(), symbols, build, tlbi: Times::Once };
    let oversight = watch.judge(file);
    let problems = oversight.problems();
    match oversight {
        Oversight::Judged(judgement) if problems.is_empty() => {
            Ok(format!("{} records, no rule broken", judgement.records))
        }
        Oversight::Judged(_) | Oversight::Off | Oversight::Skipped(_) | Oversight::Refused(_) => {
            Err(miette!("{}: {}", path.display(), problems.join("\n")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(count: u64) -> Oversight {
        let violations = vec!["TLB: a".to_owned(); usize::try_from(count).unwrap().min(2)];
        let report = Report::default();
        Oversight::Judged(Judgement { records: 9, count, violations, report })
    }

    #[test]
    fn only_broken_rules_and_refused_traces_are_problems() {
        assert_eq!(Oversight::Off.problems(), [""; 0]);
        assert_eq!(judged(0).problems(), [""; 0]);
        assert_eq!(judged(1).problems(), ["oracle: TLB: a"]);
        assert_eq!(judged(3).problems().last().unwrap(), "oracle: 3 rules were broken in all");
        let refused = Oversight::Refused("the trace is cut short".to_owned());
        assert_eq!(refused.problems(), ["oracle: the trace is cut short"]);
    }
}
