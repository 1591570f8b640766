//! What each kind of call costs in maintenance.

use std::collections::BTreeMap;

use crate::insn::{DcKind, Insn, TlbiKind};

/// A kind of exception to EL2 and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Address of the vector.
    pub vector: u64,
    /// Exception class.
    pub class: u8,
    /// `x0` at entry of a call, the function id; 0 for other classes.
    pub function: u64,
    /// `x0` at the return of a call; 0 for other classes.
    pub result: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// TLB invalidations of stage 2, by address or range.
    Stage2Tlbi,
    /// TLB invalidations of stage 1 of a VMID.
    Stage1Tlbi,
    /// TLB invalidations of a whole VMID.
    VmidTlbi,
    /// TLB invalidations of EL2.
    El2Tlbi,
    /// `DSB`.
    Dsb,
    /// `ISB`.
    Isb,
    /// Lines cleaned, or cleaned and invalidated.
    Lines,
    /// Lines zeroed.
    Zeroed,
    /// Descriptors that became valid.
    Made,
    /// Descriptors that became invalid.
    Removed,
}

impl Counter {
    /// All of them, in the order of a table's columns.
    pub const ALL: [Self; 10] = [
        Self::Stage2Tlbi,
        Self::Stage1Tlbi,
        Self::VmidTlbi,
        Self::El2Tlbi,
        Self::Dsb,
        Self::Isb,
        Self::Lines,
        Self::Zeroed,
        Self::Made,
        Self::Removed,
    ];

    /// Returns a heading.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Stage2Tlbi => "TLBI stage 2",
            Self::Stage1Tlbi => "TLBI stage 1",
            Self::VmidTlbi => "TLBI VMID",
            Self::El2Tlbi => "TLBI EL2",
            Self::Dsb => "DSB",
            Self::Isb => "ISB",
            Self::Lines => "lines cleaned",
            Self::Zeroed => "lines zeroed",
            Self::Made => "made valid",
            Self::Removed => "made invalid",
        }
    }

    /// Returns the counter of an instruction.
    pub(crate) fn of(insn: Insn) -> Option<Self> {
        match insn {
            Insn::Tlbi(TlbiKind::Ipa(_) | TlbiKind::IpaRange(_), _) => Some(Self::Stage2Tlbi),
            Insn::Tlbi(TlbiKind::Stage1, _) => Some(Self::Stage1Tlbi),
            Insn::Tlbi(TlbiKind::BothStages | TlbiKind::AllEl1, _) => Some(Self::VmidTlbi),
            Insn::Tlbi(TlbiKind::El2Va(_) | TlbiKind::El2VaRange(_) | TlbiKind::AllEl2, _) => {
                Some(Self::El2Tlbi)
            }
            Insn::Dsb(..) => Some(Self::Dsb),
            Insn::Isb => Some(Self::Isb),
            Insn::Dc(DcKind::Zero) => Some(Self::Zeroed),
            Insn::Dc(DcKind::Clean | DcKind::CleanInvalidate) => Some(Self::Lines),
            Insn::Tlbi(TlbiKind::Other, _)
            | Insn::Dc(DcKind::Other)
            | Insn::Ic
            | Insn::At
            | Insn::Msr(_)
            | Insn::Eret => None,
        }
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|other| *other == self).unwrap_or(0)
    }
}

/// Counts of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts([u64; Counter::ALL.len()]);

impl Counts {
    pub(crate) fn add(&mut self, counter: Counter, count: u64) {
        self.0[counter.index()] += count;
    }
}

/// Counts of all calls of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Calls.
    pub calls: u64,
    least: Counts,
    most: Counts,
    total: Counts,
}

impl Tally {
    /// Returns the least of any call.
    pub fn least(&self, counter: Counter) -> u64 {
        self.least.0[counter.index()]
    }

    /// Returns the most of any call.
    pub fn most(&self, counter: Counter) -> u64 {
        self.most.0[counter.index()]
    }

    /// Returns the sum over all calls.
    pub fn total(&self, counter: Counter) -> u64 {
        self.total.0[counter.index()]
    }

    fn add(&mut self, counts: &Counts) {
        self.calls += 1;
        for (place, count) in counts.0.iter().enumerate() {
            self.least.0[place] = self.least.0[place].min(*count);
            self.most.0[place] = self.most.0[place].max(*count);
            self.total.0[place] += count;
        }
    }
}

/// What a trace says of the cost of calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By kind of call.
    pub calls: BTreeMap<Call, Tally>,
    /// Where tables are.
    pub translations: Translations,
}

/// Registers that point at tables, as they were written last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translations {
    /// `VTTBR_EL2` and the `VTCR_EL2` of that moment, by VMID.
    pub stage2: BTreeMap<u16, (u64, u64)>,
    /// `TTBR0_EL2`.
    pub el2: Option<u64>,
    /// Whether `HCR_EL2.FWB` is set.
    pub fwb: bool,
}

impl Report {
    pub(crate) fn add(&mut self, call: Call, counts: &Counts) {
        match self.calls.get_mut(&call) {
            Some(tally) => tally.add(counts),
            None => {
                let (least, most, total) = (*counts, *counts, *counts);
                self.calls.insert(call, Tally { calls: 1, least, most, total });
            }
        }
    }
}
