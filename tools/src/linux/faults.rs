//! How often the host faults in its stage 2, which is filled lazily: counted by QEMU, which says of
//! every exception where it goes.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, WrapErr, miette};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{Linux, Scenario};
use crate::machine::{Clock, Cpu, Machine};
use crate::progress::Progress;
use crate::qemu::Echo;
use crate::suite::verdict;
use crate::workspace;

/// Exception classes of aborts from below EL2 (Arm ARM, `ESR_EL2.EC`), as QEMU writes them.
const ABORTS: [&str; 2] = ["with ESR 0x20/", "with ESR 0x24/"];
/// What belongs to launch and the rest of the boot, from the first fault on.
const BOOT: Duration = Duration::from_secs(10);
/// What the machine takes beside the load.
const MARGIN: Duration = Duration::from_secs(120);

/// Faults, and when they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Since the machine was started.
    times: Vec<Duration>,
    /// When it was off.
    end: Duration,
    /// What the hypervisor said of its memory at the beginning and at the end.
    memory: Vec<String>,
}

/// Runs the load for so many seconds and counts.
///
/// # Errors
/// As [`Linux::run`]; no pipe can be made.
pub fn count(seconds: u64, progress: Progress) -> miette::Result<Faults> {
    let pipe = workspace::output_dir().join(format!("exceptions.{}", workspace::unique()));
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot make the pipe {}", pipe.display()))?;
    let reader = {
        let pipe = pipe.clone();
        thread::spawn(move || read(&pipe))
    };
    let machine = Machine { cpu: Cpu::NeoverseN2, cpus: 4, clock: Clock::Free };
    let (scenario, echo) = (Scenario::Stress, Echo::Silent);
    let timeout = Duration::from_secs(seconds) + MARGIN;
    let run = Linux { machine, scenario, timeout, echo, progress }
        .watched(&pipe, &format!("seconds={seconds}"));
    // A machine that never started leaves the reader without a writer.
    let _ = File::options().read(true).write(true).open(&pipe);
    let _ = std::fs::remove_file(&pipe);
    let counted = reader.join().map_err(|_| miette!("the reader of exceptions panicked"))?;
    let run = run?;
    verdict(&run)?;
    let memory = run.log.iter().filter(|line| line.starts_with("hyp ")).cloned().collect();
    Ok(Faults { memory, ..counted.into_diagnostic()? })
}

/// Reads what QEMU says of exceptions until it ends.
fn read(pipe: &Path) -> std::io::Result<Faults> {
    let mut lines = BufReader::new(File::open(pipe)?).lines();
    let start = Instant::now();
    let (mut faults, mut to_el2) = (Faults::default(), false);
    while let Some(line) = lines.next().transpose()? {
        if line.starts_with("...from EL") {
            to_el2 = line.ends_with("to EL2");
        } else if to_el2 && ABORTS.iter().any(|abort| line.contains(abort)) {
            faults.times.push(start.elapsed());
        }
    }
    faults.end = start.elapsed();
    Ok(faults)
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.times.first().copied().unwrap_or_default();
        let booted = first + BOOT;
        let boot = self.times.iter().take_while(|time| **time < booted).count();
        let half = booted + self.end.saturating_sub(booted) / 2;
        let late = self.times.iter().filter(|time| **time >= half).count();
        let rest = self.times.len() - boot;
        writeln!(f, "stage-2 faults of the host: {}", self.times.len())?;
        writeln!(f, "  in the first {} s after the launch: {boot}", BOOT.as_secs())?;
        writeln!(f, "  in the {} s after that: {rest}", self.end.saturating_sub(booted).as_secs())?;
        writeln!(f, "  in the last {} s of them: {late}", self.end.saturating_sub(half).as_secs())?;
        writeln!(f, "memory of the hypervisor in pages, after the launch and at the end:")?;
        self.memory.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_aborts_that_go_to_el2_are_counted() {
        let path = std::env::temp_dir().join(format!("pfnguard-{}", workspace::unique()));
        let text = "Taking exception 4 [Data Abort] on CPU 0\n...from EL1 to EL2\n\
                    ...with ESR 0x24/0x93c08006\n...from EL0 to EL1\n...with ESR 0x24/0x92000047\n\
                    ...from EL1 to EL2\n...with ESR 0x16/0x5a000000\n";
        File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        let faults = read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(faults.times.len(), 1);
        assert!(faults.to_string().starts_with("stage-2 faults of the host: 1\n"));
    }
}
