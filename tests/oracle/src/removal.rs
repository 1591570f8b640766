//! Removed translations whose TLB maintenance is not complete.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::insn::{LastLevel, Reach, TlbiKind, Waits, page_operand, range_operand};
use crate::tables::{Kind, Table};
use crate::violation::{Rule, Translation};

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A translation to these frames.
    Leaf(Range<u64>),
    /// Some of the rights to these frames; the translation stays.
    Rights(Range<u64>),
    /// A table in this page.
    Table(u64),
}

impl Kind {
    /// Returns what is lost with a descriptor, if it is valid.
    pub(crate) fn what(self) -> Option<What> {
        match self {
            Self::Invalid => None,
            Self::Leaf(frames) => Some(What::Leaf(frames)),
            Self::Table(page) => Some(What::Table(page)),
        }
    }
}

/// How often an invalidation and its `DSB` are needed. Where completion of a TLBI does not
/// guarantee completion of accesses that used the translation (Arm 1286807, 2441007, 2441009), the
/// work-around is a second one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Times {
    /// Once.
    #[default]
    Once,
    /// Twice.
    Twice,
}

/// How far its maintenance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The invalid descriptor was stored.
    Stored,
    /// The store is visible to all walkers.
    Visible,
    /// Invalidated by address, which may not be complete.
    ByAddress { cpu: u8 },
    /// Nothing cached by address is left; combined entries may be.
    AddressGone,
    /// Invalidated altogether, which may not be complete.
    All { cpu: u8 },
}

/// A removed translation.
#[derive(Clone, Debug)]
pub(crate) struct Removal {
    /// The table that held it.
    pub(crate) table: Table,
    /// What went.
    pub(crate) what: What,
    /// Input pages.
    pub(crate) input: Range<u64>,
    /// The old descriptor.
    pub(crate) bits: u64,
    /// The CPU that removed it.
    pub(crate) cpu: u8,
    /// The instruction that did.
    pub(crate) pc: u64,
    phase: Phase,
    /// How often it was invalidated by address, and altogether, where twice is needed.
    by_address: Times,
    rounds: u32,
    /// Why the last attempt to invalidate it was none.
    flaw: Option<Rule>,
}

/// A TLB invalidation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tlbi {
    pub(crate) cpu: u8,
    pub(crate) kind: TlbiKind,
    pub(crate) reach: Reach,
    pub(crate) operand: u64,
    /// The VMID that it acts on; `None` where that is not settled for lack of an `ISB`.
    pub(crate) vmid: Option<u16>,
}

/// What an invalidation does for a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    ByAddress,
    Stage1,
    All,
}

impl Removal {
    pub(crate) fn new(
        table: Table,
        what: What,
        input: Range<u64>,
        bits: u64,
        cpu: u8,
        pc: u64,
    ) -> Self {
        let (phase, by_address, rounds) = (Phase::Stored, Times::Once, 0);
        Self { table, what, input, bits, cpu, pc, phase, by_address, rounds, flaw: None }
    }

    /// Returns the rule that is broken if the removal has to be complete now.
    pub(crate) fn missing(&self) -> Rule {
        match (self.phase, self.flaw) {
            (_, Some(flaw)) => flaw,
            _ if self.rounds > 0 => Rule::NotRepeated,
            (Phase::Stored | Phase::Visible, None) => Rule::NotInvalidated,
            (Phase::ByAddress { .. } | Phase::AddressGone, None) => Rule::NoStage1,
            (Phase::All { .. }, None) => Rule::NoDsbAfter,
        }
    }

    /// Returns the frames that a CPU may still reach through it.
    pub(crate) fn frames(&self) -> Range<u64> {
        match &self.what {
            What::Leaf(frames) | What::Rights(frames) => frames.clone(),
            What::Table(page) => *page..*page + 1,
        }
    }

    /// Returns what `tlbi` does for it, whatever the VMID, the reach and the moment.
    fn effect(&self, tlbi: &Tlbi) -> Option<Effect> {
        let page = page_operand(tlbi.operand);
        let by_address = |pages: Range<u64>, last: LastLevel| {
            let is_table = matches!(self.what, What::Table(_));
            // A table is cached for each of its pages alone, so one of them is enough.
            let hit = pages.start < self.input.end && self.input.start < pages.end;
            hit && !(is_table && last == LastLevel::Only)
        };
        let (start, end) = range_operand(tlbi.operand);
        match (self.table.translation, tlbi.kind) {
            (Translation::Stage2 { .. }, TlbiKind::Ipa(last)) => {
                by_address(page..page + 1, last).then_some(Effect::ByAddress)
            }
            (Translation::Stage2 { .. }, TlbiKind::IpaRange(last)) => {
                by_address(start..end, last).then_some(Effect::ByAddress)
            }
            (Translation::Stage2 { .. }, TlbiKind::Stage1) => Some(Effect::Stage1),
            (Translation::Stage2 { .. }, TlbiKind::BothStages | TlbiKind::AllEl1)
            | (Translation::El2, TlbiKind::AllEl2) => Some(Effect::All),
            (Translation::El2, TlbiKind::El2Va(last)) => {
                by_address(page..page + 1, last).then_some(Effect::All)
            }
            (Translation::El2, TlbiKind::El2VaRange(last)) => {
                by_address(start..end, last).then_some(Effect::All)
            }
            (Translation::Stage2 { .. } | Translation::El2, _) => None,
        }
    }

