//! Decisions of a machine against those of the specification.

use pfnguard_model::{Platform, Refused, Verdict, decide};
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::{Entry, Header, PlatformFlags};
use pfnguard_shared::request::{MemType, Mode, Perms, Request, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{NO_PFN, PAGE_SHIFT, PAGE_SIZE, Rule, Status};
use zerocopy::FromBytes;

use crate::machine::{Cpu, Host, RAM};
use crate::par::{Par, ReportedType};
use crate::uart::{Bar, Decision, Transcript};
use crate::words;

/// The contract of the VM that the bare-metal host asks for.
const CONTRACT: ContractFlags = ContractFlags::NONE;
/// The abilities of which it is known which CPU has them.
const KNOWN: Capabilities = Capabilities::FWB
    .with(Capabilities::DIC)
    .with(Capabilities::IDC)
    .with(Capabilities::LSE)
    .with(Capabilities::MTE);

/// A decision, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The decision.
    pub decision: Decision,
    /// Each point in which it is not as specified.
    pub differences: Vec<String>,
    /// Why the entry is blocked, where R43 refused.
    pub quirk: Option<String>,
}

/// Judges everything that a machine with this CPU, host and manifest said: its BARs, its abilities,
/// that every combination was asked for, and each decision. Returns the decisions, and all
/// differences.
pub fn judge(
    cpu: Cpu,
    host: Host,
    transcript: &Transcript,
    manifest: &[u8],
) -> (Vec<Judged>, Vec<String>) {
    let mut differences = bars(host, &transcript.bars);
    differences.extend(abilities(cpu, transcript.capabilities));
    differences.extend(coverage(&transcript.bars, &transcript.decisions));
    let Some((platform, entries)) = specification(transcript, manifest) else {
        differences.push("the compiled manifest cannot be read back".to_owned());
        return (Vec::new(), differences);
    };
    let judge = |decision: &Decision| {
        let verdict = decide(&platform, &entries, &request(host, decision), CONTRACT);
        let differences = compare(decision, &verdict);
        Judged { decision: decision.clone(), differences, quirk: quirk(&entries, decision) }
    };
    let judged: Vec<Judged> = transcript.decisions.iter().map(judge).collect();
    for Judged { decision, differences: wrong, .. } in &judged {
        differences.extend(wrong.iter().map(|what| format!("{}: {what}", title(decision))));
    }
    (judged, differences)
}

/// Checks that the BARs are where the machine's description says.
fn bars(host: Host, found: &[Bar]) -> Vec<String> {
    let known = |bar: &Bar| {
        host.bars().iter().any(|b| {
            (b.bdf, b.index, b.base, b.size) == (bar.bdf.as_str(), bar.index, bar.base, bar.size)
        })
    };
    let mut differences: Vec<String> = found
        .iter()
        .filter(|bar| !known(bar))
        .map(|bar| {
            let Bar { bdf, index, base, size, .. } = bar;
            format!("{bdf} BAR{index} is {size:#x} bytes at {base:#x}, which is not the machine's")
        })
        .collect();
    for bar in host.bars() {
        if !found.iter().any(|b| (b.bdf.as_str(), b.index) == (bar.bdf, bar.index)) {
            differences.push(format!("{} BAR{} was not found", bar.bdf, bar.index));
        }
    }
    differences
}

/// Checks that the hypervisor found the abilities that the CPU model has.
fn abilities(cpu: Cpu, found: Option<Capabilities>) -> Option<String> {
    let Some(found) = found else {
        return Some("the platform's abilities (`@caps`) were not reported".to_owned());
    };
    let expected = cpu.abilities()?;
    let (left, right) = (found.raw() & KNOWN.raw(), expected.raw() & KNOWN.raw());
    (left != right)
        .then(|| format!("{} has abilities {right:#x}, the hypervisor found {left:#x}", cpu.name()))
}

/// Checks that every combination was asked for once on every BAR, and nothing else.
fn coverage(bars: &[Bar], decisions: &[Decision]) -> Vec<String> {
    let mut missing = 0;
    let mut differences = Vec::new();
    let mut asked = 0;
    for bar in bars {
        for (mode, mem_type, perms) in combinations() {
            let same = |d: &&Decision| {
                (d.bdf == bar.bdf && d.bar == bar.index)
                    && (d.mode, d.mem_type, d.perms) == (mode, mem_type, perms)
            };
            let count = decisions.iter().filter(same).filter(|d| covers(d, bar)).count();
            asked += count;
            if count == 0 {
                missing += 1;
            } else if count > 1 {
                let request = words::request(mode, mem_type, perms);
                let (bdf, index) = (&bar.bdf, bar.index);
                differences.push(format!("{bdf} BAR{index} {request} was asked {count} times"));
            }
        }
    }
    if missing > 0 {
        differences.push(format!("{missing} combinations were not asked for"));
    }
    if asked != decisions.len() {
        let stray = decisions.len().abs_diff(asked);
        differences.push(format!("{stray} decisions are about none of the BARs"));
    }
    differences
}

