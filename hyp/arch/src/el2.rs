//! EL2's control registers: what the host may do without asking, what a guest may, and why.
//!
//! Always nVHE (`HCR_EL2.E2H` = 0, `TGE` = 0). [`Controls`] holds everything that differs between
//! host and guest; `init_cpu` sets the rest once on each CPU.

use arm_sysregs::el1::registers::IdAa64mmfr3El1;
use arm_sysregs::el2::registers::{
    CnthctlEl2, CptrEl2, HcrEl2, HcrxEl2, HfgrtrEl2, HfgwtrEl2, IccSreEl2, IchHcrEl2, MdcrEl2,
    Mpam2El2, SctlrEl2,
};

use crate::features::IdRegisters;

/// RES1 bits of `SCTLR_EL2` with `E2H` = 0: 4, 5, 11, 16, 18, 22, 23, 28, 29 (Arm ARM, D24.2).
const SCTLR_RES1: SctlrEl2 = SctlrEl2::from_bits_retain(0x30c5_0830);
/// `SCTLR_EL2` while the MMU is off: no cache, no alignment check.
pub const SCTLR_MMU_OFF: SctlrEl2 = SCTLR_RES1;

/// Returns `SCTLR_EL2` of the running hypervisor: MMU and caches on; stack alignment checked;
/// writable memory is never executable, whatever the tables say; BTI where the CPU has it; an
/// implicit error barrier at entry and exit with FEAT_RAS. Return address signing comes on when the
/// CPU has its key.
pub fn sctlr(id: &IdRegisters) -> SctlrEl2 {
    let on = SctlrEl2::M | SctlrEl2::C | SctlrEl2::I | SctlrEl2::SA | SctlrEl2::WXN;
    let options = [(SctlrEl2::BT, id.has_bti()), (SctlrEl2::IESB, id.has_ras())];
    add(SCTLR_RES1 | on, options)
}

/// Unites `base` and the bits whose condition holds.
fn add<B: core::ops::BitOr<Output = B>, const N: usize>(base: B, options: [(B, bool); N]) -> B {
    options.into_iter().filter(|(_, wanted)| *wanted).fold(base, |set, (bit, _)| set | bit)
}

/// `CPTR_EL2.TTA` with E2H = 0: accesses to the trace unit's system registers trap.
const CPTR_TTA: CptrEl2 = CptrEl2::from_bits_retain(1 << 20);
/// `MPAM2_EL2.TRAPMPAM0EL1`, `TRAPMPAM1EL1`: partition registers of EL1 and EL0 trap.
const MPAM_TRAPS: Mpam2El2 = Mpam2El2::from_bits_retain(0b11 << 48);

/// Control registers that differ between the host and a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// `HCR_EL2`.
    pub hcr: HcrEl2,
    /// `CPTR_EL2`.
    pub cptr: CptrEl2,
    /// `MDCR_EL2`.
    pub mdcr: MdcrEl2,
    /// `CNTHCTL_EL2`.
    pub cnthctl: CnthctlEl2,
    /// `HCRX_EL2`, with FEAT_HCX.
    pub hcrx: Option<HcrxEl2>,
    /// `HFGRTR_EL2` and `HFGWTR_EL2`, with FEAT_FGT.
    pub fgt: Option<(HfgrtrEl2, HfgwtrEl2)>,
    /// `ICC_SRE_EL2` and `ICH_HCR_EL2`, where the GIC has system registers.
    pub gic: Option<(IccSreEl2, IchHcrEl2)>,
    /// `MPAM2_EL2`, with FEAT_MPAM.
    pub mpam: Option<Mpam2El2>,
}

/// The GIC's registers are the host's; the virtual interface is off.
fn host_gic() -> (IccSreEl2, IchHcrEl2) {
    let sre = IccSreEl2::SRE | IccSreEl2::DFB | IccSreEl2::DIB;
    (sre | IccSreEl2::ENABLE, IchHcrEl2::default())
}

/// A guest's accesses trap, `ICC_SRE_EL1` included: nothing of the virtual interface is switched.
fn guest_gic() -> (IccSreEl2, IchHcrEl2) {
    let (sre, _) = host_gic();
    let traps = IchHcrEl2::TC | IchHcrEl2::TALL0 | IchHcrEl2::TALL1;
    (sre.difference(IccSreEl2::ENABLE), traps)
}

