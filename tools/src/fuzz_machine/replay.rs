//! The log of a random run against the executable specification, step by step.

use std::fmt;

use pfnguard_model::call::{Call as Specified, Outcome, Seen};
use pfnguard_model::machine::Machine;
use pfnguard_model::state::State;
use pfnguard_shared::migration::{MigrationHeader, MigrationItem};
use pfnguard_shared::{HostFunction, Perms, Status};
use zerocopy::FromBytes;

use super::guest;
use super::log::{Call, Kind, Page, Registers, Step, Touch};
use crate::par::{Par, ReportedType};

/// The first step that is not as specified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Number of the step, from 0.
    pub step: usize,
    /// The step.
    pub what: String,
    /// What is specified, and what was found.
    pub why: String,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls.
    pub calls: u64,
    /// Of these, calls that were not refused.
    pub granted: u64,
    /// Entries of guests into their world.
    pub entries: u64,
    /// Accesses of the host.
    pub touches: u64,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}\n{}", self.step, self.what, self.why)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, granted, entries, touches } = self;
        write!(f, "{calls} calls ({granted} granted, {entries} guest entries), {touches} accesses")
    }
}

/// Makes every step in the specification too and compares.
///
/// # Errors
/// The first [`Divergence`].
pub fn replay(machine: &Machine, state: &mut State, steps: &[Step]) -> Result<Tally, Divergence> {
    let mut tally = Tally::default();
    for (number, step) in steps.iter().enumerate() {
        let (what, result) = match step {
            Step::Call(call) => (describe(call), judge(machine, state, call, &mut tally)),
            Step::Touch(touch) => {
                tally.touches += 1;
                (format!("{touch:x?}"), access(machine, state, touch))
            }
        };
        result.map_err(|why| Divergence { step: number, what, why })?;
    }
    Ok(tally)
}

fn access(machine: &Machine, state: &State, touch: &Touch) -> Result<(), String> {
    let needed = match touch.kind {
        Kind::Load => Perms::READ,
        Kind::Store => Perms::WRITE,
        Kind::Fetch => Perms::EXEC,
    };
    let may = state.host_access(machine, touch.page);
    let specified = may.is_some_and(|may| may.perms.contains(needed));
    if specified == touch.went_through {
        return Ok(());
    }
    let frame = state.frames.get(&touch.page);
    Err(format!("specified: {may:?} ({frame:?}), found: went through = {}", touch.went_through))
}

fn judge(
    machine: &Machine,
    state: &mut State,
    call: &Call,
    tally: &mut Tally,
) -> Result<(), String> {
    let Some(answer) = call.answer else {
        return Err("the machine died in this call".to_owned());
    };
    let seen = seen(machine, state, call, answer)?;
    let has_arg_page = state.arg_pages.get(call.cpu).copied().flatten().is_some();
    let arg_page = has_arg_page.then_some(&*call.before);
    let specified = Specified { cpu: call.cpu, regs: call.regs, arg_page, seen: &seen };
    let outcome = state.host_call(machine, &specified);
    tally.calls += 1;
    tally.granted += u64::from(outcome.regs[0] == 0);
    tally.entries += u64::try_from(outcome.entered.len()).unwrap_or(0);
    if outcome.regs != answer {
        return Err(format!("specified: {}\nfound:     {}", facts(&outcome.regs), facts(&answer)));
    }
    compare_pages(call, &outcome)?;
    probed(state, call, answer)?;
    state
        .check_invariants(machine)
        .map_err(|broken| format!("the specification itself: {broken:x?}"))
}

