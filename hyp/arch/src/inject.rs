//! Exceptions that the hypervisor makes for the host: what the CPU would have done (Arm ARM,
//! `AArch64.TakeException`, J1.1.2).

use arm_sysregs::el1::registers::SctlrEl1;
use arm_sysregs::el2::registers::SpsrEl2;

use crate::features::IdRegisters;
use crate::syndrome::{abort, class, exception_class};

/// Features that decide the new processor state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateRules {
    /// `PSTATE` bits that are set on entry: `TCO` with FEAT_MTE.
    set: SpsrEl2,
    /// `PAN`, where FEAT_PAN is there: set unless `SCTLR_EL1.SPAN`.
    pan: SpsrEl2,
    /// `SSBS`, where FEAT_SSBS is there: a copy of `SCTLR_EL1.DSSBS`.
    ssbs: SpsrEl2,
    /// `ALLINT`, where FEAT_NMI is there: set unless `SCTLR_EL1.SPINTMASK`.
    nmi: SpsrEl2,
}

impl StateRules {
    /// Returns the rules of this CPU.
    pub fn of(id: &IdRegisters) -> Self {
        let present = |field: u8, bit: SpsrEl2| if field == 0 { SpsrEl2::default() } else { bit };
        Self {
            set: present(id.pfr1.mte(), SpsrEl2::TCO),
            pan: present(id.mmfr1.pan(), SpsrEl2::PAN),
            ssbs: present(id.pfr1.ssbs(), SSBS),
            nmi: present(id.pfr1.nmi(), SpsrEl2::ALLINT),
        }
    }

    /// Returns `PSTATE` at EL1 after an exception that was taken in `old`.
    fn entry(&self, old: SpsrEl2, sctlr: SctlrEl1) -> SpsrEl2 {
        let kept = SpsrEl2::NZCV | SpsrEl2::DIT | SpsrEl2::PAN;
        let masked = SpsrEl2::D | SpsrEl2::A | SpsrEl2::I | SpsrEl2::F;
        let sometimes = [
            (self.pan, !sctlr.contains(SctlrEl1::SPAN)),
            (self.ssbs, sctlr.contains(SctlrEl1::DSSBS)),
            (self.nmi, !sctlr.contains(SctlrEl1::SPINTMASK)),
        ];
        let base = (old & kept) | masked | self.set | EL1H;
        sometimes.into_iter().filter(|(_, on)| *on).fold(base, |state, (bit, _)| state | bit)
    }
}

/// `M[4:0]`: EL1 with its own stack pointer.
const EL1H: SpsrEl2 = SpsrEl2::from_bits_retain(0b0_0101);
/// `SSBS` (bit 12), in AArch64 state.
const SSBS: SpsrEl2 = SpsrEl2::from_bits_retain(1 << 12);
const MODE: u64 = 0b1_1111;
const MODE_AARCH32: u64 = 0b1_0000;

/// Where an exception to EL1 enters its table.
fn vector_offset(pstate: u64) -> u64 {
    match pstate & MODE {
        // EL1t, EL1h.
        0b0_0100 => 0x000,
        0b0_0101 => 0x200,
        mode if mode & MODE_AARCH32 != 0 => 0x600,
        _ => 0x400,
    }
}

/// Whether an exception was taken from EL1 itself.
fn from_el1(pstate: u64) -> bool {
    matches!(pstate & MODE, 0b0_0100 | 0b0_0101)
}

/// What EL1 finds after an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`, where the exception has an address.
    pub far: Option<u64>,
}

impl Exception {
    /// Returns the abort that stands for an access that stage 2 refused: an external abort of a fetch,
    /// and of anything else an alignment fault. Of all faults that no retry mends it is the one after
    /// which stock Linux looks at its table of fixups (`do_alignment_fault()`): `copy_from_user()`
    /// returns an error, a program gets SIGBUS, and an oops names the address.
    ///
    /// `esr`, `far` and `pstate` are those of the exception that EL2 took.
    pub fn refused_access(esr: u64, far: u64, pstate: u64) -> Self {
        let fetch = exception_class(esr) == class::INSTRUCTION_ABORT_LOWER;
        let ec = match (fetch, from_el1(pstate)) {
            (true, false) => class::INSTRUCTION_ABORT_LOWER,
            (true, true) => class::INSTRUCTION_ABORT_SAME,
            (false, false) => class::DATA_ABORT_LOWER,
            (false, true) => class::DATA_ABORT_SAME,
        };
        // An instruction abort always reports a 32-bit instruction; only data aborts have WnR, CM.
        let kept = if fetch { abort::FNV } else { abort::IL | abort::WNR | abort::CM | abort::FNV };
        let fixed = if fetch { abort::IL | abort::FSC_EXTERNAL } else { abort::FSC_ALIGNMENT };
        let esr = u64::from(ec) << 26 | fixed | (esr & kept);
        Self { esr, far: Some(far) }
    }

