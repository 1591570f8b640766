//! `VTCR_EL2`: size, start level and attributes of stage-2 walks (Arm ARM, D24.2, `VTCR_EL2`).

use arm_sysregs::el2::registers::VtcrEl2;
use pfnguard_shared::PAGE_SHIFT;

/// Width of VMIDs that the CPUs share (`ID_AA64MMFR1_EL1.VMIDBits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmid16 {
    /// 8 bits.
    Absent,
    /// 16 bits.
    Present,
}

/// Largest input size without FEAT_LPA2.
const MAX_BITS: u32 = 48;
/// Smallest supported input and output size.
const MIN_BITS: u32 = 32;
/// Physical address bits from which on a level-0 root is allowed with a 4 KiB granule.
const LEVEL_0_BITS: u32 = 44;
/// Input bits that one level-1 root page resolves.
const LEVEL_1_BITS: u32 = 39;
/// Input bits of a guest.
const GUEST_BITS: u32 = 39;
/// `SL0` for a walk that starts at level 0 or 1, 4 KiB granule.
const SL0_LEVEL_0: u64 = 0b10;
const SL0_LEVEL_1: u64 = 0b01;
/// `IRGN0`, `ORGN0`: walks are write-back, read- and write-allocate.
const WALK_WBWA: u64 = 0b01;
/// `SH0`: walks are inner shareable.
const WALK_INNER: u64 = 0b11;

/// The shape of a set of stage-2 tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtcr {
    input_bits: u32,
    pa_bits: u32,
    vmid16: Vmid16,
}

impl Vtcr {
    /// Returns the shape of the host's identity map: all of the physical address space that
    /// `pa_bits` (32 to 52) give, up to 48 bits.
    pub const fn host(pa_bits: u32, vmid16: Vmid16) -> Self {
        Self::new(pa_bits, pa_bits, vmid16)
    }

    /// Returns the shape of a guest's tables: 39 bits, one level-1 root page; fewer where the
    /// physical address space is smaller.
    pub const fn guest(pa_bits: u32, vmid16: Vmid16) -> Self {
        Self::new(GUEST_BITS, pa_bits, vmid16)
    }

    const fn new(input_bits: u32, pa_bits: u32, vmid16: Vmid16) -> Self {
        assert!(pa_bits >= MIN_BITS, "the architecture's smallest address space has 32 bits");
        let pa_bits = if pa_bits > MAX_BITS { MAX_BITS } else { pa_bits };
        // An input size beyond the physical one is CONSTRAINED UNPREDICTABLE.
        let input_bits = if input_bits > pa_bits { pa_bits } else { input_bits };
        Self { input_bits, pa_bits, vmid16 }
    }

    /// Returns the number of intermediate physical address bits.
    pub const fn input_bits(&self) -> u32 {
        self.input_bits
    }

    /// Returns the number of pages of the intermediate physical address space.
    pub const fn input_pages(&self) -> u64 {
        1 << (self.input_bits - PAGE_SHIFT)
    }

    /// Returns the level of the root: level 0 is reserved below 44 physical address bits, and up to
    /// 16 level-1 tables can be concatenated instead.
    pub const fn start_level(&self) -> u32 {
        if self.input_bits >= LEVEL_0_BITS { 0 } else { 1 }
    }

    /// Returns the number of concatenated root tables; they are aligned to their total size.
    pub const fn root_tables(&self) -> u64 {
        if self.start_level() == 0 || self.input_bits <= LEVEL_1_BITS {
            1
        } else {
            1 << (self.input_bits - LEVEL_1_BITS)
        }
    }

    /// Returns the value of `VTCR_EL2`.
    pub fn value(&self) -> u64 {
        let sl0 = if self.start_level() == 0 { SL0_LEVEL_0 } else { SL0_LEVEL_1 };
        let fields = u64::from(64 - self.input_bits) << VtcrEl2::T0SZ_SHIFT
            | sl0 << VtcrEl2::SL0_SHIFT
            | WALK_WBWA << VtcrEl2::IRGN0_SHIFT
            | WALK_WBWA << VtcrEl2::ORGN0_SHIFT
            | WALK_INNER << VtcrEl2::SH0_SHIFT
            | physical_size(self.pa_bits) << VtcrEl2::PS_SHIFT;
        let vmids = match self.vmid16 {
            Vmid16::Absent => VtcrEl2::empty(),
            Vmid16::Present => VtcrEl2::VS,
        };
        VtcrEl2::RES1.bits() | vmids.bits() | fields
    }
}

/// Returns the field `PS` of `VTCR_EL2` and `TCR_EL2`: the largest encoding, up to 48 bits, that is
/// not beyond `pa_bits`.
pub(crate) const fn physical_size(pa_bits: u32) -> u64 {
    match pa_bits {
        ..36 => 0b000,
        36..40 => 0b001,
        40..42 => 0b010,
        42..44 => 0b011,
        44..48 => 0b100,
        48.. => 0b101,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(value: u64, high: u32, low: u32) -> u64 {
        value >> low & ((1 << (high - low + 1)) - 1)
    }

    #[test]
    fn the_host_gets_the_architectures_start_level_for_every_size() {
        // Physical bits, input bits, level, tables, SL0, PS.
        let table = [
            (32, 32, 1, 1, 0b01, 0b000),
            (36, 36, 1, 1, 0b01, 0b001),
            (39, 39, 1, 1, 0b01, 0b001),
            (40, 40, 1, 2, 0b01, 0b010),
            (42, 42, 1, 8, 0b01, 0b011),
            (43, 43, 1, 16, 0b01, 0b011),
            (44, 44, 0, 1, 0b10, 0b100),
            (48, 48, 0, 1, 0b10, 0b101),
            (52, 48, 0, 1, 0b10, 0b101),
        ];
        for (pa_bits, input_bits, level, tables, sl0, ps) in table {
            let vtcr = Vtcr::host(pa_bits, Vmid16::Absent);
            let shape = (vtcr.input_bits(), vtcr.start_level(), vtcr.root_tables());
            assert_eq!(shape, (input_bits, level, tables), "{pa_bits}");
            let value = vtcr.value();
            assert_eq!(field(value, 5, 0), u64::from(64 - input_bits), "T0SZ for {pa_bits}");
            assert_eq!(field(value, 7, 6), sl0, "SL0 for {pa_bits}");
            assert_eq!(field(value, 18, 16), ps, "PS for {pa_bits}");
        }
    }

    #[test]
    fn walks_are_cacheable_and_inner_shareable() {
        let value = Vtcr::host(48, Vmid16::Present).value();
        assert_eq!(value, 1 << 31 | 1 << 19 | 0b101 << 16 | 0b11_01_01 << 8 | 0b10 << 6 | 16);
    }

    #[test]
    fn a_guest_gets_one_root_page_and_no_more_than_the_machine_has() {
        for pa_bits in 32..=52 {
            let vtcr = Vtcr::guest(pa_bits, Vmid16::Present);
            assert_eq!((vtcr.start_level(), vtcr.root_tables()), (1, 1), "{pa_bits}");
            assert_eq!(vtcr.input_bits(), pa_bits.min(39), "{pa_bits}");
        }
    }
}
