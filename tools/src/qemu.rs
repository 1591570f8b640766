//! One run of a machine: started, listened to, ended.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use miette::Diagnostic;
use thiserror::Error;

use crate::artifacts::{self, ArtifactError, Artifacts};
use crate::files::say;
use crate::machine::{Boot, Host, Machine};
use crate::oracle::{Oracle, Oversight, Readiness, Watch};
use crate::process;
use crate::progress::Progress;
use crate::uart::Transcript;
use crate::{manifest, workspace};

/// Lines of the log that a failure shows.
pub const TAIL: usize = 40;
/// Most lines that a run may print; more is a host that has gone round in circles.
const MAX_LINES: usize = 1 << 18;

/// Why a machine did not run.
#[derive(Debug, Error, Diagnostic)]
pub enum RunError {
    /// QEMU could not be started or waited for.
    #[error("cannot run {command}: {cause}")]
    Start {
        /// The command.
        command: String,
        /// Why.
        cause: io::Error,
    },
    /// QEMU wrote no device tree.
    #[error("{command} wrote no device tree:\n{output}")]
    NoDeviceTree {
        /// The command.
        command: String,
        /// What it said.
        output: String,
    },
    /// A file of the run.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] ArtifactError),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The machine powered off.
    Exit(ExitStatus),
    /// It said nothing of the end for as long as it was given, and was stopped.
    TimedOut(Duration),
    /// It printed without end, and was stopped.
    TooMuch,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Every line of the UART, with what QEMU itself said.
    pub log: Vec<String>,
    /// Where the log is kept until the next such run.
    pub kept: PathBuf,
    /// What the log says.
    pub transcript: Transcript,
    /// How it ended.
    pub ending: Ending,
    /// The command that ran.
    pub command: String,
    /// The manifest that the machine was given.
    pub manifest: Vec<u8>,
    /// What the oracle says of what was executed.
    pub oversight: Oversight,
}

/// Whether the UART is shown while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Each line as it comes.
    Lines,
    /// Only a count.
    Silent,
}

/// What a run is to be.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The machine.
    pub machine: Machine,
    /// Who runs at EL1.
    pub host: Host,
    /// What the host is to do.
    pub bootargs: &'a str,
    /// A file that is to be the machine's RAM.
    pub ram: Option<&'a Path>,
    /// When to give up.
    pub timeout: Duration,
    /// Whether to show the UART.
    pub echo: Echo,
    /// How to show progress.
    pub progress: Progress,
}

/// Whether a run is watched, and what the oracle says of one that is not.
enum Watched {
    Yes(Box<Watch>),
    No(Oversight),
}

/// QEMU, stopped when it is let go of.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It has ended already in every run that went well; then there is nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ending {
    /// Returns what went wrong, or `None` if the machine powered off.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Exit(status) if status.success() => None,
            Self::Exit(status) => Some(format!("QEMU ended with {status}")),
            Self::TimedOut(limit) => Some(format!(
                "the machine did not end within {} s and was stopped",
                limit.as_secs()
            )),
            Self::TooMuch => Some(format!("the machine printed more than {MAX_LINES} lines")),
        }
    }
}

impl Run {
    /// Returns everything that is wrong with how the run went, whatever it found out.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.ending.problem().into_iter().collect();
        problems.extend(self.transcript.problems.iter().cloned());
        match self.transcript.end {
            None => problems.push("the host never printed `@end`: it broke off".to_owned()),
            Some(end) if end.failed > 0 => {
                problems.push(format!("the host counts {} failures", end.failed))
            }
            Some(_) => {}
        }
        problems.extend(self.oversight.problems());
        problems
    }

    /// Returns the end of the log.
    pub fn tail(&self) -> String {
        let tail = process::tail(&self.log, TAIL);
        let (kept, command) = (self.kept.display(), &self.command);
        format!("machine: {command}\nlog: {kept}, of which the last {TAIL} lines:\n{tail}")
    }
}