impl Controls {
    /// Returns what the host gets: everything, behind stage 2. `counters` is `PMCR_EL0.N`.
    pub fn host(id: &IdRegisters, counters: u8) -> Self {
        Self {
            hcr: host_hcr(id),
            // No trap: FP, SVE and SME are the host's; the hypervisor itself uses none of them.
            cptr: CptrEl2::RES1.difference(CptrEl2::TZ | CptrEl2::TSM),
            // All counters for EL1; SPE and TRBE write their buffers through EL1's own stage 1 and
            // stage 2 (E2PB, E2TB = 0b11), so they reach what the host reaches and nothing else.
            // HPMD, HCCD: nothing is counted at EL2.
            mdcr: counting_stops_at_el2().with_hpmn(counters).with_e2pb(0b11).with_e2tb(0b11),
            // Physical counter and timer (EL1PCTEN, EL1PCEN): with E2H = 0 these are bits 0 and 1.
            cnthctl: CnthctlEl2::EL0PCTEN | CnthctlEl2::EL0VCTEN,
            hcrx: id.has_hcrx().then(|| host_hcrx(id)),
            fgt: id.has_fgt().then(|| host_fgt(id)),
            gic: id.has_gic_registers().then(host_gic),
            mpam: id.has_mpam().then_some(Mpam2El2::MPAMEN),
        }
    }

    /// Returns what a guest gets: general registers, its stage 1, pointer authentication, the
    /// counters' views; nothing whose state the world switch does not keep apart.
    pub fn guest(id: &IdRegisters, counters: u8) -> Self {
        let trap_units = CptrEl2::RES1 | CptrEl2::TFP | CptrEl2::TCPAC;
        let cptr = add(
            trap_units.difference(CptrEl2::TZ | CptrEl2::TSM),
            [
                (CptrEl2::TZ, id.has_sve()),
                (CptrEl2::TSM, id.has_sme()),
                (CptrEl2::TAM, id.has_amu()),
                (CPTR_TTA, true),
            ],
        );
        Self {
            hcr: guest_hcr(id),
            cptr,
            mdcr: guest_mdcr(id, counters),
            // The physical timer is the host's: EL1PCEN stays clear, its registers trap.
            cnthctl: CnthctlEl2::EL0PCTEN,
            hcrx: id.has_hcrx().then(HcrxEl2::default),
            // The `n…` bits are clear: registers of features that are not offered trap.
            fgt: id.has_fgt().then(|| (guest_read_traps(), guest_write_traps())),
            gic: id.has_gic_registers().then(guest_gic),
            mpam: id.has_mpam().then_some(Mpam2El2::MPAMEN.union(MPAM_TRAPS)),
        }
    }
}

/// Why each bit: VM, the host's stage 2. SWIO, set/way invalidation cleans too. RW, EL1 is AArch64. TSC, PSCI starts CPUs in the
/// hypervisor and no call reaches EL3 unseen. TIDCP, implementation-defined registers include
/// direct reads of cache and TLB memory on some cores.
fn host_hcr(id: &IdRegisters) -> HcrEl2 {
    let base = HcrEl2::VM | HcrEl2::SWIO | HcrEl2::RW | HcrEl2::TSC | HcrEl2::TIDCP;
    add(
        base,
        [
            (HcrEl2::FWB, id.mmfr2.fwb() != 0),
            (HcrEl2::API | HcrEl2::APK, id.has_pauth()),
            (HcrEl2::ATA, id.has_mte()),
            (HcrEl2::ENSCXT, id.has_scxtnum()),
        ],
    )
}

/// Why each bit beyond the host's: PTW, a guest's table walk must not reach Device memory. IMO, FMO,
/// AMO, physical interrupts and SErrors return to the hypervisor. TWI, TWE, waiting gives the CPU
/// back. TACR, `ACTLR_EL1` has no architected meaning. TSW, set/way maintenance acts on everybody's
/// lines. FB and BSU, a vCPU that moves leaves no stale entry on the CPU it came from. TERR and TEA,
/// RAS records are the machine's. TLOR, LORegions name physical addresses.
///
/// ATA stays clear: the world switch keeps no tag state apart, so guests have no tags.
fn guest_hcr(id: &IdRegisters) -> HcrEl2 {
    let routing = HcrEl2::IMO | HcrEl2::FMO | HcrEl2::AMO | HcrEl2::TWI | HcrEl2::TWE;
    let isolation = HcrEl2::PTW | HcrEl2::TACR | HcrEl2::TSW | HcrEl2::FB;
    let host = host_hcr(id).difference(HcrEl2::ATA | HcrEl2::ENSCXT);
    // BSU = 0b01: barriers reach at least the inner shareable domain.
    let base = (host | routing | isolation).with_bsu(0b01);
    add(base, [(HcrEl2::TERR | HcrEl2::TEA, id.has_ras()), (HcrEl2::TLOR, id.has_lor())])
}

