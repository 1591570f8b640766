//! What the ID registers say, and what pfnguard makes of it.

use arm_sysregs::el0::registers::CtrEl0;
use arm_sysregs::el1::registers::{
    IdAa64dfr0El1, IdAa64isar0El1, IdAa64isar1El1, IdAa64isar2El1, IdAa64mmfr0El1, IdAa64mmfr1El1,
    IdAa64mmfr2El1, IdAa64mmfr3El1, IdAa64pfr0El1, IdAa64pfr1El1, IdAa64pfr2El1, MidrEl1,
};
use core::fmt;

use pfnguard_core::machine::Features;
use pfnguard_shared::info::Capabilities;

/// Most physical address bits that pfnguard uses: FEAT_LPA2 and FEAT_LPA stay off.
const PA_BITS_MAX: u32 = 48;
/// Bits of a guest's intermediate physical address: one 512-entry level-1 root table.
const GUEST_IPA_BITS: u32 = 39;

/// The ID registers of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the architecture's own names")]
pub struct IdRegisters {
    pub midr: MidrEl1,
    pub ctr: CtrEl0,
    pub pfr0: IdAa64pfr0El1,
    pub pfr1: IdAa64pfr1El1,
    pub pfr2: IdAa64pfr2El1,
    pub mmfr0: IdAa64mmfr0El1,
    pub mmfr1: IdAa64mmfr1El1,
    pub mmfr2: IdAa64mmfr2El1,
    pub mmfr3: IdAa64mmfr3El1,
    pub isar0: IdAa64isar0El1,
    pub isar1: IdAa64isar1El1,
    pub isar2: IdAa64isar2El1,
    pub dfr0: IdAa64dfr0El1,
    pub dczid: u64,
}

impl IdRegisters {
    /// Reads those of this CPU.
    #[cfg(target_arch = "aarch64")]
    pub fn read() -> Self {
        use arm_sysregs::{el0, el1::accessors as el1};
        Self {
            midr: el1::read_midr_el1(),
            ctr: el0::accessors::read_ctr_el0(),
            pfr0: el1::read_id_aa64pfr0_el1(),
            pfr1: el1::read_id_aa64pfr1_el1(),
            pfr2: el1::read_id_aa64pfr2_el1(),
            mmfr0: el1::read_id_aa64mmfr0_el1(),
            mmfr1: el1::read_id_aa64mmfr1_el1(),
            mmfr2: el1::read_id_aa64mmfr2_el1(),
            mmfr3: el1::read_id_aa64mmfr3_el1(),
            isar0: el1::read_id_aa64isar0_el1(),
            isar1: el1::read_id_aa64isar1_el1(),
            isar2: el1::read_id_aa64isar2_el1(),
            dfr0: el1::read_id_aa64dfr0_el1(),
            dczid: crate::sysreg::read!("dczid_el0"),
        }
    }

    /// Returns the abilities that the ABI reports.
    pub fn features(&self) -> Features {
        let pa_bits = self.pa_bits();
        Features {
            capabilities: self.capabilities(),
            pa_bits,
            guest_ipa_bits: GUEST_IPA_BITS.min(pa_bits),
            vmid_bits: if self.mmfr1.vmidbits() == 0b0010 { 16 } else { 8 },
        }
    }

    fn capabilities(&self) -> Capabilities {
        let present = [
            (Capabilities::FWB, self.mmfr2.fwb() != 0),
            (Capabilities::DIC, self.ctr.contains(CtrEl0::DIC)),
            (Capabilities::IDC, self.ctr.contains(CtrEl0::IDC)),
            (Capabilities::MTE, self.has_mte()),
            (Capabilities::MTE_PERM, self.pfr2.mteperm() != 0),
            (Capabilities::LSE, self.isar0.atomic() >= 0b0010),
            (Capabilities::TLBI_RANGE, self.isar0.tlb() >= 0b0010),
            (Capabilities::REPEAT_TLBI, repeats_tlbi(self.midr)),
            (Capabilities::BTI, self.has_bti()),
            (Capabilities::PAC, self.has_pauth()),
        ];
        let none = Capabilities::NONE;
        present.into_iter().filter(|(_, has)| *has).fold(none, |set, (bit, _)| set.with(bit))
    }