/// The argument page, and pages that came back.
fn compare_pages(call: &Call, outcome: &Outcome) -> Result<(), String> {
    if !outcome.zeroed.is_empty() && call.zero == Some(false) {
        return Err(format!("specified: {:x?} read zero, found: they do not", outcome.zeroed));
    }
    let mut specified = call.before.clone();
    for (offset, bytes) in &outcome.arg_page {
        specified[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    let wrong = specified.iter().zip(call.after.iter()).position(|(one, other)| one != other);
    match wrong {
        None => Ok(()),
        Some(at) => {
            let (one, other) = (part(&specified, at), part(&call.after, at));
            Err(format!("argument page at {at:#x}: specified {one:02x?}, found {other:02x?}"))
        }
    }
}

fn part(page: &Page, at: usize) -> &[u8] {
    let start = at - at % 16;
    &page[start..start + 16]
}

/// PFNMAP_PROBE: what the CPU answers is what is mapped.
fn probed(state: &State, call: &Call, answer: Registers) -> Result<(), String> {
    let is_probe = call.regs[0] == u64::from(HostFunction::PfnmapProbe.raw());
    if !is_probe || answer[0] != 0 {
        return Ok(());
    }
    let [_, vm, ipa, ..] = call.regs;
    let vm = u16::try_from(vm).ok().and_then(|vm| state.vms.get(&vm));
    let leaf = vm.and_then(|vm| vm.pages.get(&ipa));
    let par = Par(answer[1]);
    let expected =
        leaf.map(|leaf| (ipa.wrapping_add(leaf.offset), ReportedType::expected(leaf.mem_type)));
    let found = par.pfn().map(|pfn| (pfn, par.reported()));
    if expected == found {
        return Ok(());
    }
    Err(format!("specified translation: {expected:x?}, found: {found:x?}"))
}

/// What the specification leaves open, as it was found.
fn seen(machine: &Machine, state: &State, call: &Call, answer: Registers) -> Result<Seen, String> {
    let function = u32::try_from(call.regs[0]).ok().and_then(HostFunction::from_raw);
    // The devices of this machine are reset at any time: nobody drives them.
    let resets = machine.entries.iter().filter(|entry| entry.reset_addr != 0);
    let mut seen = Seen {
        answer,
        reads: resets.map(|entry| (entry.reset_addr, Some(entry.reset_value))).collect(),
        ..Seen::default()
    };
    match function {
        Some(HostFunction::VcpuRun) => seen.guest = guest::script(machine, state, call)?,
        Some(HostFunction::MigrateExport) if answer[0] == 0 => {
            seen.exported = exported(&call.after)
        }
        Some(_) | None => {}
    }
    Ok(seen)
}

fn exported(page: &Page) -> Vec<u64> {
    let Ok((header, mut rest)) = MigrationHeader::read_from_prefix(page) else { return Vec::new() };
    let mut items = Vec::new();
    for _ in 0..header.items {
        let Ok((item, tail)) = MigrationItem::read_from_prefix(rest) else { break };
        items.push(item.ipa_pfn);
        rest = tail;
    }
    items
}

fn describe(call: &Call) -> String {
    let function = u32::try_from(call.regs[0]).ok().and_then(HostFunction::from_raw);
    let name = function.map_or("no function".to_owned(), |function| format!("{function:?}"));
    let args = call.regs[1..].iter().map(|arg| format!(" {arg:#x}")).collect::<String>();
    let interrupted = if call.interrupted { ", an interrupt pending" } else { "" };
    format!("CPU {} calls {name}{args}{interrupted}", call.cpu)
}

fn facts(regs: &Registers) -> String {
    let status = Status::from_register(regs[0]).map_or("no status", Status::name);
    let values = regs[1..].iter().map(|value| format!(" {value:#x}")).collect::<String>();
    format!("{status} ({:#x}){values}", regs[0])
}

#[cfg(test)]
mod tests {
    use pfnguard_model::Platform;
    use pfnguard_model::state::Frame;

    use super::*;
    use crate::fuzz_machine::log;
    use crate::machine::RAM;

    fn machine() -> (Machine, State) {
        let platform = Platform { ram: vec![RAM], ..Platform::default() };
        let (own, trace) = (0x4_0200..0x4_0400, 0x4_0300..0x4_0301);
        let machine = Machine {
            platform,
            pa_bits: 40,
            guest_ipa_bits: 39,
            trace_pages: vec![trace],
            ..Machine::default()
        };
        let state = machine.launch(&[own]);
        (machine, state)
    }

    fn replayed(lines: &[&str]) -> Result<(State, Tally), Divergence> {
        let lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        let (machine, mut state) = machine();
        let tally = replay(&machine, &mut state, &log::read(&lines).unwrap())?;
        Ok((state, tally))
    }

    /// Lends two pages to the hypervisor, makes a protected VM, gives it a page that runs the program
    /// and calls MEM_SHARE for itself, and ends.
    const HONEST: &[&str] = &[
        "touch 0 50000 s 1",
        "touch 0 40200 l 0",
        "touch 0 40300 l 1",
        "touch 0 40300 s 0",
        "call 0 - c6000110 50000 2 0 0 0 0 0",
        "done 0 0 0 0 0 0 0 0",
        "call 0 - c6000110 50001 1 0 0 0 0 0",
        "done fffffffffffffffa 80000 50001 1 2 0 0 0",
        "call 0 - c6000120 1 1 50010 4 0 0 0",
        "done 0 0 0 0 0 0 0 0",
        "touch 0 50010 l 0",
        "call 0 - c6000114 0 50020 200 1 0 0 0",
        "done 0 0 0 0 0 0 0 0",
        "touch 0 50020 x 0",
        "call 0 - c6000125 0 0 200000 c6000003 0 0 0",
        "done 0 0 0 0 0 0 0 0",
        "call 0 - c6000128 0 0 1 200000 0 0 0",
        "done 0 0 0 0 0 0 0 0",
        "call 0 - c6000126 0 0 0 0 0 0 0",
        "done 0 4 0 0 0 0 0 0",
        "touch 0 50020 l 1",
        "call 0 - c6000123 0 0 0 0 0 0 0",
        "done 0 0 0 0 0 0 0 0",
        "call 0 - c6000115 0 50020 1 0 0 0 0",
        "zero 1",
        "done 0 0 0 0 0 0 0 0",
    ];

    #[test]
    fn an_honest_log_is_as_specified() {
        let (state, tally) = replayed(HONEST).unwrap();
        assert_eq!(tally, Tally { calls: 9, granted: 8, entries: 2, touches: 7 });
        assert_eq!(state.frames.get(&0x5_0020), Some(&Frame::Host));
    }

    #[test]
    fn a_doctored_log_is_found_wherever_it_is_doctored() {
        for (at, line) in HONEST.iter().enumerate() {
            let mut words: Vec<&str> = line.split(' ').collect();
            let last = words.pop().unwrap_or_default();
            if !matches!(words[0], "done" | "touch" | "zero") {
                continue;
            }
            words.push(if last == "0" { "1" } else { "0" });
            let (doctored, mut lines) = (words.join(" "), HONEST.to_vec());
            lines[at] = &doctored;
            assert!(replayed(&lines).is_err(), "{} instead of {line}", lines[at]);
        }
    }

    #[test]
    fn a_divergence_says_what_is_specified_and_what_was_found() {
        let mut lines = HONEST.to_vec();
        lines[7] = "done 0 0 0 0 0 0 0 0";
        let divergence = replayed(&lines).unwrap_err();
        assert_eq!(divergence.step, 5);
        let text = divergence.to_string();
        assert!(text.contains("CPU 0 calls HostShareHyp 0x50001 0x1"), "{text}");
        assert!(text.contains("specified: WrongState"), "{text}");
        assert!(text.contains("found:     Success"), "{text}");
    }

    #[test]
    fn a_byte_of_the_argument_page_that_nobody_specified_is_found() {
        let set_up = [
            "call 0 - c6000110 50000 1 0 0 0 0 0",
            "done 0 0 0 0 0 0 0 0",
            "call 0 - c6000102 50000 0 0 0 0 0 0",
            "done 0 0 0 0 0 0 0 0",
            "arg 20 1 2 3 4",
            "call 0 - c6000141 0 0 0 0 0 0 0",
        ];
        let refused = "done fffffffffffffffd 20000 ffffffffffffffff 0 1 0 0 0";
        let honest = [&set_up[..], &["back 20 1 2 3 4", refused]].concat();
        let doctored = [&set_up[..], &["back 20 1 2 3 5", refused]].concat();
        assert!(replayed(&honest).is_ok(), "{:?}", replayed(&honest));
        let found = replayed(&doctored).unwrap_err().why;
        assert!(found.contains("argument page at 0x38"), "{found}");
    }

    #[test]
    fn a_call_without_an_answer_is_where_the_machine_died() {
        let lines = ["call 1 - c6000110 50000 2 0 0 0 0 0"];
        assert!(replayed(&lines).unwrap_err().why.contains("died in this call"));
    }
}