impl Job<'_> {
    /// Builds the manifest for the machine, boots it, and listens until it ends.
    ///
    /// # Errors
    /// A [`RunError`], or the manifest compiler's report: the machine did not start. A machine that
    /// started and went wrong is a [`Run`].
    pub fn run(&self, artifacts: &Artifacts) -> miette::Result<Run> {
        self.run_under(&Oracle::Off, artifacts)
    }

    /// As [`Self::run`], and lets the oracle judge what the machine executes.
    ///
    /// # Errors
    /// As [`Self::run`]; the plugin could not be built. What the oracle says is in the [`Run`].
    pub fn run_under(&self, oracle: &Oracle, artifacts: &Artifacts) -> miette::Result<Run> {
        let manifest = self.manifest()?;
        let path = self.directory().join("manifest.bin");
        artifacts::put(&path, &manifest).map_err(RunError::from)?;
        let boot = Boot {
            payload: &artifacts.payload,
            host: &artifacts.host,
            manifest: &path,
            bootargs: self.bootargs,
            ram: self.ram,
        };
        let mut command = self.machine.boot(&boot);
        let watched = self.watch(oracle, artifacts)?;
        let listener = match &watched {
            Watched::Yes(watch) => Some(watch.listen(oracle)?),
            Watched::No(_) => None,
        };
        if let Some(listener) = &listener {
            command.arg("-plugin").arg(listener.argument());
        }
        let title = format!("run {} on {}", self.bootargs, self.machine);
        let mut step = self.progress.step(&title);
        let (log, ending) = self.listen(&mut command, |line| step.note(line))?;
        let oversight = match (watched, listener) {
            (Watched::Yes(_), Some(listener)) => listener.finish(),
            (Watched::No(oversight), _) => oversight,
            (Watched::Yes(_), None) => Oversight::Off,
        };
        let transcript = Transcript::read(&log);
        let kept = self.directory().join(format!("{}.log", self.bootargs));
        artifacts::put(&kept, (log.join("\n") + "\n").as_bytes()).map_err(RunError::from)?;
        let command = process::show(&command);
        let run = Run { log, kept, transcript, ending, command, manifest, oversight };
        if run.problems().is_empty() {
            step.done("");
        }
        Ok(run)
    }

    fn watch(&self, oracle: &Oracle, artifacts: &Artifacts) -> miette::Result<Watched> {
        match oracle {
            Oracle::Off => Ok(Watched::No(Oversight::Off)),
            Oracle::On | Oracle::Keep(_) => {
                Ok(match Watch::prepare(artifacts, &self.machine, self.progress)? {
                    Readiness::Ready(watch) => Watched::Yes(watch),
                    Readiness::CannotLoad(why) => Watched::No(Oversight::Skipped(why)),
                })
            }
        }
    }

    /// Derives the machine's manifest from its own device tree and the grants text.
    pub(crate) fn manifest(&self) -> miette::Result<Vec<u8>> {
        let dtb = self.device_tree()?;
        let grants_file = self.host.grants();
        let path = workspace::root().join(grants_file);
        let grants = fs::read_to_string(&path)
            .map_err(artifacts::file("read", &path))
            .map_err(RunError::from)?;
        manifest::derive_from_dtb(&dtb, grants_file, &grants)
    }

    /// Returns the machine's own device tree.
    pub(crate) fn device_tree(&self) -> Result<Vec<u8>, RunError> {
        let directory = self.directory();
        fs::create_dir_all(&directory).map_err(artifacts::file("create", &directory))?;
        // A name of its own: somebody else may be dumping the same machine.
        let path = directory.join(format!("machine.{}.dtb", workspace::unique()));
        let mut command = self.machine.dump_dtb(self.host, &path);
        let (dumped, output) = process::watch(&mut command, |_| ());
        let dtb = fs::read(&path);
        let _ = fs::remove_file(&path);
        match dtb {
            Ok(dtb) if dumped => Ok(dtb),
            Ok(_) | Err(_) => Err(RunError::NoDeviceTree {
                command: process::show(&command),
                output: output.join("\n"),
            }),
        }
    }

    fn directory(&self) -> PathBuf {
        workspace::output_dir().join(self.machine.to_string())
    }

    /// Runs `command` and listens until it ends: the log, and how it ended.
    pub(crate) fn listen(
        &self,
        command: &mut Command,
        mut note: impl FnMut(&str),
    ) -> Result<(Vec<String>, Ending), RunError> {
        let shown = process::show(command);
        let failed = |cause| RunError::Start { command: shown.clone(), cause };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Guarded(command.spawn().map_err(failed)?);
        let (sender, lines) = mpsc::channel();
        if let Some(uart) = child.0.stdout.take() {
            process::send_lines(uart, sender.clone());
        }
        if let Some(errors) = child.0.stderr.take() {
            process::send_lines(errors, sender);
        }
        let deadline = Instant::now() + self.timeout;
        let mut log = Vec::new();
        let stopped = collect(&lines, deadline, &mut log, |count, line| {
            match (self.echo, line) {
                // The run goes on when nobody reads any more.
                (Echo::Lines, Some(line)) => drop(say(line)),
                (Echo::Silent, _) | (Echo::Lines, None) => {}
            }
            note(&format!("{count} lines"));
        });
        let ending = match stopped {
            Stopped::Closed => Ending::Exit(child.0.wait().map_err(failed)?),
            Stopped::Deadline => Ending::TimedOut(self.timeout),
            Stopped::Full => Ending::TooMuch,
        };
        Ok((log, ending))
    }
}

