//! Which rules calls exercised: the coverage of a test run or a fuzz campaign.
//!
//! A rule is *refused* where an answer names it: that of the call, or of one item of CHECK or
//! MIGRATE_CHECK. A grant passes, and counts for, every rule that applies to it
//! (`Judged::applies`). Rules that are no decision but hold throughout count where a call was one
//! that could have broken them (`Exercised::property`):
//!
//! | rule | granted | refused |
//! |---|---|---|
//! | R05 | AnyUncached where the region also grants Cacheable | the same request, refused |
//! | R09 | another type than Device where Device is granted too | refused for its type alone |
//! | R23 | a guest's QUERY | the same |
//! | R30 | MAP installs what was bound | BIND lacks tables that only a fault would take |
//! | R31 | INFO, REGION_INFO | the same |
//! | R32 | an item of CHECK | the same |
//! | R33 | MIGRATE_EXPORT, an item of MIGRATE_CHECK | the same |
//! | R34 | every call with a record | a refusal that names a rule |
//! | R35 | a range of several pages | one whose offending page is not its first |
//! | R40 | UNBIND, VM_TEARDOWN, HOST_RECLAIM_GUEST | the same |
//! | R44 | HOST_RECLAIM_GUEST from a protected VM | the same |
//! | R51 | INFO `ManifestHash` | never: there is no call that could change it |
//!
//! R50 and R52 are the manifest compiler's and the launch's: no call exercises them.

#![allow(clippy::wildcard_enum_match_arm, reason = "few calls of many have a rule of their own")]

use std::collections::BTreeMap;

use pfnguard_shared::info::{Capabilities, InfoSelector, RegionState};
use pfnguard_shared::manifest::{Entry, ResetKind};
use pfnguard_shared::migration::MigrationItem;
use pfnguard_shared::request::{Decision, HostAlias, MemTypes, Request, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{GuestFunction, HostFunction, MemType, NO_PFN, Perms, Rule, Status, Subject};
use zerocopy::FromBytes;

use crate::args::Args;
use crate::call::{Call, GuestEvent, Outcome};
use crate::machine::Machine;
use crate::state::State;
use crate::{Wish, place};

/// How often each rule was passed, and how often it refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exercised {
    /// Grants by rule.
    pub granted: BTreeMap<Rule, u64>,
    /// Refusals by rule.
    pub refused: BTreeMap<Rule, u64>,
}

/// A call and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Done<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The state before the call.
    pub before: &'a State,
    /// The call.
    pub call: &'a Call<'a>,
    /// What was specified of it.
    pub outcome: &'a Outcome,
}

/// An answer: none, or rule and subject of a refusal.
#[derive(Clone, Copy, Debug)]
struct Verdict(Option<(Option<Rule>, Subject)>);

impl Verdict {
    fn new(status: i32, rule: u16, subject: u16) -> Self {
        let subject = Subject::from_raw(subject).unwrap_or(Subject::None);
        Self((status != Status::Success.raw()).then_some((Rule::from_raw(rule), subject)))
    }

    fn is_granted(self) -> bool {
        self.0.is_none()
    }

    fn names(self, wanted: Subject) -> bool {
        self.0.is_some_and(|(_, subject)| subject == wanted)
    }
}

impl Exercised {
    /// Counts a rule once.
    pub fn count(&mut self, rule: Rule, granted: bool) {
        let counts = if granted { &mut self.granted } else { &mut self.refused };
        *counts.entry(rule).or_default() += 1;
    }

    /// Counts what a call exercised.
    pub fn note(&mut self, done: &Done<'_>) {
        let function = u32::try_from(done.call.regs[0]).ok().and_then(HostFunction::from_raw);
        let Some(function) = function else { return };
        if matches!(function, HostFunction::Uid | HostFunction::Revision) {
            return;
        }
        let verdict = done.verdict();
        self.named(verdict);
        self.property(done, function, verdict);
        for (request, verdict) in done.requests(function) {
            self.request(done, &request, verdict);
        }
        if function == HostFunction::MigrateCheck && verdict.is_granted() {
            self.items(done.outcome);
        }
    }

    /// Counts the rule that an answer names.
    fn named(&mut self, verdict: Verdict) {
        if let Verdict(Some((Some(rule), _))) = verdict {
            self.count(rule, false);
            self.count(Rule::R34, false);
        }
        if verdict.is_granted() {
            self.count(Rule::R34, true);
        }
    }

