//! Instructions of the trace, decoded (Arm ARM, C5.1 and C6.2).

/// How far maintenance or a barrier reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// This CPU.
    Local,
    /// All CPUs of the inner shareable domain.
    Inner,
    /// The outer shareable domain or the whole system.
    Outer,
}

/// Accesses that a `DSB` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Loads only.
    Loads,
    /// Stores only.
    Stores,
    /// All accesses, and all maintenance.
    All,
}

/// What a TLB invalidation removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbiKind {
    /// Stage 2 by one address.
    Ipa(LastLevel),
    /// Stage 2 by a range of addresses.
    IpaRange(LastLevel),
    /// Stage 1 of the VMID, with what combines it with stage 2 (`VMALLE1`).
    Stage1,
    /// Both stages of the VMID (`VMALLS12E1`).
    BothStages,
    /// Everything of EL1 and EL0, of all VMIDs (`ALLE1`).
    AllEl1,
    /// EL2 by one address.
    El2Va(LastLevel),
    /// EL2 by a range of addresses.
    El2VaRange(LastLevel),
    /// Everything of EL2.
    AllEl2,
    /// Anything else: counted, relied on for nothing.
    Other,
}

/// Whether table descriptors go too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLevel {
    /// Leaves and the tables on the way to them.
    No,
    /// Leaves only.
    Only,
}

/// What data cache maintenance does to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DcKind {
    /// Cleans to the point of coherency.
    Clean,
    /// Cleans and invalidates to the point of coherency.
    CleanInvalidate,
    /// Zeroes a block in the cache (`DC ZVA`).
    Zero,
    /// Anything else: counted, relied on for nothing.
    Other,
}

/// System registers whose writes matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// `TTBR0_EL2`.
    Ttbr0El2,
    /// `TCR_EL2`.
    TcrEl2,
    /// `VTTBR_EL2`.
    VttbrEl2,
    /// `VTCR_EL2`.
    VtcrEl2,
    /// `HCR_EL2`.
    HcrEl2,
    /// `SCTLR_EL2`.
    SctlrEl2,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insn {
    /// TLB invalidation.
    Tlbi(TlbiKind, Reach),
    /// Data cache maintenance.
    Dc(DcKind),
    /// Instruction cache maintenance.
    Ic,
    /// Address translation.
    At,
    /// Data synchronisation barrier.
    Dsb(Reach, Waits),
    /// Instruction synchronisation barrier.
    Isb,
    /// Write of a system register.
    Msr(Register),
    /// Exception return.
    Eret,
}

/// `SYS`, without result.
const SYS: u32 = 0xd508_0000;
/// `MSR` to a system register with `op0` = 3.
const MSR: u32 = 0xd518_0000;
const SYSTEM_MASK: u32 = 0xfff8_0000;
const DSB: u32 = 0xd503_309f;
const ISB: u32 = 0xd503_30df;
/// All but `CRm`.
const BARRIER_MASK: u32 = 0xffff_f0ff;
/// `ERET`, `ERETAA`, `ERETAB`.
const ERETS: [u32; 3] = [0xd69f_03e0, 0xd69f_0bff, 0xd69f_0fff];
/// The operand register number that is no register.
const NO_REGISTER: usize = 31;

impl Insn {
    /// Decodes an instruction; `None` for one that no trace holds.
    pub fn decode(insn: u32) -> Option<Self> {
        if ERETS.contains(&insn) {
            return Some(Self::Eret);
        }
        match (insn & SYSTEM_MASK, insn & BARRIER_MASK) {
            (SYS, _) => system(Encoding::of(insn)),
            (MSR, _) => register(Encoding::of(insn)).map(Self::Msr),
            (_, DSB) => barrier(insn >> 8 & 0b1111),
            (_, ISB) => Some(Self::Isb),
            _ => None,
        }
    }

    /// Returns the number of the operand register of a system instruction or register write;
    /// `None` where it has none.
    pub fn operand(insn: u32) -> Option<usize> {
        let system = [SYS, MSR].contains(&(insn & SYSTEM_MASK));
        let number = usize::try_from(insn & 0b1_1111).ok()?;
        (system && number != NO_REGISTER).then_some(number)
    }

    /// Returns whether an instruction may store eight bytes or more to a page table: any load or
    /// store whose base is not the stack pointer.
    pub fn may_store(insn: u32) -> bool {
        insn & 0x0a00_0000 == 0x0800_0000 && insn >> 5 & 0b1_1111 != 31
    }
}

/// The numbers that name a system instruction or register.
#[derive(Clone, Copy, Debug)]
struct Encoding {
    op1: u32,
    crn: u32,
    crm: u32,
    op2: u32,
}

