//! What an exception syndrome says (Arm ARM, `ESR_EL2`), and how one is injected into a guest.

use pfnguard_shared::PAGE_SHIFT;

use crate::addr::IpaPfn;
use crate::vcpu::{PendingLoad, VcpuContext, Widen};

const EC_SHIFT: u32 = 26;
const EC_MASK: u64 = 0x3f;
/// `ESR.IL`: the instruction was 32 bits long.
const IL: u64 = 1 << 25;

/// Exception classes that guests and hosts can cause, by what is done about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// WFI, WFE and their timed forms.
    Wait,
    /// `HVC` from AArch64 with this immediate.
    Hvc(u16),
    /// `SMC` from AArch64 with this immediate.
    Smc(u16),
    /// Fetch that stage 2 stopped.
    InstructionAbort,
    /// Load or store that stage 2 stopped.
    DataAbort,
    /// Register or instruction that is trapped: undefined for the guest.
    Trapped,
    /// Anything else, by its number.
    Other(u64),
}

/// Why a translation stopped an access (the `DFSC` and `IFSC` fields).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// No valid entry.
    Translation,
    /// A valid entry that does not allow it.
    Permission,
    /// Alignment, external abort, access flag, address size, TLB conflict.
    Other,
}

/// Returns the class of a syndrome.
pub fn class(esr: u64) -> Class {
    match esr >> EC_SHIFT & EC_MASK {
        0x01 => Class::Wait,
        // Undefined, AArch32 coprocessor accesses, FP and SIMD, pointer authentication, BTI.
        0x00 | 0x03..=0x09 | 0x0c | 0x0d | 0x18 | 0x19 | 0x1b | 0x1d => Class::Trapped,
        0x16 => Class::Hvc(immediate(esr)),
        0x17 => Class::Smc(immediate(esr)),
        0x20 => Class::InstructionAbort,
        0x24 => Class::DataAbort,
        other => Class::Other(other),
    }
}

/// The immediate of an HVC or SMC is the low half of the syndrome.
fn immediate(esr: u64) -> u16 {
    u16::try_from(esr & 0xffff).unwrap_or(u16::MAX)
}

/// Returns why an abort happened.
pub fn fault_kind(esr: u64) -> FaultKind {
    /// `ISS2.TagAccess`: stage 2 forbids tags here (NoTagAccess), whatever the permissions say.
    const TAG_ACCESS: u64 = 1 << 41;
    match esr & 0x3f {
        0b00_1100..=0b00_1111 if esr & TAG_ACCESS != 0 => FaultKind::Other,
        // Levels 0 to 3, and level -1 of FEAT_LPA2.
        0b00_0100..=0b00_0111 | 0b10_1011 => FaultKind::Translation,
        0b00_1100..=0b00_1111 => FaultKind::Permission,
        _ => FaultKind::Other,
    }
}

/// `ISS.S1PTW`: the access was a stage-1 table walk.
pub fn is_table_walk(esr: u64) -> bool {
    esr & 1 << 7 != 0
}

/// `ISS.WnR`: the access was a store.
pub fn is_write(esr: u64) -> bool {
    esr & 1 << 6 != 0
}

/// `ISS.CM`: the access was cache maintenance, for which `WnR` is set whatever it needs.
pub fn is_cache_maintenance(esr: u64) -> bool {
    esr & 1 << 8 != 0
}

/// Returns the intermediate physical page in `HPFAR_EL2` (bits 43:4 hold bits 51:12 of it).
pub fn fault_ipa(hpfar: u64) -> IpaPfn {
    IpaPfn(hpfar >> 4 & ((1 << (52 - PAGE_SHIFT)) - 1))
}

/// A load or store that an emulator can do for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Load(PendingLoad),
    /// A store.
    Store {
        /// Source register; 31 is the zero register.
        register: usize,
        /// Bytes: 1, 2, 4 or 8.
        bytes: u32,
    },
}

impl Access {
    /// Decodes the access of a data abort, or returns `None` where the syndrome describes none
    /// (`ISS.ISV` clear).
    pub fn decode(esr: u64) -> Option<Self> {
        if esr & 1 << 24 == 0 || is_table_walk(esr) || is_cache_maintenance(esr) {
            return None;
        }
        let bytes = 1 << (esr >> 22 & 0b11);
        let register = usize::try_from(esr >> 16 & 0b1_1111).ok()?;
        if is_write(esr) {
            return Some(Self::Store { register, bytes });
        }
        Some(Self::Load(PendingLoad { register, bytes, widen: widen(esr) }))
    }
}

/// `ISS.SSE` says whether the value is sign-extended, `ISS.SF` whether to 64 bits.
fn widen(esr: u64) -> Widen {
    match (esr >> 21 & 1, esr >> 15 & 1) {
        (0, _) => Widen::Zero,
        (_, 0) => Widen::Sign32,
        (_, _) => Widen::Sign64,
    }
}

/// `PSTATE.DAIF`, all masked.
const DAIF: u64 = 0xf << 6;
/// `PSTATE.M` of EL1 on its own stack.
const EL1H: u64 = 0b0101;
/// `PSTATE.M` and `PSTATE.nRW`.
const MODE: u64 = 0b1_1111;
/// `PSTATE.PAN`.
const PAN: u64 = 1 << 22;
/// `PSTATE.SSBS`.
const SSBS: u64 = 1 << 12;
/// Flags that an exception keeps: NZCV, DIT, PAN.
const KEPT: u64 = 0xf << 28 | 1 << 24 | PAN;
/// `SCTLR_EL1.SPAN`: exceptions to EL1 leave PAN alone.
const SCTLR_SPAN: u64 = 1 << 23;
/// `SCTLR_EL1.DSSBS`: value of SSBS on exceptions to EL1.
const SCTLR_DSSBS: u64 = 1 << 44;