    /// Counts rules that hold throughout, and those of calls about VMs.
    fn property(&mut self, done: &Done<'_>, function: HostFunction, verdict: Verdict) {
        use HostFunction as F;
        let granted = verdict.is_granted();
        let [_, x1, ..] = done.call.regs;
        match function {
            F::Info => {
                self.count(Rule::R31, granted);
                if x1 == InfoSelector::ManifestHash.raw() {
                    self.count(Rule::R51, true);
                }
            }
            F::RegionInfo => self.count(Rule::R31, granted),
            F::MigrateExport => self.count(Rule::R33, granted),
            F::PfnmapUnbind | F::VmTeardown => self.count(Rule::R40, granted),
            F::HostReclaimGuest => {
                self.count(Rule::R40, granted);
                if done.contract(x1).contains(ContractFlags::PROTECTED) {
                    self.count(Rule::R44, granted);
                }
            }
            F::VmEnableMte if granted => {
                self.count(Rule::R20, true);
                self.count(Rule::R21, true);
            }
            F::PfnmapMap if granted && done.installs() => self.count(Rule::R30, true),
            F::PfnmapBind if verdict.names(Subject::Tables) => self.count(Rule::R30, false),
            F::PfnmapReset if granted => self.count(Rule::R41, true),
            F::VcpuRun => done.queries().for_each(|granted| self.count(Rule::R23, granted)),
            _ => {}
        }
        if let Some((first, pages)) = done.range(function) {
            let page = done.outcome.regs[2];
            if granted && pages > 1 || !granted && page != NO_PFN && page > first {
                self.count(Rule::R35, granted);
            }
        }
    }

    fn request(&mut self, done: &Done<'_>, request: &Request, verdict: Verdict) {
        if done.is_check() {
            self.count(Rule::R32, verdict.is_granted());
            self.named(verdict);
        }
        let Some(judged) = Judged::of(done, request) else { return };
        if verdict.is_granted() {
            let passed = Rule::ALL.iter().filter(|rule| judged.applies(**rule));
            passed.for_each(|rule| self.count(*rule, true));
            return;
        }
        if judged.applies(Rule::R05) {
            self.count(Rule::R05, false);
        }
        let for_its_type = verdict.names(Subject::Types) || verdict.names(Subject::Capabilities);
        if judged.applies(Rule::R09) && for_its_type {
            self.count(Rule::R09, false);
        }
    }

    fn items(&mut self, outcome: &Outcome) {
        // The header first, then the items.
        for (_, bytes) in outcome.arg_page.iter().skip(1) {
            for item in bytes.chunks_exact(size_of::<MigrationItem>()) {
                let item = MigrationItem::read_from_bytes(item).expect("the size of an item");
                let verdict = Verdict::new(item.status, item.rule, item.subject);
                self.named(verdict);
                self.count(Rule::R33, verdict.is_granted());
            }
        }
    }
}

impl Done<'_> {
    fn verdict(&self) -> Verdict {
        let [status, word, ..] = self.outcome.regs;
        if status == Status::Success.to_register() {
            return Verdict(None);
        }
        let [rule0, rule1, subject0, subject1, ..] = word.to_le_bytes();
        let rule = u16::from_le_bytes([rule0, rule1]);
        let subject = u16::from_le_bytes([subject0, subject1]);
        Verdict::new(Status::Denied.raw(), rule, subject)
    }

    fn is_check(&self) -> bool {
        self.call.regs[0] == u64::from(HostFunction::PfnmapCheck.raw())
    }

    fn contract(&self, vm: u64) -> ContractFlags {
        let vm = u16::try_from(vm).ok().and_then(|vm| self.before.vms.get(&vm));
        vm.map_or(ContractFlags::NONE, |vm| vm.contract)
    }

    /// Whether the binding that MAP names waits for its translations.
    fn installs(&self) -> bool {
        let [_, vm, ipa, ..] = self.call.regs;
        let vm = u16::try_from(vm).ok().and_then(|vm| self.before.vms.get(&vm));
        let binding = vm.and_then(|vm| vm.binding_at(ipa));
        binding.is_some_and(|(_, binding)| binding.reserved.is_some())
    }

    /// First page and length of the range that a call is about.
    fn range(&self, function: HostFunction) -> Option<(u64, u64)> {
        use HostFunction as F;
        let [_, x1, x2, x3, x4, ..] = self.call.regs;
        match function {
            F::HostShareHyp | F::HostUnshareHyp => Some((x1, x2)),
            F::HostShareGuest | F::HostUnshareGuest | F::HostDonateGuest | F::PfnmapBind => {
                Some((x2, x4))
            }
            F::HostReclaimGuest | F::VmPoolAdd => Some((x2, x3)),
            F::VmCreate => Some((x3, x4)),
            _ => None,
        }
    }

    /// The requests that a call judges, with its verdicts.
    fn requests(&self, function: HostFunction) -> Vec<(Request, Verdict)> {
        match function {
            HostFunction::PfnmapBind => vec![(Args(&self.call.regs).request(), self.verdict())],
            HostFunction::PfnmapCheck => self.batch(),
            _ => Vec::new(),
        }
    }

    fn batch(&self) -> Vec<(Request, Verdict)> {
        let (Some(page), [(_, decisions)]) = (self.call.arg_page, &*self.outcome.arg_page) else {
            return Vec::new();
        };
        let requests = page.chunks_exact(size_of::<Request>());
        let items = requests.zip(decisions.chunks_exact(size_of::<Decision>()));
        items
            .map(|(request, decision)| {
                let request = Request::read_from_bytes(request).expect("the size of a request");
                let decision = Decision::read_from_bytes(decision).expect("the size of a decision");
                let Decision { status, rule, subject, .. } = decision;
                (request, Verdict::new(status, rule, subject))
            })
            .collect()
    }

    /// Whether each QUERY of the guest was granted.
    fn queries(&self) -> impl Iterator<Item = bool> {
        let query = u64::from(GuestFunction::Query.raw());
        let answers = self.outcome.entered.iter().skip(1);
        let steps = self.call.seen.guest.iter().zip(answers);
        steps.filter_map(move |(step, answer)| {
            let asked = step.event == GuestEvent::Hvc(0) && step.registers.general[0] == query;
            asked.then_some(answer.general[0] == 0)
        })
    }
}

