//! `PAR_EL1`, the CPU's own word on the memory type of an address (Arm ARM, `PAR_EL1`).

use core::fmt;

use pfnguard_shared::{MemType, PAGE_SHIFT};

/// Set where the translation failed (`PAR_EL1.F`).
const FAULT: u64 = 1;
/// Lowest bit of the fault status (`PAR_EL1.FST`, six bits).
const FST_SHIFT: u32 = 1;
/// Lowest bit of the memory attributes (`PAR_EL1.ATTR`, the format of `MAIR_EL1`).
const ATTR_SHIFT: u32 = 56;
/// Bits 51:12: the output address.
const PA_MASK: u64 = 0x000f_ffff_ffff_f000;

/// A value of `PAR_EL1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Par(pub u64);

/// The memory type that `PAR_EL1` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportedType {
    /// Device-nGnRE.
    DeviceNGnRE,
    /// Normal, Inner and Outer Non-cacheable.
    NormalNc,
    /// Normal, Inner and Outer Write-Back.
    NormalWb,
    /// Normal Write-Back with tag accesses.
    NormalWbTagged,
    /// Another attribute byte, which pfnguard never installs.
    Other(u8),
    /// No translation; the fault status code.
    Fault(u8),
}

impl Par {
    /// Returns the type that the CPU reports.
    pub fn reported(self) -> ReportedType {
        if self.0 & FAULT != 0 {
            return ReportedType::Fault(low_byte(self.0 >> FST_SHIFT) & 0x3f);
        }
        match low_byte(self.0 >> ATTR_SHIFT) {
            0x04 => ReportedType::DeviceNGnRE,
            0x44 => ReportedType::NormalNc,
            0xff => ReportedType::NormalWb,
            0xf0 => ReportedType::NormalWbTagged,
            attr => ReportedType::Other(attr),
        }
    }

    /// Returns the page frame number that the address translates to, or `None` after a fault.
    pub fn pfn(self) -> Option<u64> {
        if self.0 & FAULT != 0 { None } else { Some((self.0 & PA_MASK) >> PAGE_SHIFT) }
    }
}

impl ReportedType {
    /// Returns what the CPU must report, through a write-back stage 1, where stage 2 forces
    /// `mem_type`.
    pub fn expected(mem_type: MemType) -> Self {
        match mem_type {
            MemType::Device => Self::DeviceNGnRE,
            MemType::AnyUncached => Self::NormalNc,
            MemType::Cacheable => Self::NormalWb,
        }
    }
}

impl fmt::Display for ReportedType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceNGnRE => f.pad("Device-nGnRE"),
            Self::NormalNc => f.pad("Normal-NC"),
            Self::NormalWb => f.pad("Normal-WB"),
            Self::NormalWbTagged => f.pad("Normal-WB-tagged"),
            Self::Other(attr) => f.pad(&format!("attr-{attr:#04x}")),
            Self::Fault(fst) => f.pad(&format!("fault-{fst:#04x}")),
        }
    }
}

fn low_byte(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_that_pfnguard_installs_has_a_name() {
        assert_eq!(Par(0x0400_0000_1000_0b80).reported(), ReportedType::DeviceNGnRE);
        assert_eq!(Par(0x4400_0000_1000_0b80).reported(), ReportedType::NormalNc);
        assert_eq!(Par(0xff00_0000_1000_0b80).reported(), ReportedType::NormalWb);
        assert_eq!(Par(0xf000_0000_1000_0b80).reported(), ReportedType::NormalWbTagged);
        assert_eq!(Par(0xbb00_0000_1000_0b80).reported(), ReportedType::Other(0xbb));
    }

    #[test]
    fn a_fault_has_a_status_and_no_address() {
        let par = Par((0x07 << 1) | 1 | (1 << 11));
        assert_eq!(par.reported(), ReportedType::Fault(0x07));
        assert_eq!(par.pfn(), None);
    }

    #[test]
    fn the_frame_is_found_above_32_bits() {
        assert_eq!(Par(0xff00_0080_0100_0b80).pfn(), Some(0x80_0100_0000 >> 12));
    }

    #[test]
    fn the_type_is_what_was_asked_for() {
        assert_eq!(ReportedType::expected(MemType::AnyUncached), ReportedType::NormalNc);
        assert_eq!(ReportedType::expected(MemType::Cacheable).to_string(), "Normal-WB");
    }
}
