//! The flat profile: instructions of one call by function, and bytes of the payload by function.

use std::collections::HashMap;
use std::fmt::Write;

use super::elf::{Elf, Functions};
use super::rows::SPECS;
use super::trace::{self, Profile, Window};
use super::{Bench, BenchError, machine};
use crate::{artifacts, setup};

/// Most lines of a profile.
const LINES: usize = 40;
/// Symbol of the bare-metal host's marked `hvc`.
const MARK: &str = "bench_marked_instruction";
/// Symbol behind the payload's text.
const TEXT_END: &str = "text_end";

/// A run that is traced.
#[derive(Clone, Debug)]
pub struct Profiler {
    /// How the machine is run.
    pub bench: Bench,
    /// The row whose cheapest call is profiled.
    pub row: String,
}

impl Profiler {
    /// Sets up, builds, boots with a trace, and returns the profile as text.
    ///
    /// # Errors
    /// Set-up, a build, the manifest or QEMU failed, or there is no such row.
    pub fn run(&self) -> miette::Result<String> {
        if !SPECS.iter().any(|spec| spec.name == self.row) {
            let names: Vec<&str> = SPECS.iter().map(|spec| spec.name).collect();
            let cause = format!("no row `{}`; rows are {}", self.row, names.join(" "));
            return Err(BenchError::Trace(cause).into());
        }
        let progress = self.bench.progress;
        setup::ensure(progress)?;
        let artifacts = artifacts::build(progress)?;
        let payload = Elf::read(&artifacts::payload_elf())?;
        let call = Elf::read(&artifacts::host_elf())?.address(MARK)?;
        let window = Window { call, text: payload.address(TEXT_END)? };
        let bootargs = format!("bench={}", self.row);
        let mut command = machine::command(&self.bench.job(&bootargs), &artifacts)?;
        window.trace(&mut command);
        let mut step = progress.step(&format!("trace {}", self.row));
        let profile = trace::run(command, window, self.bench.timeout, || step.note(""))?;
        step.done("");
        Ok(render(&profile, &payload.loader()?))
    }
}

/// Returns the payload's functions by size, as text.
///
/// # Errors
/// A build failed, or the file cannot be read.
pub fn sizes(bench: &Bench) -> miette::Result<String> {
    artifacts::build(bench.progress)?;
    let payload = Elf::read(&artifacts::payload_elf())?;
    let functions = payload.functions()?;
    let total: u64 = functions.iter().map(|(_, bytes)| bytes).sum();
    let mut text = format!("{} bytes of text and read-only data\n", payload.read_only_bytes()?);
    list(&mut text, "bytes by function", functions, total);
    Ok(text)
}

fn render(profile: &Profile, functions: &Functions) -> String {
    let (mut inlined, mut whole) = (HashMap::new(), HashMap::new());
    for (&address, &count) in &profile.counts {
        let (innermost, symbol) = functions.at(address);
        *inlined.entry(innermost).or_insert(0) += count;
        *whole.entry(symbol).or_insert(0) += count;
    }
    let total = profile.total();
    let mut text = format!("{total} instructions at EL2, least of {} calls\n", profile.calls);
    list(&mut text, "by function in the source", inlined.into_iter().collect(), total);
    list(&mut text, "by function in the image", whole.into_iter().collect(), total);
    text
}

/// Appends a table of numbers by name, largest first, with their share of `total`.
fn list(text: &mut String, title: &str, mut entries: Vec<(String, u64)>, total: u64) {
    entries.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let _ = writeln!(text, "\n{title}:");
    for (name, count) in entries.iter().take(LINES) {
        let percent = count * 100 / total.max(1);
        let _ = writeln!(text, "{count:>8} {percent:>3}%  {name}");
    }
    let rest: u64 = entries.iter().skip(LINES).map(|(_, count)| count).sum();
    if rest > 0 {
        let _ = writeln!(text, "{rest:>8} {:>3}%  (others)", rest * 100 / total.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_comes_first_and_the_rest_is_summed_up() {
        let entries = (0..60).map(|number| (format!("f{number:02}"), number)).collect();
        let mut text = String::new();
        list(&mut text, "t", entries, 1770);
        assert!(text.starts_with("\nt:\n      59   3%  f59\n      58   3%  f58\n"));
        assert!(text.ends_with("     190  10%  (others)\n"));
    }
}
