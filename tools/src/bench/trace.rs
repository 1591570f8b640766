//! Where the instructions of one call go: QEMU's execution log, one line an instruction, between
//! the marked `hvc` and what follows it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::BenchError;

/// Where the payload's image lies in memory: QEMU's place for a kernel with offset 0.
pub const PAYLOAD_BASE: u64 = 0x4020_0000;
/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// Executed instructions of one call, by address.
pub type Counts = HashMap<u64, u64>;

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Address of the marked `hvc`.
    pub call: u64,
    /// Bytes of the payload's text.
    pub text: u64,
}

/// The cheapest call of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Instructions at EL2 by address, relative to the payload's first byte.
    pub counts: Counts,
    /// Calls seen.
    pub calls: u64,
}

impl Profile {
    /// Returns the instructions of the call.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

impl Window {
    /// Makes QEMU log every instruction in the window, on its standard error.
    pub fn trace(&self, command: &mut Command) {
        let call = self.call;
        command.args(["-accel", "tcg,one-insn-per-tb=on", "-d", "exec,nochain", "-dfilter"]);
        // Text, the call and the instruction behind it.
        command.arg(format!("{PAYLOAD_BASE:#x}+{:#x},{call:#x}+{:#x}", self.text, 2 * INSTRUCTION));
    }

    /// Reads a log to its end and keeps the cheapest call.
    fn read(&self, log: impl Read) -> Profile {
        let mut best = Profile::default();
        let mut current: Option<Counts> = None;
        let mut reader = BufReader::with_capacity(1 << 20, log);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
            match pc(&line) {
                Some(pc) if pc == self.call => current = Some(Counts::new()),
                Some(pc) if pc == self.call + INSTRUCTION => {
                    if let Some(counts) = current.take() {
                        best.keep(counts);
                    }
                }
                Some(pc) => {
                    if let Some(counts) = &mut current {
                        *counts.entry(pc.wrapping_sub(PAYLOAD_BASE)).or_default() += 1;
                    }
                }
                None => {}
            }
            line.clear();
        }
        best
    }
}

impl Profile {
    fn keep(&mut self, counts: Counts) {
        self.calls += 1;
        let total: u64 = counts.values().sum();
        if self.calls == 1 || total < self.total() {
            self.counts = counts;
        }
    }
}

/// Returns the program counter of a line `Trace 0: 0x… [cs_base/pc/flags/cflags] symbol`.
fn pc(line: &str) -> Option<u64> {
    let fields = line.strip_prefix("Trace ")?.split_once('[')?.1;
    u64::from_str_radix(fields.split('/').nth(1)?, 16).ok()
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

/// Runs a traced machine to its end. `seen` is called now and then.
///
/// # Errors
/// [`BenchError::Trace`] where QEMU cannot be run, does not end in time, or the marked call was
/// never made.
pub fn run(
    mut command: Command,
    window: Window,
    timeout: Duration,
    mut seen: impl FnMut(),
) -> Result<Profile, BenchError> {
    let failed = |cause: &dyn std::fmt::Display| BenchError::Trace(cause.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Guarded(command.spawn().map_err(|cause| failed(&cause))?);
    let log = child.0.stderr.take().ok_or_else(|| failed(&"no standard error"))?;
    let (sender, profile) = mpsc::channel();
    std::thread::spawn(move || sender.send(window.read(log)));
    let mut left = timeout;
    let profile = loop {
        let step = left.min(crate::process::TICK);
        match profile.recv_timeout(step) {
            Ok(profile) => break profile,
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                return Err(failed(&format_args!("not over after {} s", timeout.as_secs())));
            }
            Err(RecvTimeoutError::Timeout) => seen(),
            Err(RecvTimeoutError::Disconnected) => return Err(failed(&"the log broke off")),
        }
        left = left.saturating_sub(step);
    };
    match profile.calls {
        0 => Err(failed(&"the marked call was never made: no such row?")),
        _ => Ok(profile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { call: 0x4200_0040, text: 0x1000 };

    fn line(pc: u64) -> String {
        format!("Trace 0: 0x7f0000000000 [00000400/{pc:016x}/20112010/ff020001] \n")
    }

    fn read(pcs: &[u64]) -> Profile {
        WINDOW.read(pcs.iter().map(|&pc| line(pc)).collect::<String>().as_bytes())
    }

    #[test]
    fn the_cheapest_call_is_kept_and_what_is_outside_ignored() {
        let (hvc, next, a, b) = (0x4200_0040, 0x4200_0044, 0x4020_0400, 0x4020_0404);
        let profile = read(&[a, hvc, a, b, b, next, a, hvc, a, b, next, hvc, a]);
        assert_eq!(profile, Profile { counts: Counts::from([(0x400, 1), (0x404, 1)]), calls: 2 });
        assert_eq!(profile.total(), 2);
    }

    #[test]
    fn lines_of_other_kinds_are_no_instructions() {
        assert_eq!(pc("Linking TBs 0x7f 0x80"), None);
        assert_eq!(pc("qemu: warning"), None);
        assert_eq!(pc(&line(0x1234)), Some(0x1234));
    }
}