    /// Physical address bits, at most 48 (Arm ARM, `ID_AA64MMFR0_EL1.PARange`).
    fn pa_bits(&self) -> u32 {
        let bits = match self.mmfr0.parange() {
            0b0000 => 32,
            0b0001 => 36,
            0b0010 => 40,
            0b0011 => 42,
            0b0100 => 44,
            // 48, or more than pfnguard uses.
            _ => PA_BITS_MAX,
        };
        bits.min(PA_BITS_MAX)
    }

    /// Returns whether FEAT_PAuth is there, with any algorithm.
    pub fn has_pauth(&self) -> bool {
        self.isar1.apa() != 0 || self.isar1.api() != 0 || self.isar2.apa3() != 0
    }

    /// Returns whether FEAT_BTI is there.
    pub fn has_bti(&self) -> bool {
        self.pfr1.bt() != 0
    }

    /// Returns whether FEAT_MTE2 is there: tags are in memory, not only in instructions.
    pub fn has_mte(&self) -> bool {
        self.pfr1.mte() >= 0b0010
    }

    /// Returns whether FEAT_SVE is there.
    pub fn has_sve(&self) -> bool {
        self.pfr0.sve() != 0
    }

    /// Returns whether FEAT_SME is there.
    pub fn has_sme(&self) -> bool {
        self.pfr1.sme() != 0
    }

    /// Returns whether the interrupt controller has system registers.
    pub fn has_gic_registers(&self) -> bool {
        self.pfr0.gic() != 0
    }

    /// Returns whether FEAT_RAS is there.
    pub fn has_ras(&self) -> bool {
        self.pfr0.ras() != 0
    }

    /// Returns whether MPAM is there, version 0.1 included.
    pub fn has_mpam(&self) -> bool {
        self.pfr0.mpam() != 0 || self.pfr1.mpam_frac() != 0
    }

    /// Returns whether FEAT_AMUv1 is there.
    pub fn has_amu(&self) -> bool {
        self.pfr0.amu() != 0
    }

    /// Returns whether `SCXTNUM_ELx` is there (FEAT_CSV2_2, FEAT_CSV2_1p2).
    pub fn has_scxtnum(&self) -> bool {
        self.pfr0.csv2() >= 0b0010 || (self.pfr0.csv2() == 0b0001 && self.pfr1.csv2_frac() >= 2)
    }

    /// Returns whether an architected PMU is there.
    pub fn has_pmu(&self) -> bool {
        !matches!(self.dfr0.pmuver(), 0 | 0b1111)
    }

    /// Returns whether FEAT_SPE is there.
    pub fn has_spe(&self) -> bool {
        self.dfr0.pmsver() != 0
    }

    /// Returns whether FEAT_TRBE is there.
    pub fn has_trbe(&self) -> bool {
        self.dfr0.tracebuffer() != 0
    }

    /// Returns whether FEAT_TRF is there.
    pub fn has_trace_filter(&self) -> bool {
        self.dfr0.tracefilt() != 0
    }

    /// Returns whether FEAT_BRBE is there.
    pub fn has_brbe(&self) -> bool {
        self.dfr0.brbe() != 0
    }

    /// Returns whether FEAT_FGT is there.
    pub fn has_fgt(&self) -> bool {
        self.mmfr0.fgt() != 0
    }

    /// Returns whether FEAT_ECV has `CNTPOFF_EL2`.
    pub fn has_cntpoff(&self) -> bool {
        self.mmfr0.ecv() >= 0b0010
    }

    /// Returns whether `HCRX_EL2` is there.
    pub fn has_hcrx(&self) -> bool {
        self.mmfr1.hcx() != 0
    }

    /// Returns whether FEAT_LOR is there.
    pub fn has_lor(&self) -> bool {
        self.mmfr1.lo() != 0
    }

    /// Returns whether FEAT_RNG is there.
    pub fn has_rng(&self) -> bool {
        self.isar0.rndr() != 0
    }