    /// Returns why `tlbi` does not reach it on all CPUs.
    fn unreached(&self, tlbi: &Tlbi) -> Option<Rule> {
        let of_a_vmid = tlbi.kind != TlbiKind::AllEl1;
        match (self.table.translation, tlbi.vmid) {
            (Translation::Stage2 { .. }, None) if of_a_vmid => return Some(Rule::NoIsbBefore),
            (Translation::Stage2 { vmid }, Some(found)) if of_a_vmid && found != vmid => {
                return Some(Rule::WrongVmid);
            }
            (Translation::Stage2 { .. } | Translation::El2, _) => {}
        }
        (tlbi.reach == Reach::Local).then_some(Rule::NotBroadcast)
    }

    fn invalidate(&mut self, tlbi: &Tlbi, times: Times) {
        let Some(effect) = self.effect(tlbi) else { return };
        let cpu = tlbi.cpu;
        if let Some(flaw) = self.unreached(tlbi) {
            // Another CPU's business with its own VMID says nothing about this removal.
            if cpu == self.cpu {
                self.flaw = Some(flaw);
            }
            return;
        }
        let flaw = match (self.phase, effect) {
            (Phase::Stored, Effect::ByAddress | Effect::All) => Some(Rule::NoDsbBefore),
            (Phase::Visible, Effect::ByAddress) => {
                self.phase = Phase::ByAddress { cpu };
                None
            }
            (Phase::ByAddress { .. }, Effect::Stage1) => Some(Rule::NoDsbBetween),
            (Phase::AddressGone, Effect::Stage1)
            | (Phase::Visible | Phase::ByAddress { .. } | Phase::AddressGone, Effect::All) => {
                self.phase = Phase::All { cpu };
                None
            }
            (Phase::AddressGone, Effect::ByAddress) if times == Times::Twice => {
                self.by_address = Times::Twice;
                self.phase = Phase::ByAddress { cpu };
                None
            }
            // Of stage 1 before stage 2, or once more than needed.
            (Phase::Stored | Phase::Visible, Effect::Stage1)
            | (Phase::ByAddress { .. } | Phase::AddressGone, Effect::ByAddress)
            | (Phase::All { .. }, Effect::ByAddress | Effect::Stage1 | Effect::All) => return,
        };
        if cpu == self.cpu || flaw.is_none() {
            self.flaw = flaw;
        }
    }

    /// Returns whether the barrier completes its maintenance.
    fn wait(&mut self, on: u8, reach: Reach, waits: Waits, times: Times) -> bool {
        if reach == Reach::Local || waits == Waits::Loads {
            return false;
        }
        match self.phase {
            Phase::Stored if on == self.cpu => self.phase = Phase::Visible,
            Phase::ByAddress { cpu } if cpu == on && waits == Waits::All => {
                self.phase = Phase::AddressGone;
            }
            Phase::All { cpu } if cpu == on && waits == Waits::All => return self.done(times),
            Phase::Stored
            | Phase::Visible
            | Phase::ByAddress { .. }
            | Phase::AddressGone
            | Phase::All { .. } => {}
        }
        false
    }

    /// Invalidated altogether, and waited for. Returns whether that was often enough.
    fn done(&mut self, times: Times) -> bool {
        if times == Times::Once || self.rounds > 0 {
            return true;
        }
        self.rounds += 1;
        self.phase = match self.by_address {
            Times::Once => Phase::Visible,
            Times::Twice => Phase::AddressGone,
        };
        false
    }
}

/// All of them, by the address of the descriptor.
#[derive(Debug)]
pub(crate) struct Removals(BTreeMap<u64, Removal>, Times);

impl Removals {
    /// Returns none; each is to be invalidated so often.
    pub(crate) fn new(times: Times) -> Self {
        Self(BTreeMap::new(), times)
    }

    pub(crate) fn insert(&mut self, slot: u64, removal: Removal) {
        self.0.insert(slot, removal);
    }

    pub(crate) fn take(&mut self, slot: u64) -> Option<Removal> {
        self.0.remove(&slot)
    }

    pub(crate) fn invalidate(&mut self, tlbi: &Tlbi) {
        self.0.values_mut().for_each(|removal| removal.invalidate(tlbi, self.1));
    }

    /// Returns the removals that a barrier of `cpu` completes.
    pub(crate) fn wait(&mut self, cpu: u8, reach: Reach, waits: Waits) -> Vec<(u64, Removal)> {
        self.0.extract_if(.., |_, removal| removal.wait(cpu, reach, waits, self.1)).collect()
    }

    /// Returns the removals that `cpu` has not completed, which are forgotten.
    pub(crate) fn left_by(&mut self, cpu: u8) -> Vec<(u64, Removal)> {
        self.0.extract_if(.., |_, removal| removal.cpu == cpu).collect()
    }

    /// Returns a removal through which some of `frames` may still be reached.
    pub(crate) fn reaching(&self, frames: &Range<u64>) -> Option<(u64, &Removal)> {
        let overlaps = |removal: &&Removal| {
            let found = removal.frames();
            found.start < frames.end && frames.start < found.end
        };
        self.0.iter().find(|(_, removal)| overlaps(removal)).map(|(slot, found)| (*slot, found))
    }

    /// Returns the removal of the table in `page`.
    pub(crate) fn of_table(&self, page: u64) -> Option<(u64, &Removal)> {
        let found = self.0.iter().find(|(_, removal)| removal.what == What::Table(page));
        found.map(|(slot, removal)| (*slot, removal))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