fn combinations() -> impl Iterator<Item = (Mode, MemType, Perms)> {
    let perms =
        [Perms::READ, Perms::READ.with(Perms::WRITE), Perms::READ.with(Perms::EXEC)].into_iter();
    let types = move |mode| {
        let perms = perms.clone();
        MemType::ALL.iter().flat_map(move |t| perms.clone().map(move |p| (mode, *t, p)))
    };
    Mode::ALL.iter().flat_map(move |mode| types(*mode))
}

/// Returns whether the request is about the whole BAR, in pages.
fn covers(decision: &Decision, bar: &Bar) -> bool {
    let page = u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX);
    decision.pfn == bar.base / page && decision.pages == bar.size.div_ceil(page)
}

/// Reads back what the machine was given.
fn specification(transcript: &Transcript, manifest: &[u8]) -> Option<(Platform, Vec<Entry>)> {
    let (header, mut rest) = Header::read_from_prefix(manifest).ok()?;
    let mut entries = Vec::new();
    for _ in 0..header.entries {
        let (entry, tail) = Entry::read_from_prefix(rest).ok()?;
        entries.push(entry);
        rest = tail;
    }
    let capabilities = transcript.capabilities.unwrap_or(Capabilities::NONE);
    let flags = PlatformFlags::from_raw(header.flags)?;
    Some((Platform { capabilities, flags, ram: vec![RAM] }, entries))
}

/// Returns why the entry is blocked that a refusal by R43 is about.
fn quirk(entries: &[Entry], decision: &Decision) -> Option<String> {
    let base = decision.pfn.checked_shl(PAGE_SHIFT)?;
    let holds = |entry: &&Entry| base >= entry.base && base - entry.base < entry.size;
    let entry = entries.iter().find(holds).filter(|_| decision.rule == Some(Rule::R43))?;
    Some(String::from_utf8_lossy(&entry.quirk).trim_end_matches('\0').to_owned())
}

fn request(host: Host, decision: &Decision) -> Request {
    let mut request = Request::zeroed();
    request.mode = decision.mode.raw();
    request.mem_type = decision.mem_type.raw();
    request.perms = decision.perms.raw();
    request.flags = RequestFlags::NONE.raw();
    request.alias = host.alias().raw();
    request.pfn = decision.pfn;
    request.pages = decision.pages;
    request
}

fn compare(decision: &Decision, verdict: &Verdict) -> Vec<String> {
    match (decision.status, verdict) {
        (Status::Success, Verdict::Granted(granted)) => grant(decision, granted.mem_type),
        (Status::Success, Verdict::Refused(refused)) => {
            vec![format!("granted, where the specification refuses: {}", facts(refused))]
        }
        (_, Verdict::Granted(_)) => {
            vec![format!("refused ({}), specified: granted", facts(&refusal(decision)))]
        }
        (_, Verdict::Refused(expected)) => {
            let found = refusal(decision);
            let wrong = found != *expected;
            let text = || format!("refused ({}), specified: {}", facts(&found), facts(expected));
            wrong.then(text).into_iter().collect()
        }
    }
}

/// Returns a refused decision in the specification's terms.
fn refusal(decision: &Decision) -> Refused {
    Refused {
        status: decision.status,
        rule: decision.rule,
        subject: decision.subject,
        pfn: decision.bad_pfn.filter(|pfn| *pfn != NO_PFN),
        requested: decision.requested,
        granted: decision.granted,
    }
}

fn facts(refused: &Refused) -> String {
    let Refused { status, rule, subject, pfn, requested, granted } = *refused;
    let rule = rule.map_or("no rule", Rule::name);
    let page = pfn.map_or_else(|| "no page".to_owned(), |pfn| format!("page {pfn:#x}"));
    let values = words::explain(subject, requested, granted);
    format!("{} {rule} {} {page}, {values}", status.name(), subject.name())
}