impl Encoding {
    fn of(insn: u32) -> Self {
        Self { op1: insn >> 16 & 7, crn: insn >> 12 & 15, crm: insn >> 8 & 15, op2: insn >> 5 & 7 }
    }
}

fn barrier(crm: u32) -> Option<Insn> {
    let reach = match crm >> 2 {
        0b00 | 0b11 => Reach::Outer,
        0b01 => Reach::Local,
        _ => Reach::Inner,
    };
    match crm & 0b11 {
        0b01 => Some(Insn::Dsb(reach, Waits::Loads)),
        0b10 => Some(Insn::Dsb(reach, Waits::Stores)),
        0b11 => Some(Insn::Dsb(reach, Waits::All)),
        // Speculation barriers.
        _ => None,
    }
}

fn register(Encoding { op1, crn, crm, op2 }: Encoding) -> Option<Register> {
    match (op1, crn, crm, op2) {
        (4, 2, 0, 0) => Some(Register::Ttbr0El2),
        (4, 2, 0, 2) => Some(Register::TcrEl2),
        (4, 2, 1, 0) => Some(Register::VttbrEl2),
        (4, 2, 1, 2) => Some(Register::VtcrEl2),
        (4, 1, 1, 0) => Some(Register::HcrEl2),
        (4, 1, 0, 0) => Some(Register::SctlrEl2),
        _ => None,
    }
}

fn system(encoding: Encoding) -> Option<Insn> {
    let Encoding { op1, crn, crm, op2 } = encoding;
    match (crn, crm) {
        (7, 1 | 5) => Some(Insn::Ic),
        (7, 8) => Some(Insn::At),
        (7, 4 | 6 | 10 | 11 | 12 | 13 | 14) => Some(Insn::Dc(match (op1, crm, op2) {
            (3, 10, 1) => DcKind::Clean,
            (3, 14, 1) => DcKind::CleanInvalidate,
            (3, 4, 1) => DcKind::Zero,
            _ => DcKind::Other,
        })),
        // 9: the same, without waiting for accesses with the XS attribute.
        (8 | 9, _) => Some(tlbi(encoding)),
        _ => None,
    }
}

fn tlbi(encoding: Encoding) -> Insn {
    use LastLevel::{No, Only};
    let Encoding { op1, crm, op2, .. } = encoding;
    let (kind, reach) = match (op1, crm, op2) {
        (0, 1, 0) => (TlbiKind::Stage1, Reach::Outer),
        (0, 3, 0) => (TlbiKind::Stage1, Reach::Inner),
        (0, 7, 0) => (TlbiKind::Stage1, Reach::Local),
        (4, 0, 1) => (TlbiKind::Ipa(No), Reach::Inner),
        (4, 0, 5) => (TlbiKind::Ipa(Only), Reach::Inner),
        (4, 0, 2) => (TlbiKind::IpaRange(No), Reach::Inner),
        (4, 0, 6) => (TlbiKind::IpaRange(Only), Reach::Inner),
        (4, 4, 0) => (TlbiKind::Ipa(No), Reach::Outer),
        (4, 4, 4) => (TlbiKind::Ipa(Only), Reach::Outer),
        (4, 4, 3) => (TlbiKind::IpaRange(No), Reach::Outer),
        (4, 4, 7) => (TlbiKind::IpaRange(Only), Reach::Outer),
        (4, 4, 1) => (TlbiKind::Ipa(No), Reach::Local),
        (4, 4, 5) => (TlbiKind::Ipa(Only), Reach::Local),
        (4, 4, 2) => (TlbiKind::IpaRange(No), Reach::Local),
        (4, 4, 6) => (TlbiKind::IpaRange(Only), Reach::Local),
        (4, 1, _) => (el2(op2), Reach::Outer),
        (4, 3, _) => (el2(op2), Reach::Inner),
        (4, 7, _) => (el2(op2), Reach::Local),
        (4, 5, _) => (el2_range(op2), Reach::Outer),
        (4, 2, _) => (el2_range(op2), Reach::Inner),
        (4, 6, _) => (el2_range(op2), Reach::Local),
        _ => (TlbiKind::Other, Reach::Local),
    };
    Insn::Tlbi(kind, reach)
}

fn el2(op2: u32) -> TlbiKind {
    match op2 {
        0 => TlbiKind::AllEl2,
        1 => TlbiKind::El2Va(LastLevel::No),
        4 => TlbiKind::AllEl1,
        5 => TlbiKind::El2Va(LastLevel::Only),
        6 => TlbiKind::BothStages,
        _ => TlbiKind::Other,
    }
}

fn el2_range(op2: u32) -> TlbiKind {
    match op2 {
        1 => TlbiKind::El2VaRange(LastLevel::No),
        5 => TlbiKind::El2VaRange(LastLevel::Only),
        _ => TlbiKind::Other,
    }
}

