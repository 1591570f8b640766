//! What Linux costs under the hypervisor: the same jobs with nobody, with pfnguard and with KVM's
//! protected hypervisor at EL2, on a machine whose clock counts instructions.

use std::fmt;
use std::fs;
use std::time::Duration;

use miette::miette;

use super::{Linux, LinuxError, Scenario};
use crate::machine::{Cpu, Machine};
use crate::progress::Progress;
use crate::qemu::Echo;
use crate::suite::verdict;
use crate::uart::Cost;
use crate::{artifacts, workspace};

/// A job, what it is, and the most that it may take, in hundredths of what it takes with nobody at EL2.
const JOBS: &[(&str, &str, u64)] = &[
    ("boot", "from the kernel's first tick to a shell, launch included", 105),
    ("forks", "2,500 processes, one after another", 103),
    ("memory", "64 MB through the page cache, hashed", 103),
];
/// Instructions of a hundredth of a second: one a nanosecond.
const TICK: u64 = 10_000_000;
const DOCUMENT: &str = "docs/linux.md";
const BEGIN: &str = "<!-- begin: costs, written by `cargo run -- linux-bench --write` -->\n";
const END: &str = "<!-- end: costs -->";

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Costs(Vec<Cost>);

/// Runs both machines.
///
/// # Errors
/// As [`Linux::run`].
pub fn measure(timeout: Duration, progress: Progress) -> miette::Result<Costs> {
    let (machine, echo) = (Machine::counted(Cpu::NeoverseN2), Echo::Silent);
    let mut costs = Vec::new();
    for scenario in [Scenario::Cost, Scenario::CostKvm] {
        let run = Linux { machine, scenario, timeout, echo, progress }.listen()?;
        verdict(&run)?;
        costs.extend(run.transcript.costs);
    }
    Ok(Costs(costs))
}

impl Costs {
    /// Returns what a job took.
    fn ticks(&self, job: &str, under: &str) -> Option<u64> {
        let found = self.0.iter().find(|cost| cost.job == job && cost.under == under);
        found.map(|cost| cost.ticks)
    }

    /// Returns what a job took in hundredths of what it took with nobody at EL2, rounded up.
    fn share(&self, job: &str, under: &str) -> Option<u64> {
        let nobody = self.ticks(job, "nobody").filter(|&ticks| ticks > 0)?;
        Some((self.ticks(job, under)? * 100).div_ceil(nobody))
    }

    /// Fails where a target is missed.
    ///
    /// # Errors
    /// Names the jobs that cost too much or were not measured.
    pub fn check(&self) -> miette::Result<()> {
        let met = |job: &str, most: u64| self.share(job, "pfnguard").is_some_and(|s| s <= most);
        let missed = JOBS.iter().filter(|(job, _, most)| !met(job, *most));
        let missed: Vec<&str> = missed.map(|(job, ..)| *job).collect();
        match missed[..] {
            [] => Ok(()),
            _ => Err(miette!("targets missed: {}", missed.join(", "))),
        }
    }

    /// Keeps the table in the document.
    ///
    /// # Errors
    /// The document cannot be read or written, or has no place for it.
    pub fn write(&self) -> miette::Result<()> {
        let path = workspace::root().join(DOCUMENT);
        let text = fs::read_to_string(&path);
        let text = text.map_err(artifacts::file("read", &path)).map_err(LinuxError::from)?;
        let text = self.insert(&text).ok_or_else(|| miette!("{DOCUMENT} has no table"))?;
        Ok(artifacts::put(&path, text.as_bytes())?)
    }

    fn insert(&self, document: &str) -> Option<String> {
        let (before, rest) = document.split_once(BEGIN)?;
        let (_, after) = rest.split_once(END)?;
        Some(format!("{before}{BEGIN}{self}{END}{after}"))
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| job | million instructions | with pfnguard | at most | with KVM, protected |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        let share = |share: Option<u64>| match share {
            Some(share) => format!("{}.{:02}", share / 100, share % 100),
            None => "-".to_owned(),
        };
        for &(job, what, most) in JOBS {
            let nobody = self.ticks(job, "nobody").map_or(0, |ticks| ticks * (TICK / 1_000_000));
            let [own, kvm] = ["pfnguard", "kvm"].map(|under| share(self.share(job, under)));
            writeln!(f, "| {what} | {nobody} | {own} | {} | {kvm} |", share(Some(most)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(own: u64) -> Costs {
        let cost = |job: &str, under: &str, ticks| Cost {
            job: job.to_owned(),
            under: under.to_owned(),
            ticks,
        };
        let measured = JOBS.iter().flat_map(|(job, ..)| {
            [cost(job, "nobody", 200), cost(job, "pfnguard", own), cost(job, "kvm", 201)]
        });
        Costs(measured.collect())
    }

    #[test]
    fn a_target_is_met_or_missed_and_never_rounded_away() {
        assert!(costs(206).check().is_ok());
        let missed = costs(207).check().unwrap_err().to_string();
        assert_eq!(missed, "targets missed: forks, memory");
        assert!(Costs(Vec::new()).check().is_err());
    }

    #[test]
    fn the_table_stands_in_its_place() {
        let document = format!("a\n{BEGIN}old\n{END}\nb\n");
        let written = costs(206).insert(&document).unwrap();
        assert!(written.contains("| 2000 | 1.03 | 1.05 | 1.01 |") && !written.contains("old"));
        assert_eq!(costs(206).insert("none"), None);
    }
}
