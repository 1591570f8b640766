//! Bad texts, one for each constraint. `§` marks the place that the error must name.

use miette::Report;
use pfnguard_tools::manifest::{Constraint, Refusal, compile};

/// Constraints with a test of their own in this file.
pub const TESTED_APART: [Constraint; 1] = [Constraint::NormalNcForbidden];

/// A text that breaks one constraint in one place.
pub struct Case {
    pub constraint: Constraint,
    text: String,
}

const PLATFORM: &str = "[platform]\nname = \"test\"\nnormal_nc = \"allowed\"\n";

/// A region that grants what registers can have; `lines` come on top, or instead of a line that
/// starts with the same word.
fn mmio(lines: &str) -> String {
    region("mmio", "[\"device\"]", "rw", lines)
}

fn memory(lines: &str) -> String {
    let cleaned = if lines.contains("cmo_by_address") { "" } else { "\ncmo_by_address = true" };
    region("memory", "[\"device\", \"cacheable\"]", "rwx", &format!("{lines}{cleaned}"))
}

fn region(class: &str, types: &str, perms: &str, lines: &str) -> String {
    let usual = format!(
        "name = \"r\"\nbase = 0x10000\nsize = \"64K\"\nclass = \"{class}\"\nmodes = [\"share\"]\n\
         types = {types}\nperms = \"{perms}\"\nmax_vms = 1\n"
    );
    let word = |line: &str| line.split(' ').next().unwrap_or_default().replace('§', "");
    let replaced = |line: &&str| lines.lines().all(|new| word(new) != word(line));
    let kept: Vec<&str> = usual.lines().filter(replaced).collect();
    format!("[[region]]\n{}\n{lines}\n", kept.join("\n"))
}

