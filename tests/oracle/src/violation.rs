//! What can be wrong, in words.

use std::fmt;
use std::ops::Range;

use crate::record::Record;

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A valid descriptor was replaced by another valid one.
    MissingBreak,
    /// The removed translation was never invalidated.
    NotInvalidated,
    /// No `DSB` between the store of the invalid descriptor and the invalidation.
    NoDsbBefore,
    /// No `DSB` of all accesses after the invalidation.
    NoDsbAfter,
    /// No `DSB` between the invalidation by address and that of stage 1.
    NoDsbBetween,
    /// Invalidated under another VMID.
    WrongVmid,
    /// `VTTBR_EL2` was written, and no `ISB` followed before the invalidation.
    NoIsbBefore,
    /// Invalidated on one CPU only.
    NotBroadcast,
    /// Invalidated once, on a CPU that needs it twice.
    NotRepeated,
    /// Invalidated by address, without the combined entries of stage 1.
    NoStage1,
    /// A frame had its next owner before it was taken from the former one.
    TwoOwners,
    /// No `DSB` after the store of a valid descriptor.
    NotPublished,
    /// No `DSB` and `ISB` between the store of a window's descriptor and its use.
    NotSynchronised,
    /// Lines were not cleaned and invalidated.
    LinesLeft {
        /// Lines of the page that were.
        maintained: usize,
        /// Lines of a page.
        lines: usize,
    },
}

/// The moment at which it had to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The descriptor was given another translation.
    Changed,
    /// Another descriptor gave the frame to its next owner.
    NextOwner,
    /// The descriptor became invalid.
    Removed,
    /// EL2 used the translation.
    Used,
    /// The page of a removed table was used again.
    TableReused,
    /// EL2 returned.
    Returned,
}

/// A set of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Translation {
    /// The hypervisor's own stage 1.
    El2,
    /// A stage 2.
    Stage2 {
        /// Its VMID.
        vmid: u16,
    },
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// When it had to be kept.
    pub moment: Moment,
    /// The tables that it was about.
    pub translation: Translation,
    /// Pages of input addresses.
    pub input: Range<u64>,
    /// First frame that the pages led to.
    pub frame: u64,
    /// Where the descriptor lies, a physical address; `None` for cache lines.
    pub descriptor: Option<u64>,
    /// The CPU that was to keep the rule.
    pub cpu: u8,
    /// Address of the instruction by which it was broken.
    pub pc: u64,
    /// Address of the instruction that made or removed the translation, where one did.
    pub stored_at: Option<u64>,
    /// What the CPU had executed last, oldest first.
    pub history: Vec<Record>,
}

impl Rule {
    fn is_of_a_new_translation(self) -> bool {
        matches!(self, Self::NotPublished | Self::NotSynchronised)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::MissingBreak => "break-before-make: a valid descriptor was replaced by another",
            Self::NotInvalidated => "TLB: the removed translation was not invalidated",
            Self::NoDsbBefore => "TLB: no DSB between the removal and the invalidation",
            Self::NoDsbAfter => "TLB: no DSB of all accesses after the invalidation",
            Self::NoDsbBetween => "TLB: no DSB between invalidation by address and of stage 1",
            Self::WrongVmid => "TLB: invalidated under another VMID",
            Self::NoIsbBefore => "TLB: no ISB between VTTBR_EL2 and the invalidation",
            Self::NotBroadcast => "TLB: invalidated on one CPU only",
            Self::NotRepeated => "TLB: invalidated once, where an erratum asks for twice",
            Self::NoStage1 => "TLB: invalidated by address, but not in stage 1",
            Self::TwoOwners => "ownership: the next owner had the frame before the former lost it",
            Self::NotPublished => "publication: no DSB after the new translation",
            Self::NotSynchronised => "publication: no DSB and ISB after the new window",
            Self::LinesLeft { maintained, lines } => {
                return write!(
                    f,
                    "cache: {maintained} of {lines} lines were cleaned and invalidated"
                );
            }
        };
        f.write_str(text)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "when the descriptor changed",
            Self::NextOwner => "when the next owner's translation became valid",
            Self::Removed => "when the former owner's translation was removed",
            Self::Used => "when EL2 maintained lines through it",
            Self::TableReused => "when the table's page was used again",
            Self::Returned => "when EL2 returned",
        })
    }
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::El2 => write!(f, "EL2 stage 1"),
            Self::Stage2 { vmid } => write!(f, "stage 2 of VMID {vmid}"),
        }
    }
}

impl Violation {
    /// Returns the violation in words; `symbol` names the instruction at an address.
    pub fn describe(&self, symbol: &dyn Fn(u64) -> String) -> String {
        let Self { rule, moment, translation, input, frame, cpu, pc, .. } = self;
        let pages = input.end - input.start;
        let mut text = format!(
            "{rule}, {moment}\n  {translation}, page {:#x} ({pages} pages), frame {frame:#x}",
            input.start
        );
        if let Some(descriptor) = self.descriptor {
            text += &format!(", descriptor at {descriptor:#x}");
        }
        text += &format!("\n  CPU {cpu} at {}", symbol(*pc));
        if let Some(stored_at) = self.stored_at {
            let stored = if rule.is_of_a_new_translation() { "made" } else { "removed" };
            text += &format!("\n  {stored} at {}", symbol(stored_at));
        }
        text
    }
}
