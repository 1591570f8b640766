//! One record in words: what happened, to which pages and which VM, and why not.

use std::fmt;

use pfnguard_shared::info::{InfoSelector, RegionState};
use pfnguard_shared::request::{HostAlias, RequestFlags};
use pfnguard_shared::trace::{TraceKind, TraceRecord};
use pfnguard_shared::vm::{ContractFlags, PageState};
use pfnguard_shared::{
    GuestFunction, HostFunction, MemType, Mode, NO_PFN, PAGE_SHIFT, Rule, Status, Subject,
};

use super::pages::{Pages, Pfn};
use super::syndrome;
use crate::words;

/// The VM of a record that concerns none.
const NO_VM: u16 = u16::MAX;

/// A record in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The kind, as `--kind` takes it.
    pub kind: String,
    /// The function of a call, or what the event is called.
    pub name: String,
    /// Everything else, in the order to be shown.
    pub facts: Vec<Fact>,
    /// The VM that it concerns.
    pub vm: Option<u16>,
    /// The pages that it concerns, as far as the record says.
    pub pages: Option<Pages>,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
}

/// One value of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub key: &'static str,
    /// The value in words.
    pub value: String,
}

/// Why something was refused. What the ABI has no name for is shown as a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: String,
    /// The rule that refused.
    pub rule: Option<String>,
    /// What the two values are about.
    pub subject: Option<String>,
    /// The page at fault.
    pub pfn: Option<Pfn>,
    /// The two values in words.
    pub meaning: String,
}

/// Values of a record as they are collected.
#[derive(Default)]
struct Facts {
    list: Vec<Fact>,
    vm: Option<u16>,
    pages: Option<Pages>,
}

/// What a record says, but for a refusal.
struct Event {
    name: String,
    facts: Facts,
}

/// `b` and `c` of a record; a refusal's are its requested and granted value, and these are gone.
type Values = Option<(u64, u64)>;

/// Says what a record means.
pub fn describe(record: &TraceRecord) -> Description {
    let Some(kind) = TraceKind::from_raw(record.kind) else {
        return unknown(record);
    };
    let refusal = Refusal::of(record);
    let values = refusal.is_none().then_some((record.b, record.c));
    let Event { name, facts } = event(kind, record, values);
    let vm = facts.vm.or((record.vm != NO_VM).then_some(record.vm));
    Description { kind: kind_word(kind), name, facts: facts.list, vm, pages: facts.pages, refusal }
}

/// Returns a kind as a word of the command line: `host-call`.
pub fn kind_word(kind: TraceKind) -> String {
    let letter = |(index, letter): (usize, char)| {
        let hyphen = (index > 0 && letter.is_ascii_uppercase()).then_some('-');
        hyphen.into_iter().chain([letter.to_ascii_lowercase()])
    };
    kind.name().chars().enumerate().flat_map(letter).collect()
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for Fact { key, value } in &self.facts {
            write!(f, " {key}={value}")?;
        }
        match &self.refusal {
            Some(refusal) => write!(f, " refused: {refusal}"),
            None => Ok(()),
        }
    }
}

impl Refusal {
    fn of(record: &TraceRecord) -> Option<Self> {
        if record.status == Status::Success.raw() {
            return None;
        }
        let status = Status::from_raw(record.status)
            .map_or_else(|| format!("status {}", record.status), |status| status.name().to_owned());
        let named = |raw: u16, name: Option<&'static str>, what| {
            (raw != 0).then(|| name.map_or_else(|| format!("{what} {raw}"), str::to_owned))
        };
        let subject = Subject::from_raw(record.subject);
        Some(Self {
            status,
            rule: named(record.rule, Rule::from_raw(record.rule).map(Rule::name), "rule"),
            subject: named(record.subject, subject.map(Subject::name), "subject"),
            pfn: (record.pfn != NO_PFN).then_some(Pfn(record.pfn)),
            meaning: subject.map_or_else(
                || format!("requested {:#x}, granted {:#x}", record.b, record.c),
                |subject| words::explain(subject, record.b, record.c),
            ),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.status)?;
        for word in [&self.rule, &self.subject].into_iter().flatten() {
            write!(f, " {word}")?;
        }
        if let Some(pfn) = self.pfn {
            write!(f, " pfn={pfn}")?;
        }
        if self.meaning.is_empty() { Ok(()) } else { write!(f, ": {}", self.meaning) }
    }
}