/// Event counters (HPMD, FEAT_PMUv3p1) and the cycle counter (HCCD, FEAT_PMUv3p5) stop at EL2.
fn counting_stops_at_el2() -> MdcrEl2 {
    MdcrEl2::HPMD | MdcrEl2::HCCD
}

/// Debug, PMU, SPE and trace are the host's: every access traps. E2PB, E2TB = 0b10: a buffer that
/// the host left enabled belongs to EL1 and so to stage 2, never to EL2.
fn guest_mdcr(id: &IdRegisters, counters: u8) -> MdcrEl2 {
    let debug = MdcrEl2::TDE | MdcrEl2::TDA | MdcrEl2::TDOSA | MdcrEl2::TDRA;
    add(
        (debug | counting_stops_at_el2()).with_hpmn(counters).with_e2pb(0b10).with_e2tb(0b10),
        [
            (MdcrEl2::TPM | MdcrEl2::TPMCR, id.has_pmu()),
            (MdcrEl2::TPMS, id.has_spe()),
            (MdcrEl2::TTRF, id.has_trace_filter()),
        ],
    )
}

fn host_hcrx(id: &IdRegisters) -> HcrxEl2 {
    let extended = |field: fn(IdAa64mmfr3El1) -> u8| field(id.mmfr3) != 0;
    add(
        HcrxEl2::default(),
        [
            (HcrxEl2::MSCEN, id.isar2.mops() != 0),
            (HcrxEl2::TCR2EN, extended(IdAa64mmfr3El1::tcrx)),
            (HcrxEl2::SCTLR2EN, extended(IdAa64mmfr3El1::sctlrx)),
            (HcrxEl2::GCSEN, id.pfr1.gcs() != 0),
            (HcrxEl2::ENFPM, id.pfr2.fpmr() != 0),
            (HcrxEl2::ENALS, id.isar1.ls64() >= 1),
            (HcrxEl2::ENASR, id.isar1.ls64() >= 2),
            (HcrxEl2::ENAS0, id.isar1.ls64() >= 3),
        ],
    )
}

/// Bits whose name starts with `n` trap while they are clear: set those of features that are there.
fn host_fgt(id: &IdRegisters) -> (HfgrtrEl2, HfgwtrEl2) {
    let pie = id.mmfr3.s1pie() != 0;
    let poe = id.mmfr3.s1poe() != 0;
    let aie = id.mmfr3.aie() != 0;
    let gcs = id.pfr1.gcs() != 0;
    let acc = id.isar1.ls64() >= 3;
    let the = id.pfr1.the() != 0;
    macro_rules! bits {
        ($register:ident) => {
            add(
                $register::default(),
                [
                    ($register::NTPIDR2_EL0 | $register::NSMPRI_EL1, id.has_sme()),
                    ($register::NPIRE0_EL1 | $register::NPIR_EL1, pie),
                    ($register::NPOR_EL0 | $register::NPOR_EL1, poe),
                    ($register::NMAIR2_EL1 | $register::NAMAIR2_EL1, aie),
                    ($register::NGCS_EL0 | $register::NGCS_EL1, gcs),
                    ($register::NACCDATA_EL1, acc),
                    ($register::NRCWMASK_EL1, the),
                ],
            )
        };
    }
    (bits!(HfgrtrEl2), bits!(HfgwtrEl2))
}

/// `SCXTNUM_ELx` would show the host's context numbers.
fn guest_read_traps() -> HfgrtrEl2 {
    HfgrtrEl2::SCXTNUM_EL0 | HfgrtrEl2::SCXTNUM_EL1
}

fn guest_write_traps() -> HfgwtrEl2 {
    HfgwtrEl2::SCXTNUM_EL0 | HfgwtrEl2::SCXTNUM_EL1
}

#[cfg(target_arch = "aarch64")]
pub use hardware::{counters, init_cpu, scrub_el1};