/// Checks a grant against the CPU's own report.
fn grant(decision: &Decision, mem_type: MemType) -> Vec<String> {
    let Some(par) = decision.par.map(Par) else {
        return vec!["granted, and not probed".to_owned()];
    };
    let (reported, expected) = (par.reported(), ReportedType::expected(mem_type));
    if reported != expected {
        return vec![format!("granted, the CPU reports {reported} instead of {expected}")];
    }
    match par.pfn() {
        Some(pfn) if pfn == decision.pfn => Vec::new(),
        other => vec![format!("granted, and it translates to page {other:x?}")],
    }
}

fn title(decision: &Decision) -> String {
    let request = words::request(decision.mode, decision.mem_type, decision.perms);
    format!("{} BAR{} {}", decision.bdf, decision.bar, request.trim_end())
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::machine::{BARS, Machine};

    const ABLE: Capabilities = Capabilities::LSE.with(Capabilities::IDC).with(Capabilities::FWB);

    /// What a machine prints whose hypervisor refuses everything by default.
    fn denying() -> Transcript {
        let mut transcript = Transcript { capabilities: Some(ABLE), ..Transcript::default() };
        for bar in BARS {
            let line = format!(
                "@bar bdf={} bar={} base={:#x} size={:#x} kind=mem32 prefetch=0",
                bar.bdf, bar.index, bar.base, bar.size
            );
            transcript.take(&line);
            for (mode, mem_type, perms) in combinations() {
                let (pfn, pages) = (bar.base >> 12, bar.size.div_ceil(4096));
                transcript.take(&format!(
                    "@decision bdf={} bar={} pfn={pfn:#x} pages={pages} mode={} type={} perms={} \
                     status=Denied rule=R01 subject=Pages badpfn={pfn:#x} requested={pages} \
                     granted=0 par=-",
                    bar.bdf,
                    bar.index,
                    mode.name(),
                    mem_type.name(),
                    words::letters(perms)
                ));
            }
        }
        assert!(transcript.problems.is_empty(), "{:?}", transcript.problems);
        transcript
    }

    fn differences(transcript: &Transcript) -> Vec<String> {
        let cpu = Machine::parallel(Cpu::CortexA710).cpu;
        judge(cpu, Host::BareMetal, transcript, Header::zeroed().as_bytes()).1
    }

    #[test]
    fn default_deny_under_an_empty_manifest_is_as_specified() {
        assert_eq!(denying().decisions.len(), BARS.len() * 18);
        assert!(differences(&denying()).is_empty());
    }

    #[test]
    fn a_grant_that_the_specification_refuses_is_found() {
        let mut transcript = denying();
        transcript.decisions[3].status = Status::Success;
        let differences = differences(&transcript);
        assert_eq!(differences.len(), 1);
        assert!(differences[0].contains("00:01.0 BAR0 Share  AnyUncached R: granted, where"));
    }

    #[test]
    fn a_refusal_with_another_rule_or_another_fact_is_found() {
        let mut transcript = denying();
        transcript.decisions[0].rule = Some(Rule::R02);
        transcript.decisions[1].granted = 7;
        assert_eq!(differences(&transcript).len(), 2);
    }

    #[test]
    fn a_combination_that_was_not_asked_is_missed() {
        let mut transcript = denying();
        transcript.decisions.pop();
        assert_eq!(differences(&transcript)[0], "1 combinations were not asked for");
    }

    #[test]
    fn a_misplaced_bar_is_found() {
        let mut transcript = denying();
        transcript.bars[2].base = 0x2000_0000;
        assert!(differences(&transcript)[0].contains("which is not the machine's"));
    }

    #[test]
    fn abilities_that_the_cpu_does_not_have_are_found() {
        let mut transcript = denying();
        transcript.capabilities = Some(ABLE.with(Capabilities::DIC));
        assert!(differences(&transcript)[0].contains("has abilities"));
    }

    #[test]
    fn a_blocked_entry_says_why() {
        let mut decision = denying().decisions.remove(0);
        let mut entry = Entry::zeroed();
        (entry.base, entry.size) = (0x1000_0000, 0x1000);
        entry.quirk[..4].copy_from_slice(b"hang");
        assert_eq!(quirk(&[entry], &decision), None);
        decision.rule = Some(Rule::R43);
        assert_eq!(quirk(&[entry], &decision).as_deref(), Some("hang"));
    }

    #[test]
    fn a_grant_must_be_of_the_type_that_the_cpu_reports() {
        let mut decision = denying().decisions.remove(0);
        decision.par = Some(0x0400_0000_1000_0b80);
        assert!(grant(&decision, MemType::Device).is_empty());
        assert_eq!(grant(&decision, MemType::Cacheable).len(), 1);
        decision.par = Some(0x0400_0000_1000_1b80);
        assert!(grant(&decision, MemType::Device)[0].contains("translates to page"));
    }
}
