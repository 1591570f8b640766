//! The bare-metal host's own tests, run on a machine.

use std::fmt;
use std::time::Duration;

use miette::miette;

use crate::machine::{Host, Machine};
use crate::oracle::{Oracle, Oversight};
use crate::progress::Progress;
use crate::qemu::{Echo, Job, Run};
use crate::uart::Outcome;
use crate::words::counted;
use crate::{artifacts, setup};

/// A run of the tests.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The machine.
    pub machine: Machine,
    /// Runs only tests whose name starts with this; empty for all.
    pub prefix: String,
    /// When to give up.
    pub timeout: Duration,
    /// Whether to show the UART.
    pub echo: Echo,
    /// How to show progress.
    pub progress: Progress,
    /// Whether what is executed is judged.
    pub oracle: Oracle,
}

/// A run in which no test failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed; at least one.
    pub passed: u32,
    /// Tests that do not apply to the machine, each with the reason.
    pub skipped: Vec<String>,
    /// What the oracle saw.
    pub oversight: Oversight,
    /// What a Linux machine's first program repeated of the module's lines.
    pub said: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = counted(self.passed, "test", "tests");
        write!(f, "{passed} passed, {} skipped", self.skipped.len())?;
        let judged = self.oversight.to_string();
        if !judged.is_empty() {
            write!(f, ", {judged}")?;
        }
        self.said.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        self.skipped.iter().try_for_each(|skipped| write!(f, "\n  skipped {skipped}"))
    }
}

impl Suite {
    /// Sets up, builds, and runs the tests.
    ///
    /// # Errors
    /// Set-up, a build, the manifest or QEMU failed; or a test failed, the run broke off or ran no
    /// test: then with the failing tests and the end of the machine's log.
    pub fn run(&self) -> miette::Result<Tally> {
        setup::ensure(self.progress)?;
        let artifacts = artifacts::build(self.progress)?;
        let bootargs = match self.prefix.as_str() {
            "" => "test".to_owned(),
            prefix => format!("test={prefix}"),
        };
        let (machine, timeout) = (self.machine, self.timeout);
        let (echo, progress) = (self.echo, self.progress);
        let host = Host::BareMetal;
        let job = Job { machine, host, bootargs: &bootargs, ram: None, timeout, echo, progress };
        verdict(&job.run_under(&self.oracle, &artifacts)?)
    }
}

/// Returns the tally, if no test failed and at least one passed.
pub(crate) fn verdict(run: &Run) -> miette::Result<Tally> {
    let mut skipped = Vec::new();
    let mut problems = run.problems();
    let tests = &run.transcript.tests;
    for test in tests {
        match &test.outcome {
            Outcome::Passed => {}
            Outcome::Skipped(why) => skipped.push(format!("{}: {why}", test.name)),
            Outcome::Failed(why) => problems.push(format!("{} failed: {why}", test.name)),
            Outcome::Running => problems.push(format!("{} never ended", test.name)),
        }
    }
    let ended = tests.iter().filter(|test| test.outcome == Outcome::Passed).count();
    let counted = run.transcript.end.map_or(0, |end| end.passed);
    if usize::try_from(counted) != Ok(ended) {
        problems.push(format!("`@end` counts {counted} passed tests, {ended} were heard of"));
    }
    if ended == 0 {
        problems.push("no test passed".to_owned());
    }
    if problems.is_empty() {
        let said = said_by_module(&run.log);
        return Ok(Tally { passed: counted, skipped, oversight: run.oversight.clone(), said });
    }
    Err(miette!("{}\n{}", problems.join("\n"), run.tail()))
}

/// Returns the module's lines without the kernel's time.
fn said_by_module(log: &[String]) -> Vec<String> {
    let lines = log.iter().filter_map(|line| Some(line.split_once("] pfnguard: ")?.1));
    lines.map(|text| format!("pfnguard: {}", text.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::qemu::Ending;
    use crate::uart::Transcript;

    fn judged(log: &[&str]) -> Result<Tally, String> {
        let log: Vec<String> = log.iter().map(|&line| line.to_owned()).collect();
        let transcript = Transcript::read(&log);
        let ending = Ending::Exit(std::process::ExitStatus::default());
        let command = String::new();
        let (kept, manifest) = (PathBuf::new(), Vec::new());
        let oversight = Oversight::Off;
        let run = Run { log, kept, transcript, ending, command, manifest, oversight };
        verdict(&run).map_err(|report| report.to_string())
    }

    #[test]
    fn a_run_passes_only_if_each_test_did_and_the_end_was_reached() {
        let begin = "@test begin name=a";
        let end = "@end passed=1 failed=0";
        assert_eq!(
            judged(&[begin, "@test ok name=a", end]),
            Ok(Tally { passed: 1, skipped: vec![], oversight: Oversight::Off, said: vec![] })
        );
        assert!(judged(&[begin, "@test ok name=a"]).unwrap_err().contains("broke off"));
        assert!(judged(&[begin, end]).unwrap_err().contains("a never ended"));
        assert!(judged(&["@end passed=0 failed=0"]).unwrap_err().contains("no test passed"));
    }

    #[test]
    fn a_failing_test_is_named_with_its_reason() {
        let log = ["@test fail name=b why=host-could-read", "@end passed=0 failed=1"];
        assert!(judged(&log).unwrap_err().contains("b failed: host-could-read"));
    }

    #[test]
    fn a_skipped_test_is_listed_and_does_not_count() {
        let skip = "@test skip name=b why=needs-two-CPUs";
        let tally = judged(&["@test ok name=a", skip, "@end passed=1 failed=0"]).unwrap();
        assert_eq!(tally.to_string(), "1 test passed, 1 skipped\n  skipped b: needs-two-CPUs");
        assert!(judged(&[skip, "@end passed=0 failed=0"]).is_err());
    }

    #[test]
    fn a_panic_fails_the_run_whatever_else_was_said() {
        let log = ["@test ok name=a", "[hyp] PANIC at x", "@end passed=1 failed=0"];
        assert!(judged(&log).unwrap_err().contains("panicked"));
    }
}