impl Facts {
    fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.list.push(Fact { key, value: value.to_string() });
        self
    }

    fn hex(self, key: &'static str, value: u64) -> Self {
        self.with(key, format_args!("{value:#x}"))
    }

    fn vm(mut self, number: u64) -> Self {
        self.vm = u16::try_from(number).ok().filter(|vm| *vm != NO_VM);
        self.with("vm", number)
    }

    /// The VM that the record itself names, if it does.
    fn vm_of(self, record: &TraceRecord) -> Self {
        if record.vm == NO_VM { self } else { self.vm(record.vm.into()) }
    }

    fn pages(mut self, first: u64, count: u64) -> Self {
        self.pages = Pages::new(Pfn(first), count);
        match self.pages {
            Some(pages) => self.with("pfn", pages).with("pages", count),
            None => self.hex("pfn", first).hex("pages", count),
        }
    }

    /// The first page of a range whose length the record does not have.
    fn page(mut self, pfn: u64) -> Self {
        self.pages = Pages::new(Pfn(pfn), 1);
        self.hex("pfn", pfn)
    }

    /// The first word of a request.
    fn request(self, word: u64) -> Self {
        let [vm0, vm1, mode, mem_type, perms, flags, alias, _] = word.to_le_bytes();
        let named = |name: Option<&'static str>, raw: u8| {
            name.map_or_else(|| format!("{raw:#x}"), str::to_owned)
        };
        let facts = self
            .vm(u16::from_le_bytes([vm0, vm1]).into())
            .with("mode", named(Mode::from_raw(mode).map(Mode::name), mode))
            .with("type", named(MemType::from_raw(mem_type).map(MemType::name), mem_type))
            .with("perms", words::permissions(perms.into()))
            .with("alias", named(HostAlias::from_raw(alias).map(HostAlias::name), alias));
        match flags {
            0 => facts,
            _ => {
                let flags = words::bits(RequestFlags::CONSTANTS, flags.into(), str::to_owned);
                facts.with("flags", flags)
            }
        }
    }
}

fn event(kind: TraceKind, record: &TraceRecord, values: Values) -> Event {
    let facts = Facts::default();
    match kind {
        TraceKind::HostCall => host_call(record.a, values),
        TraceKind::GuestCall => guest_call(record, values),
        TraceKind::Decision => decision(record, values),
        TraceKind::Ownership => ownership(record),
        TraceKind::Region => region(record, values),
        TraceKind::HostAbort => {
            let facts = facts.page(record.a >> PAGE_SHIFT).hex("ipa", record.a);
            exception("abort", facts, record.b, record.c)
        }
        TraceKind::Smc => {
            let facts = facts.hex("id", record.a).with("result", record.b.cast_signed());
            Event { name: syndrome::firmware_call(record.a), facts }
        }
        TraceKind::Trap => exception("trap", facts, record.a, record.b),
    }
}

fn host_call(id: u64, values: Values) -> Event {
    let function = u32::try_from(id).ok().and_then(HostFunction::from_raw);
    let name = function.map_or_else(|| format!("{id:#x}"), |known| known.name().to_owned());
    let facts = match (function, values) {
        (Some(function), Some((x1, x2))) => host_arguments(function, x1, x2),
        (None, Some((x1, x2))) => Facts::default().hex("x1", x1).hex("x2", x2),
        (_, None) => Facts::default(),
    };
    Event { name, facts }
}