#[cfg(target_arch = "aarch64")]
mod hardware {
    use arm_sysregs::el0::accessors::read_pmcr_el0;
    use arm_sysregs::el1::accessors::{read_midr_el1, read_mpidr_el1};
    use arm_sysregs::el2::accessors as el2;
    use arm_sysregs::el2::registers::{CnthpCtlEl2, CntvoffEl2, MpamhcrEl2, VmpidrEl2, VpidrEl2};

    use super::{Controls, host_gic};
    use crate::features::IdRegisters;
    use crate::sysreg::write;
    use crate::tlb::Stage2Regs;

    /// `LEN` of `ZCR_EL2` and `SMCR_EL2`: the host may use every vector length.
    const LEN_MAX: u64 = 0xf;
    /// `SMCR_EL2.FA64` (bit 31) and `EZT0` (bit 30): RES0 where absent.
    const SMCR_FULL: u64 = LEN_MAX | 1 << 31 | 1 << 30;
    /// `HDFGRTR_EL2`, `HDFGWTR_EL2`: `nBRBCTL`, `nBRBDATA`, `nPMSNEVFR_EL1`.
    const HDFG_OPEN: u64 = 0b111 << 60;
    /// `HDFGRTR_EL2`: `nBRBIDR`.
    const HDFG_OPEN_READ: u64 = 1 << 59;
    /// `HFGITR_EL2`: `nBRBINJ`, `nBRBIALL`.
    const HFGITR_OPEN: u64 = 0b11 << 55;

    /// Returns `PMCR_EL0.N`.
    pub fn counters(id: &IdRegisters) -> u8 {
        if id.has_pmu() { read_pmcr_el0().n() } else { 0 }
    }

    impl Controls {
        /// Loads all of them. The caller synchronises the context.
        ///
        /// # Safety
        ///
        /// `VTTBR_EL2` and `VTCR_EL2` must be those of the same side, the host's or a guest's.
        pub unsafe fn load(&self) {
            // SAFETY: EL2 itself is not affected by the bits that differ; the rest is the caller's.
            unsafe { el2::write_hcr_el2(self.hcr) };
            // SAFETY: the hypervisor uses no FP, SVE or SME register.
            unsafe { el2::write_cptr_el2(self.cptr) };
            el2::write_mdcr_el2(self.mdcr);
            el2::write_cnthctl_el2(self.cnthctl);
            if let Some(hcrx) = self.hcrx {
                // SAFETY: the register exists and acts on EL1 and EL0 only.
                unsafe { el2::write_hcrx_el2(hcrx) };
            }
            if let Some((read, write)) = self.fgt {
                // SAFETY: the register exists and acts on EL1 and EL0 only.
                unsafe { el2::write_hfgrtr_el2(read) };
                // SAFETY: as above.
                unsafe { el2::write_hfgwtr_el2(write) };
            }
            if let Some((sre, ich)) = self.gic {
                // SAFETY: nothing at EL2 uses the GIC; SRE stays set.
                unsafe { el2::write_icc_sre_el2(sre) };
                // SAFETY: the virtual interface stays off.
                unsafe { el2::write_ich_hcr_el2(ich) };
            }
            if let Some(mpam) = self.mpam {
                // SAFETY: partition 0 for EL2; the traps act on EL1 and EL0 only.
                unsafe { el2::write_mpam2_el2(mpam) };
            }
        }
    }

    /// Sets this CPU's EL2 up for the host, and leaves EL1 as it is.
    ///
    /// # Safety
    ///
    /// `stage2` must be the host's, and stay valid for good.
    pub unsafe fn init_cpu(id: &IdRegisters, host: &Controls, stage2: Stage2Regs) {
        write!("vtcr_el2", stage2.vtcr);
        write!("vttbr_el2", stage2.vttbr);
        interrupts(id);
        // SAFETY: the host's controls with the host's stage 2.
        unsafe { host.load() };
        identity();
        timers(id);
        profiling(id);
        vectors_and_partitions(id);
        fine_grained_traps(id);
        crate::barrier::isb();
        // What was translated under VMID 0 without stage 2.
        crate::sysreg::tlbi_all_el1();
    }

    /// The host sees the real CPU.
    fn identity() {
        el2::write_vpidr_el2(VpidrEl2::from_bits_retain(read_midr_el1().bits()));
        el2::write_vmpidr_el2(VmpidrEl2::from_bits_retain(read_mpidr_el1().bits()));
        el2::write_hstr_el2(0);
    }