/// Why the listening stopped.
enum Stopped {
    Closed,
    Deadline,
    Full,
}

/// Collects lines until the source closes, the time is over or the log is full. `seen` gets the
/// number of lines so far with each line, and now and then without one.
fn collect(
    lines: &Receiver<String>,
    deadline: Instant,
    log: &mut Vec<String>,
    mut seen: impl FnMut(usize, Option<&str>),
) -> Stopped {
    while log.len() < MAX_LINES {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left.min(process::TICK)) {
            Ok(line) => {
                seen(log.len() + 1, Some(&line));
                log.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => return Stopped::Closed,
            Err(RecvTimeoutError::Timeout) if left.is_zero() => return Stopped::Deadline,
            Err(RecvTimeoutError::Timeout) => seen(log.len(), None),
        }
    }
    Stopped::Full
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cpu;

    fn listen(script: &str, timeout: Duration) -> (Vec<String>, Ending) {
        let machine = Machine::parallel(Cpu::CortexA72);
        let (echo, progress) = (Echo::Silent, Progress::Plain);
        let job = Job {
            machine,
            host: Host::BareMetal,
            bootargs: "test",
            ram: None,
            timeout,
            echo,
            progress,
        };
        job.listen(Command::new("sh").args(["-c", script]), |_| ()).unwrap()
    }

    #[test]
    fn a_machine_that_ends_is_heard_to_its_last_line() {
        let (log, ending) = listen("echo a; printf b", Duration::from_secs(60));
        assert_eq!(log, ["a", "b"]);
        assert_eq!(ending.problem(), None);
    }

    #[test]
    fn a_machine_that_hangs_is_stopped() {
        let (log, ending) = listen("echo a; exec tail -f /dev/null", Duration::from_millis(300));
        assert_eq!(log, ["a"]);
        assert!(ending.problem().is_some_and(|problem| problem.contains("did not end")));
    }

    #[test]
    fn a_run_without_an_end_has_a_problem() {
        let (log, ending) = listen("echo '@test begin name=a'", Duration::from_secs(60));
        let transcript = Transcript::read(&log);
        let command = String::new();
        let (kept, manifest) = (PathBuf::new(), Vec::new());
        let oversight = Oversight::Off;
        let run = Run { log, kept, transcript, ending, command, manifest, oversight };
        assert_eq!(run.problems(), ["the host never printed `@end`: it broke off"]);
    }
}