fn inert(name: &str, base: u64) -> String {
    format!("[[region]]\nname = \"{name}\"\nbase = {base:#x}\nsize = 4096\nclass = \"mmio\"\n")
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut case = |constraint, text: String| all.push(Case { constraint, text });
    use Constraint as C;
    let poll = |fields: &str| mmio(&format!("reset = {{ kind = \"poll\", {fields} }}"));
    // Identity and place.
    case(C::Overlap, mmio("") + &inert("s", 0x1f000).replace("0x1f000", "§0x1f000"));
    case(C::Ram, mmio("base = §0x10000") + "[[ram]]\nbase = 0\nsize = 0x10001\n");
    case(C::Name, mmio("name = §\"\""));
    case(C::Name, mmio("name = §\"a name of more than thirty-two by\""));
    case(C::Name, mmio("name = §\"a\\u0000\""));
    case(C::NameUnique, inert("s", 0) + &inert("s", 0x1000).replace("\"s\"", "§\"s\""));
    case(C::BaseAligned, mmio("base = §0x10010"));
    case(C::Size, mmio("size = §0"));
    case(C::Size, mmio("size = §\"6144\""));
    case(C::AddressSpace, mmio("base = 0xffff_ffff_f000\nsize = §\"0xf000_0000_0000_1000\""));
    case(C::AddressSpace, mmio("base = \"0x10000000000000\"\nsize = §4096"));
    case(C::BadValue, mmio("class = §\"ram\""));
    // Grants.
    case(C::NothingGranted, inert("s", 0) + "types = §[\"device\"]\n");
    case(C::NothingGranted, inert("s", 0) + "perms = §\"r\"\n");
    case(C::NothingGranted, inert("s", 0) + "max_vms = §1\n");
    case(C::DevicePresent, memory("types = §[\"cacheable\"]"));
    case(C::ReadFirst, mmio("perms = §\"w\""));
    case(C::ReadFirst, memory("perms = §\"x\""));
    case(C::SomePermission, mmio("perms = §\"\""));
    case(C::ExecCacheable, mmio("perms = §\"rx\""));
    case(C::CacheableMemory, mmio("types = §[\"device\", \"cacheable\"]"));
    case(C::NcSafe, mmio("types = §[\"device\", \"any-uncached\"]"));
    case(C::NcSafe, mmio("types = §[\"device\", \"any-uncached\"]\nnc_safe = false"));
    case(C::Holders, mmio("max_vms = §0"));
    case(C::Holders, mmio("max_vms = §9"));
    case(C::Holders, mmio("max_vms = §300"));
    case(C::DonateOnly, mmio("modes = [\"donate\"]\nmax_vms = §2"));
    case(C::PageBlock, mmio("blocks = §[\"2M\"]"));
    // Properties.
    case(C::TagsMemory, mmio("tags = §true"));
    case(C::AtomicsMemory, mmio("exclusives = §true"));
    case(C::AtomicsMemory, mmio("atomics = §true"));
    case(C::ZeroMemory, mmio("zero_on_return = §true"));
    case(C::CmoMemory, mmio("cmo_by_address = §true"));
    case(C::QuirkReason, mmio("quirk = §\"\""));
    case(C::QuirkReason, mmio("quirk = §\"a reason of more than 32 bytes is cut\""));
    case(
        C::CacheableReturn,
        memory("cmo_by_address = false\ntypes = §[\"cacheable\", \"device\"]"),
    );
    // Reset.
    case(C::ResetWidth, mmio("reset = { kind = \"readback\", register = 0x10000, width = §2 }"));
    case(C::ResetWidth, mmio("reset = { kind = \"readback\", register = 0x10000, width = §257 }"));
    case(C::ResetWidth, mmio("reset = §{ kind = \"readback\", register = 0x10000 }"));
    case(C::ResetAligned, poll("register = §0x10004, width = 8, mask = 1, value = 1, bound = 1"));
    case(C::ResetInside, poll("register = §0x20000, width = 4, mask = 1, value = 1, bound = 1"));
    case(C::ResetInside, memory("reset = { kind = \"readback\", register = §0x10000, width = 4 }"));
    case(C::ResetUnused, mmio("reset = { kind = \"external\", register = §0x10000 }"));
    case(
        C::ResetUnused,
        mmio("reset = { kind = \"readback\", register = 0x10000, width = 4, bound = §1 }"),
    );
    case(C::PollMask, poll("register = 0x10000, width = 4, mask = §0, value = 0, bound = 1"));
    case(
        C::PollMask,
        poll("register = 0x10000, width = 4, mask = §0x1_0000_0000, value = 0, bound = 1"),
    );
    case(C::PollValue, poll("register = 0x10000, width = 4, mask = 1, value = §2, bound = 1"));
    case(C::PollBound, poll("register = 0x10000, width = 4, mask = 1, value = 1, bound = §0"));
    case(
        C::PollBound,
        poll("register = 0x10000, width = 4, mask = 1, value = 1, bound = §1000001"),
    );
    // DMA.
    case(C::StreamCount, mmio("streams = §[1, 2, 3, 4, 5]"));
    case(C::StreamUnique, mmio("streams = §[7, 7]"));
    case(C::ClosedGrants, mmio("closed = §true"));
    // The text itself.
    case(C::Syntax, "base = §= 1\n".to_owned());
    case(C::UnknownField, mmio("§colour = \"red\""));
    case(C::UnknownField, mmio("reset = { kind = \"none\", §delay = 1 }"));
    case(C::UnknownField, "§[regions]\n".replace("§[", "[§") + &mmio(""));
    case(
        C::MissingField,
        mmio("").replace("[[region]]", "§[[region]]").replace("size = \"64K\"\n", ""),
    );
    case(C::MissingField, mmio("reset = §{ register = 0 }"));
    case(C::BadValue, mmio("modes = §\"share\""));
    case(C::BadValue, mmio("modes = [\"share\", §\"lend\"]"));
    case(C::BadValue, mmio("perms = §\"rq\""));
    case(C::BadValue, mmio("base = §-4096"));
    case(C::BadValue, mmio("base = §\"64k\""));
    case(C::BadValue, mmio("base = §1.5"));
    case(C::BadValue, mmio("nc_safe = §\"yes\""));
    case(C::BadValue, mmio("streams = [§0x1_0000_0000]"));
    case(C::BadValue, mmio("") + "[[ram]]\nbase = 0\nsize = §0\n");
    case(C::Repeated, mmio("modes = [\"share\", §\"share\"]"));
    case(C::Repeated, mmio("perms = §\"rr\""));
    all
}