    /// No offset between the counters, no timer of EL2's own.
    fn timers(id: &IdRegisters) {
        el2::write_cntvoff_el2(CntvoffEl2::default());
        el2::write_cnthp_ctl_el2(CnthpCtlEl2::default());
        if id.has_cntpoff() {
            el2::write_cntpoff_el2(arm_sysregs::el2::registers::CntpoffEl2::default());
        }
    }

    /// The GIC's system registers exist from the next barrier on: `Controls::load` writes others.
    fn interrupts(id: &IdRegisters) {
        if id.has_gic_registers() {
            // SAFETY: enables register access; nothing at EL2 uses the memory-mapped interface.
            unsafe { el2::write_icc_sre_el2(host_gic().0) };
            crate::barrier::isb();
        }
    }

    /// Profiling and trace record nothing of EL2; both are UNKNOWN out of reset.
    fn profiling(id: &IdRegisters) {
        if id.has_spe() {
            // `PMSCR_EL2`.
            write!("s3_4_c9_c9_0", 0);
        }
        if id.has_trace_filter() {
            // `TRFCR_EL2`.
            write!("s3_4_c1_c2_1", 0);
        }
    }

    fn vectors_and_partitions(id: &IdRegisters) {
        crate::barrier::isb();
        if id.has_sve() {
            write!("s3_4_c1_c2_0", LEN_MAX);
        }
        if id.has_sme() {
            write!("s3_4_c1_c2_6", SMCR_FULL);
            // `SMPRIMAP_EL2`: streaming priorities as they are.
            write!("s3_4_c1_c2_5", 0);
        }
        if id.has_mpam() && crate::sysreg::mpam_has_hcr() {
            // SAFETY: EL1's and EL0's partitions are not virtualised.
            unsafe { el2::write_mpamhcr_el2(MpamhcrEl2::default()) };
        }
    }

    /// Instruction and debug traps that host and guests share.
    fn fine_grained_traps(id: &IdRegisters) {
        if !id.has_fgt() {
            return;
        }
        let branch_records = if id.has_brbe() { HFGITR_OPEN } else { 0 };
        write!("s3_4_c1_c1_6", branch_records);
        let units = id.has_brbe() || id.has_spe();
        let (reads, writes) = if units { (HDFG_OPEN | HDFG_OPEN_READ, HDFG_OPEN) } else { (0, 0) };
        write!("s3_4_c3_c1_4", reads);
        write!("s3_4_c3_c1_5", writes);
        if id.has_amu() {
            // `HAFGRTR_EL2`.
            write!("s3_4_c3_c1_6", 0);
        }
    }

    /// Leaves nothing of the loader's in EL1: out of reset for all that the host can tell.
    pub fn scrub_el1(id: &IdRegisters) {
        crate::world::scrub_el1(id.has_pauth());
        write!("cntkctl_el1", 0);
        write!("cntv_ctl_el0", 0);
        write!("cntp_ctl_el0", 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arm_sysregs::el1::registers::IdAa64pfr0El1;

    fn bare() -> IdRegisters {
        IdRegisters::default()
    }

    #[test]
    fn the_host_of_a_plain_cpu_gets_the_values_that_every_cpu_of_the_matrix_was_run_with() {
        let host = Controls::host(&bare(), 6);
        assert_eq!(host.cptr.bits(), 0x22ff);
        assert_eq!(host.cnthctl.bits(), 3);
        let stopped_at_el2 = 1 << 17 | 1 << 23;
        assert_eq!(host.mdcr.bits(), 6 | stopped_at_el2 | 0b11 << 12 | 0b11 << 24);
    }

    #[test]
    fn a_guest_never_gets_what_is_not_switched() {
        let pfr0 = IdAa64pfr0El1::default().with_sve(1);
        let guest = Controls::guest(&IdRegisters { pfr0, ..bare() }, 0);
        assert!(guest.cptr.contains(CptrEl2::TFP | CptrEl2::TZ));
        assert!(guest.mdcr.contains(MdcrEl2::TDA | MdcrEl2::TDE));
        assert!(!guest.hcr.intersects(HcrEl2::ATA | HcrEl2::ENSCXT));
        assert!(!guest.cnthctl.contains(CnthctlEl2::EL0VCTEN));
    }

    #[test]
    fn the_hypervisor_runs_with_write_xor_execute() {
        assert!(sctlr(&bare()).contains(SctlrEl2::WXN | SctlrEl2::M | SctlrEl2::C));
    }
}