/// Makes the guest take an Undefined Instruction exception at its current instruction (Arm ARM,
/// `AArch64.TakeException`).
pub fn inject_undefined(context: &mut VcpuContext) {
    context.sysregs.esr_el1 = IL;
    context.sysregs.elr_el1 = context.pc;
    context.sysregs.spsr_el1 = context.pstate;
    // An exception return to an unaligned address would only fault; the vector base is aligned.
    let base = context.sysregs.vbar_el1 & !0x7ff;
    context.pc = base.wrapping_add(vector_offset(context.pstate));
    context.pstate = handler_state(context.pstate, context.sysregs.sctlr_el1);
}

fn handler_state(pstate: u64, sctlr: u64) -> u64 {
    let pan = if sctlr & SCTLR_SPAN == 0 { PAN } else { 0 };
    let ssbs = if sctlr & SCTLR_DSSBS != 0 { SSBS } else { 0 };
    pstate & KEPT | pan | ssbs | DAIF | EL1H
}

fn vector_offset(pstate: u64) -> u64 {
    match pstate & MODE {
        // EL1 on the stack of EL0.
        0b0100 => 0x000,
        EL1H => 0x200,
        // EL0.
        0b0000 => 0x400,
        // EL0 in AArch32; a guest can be in no other mode.
        _ => 0x600,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undefined_instruction_enters_the_vector_of_the_level_it_came_from() {
        for (mode, offset) in [(0b0100, 0x000), (0b0101, 0x200), (0b0000, 0x400), (0b1_0000, 0x600)]
        {
            let mut context = VcpuContext::reset(0x8000, 0);
            context.sysregs.vbar_el1 = 0xffff_0000_0000_0800;
            context.pstate = 0x6000_0000 | mode;
            inject_undefined(&mut context);
            assert_eq!(context.pc, 0xffff_0000_0000_0800 + offset);
            assert_eq!(context.sysregs.elr_el1, 0x8000);
            assert_eq!(context.sysregs.spsr_el1, 0x6000_0000 | mode);
            assert_eq!(context.sysregs.esr_el1, IL);
            assert_eq!(context.pstate & 0xf000_03ff, 0x6000_03c5);
        }
    }

    /// Literal values, so that no constant above stands on both sides.
    #[test]
    fn a_handler_starts_masked_with_the_flags_that_an_exception_keeps() {
        const FRESH: u64 = 0x3c5;
        let with_pan = 1 << 22 | FRESH;
        // PAN is set unless SPAN (bit 23) says that it stays; SSBS is DSSBS (bit 44).
        assert_eq!(handler_state(0, 0), with_pan);
        assert_eq!(handler_state(0, 1 << 23), FRESH);
        assert_eq!(handler_state(1 << 22, 1 << 23), with_pan);
        assert_eq!(handler_state(0, 1 << 23 | 1 << 44), 1 << 12 | FRESH);
        // NZCV and DIT are kept; SSBS, IL, SS, UAO, TCO, BTYPE and the mode are not.
        let kept = 0xf << 28 | 1 << 24;
        assert_eq!(handler_state(kept, 1 << 23), kept | FRESH);
        assert_eq!(handler_state(!kept & !(1 << 22), 1 << 23), FRESH);
        let mut context = VcpuContext::reset(0, 0);
        inject_undefined(&mut context);
        assert_eq!(context.sysregs.esr_el1, 0x200_0000);
    }

    #[test]
    fn calls_carry_their_immediate() {
        assert_eq!(class(0x16 << 26 | 1 << 25 | 0xabcd), Class::Hvc(0xabcd));
        assert_eq!(class(0x17 << 26 | 1 << 25 | 1), Class::Smc(1));
    }

    #[test]
    fn a_forbidden_tag_access_is_no_permission_that_could_come() {
        for level in 0..4 {
            assert_eq!(fault_kind(0b00_1100 | level), FaultKind::Permission);
            assert_eq!(fault_kind(0b00_1100 | level | 1 << 41), FaultKind::Other);
            assert_eq!(fault_kind(0b00_0100 | level | 1 << 41), FaultKind::Translation);
        }
    }

    #[test]
    fn loads_are_widened_as_the_instruction_says() {
        for (bits, expected) in [
            (0, Widen::Zero),
            (1 << 15, Widen::Zero),
            (1 << 21, Widen::Sign32),
            (1 << 21 | 1 << 15, Widen::Sign64),
        ] {
            // Neighbours of the two bits are none of its business.
            assert_eq!(widen(bits | 1 << 22 | 1 << 20 | 1 << 16 | 1 << 14), expected);
        }
    }

    #[test]
    fn a_syndrome_without_details_describes_no_access() {
        assert_eq!(Access::decode(0x24 << EC_SHIFT), None);
        let store = 1 << 24 | 0b10 << 22 | 5 << 16 | 1 << 6;
        assert_eq!(Access::decode(store), Some(Access::Store { register: 5, bytes: 4 }));
        assert_eq!(Access::decode(store | 1 << 7), None, "table walk");
        assert_eq!(Access::decode(store | 1 << 8), None, "cache maintenance");
        let load = PendingLoad { register: 31, bytes: 1, widen: Widen::Sign32 };
        assert_eq!(Access::decode(1 << 24 | 1 << 21 | 31 << 16), Some(Access::Load(load)));
    }

    #[test]
    fn the_fault_page_comes_from_the_address_field_alone() {
        assert_eq!(fault_ipa(1 << 63 | 0xf | 0x8_0000 << 4), IpaPfn(0x8_0000));
    }
}
