//! A CPU's answer beside the walker's.

use pfnguard_walker::{Attrs, Malformed, Type};

use crate::{Arena, Query};

/// `PAR_EL1` after `AT S12E1R` (Arm ARM, D24.2.145).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// It translates to this page, with this memory type (in the encoding of `MAIR_ELx`).
    To {
        /// The page.
        pfn: u64,
        /// Its type, stages combined.
        attr: u8,
    },
    /// A stage-2 fault.
    Fault(Fault),
}

/// Kinds of faults, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Output address too large.
    AddressSize,
    /// No translation.
    Translation,
    /// Access flag.
    AccessFlag,
    /// No permission to read.
    Permission,
    /// Stage 1, which is off: no physical address of this CPU.
    NoAddress,
    /// Reading a table aborted.
    Abort,
    /// Anything else: the status code.
    Other(u8),
}

/// Reserved as a status: what [`crate::qemu`]'s program notes where `AT` takes an abort.
const ABORTED: u8 = 0x3f;

/// What comes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both say the same: where it leads, or a translation fault.
    Agreed(Option<(u64, Attrs)>),
    /// The walker refuses the tables for this reason; the CPU does this.
    Strict(&'static str, Option<Fault>),
    /// The walk left the arena, where nobody knows what lies there, or never came to stage 2.
    Void,
    /// They differ: what the walker says.
    Differs(Result<Option<(u64, Attrs)>, Malformed>),
}

impl Answer {
    /// Decodes the register.
    pub fn new(par: u64) -> Self {
        if par & 1 == 0 {
            let attr = u8::try_from(par >> 56).expect("8 bits");
            return Self::To { pfn: par >> 12 & 0xf_ffff_ffff, attr };
        }
        let status = u8::try_from(par >> 1 & 0x3f).expect("6 bits");
        let stage_2 = par & 1 << 9 != 0;
        Self::Fault(match status >> 2 {
            0b0000 if !stage_2 => Fault::NoAddress,
            0b0000 => Fault::AddressSize,
            0b0001 => Fault::Translation,
            0b0010 => Fault::AccessFlag,
            0b0011 => Fault::Permission,
            _ if status == ABORTED => Fault::Abort,
            _ => Fault::Other(status),
        })
    }
}

/// Compares a CPU's answer with the walker's. `types` is whether the CPU combines memory types as
/// these tables mean it.
pub fn judge(arena: &Arena, query: &Query, answer: Answer, types: bool) -> Verdict {
    let said = query.stage2.translate(arena, query.ipa >> 12);
    let left = arena.was_left();
    let fault = match answer {
        Answer::Fault(Fault::NoAddress) => return Verdict::Void,
        Answer::Fault(fault) => Some(fault),
        Answer::To { .. } => None,
    };
    let agreed = match (said, answer) {
        _ if left && !query.sound => return Verdict::Void,
        (Ok(None), Answer::Fault(Fault::Translation)) => true,
        (Ok(Some((to, attrs))), Answer::To { pfn, attr }) => {
            to == pfn && (!types || attr >> 4 == combined(attrs.mem, query))
        }
        // A table that the walker refuses leads the CPU out of the arena.
        (Err(_), Answer::Fault(Fault::Abort)) if !query.sound => return Verdict::Void,
        (Err(Malformed { why, .. }), _) if !query.sound => return Verdict::Strict(why, fault),
        _ => false,
    };
    if agreed { Verdict::Agreed(said.ok().flatten()) } else { Verdict::Differs(said) }
}

/// The type that an access gets whose stage 1, which is off, says write-back or Device-nGnRnE
/// (Arm ARM, D8.6.5 and D8.6.6): high half of the encoding of `MAIR_ELx`. Which kind of Device, of
/// stage 1 or of stage 2 under FWB, is not looked at.
fn combined(mem: Type, query: &Query) -> u8 {
    let stage1 = if query.cacheable { 0xf } else { 0 };
    match (mem, query.stage2.encoding.fwb) {
        // The weaker of the two.
        (Type::Device, _) => 0,
        (Type::NormalNc, _) => stage1 & 0x4,
        (Type::WriteBack, false) | (Type::AsStage1, _) => stage1,
        // Forced, whatever stage 1 says.
        (Type::WriteBack, true) => 0xf,
    }
}

/// Returns what a CPU may do with tables that the walker refuses for the reason `why`: faults, and
/// `None` where it may go on. An empty list: no reason of this walker.
///
/// Whatever faults here would be no danger; where a CPU goes on, the walker holds the hypervisor to
/// more than the architecture asks, because it never writes such a descriptor.
pub fn strictness(why: &str) -> &'static [Option<Fault>] {
    const ANY: &[Option<Fault>] = &[
        None,
        Some(Fault::Translation),
        Some(Fault::AddressSize),
        Some(Fault::AccessFlag),
        Some(Fault::Permission),
    ];
    match why {
        "invalid, and not zero" | "a block at a level without blocks" => {
            &[Some(Fault::Translation)]
        }
        // The walker looks at the address before it looks at the kind.
        "beyond the output size" => &[Some(Fault::AddressSize), Some(Fault::Translation)],
        "AF is clear" => &[Some(Fault::AccessFlag)],
        // Ignored by a CPU, which then follows the table.
        "a table with attributes" => ANY,
        // Ignored or reserved bits: the leaf is used, unless another field forbids it.
        "a block that is not aligned" | "a bit that is never set" => {
            &[None, Some(Fault::AddressSize), Some(Fault::AccessFlag), Some(Fault::Permission)]
        }
        "SH is not inner shareable"
        | "XN tells EL0 from EL1"
        | "MemAttr is not one of the specification's"
        | "executable and uncached (R11)" => &[None, Some(Fault::Permission)],
        _ => &[],
    }
}