    /// Returns how another CPU differs from this one in what the hypervisor builds on.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let (mine, theirs) = (self.features(), other.features());
        let pairs = [
            ("capabilities", mine.capabilities.raw(), theirs.capabilities.raw()),
            ("PA bits", u64::from(mine.pa_bits), u64::from(theirs.pa_bits)),
            ("VMID bits", u64::from(mine.vmid_bits), u64::from(theirs.vmid_bits)),
            ("SVE", u64::from(self.pfr0.sve()), u64::from(other.pfr0.sve())),
            ("SME", u64::from(self.pfr1.sme()), u64::from(other.pfr1.sme())),
            // One geometry serves all CPUs: a finer one would leave lines and bytes out (R40, R44).
            ("data cache line", data_line(self), data_line(other)),
            ("DCZID_EL0", self.dczid, other.dczid),
        ];
        pairs
            .into_iter()
            .find(|(_, mine, theirs)| mine != theirs)
            .map(|(what, mine, theirs)| Difference { what, mine, theirs })
    }
}

/// `CTR_EL0.DminLine`, bits 19:16.
fn data_line(id: &IdRegisters) -> u64 {
    id.ctr.bits() >> 16 & 0b1111
}

/// How two CPUs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    what: &'static str,
    mine: u64,
    theirs: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: boot CPU {:#x}, this CPU {:#x}", self.what, self.mine, self.theirs)
    }
}

/// Arm Ltd in `MIDR_EL1.Implementer`.
const ARM: u8 = 0x41;

/// Parts whose `DSB` after `TLBI` may return before other CPUs are done with the old translation,
/// whatever their revision: a second sequence costs little, a stale translation costs isolation.
///
/// Errata known by number: Cortex-A76 1286807, Cortex-A55 2441007, Cortex-A510 2441009 (Linux
/// `ARM64_WORKAROUND_REPEAT_TLBI`). The later big cores are here because Arm lists the same kind of
/// defect for many of them.
const REPEAT_TLBI_PARTS: &[u16] = &[
    0xd05, // Cortex-A55
    0xd0b, // Cortex-A76
    0xd0c, // Neoverse N1
    0xd0d, // Cortex-A77
    0xd0e, // Cortex-A76AE
    0xd40, // Neoverse V1
    0xd41, // Cortex-A78
    0xd42, // Cortex-A78AE
    0xd44, // Cortex-X1
    0xd46, // Cortex-A510
    0xd47, // Cortex-A710
    0xd48, // Cortex-X2
    0xd49, // Neoverse N2
    0xd4b, // Cortex-A78C
    0xd4c, // Cortex-X1C
    0xd4d, // Cortex-A715
    0xd4e, // Cortex-X3
    0xd4f, // Neoverse V2
    0xd81, // Cortex-A720
    0xd82, // Cortex-X4
    0xd83, // Neoverse V3AE
    0xd84, // Neoverse V3
    0xd85, // Cortex-X925
    0xd87, // Cortex-A725
    0xd8e, // Neoverse N3
];

fn repeats_tlbi(midr: MidrEl1) -> bool {
    midr.implementer() == ARM && REPEAT_TLBI_PARTS.contains(&midr.partnum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(partnum: u16) -> IdRegisters {
        let midr = MidrEl1::default().with_implementer(ARM).with_partnum(partnum);
        IdRegisters { midr, ..IdRegisters::default() }
    }

    #[test]
    fn an_address_space_past_48_bits_is_cut_and_a_small_one_bounds_the_guest() {
        let with = |parange| {
            let mmfr0 = IdAa64mmfr0El1::default().with_parange(parange);
            IdRegisters { mmfr0, ..IdRegisters::default() }.features()
        };
        assert_eq!((with(0b0110).pa_bits, with(0b0110).guest_ipa_bits), (48, 39));
        assert_eq!((with(0b0001).pa_bits, with(0b0001).guest_ipa_bits), (36, 36));
    }

    #[test]
    fn tlb_invalidation_is_repeated_on_listed_parts_only() {
        let repeats =
            |part: IdRegisters| part.features().capabilities.contains(Capabilities::REPEAT_TLBI);
        assert!(repeats(part(0xd0b)));
        assert!(!repeats(part(0xd08)), "Cortex-A72");
    }

    #[test]
    fn a_cpu_that_lacks_what_the_boot_cpu_has_is_told_apart() {
        let mut boot = part(0xd49);
        assert_eq!(boot.difference(&part(0xd49)), None);
        boot.mmfr2 = IdAa64mmfr2El1::default().with_fwb(1);
        assert!(boot.difference(&part(0xd49)).is_some());
    }
}