/// Returns the pages, first and past, that the operand of a range invalidation covers
/// (Arm ARM, C5.5: 4 KiB granule).
pub fn range_operand(operand: u64) -> (u64, u64) {
    let base = operand & ((1 << 37) - 1);
    let (num, scale) = (operand >> 39 & 0b1_1111, operand >> 44 & 0b11);
    (base, base + ((num + 1) << (5 * scale + 1)))
}

/// Returns the page of the operand of an invalidation by one address.
pub fn page_operand(operand: u64) -> u64 {
    operand & ((1 << 44) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_known_by_the_bits_that_an_assembler_makes() {
        let known = [
            (0xd508_831f, Insn::Tlbi(TlbiKind::Stage1, Reach::Inner)),
            (0xd508_871f, Insn::Tlbi(TlbiKind::Stage1, Reach::Local)),
            (0xd50c_8020, Insn::Tlbi(TlbiKind::Ipa(LastLevel::No), Reach::Inner)),
            (0xd50c_8042, Insn::Tlbi(TlbiKind::IpaRange(LastLevel::No), Reach::Inner)),
            (0xd50c_83df, Insn::Tlbi(TlbiKind::BothStages, Reach::Inner)),
            (0xd50c_87df, Insn::Tlbi(TlbiKind::BothStages, Reach::Local)),
            (0xd50c_8323, Insn::Tlbi(TlbiKind::El2Va(LastLevel::No), Reach::Inner)),
            (0xd50c_8723, Insn::Tlbi(TlbiKind::El2Va(LastLevel::No), Reach::Local)),
            (0xd50c_8223, Insn::Tlbi(TlbiKind::El2VaRange(LastLevel::No), Reach::Inner)),
            (0xd50c_831f, Insn::Tlbi(TlbiKind::AllEl2, Reach::Inner)),
            (0xd50c_879f, Insn::Tlbi(TlbiKind::AllEl1, Reach::Local)),
            (0xd50b_7e20, Insn::Dc(DcKind::CleanInvalidate)),
            (0xd50b_7a20, Insn::Dc(DcKind::Clean)),
            (0xd50b_7420, Insn::Dc(DcKind::Zero)),
            (0xd508_751f, Insn::Ic),
            (0xd50c_7880, Insn::At),
            (0xd503_3b9f, Insn::Dsb(Reach::Inner, Waits::All)),
            (0xd503_3a9f, Insn::Dsb(Reach::Inner, Waits::Stores)),
            (0xd503_379f, Insn::Dsb(Reach::Local, Waits::All)),
            (0xd503_3f9f, Insn::Dsb(Reach::Outer, Waits::All)),
            (0xd503_3fdf, Insn::Isb),
            (0xd51c_2100, Insn::Msr(Register::VttbrEl2)),
            (0xd51c_2001, Insn::Msr(Register::Ttbr0El2)),
            (0xd51c_1100, Insn::Msr(Register::HcrEl2)),
            (0xd69f_03e0, Insn::Eret),
        ];
        for (bits, insn) in known {
            assert_eq!(Insn::decode(bits), Some(insn), "{bits:#x}");
        }
        // add x0, x1, x2; mrs x0, vttbr_el2; smc #0.
        for other in [0x8b02_0020, 0xd53c_2100, 0xd400_0003] {
            assert_eq!(Insn::decode(other), None, "{other:#x}");
        }
    }

    #[test]
    fn the_operand_is_the_last_register() {
        assert_eq!(Insn::operand(0xd50c_8023), Some(3));
        assert_eq!(Insn::operand(0xd508_831f), None);
        assert_eq!(Insn::operand(0xd503_3b9f), None);
    }

    #[test]
    fn stores_past_the_stack_pointer_are_of_interest() {
        // str x0, [x1]; stp xzr, xzr, [x0], #16; cas x0, x1, [x2].
        for store in [0xf900_0020, 0xa881_7c1f, 0xc8a0_7c41] {
            assert!(Insn::may_store(store), "{store:#x}");
        }
        // str x0, [sp]; stp x0, x1, [sp, #-256]!; add x0, x1, x2.
        for other in [0xf900_03e0, 0xa9b0_07e0, 0x8b02_0020] {
            assert!(!Insn::may_store(other), "{other:#x}");
        }
    }

    #[test]
    fn a_range_operand_covers_what_the_architecture_says() {
        assert_eq!(range_operand(0b01 << 46 | 0x1234), (0x1234, 0x1236));
        assert_eq!(range_operand(0b01 << 46 | 1 << 44 | 7 << 39), (0, 8 << 6));
    }
}