fn place_of_marker(text: &str) -> (usize, usize) {
    let before = &text[..text.find('§').expect("a marker")];
    let line = before.lines().last().filter(|_| !before.ends_with('\n')).unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn refusal(report: &Report) -> &Refusal {
    report.downcast_ref::<Refusal>().unwrap_or_else(|| panic!("{report:?}"))
}

#[test]
fn every_constraint_is_refused_at_its_place_and_alone() {
    for case in cases() {
        let marked = format!("{PLATFORM}{}", case.text);
        let text = marked.replace('§', "");
        let Err(report) = compile("case.toml", &text) else {
            panic!("{} compiled:\n{marked}", case.constraint)
        };
        let refusal = refusal(&report);
        let found: Vec<_> = refusal
            .faults()
            .iter()
            .map(|fault| (fault.constraint, refusal.line_column(fault)))
            .collect();
        let wanted = vec![(case.constraint, place_of_marker(&marked))];
        assert_eq!(found, wanted, "{marked}\n{report:?}");
        let shown = format!("{report:?}");
        let (line, column) = wanted[0].1;
        assert!(shown.contains(case.constraint.rule().name()), "{shown}");
        assert!(shown.contains(&format!("case.toml:{line}:{column}")), "{shown}");
    }
}

#[test]
fn a_platform_without_normal_nc_overrides_every_entry() {
    let text = PLATFORM.replace("allowed", "forbidden")
        + &mmio("types = [\"device\", \"any-uncached\"]\nnc_safe = true");
    let report = compile("case.toml", &text).expect_err("an impossible grant");
    let refusal = refusal(&report);
    let [fault] = refusal.faults() else { panic!("{report:?}") };
    assert_eq!(fault.constraint, Constraint::NormalNcForbidden);
    assert_eq!(refusal.line_column(fault).1, 9);
    assert!(format!("{report:?}").contains("impossible grant"), "{report:?}");
}

#[test]
fn too_many_regions_are_refused() {
    let regions: String = (0..129).map(|n| inert(&format!("r{n}"), n << 12)).collect();
    let report = compile("case.toml", &format!("{PLATFORM}{regions}")).expect_err("129 entries");
    let [fault] = refusal(&report).faults() else { panic!("{report:?}") };
    assert_eq!(fault.constraint, Constraint::EntryCount);
}

#[test]
fn all_errors_of_a_file_are_reported_in_its_order() {
    let text = format!(
        "{PLATFORM}{}{}",
        mmio("perms = \"rx\"\ncolour = 1"),
        memory("name = \"s\"\nbase = 0x10010\nmax_vms = 0")
    );
    let report = compile("case.toml", &text).expect_err("five errors");
    let refusal = refusal(&report);
    let lines: Vec<_> = refusal.faults().iter().map(|f| refusal.line_column(f).0).collect();
    let ids: Vec<_> = refusal.faults().iter().map(|fault| fault.constraint).collect();
    assert!(lines.is_sorted());
    for wanted in [
        Constraint::ExecCacheable,
        Constraint::UnknownField,
        Constraint::BaseAligned,
        Constraint::Overlap,
        Constraint::Holders,
    ] {
        assert!(ids.contains(&wanted), "{ids:?}");
    }
    assert_eq!(ids.len(), 5);
}

#[test]
fn both_sides_of_an_overlap_are_shown() {
    let text = format!("{PLATFORM}{}{}", mmio(""), inert("s", 0x1f000));
    let report = compile("case.toml", &text).expect_err("an overlap");
    let [fault] = refusal(&report).faults() else { panic!("{report:?}") };
    let at: Vec<_> = fault.labels.iter().map(|label| &text[label.span.clone()]).collect();
    assert!(at.contains(&"0x1f000") && at.contains(&"0x10000"), "{at:?}");
}

#[test]
fn a_missing_platform_and_a_missing_statement_are_refused() {
    for text in ["", "[platform]\nname = \"x\"\n", "[platform]\nnormal_nc = \"allowed\"\n"] {
        let report = compile("case.toml", text).expect_err("incomplete");
        let [fault] = refusal(&report).faults() else { panic!("{report:?}") };
        assert_eq!(fault.constraint, Constraint::MissingField);
    }
}

#[test]
fn no_cut_and_no_changed_byte_makes_the_compiler_panic() {
    let text = format!("{PLATFORM}{}", mmio("streams = [1]\nreset = { kind = \"none\" }"));
    for (end, _) in text.char_indices() {
        let _ = compile("cut.toml", &text[..end]);
        for letter in ["\"", "[", "=", "9", "\n", "é"] {
            let changed = format!("{}{letter}{}", &text[..end], &text[end + 1..]);
            let _ = compile("changed.toml", &changed).map_err(|report| format!("{report:?}"));
        }
    }
}