/// What `x1` and `x2` are of each call. Where `x2` is the first page of a range, its length is in a
/// register that the record does not have; the record of the change has it.
fn host_arguments(function: HostFunction, x1: u64, x2: u64) -> Facts {
    let facts = Facts::default();
    match function {
        HostFunction::Uid
        | HostFunction::Revision
        | HostFunction::ArgPageClear
        | HostFunction::MigrateCheck => facts,
        HostFunction::Info => facts.with("selector", selector(x1)),
        HostFunction::RegionInfo | HostFunction::PfnmapReset => facts.with("region", x1),
        HostFunction::ArgPageSet => facts.page(x1),
        HostFunction::TraceInfo => facts.with("cpu", x1),
        HostFunction::HostShareHyp | HostFunction::HostUnshareHyp => facts.pages(x1, x2),
        HostFunction::HostShareGuest
        | HostFunction::HostUnshareGuest
        | HostFunction::HostDonateGuest
        | HostFunction::HostReclaimGuest
        | HostFunction::VmPoolAdd => facts.vm(x1).page(x2),
        HostFunction::VmCreate => {
            let flags = words::bits(ContractFlags::CONSTANTS, x1, str::to_owned);
            facts.with("contract", flags).with("vcpus", x2)
        }
        HostFunction::VmEnableMte
        | HostFunction::VmTeardown
        | HostFunction::VmFree
        | HostFunction::MigrateExport => facts.vm(x1),
        HostFunction::VcpuInit
        | HostFunction::VcpuRun
        | HostFunction::VcpuGetReg
        | HostFunction::VcpuSetReg => facts.vm(x1).with("vcpu", x2),
        HostFunction::PfnmapCheck => facts.with("items", x1),
        HostFunction::PfnmapBind => facts.request(x1).page(x2),
        HostFunction::PfnmapMap | HostFunction::PfnmapUnbind | HostFunction::PfnmapProbe => {
            facts.vm(x1).hex("ipa_pfn", x2)
        }
    }
}

fn guest_call(record: &TraceRecord, values: Values) -> Event {
    let function = u32::try_from(record.a).ok().and_then(GuestFunction::from_raw);
    let name = function.map_or_else(|| format!("{:#x}", record.a), |f| f.name().to_owned());
    let facts = Facts::default().vm(record.vm.into());
    let Some((x1, _)) = values else {
        return Event { name, facts };
    };
    let facts = match function {
        Some(GuestFunction::Uid | GuestFunction::Features | GuestFunction::HypMeminfo) => facts,
        Some(GuestFunction::MemShare | GuestFunction::MemUnshare) => facts.hex("ipa", x1),
        Some(GuestFunction::Info) => facts.with("selector", selector(x1)),
        Some(GuestFunction::Query) => facts.hex("ipa_pfn", x1),
        Some(GuestFunction::Yield) | None => facts.hex("x1", x1),
    };
    Event { name, facts }
}

fn decision(record: &TraceRecord, values: Values) -> Event {
    let facts = Facts::default().request(record.a);
    match values {
        Some((pfn, pages)) => Event { name: "grant".to_owned(), facts: facts.pages(pfn, pages) },
        None => Event { name: "request".to_owned(), facts },
    }
}

fn ownership(record: &TraceRecord) -> Event {
    let name = change(record.c, |raw| PageState::from_raw(raw).map(PageState::name));
    let facts = Facts::default().pages(record.a, record.b);
    Event { name, facts: facts.vm_of(record) }
}

fn region(record: &TraceRecord, values: Values) -> Event {
    let state = |raw| RegionState::from_raw(raw).map(RegionState::name);
    let name = match values {
        Some((states, _)) => change(states, state),
        None => "change".to_owned(),
    };
    Event { name, facts: Facts::default().with("index", record.a).vm_of(record) }
}

/// Names a change between two states, old << 8 | new.
fn change(states: u64, name: impl Fn(u8) -> Option<&'static str>) -> String {
    let [new, old, ..] = states.to_le_bytes();
    let word = |raw| name(raw).map_or_else(|| format!("{raw:#x}"), str::to_owned);
    format!("{}->{}", word(old), word(new))
}

/// An exception is called what its syndrome says, or else `name`.
fn exception(name: &str, facts: Facts, esr: u64, elr: u64) -> Event {
    let name = syndrome::exception(esr).unwrap_or_else(|| name.to_owned());
    Event { name, facts: facts.hex("esr", esr).hex("elr", elr) }
}

fn selector(raw: u64) -> String {
    words::number(InfoSelector::CONSTANTS, raw)
}

/// A record whose kind is none: as it is.
fn unknown(record: &TraceRecord) -> Description {
    let facts = Facts::default()
        .with("rule", record.rule)
        .with("status", record.status)
        .with("subject", record.subject)
        .hex("vm", record.vm.into())
        .hex("a", record.a)
        .hex("b", record.b)
        .hex("c", record.c)
        .hex("pfn", record.pfn);
    let (kind, name) = (format!("kind-{}", record.kind), "unknown".to_owned());
    let vm = (record.vm != NO_VM).then_some(record.vm);
    Description { kind, name, facts: facts.list, vm, pages: None, refusal: None }
}

#[cfg(test)]
mod tests;