    /// Returns the exception of an instruction that does not exist.
    pub fn undefined() -> Self {
        Self { esr: abort::IL, far: None }
    }
}

/// What the exception entry changes besides memory: all that [`enter`] reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// New program counter.
    pub pc: u64,
    /// New processor state, in the format of `SPSR_EL2`.
    pub pstate: u64,
}

/// Computes where EL1 goes on after an exception taken in `pstate`.
pub fn enter(rules: &StateRules, pstate: u64, vbar: u64, sctlr: u64) -> Entry {
    let old = SpsrEl2::from_bits_retain(pstate);
    Entry {
        pc: vbar.wrapping_add(vector_offset(pstate)),
        pstate: rules.entry(old, SctlrEl1::from_bits_retain(sctlr)).bits(),
    }
}

/// Makes the host, which this CPU just left, take `exception` when it goes on.
#[cfg(target_arch = "aarch64")]
pub fn into_host(rules: &StateRules, exception: Exception) {
    use crate::sysreg::{read, write};

    let (pc, pstate) = (read!("elr_el2"), read!("spsr_el2"));
    write!("elr_el1", pc);
    write!("spsr_el1", pstate);
    write!("esr_el1", exception.esr);
    if let Some(far) = exception.far {
        write!("far_el1", far);
    }
    let entry = enter(rules, pstate, read!("vbar_el1"), read!("sctlr_el1"));
    write!("elr_el2", entry.pc);
    write!("spsr_el2", entry.pstate);
}

#[cfg(test)]
mod tests {
    use super::*;

    const EL0: u64 = 0;
    const EL1: u64 = 0b0101;

    #[test]
    fn an_abort_keeps_who_wrote_and_names_the_level_it_came_from() {
        let esr = u64::from(class::DATA_ABORT_LOWER) << 26 | abort::IL | abort::WNR | 0b00_0111;
        let user = Exception::refused_access(esr, 0x1234, EL0);
        assert_eq!(user.esr, 0x24 << 26 | abort::IL | abort::WNR | 0b10_0001);
        let kernel = Exception::refused_access(esr, 0x1234, EL1);
        assert_eq!(exception_class(kernel.esr), class::DATA_ABORT_SAME);
        assert_eq!(kernel.far, Some(0x1234));
    }

    #[test]
    fn an_instruction_abort_is_no_write() {
        let esr = u64::from(class::INSTRUCTION_ABORT_LOWER) << 26 | abort::WNR | 0b00_0111;
        let abort = Exception::refused_access(esr, 0, EL1);
        assert_eq!(abort.esr, 0x21 << 26 | abort::IL | 0b01_0000);
    }

    #[test]
    fn the_vector_depends_on_level_stack_and_width() {
        let rules = StateRules::default();
        let pc = |pstate| enter(&rules, pstate, 0x8_0000, 0).pc;
        assert_eq!([pc(0b0100), pc(EL1), pc(EL0)], [0x8_0000, 0x8_0200, 0x8_0400]);
        assert_eq!(pc(0b1_0000), 0x8_0600);
    }

    #[test]
    fn pan_is_set_on_entry_unless_span_says_otherwise() {
        let rules = StateRules { pan: SpsrEl2::PAN, ..StateRules::default() };
        let pan = |sctlr| enter(&rules, EL0, 0, sctlr).pstate & SpsrEl2::PAN.bits();
        assert_ne!(pan(0), 0);
        assert_eq!(pan(SctlrEl1::SPAN.bits()), 0);
    }

    #[test]
    fn single_step_btype_and_illegal_state_end_at_the_exception() {
        let old = SpsrEl2::SS | SpsrEl2::IL | SpsrEl2::default().with_btype(0b11);
        let new = enter(&StateRules::default(), old.bits() | EL1, 0, 0).pstate;
        assert_eq!(new, 0x3c5);
    }
}