/// A request that lies in one entry.
struct Judged<'a> {
    entry: &'a Entry,
    wish: Wish,
    contract: ContractFlags,
    capabilities: Capabilities,
    is_held: bool,
}

impl<'a> Judged<'a> {
    fn of(done: &Done<'a>, request: &Request) -> Option<Self> {
        let machine = done.machine;
        let wish = Wish::read(request).ok()?;
        let region = place::entry_of(&machine.platform, &machine.entries, &wish).ok()?;
        Some(Self {
            entry: &machine.entries[region],
            wish,
            contract: done.contract(u64::from(request.vm)),
            capabilities: machine.capabilities(),
            is_held: done.before.regions[region].state != RegionState::Free,
        })
    }

    /// Whether granting the request passes a rule.
    fn applies(&self, rule: Rule) -> bool {
        let Self { entry, wish, .. } = self;
        let device = MemTypes::DEVICE.raw();
        let grants = |types: MemTypes| entry.types & types.raw() != 0;
        let cacheable = wish.mem_type == MemType::Cacheable;
        let uncached = wish.mem_type == MemType::AnyUncached;
        let coherent = self.capabilities.contains(Capabilities::FWB.with(Capabilities::DIC));
        let has_reset = entry.reset != ResetKind::None.raw();
        match rule {
            Rule::R01 | Rule::R02 | Rule::R12 | Rule::R13 | Rule::R15 | Rule::R43 => true,
            Rule::R03 => entry.types == device,
            Rule::R04 => uncached,
            Rule::R05 => uncached && grants(MemTypes::CACHEABLE),
            Rule::R06 => cacheable,
            Rule::R07 => cacheable && coherent,
            Rule::R08 => cacheable && !coherent,
            Rule::R09 => wish.mem_type != MemType::Device && grants(MemTypes::DEVICE),
            Rule::R10 => wish.alias != HostAlias::None || self.is_held,
            Rule::R11 => wish.perms.contains(Perms::EXEC),
            Rule::R14 => wish.pages.end - wish.pages.start > 1,
            Rule::R20 => cacheable && self.contract.contains(ContractFlags::MTE),
            Rule::R22 => {
                wish.flags.contains(RequestFlags::GENERAL_PURPOSE)
                    || self.contract.contains(ContractFlags::GENERAL_PURPOSE)
            }
            Rule::R41 => has_reset,
            Rule::R42 => has_reset && entry.reset != ResetKind::External.raw(),
            Rule::R45 => entry.stream_count > 0,
            Rule::R21
            | Rule::R23
            | Rule::R30
            | Rule::R31
            | Rule::R32
            | Rule::R33
            | Rule::R34
            | Rule::R35
            | Rule::R40
            | Rule::R44
            | Rule::R50
            | Rule::R51
            | Rule::R52 => false,
        }
    }
}
