//! Exception syndromes in words (Arm ARM, `ESR_EL2`, `SPSR_EL2`).

use core::fmt;

use arm_sysregs::el2::registers::{EsrEl2, HpfarEl2, SpsrEl2};

/// Exception classes that the hypervisor tells apart.
pub mod class {
    /// WFI, WFE.
    pub const WFX: u8 = 0x01;
    /// `HVC` from AArch64.
    pub const HVC64: u8 = 0x16;
    /// `SMC` from AArch64.
    pub const SMC64: u8 = 0x17;
    /// `MSR`, `MRS` or system instruction.
    pub const SYSREG: u8 = 0x18;
    /// Instruction abort from a lower exception level.
    pub const INSTRUCTION_ABORT_LOWER: u8 = 0x20;
    /// Instruction abort at EL2 itself.
    pub const INSTRUCTION_ABORT_SAME: u8 = 0x21;
    /// Data abort from a lower exception level.
    pub const DATA_ABORT_LOWER: u8 = 0x24;
    /// Data abort at EL2 itself.
    pub const DATA_ABORT_SAME: u8 = 0x25;
}

/// `ISS` bits of aborts.
pub mod abort {
    /// Write, not read (data aborts).
    pub const WNR: u64 = 1 << 6;
    /// The fault happened on a stage-1 table walk.
    pub const S1PTW: u64 = 1 << 7;
    /// Cache maintenance (data aborts).
    pub const CM: u64 = 1 << 8;
    /// `FAR` is not valid.
    pub const FNV: u64 = 1 << 10;
    /// 32-bit instruction.
    pub const IL: u64 = 1 << 25;
    /// Fault status code.
    pub const FSC: u64 = 0b11_1111;
    /// Fault status without the level.
    pub const FSC_TYPE: u64 = 0b11_1100;
    /// Permission fault, any level.
    pub const FSC_PERMISSION: u64 = 0b00_1100;
    /// Synchronous external abort, not on a table walk.
    pub const FSC_EXTERNAL: u64 = 0b01_0000;
    /// Alignment fault.
    pub const FSC_ALIGNMENT: u64 = 0b10_0001;
}

/// Returns the exception class of a syndrome.
pub fn exception_class(esr: u64) -> u8 {
    EsrEl2::from_bits_retain(esr).ec()
}

/// Returns the page that a stage-2 fault names: `HPFAR_EL2.FIPA`.
pub fn fault_ipa_pfn(hpfar: u64) -> u64 {
    HpfarEl2::from_bits_retain(hpfar).fipa()
}

/// A syndrome in words.
#[derive(Clone, Copy, Debug)]
pub struct Syndrome(pub u64);

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ec = exception_class(self.0);
        f.write_str(class_name(ec))?;
        let data = matches!(ec, class::DATA_ABORT_LOWER | class::DATA_ABORT_SAME);
        let fetch = matches!(ec, class::INSTRUCTION_ABORT_LOWER | class::INSTRUCTION_ABORT_SAME);
        if data || fetch {
            write!(f, ", {}", fault_name(self.0 & abort::FSC))?;
            if self.0 & abort::FSC < abort::FSC_EXTERNAL {
                write!(f, " level {}", self.0 & 0b11)?;
            }
        }
        if data {
            f.write_str(if self.0 & abort::WNR == 0 { ", read" } else { ", write" })?;
        }
        if (data || fetch) && self.0 & abort::S1PTW != 0 {
            f.write_str(", on a table walk")?;
        }
        Ok(())
    }
}

fn class_name(ec: u8) -> &'static str {
    match ec {
        0x00 => "undefined instruction",
        class::WFX => "WFI or WFE",
        0x07 => "FP or SIMD access",
        0x09 => "pointer authentication",
        0x0d => "branch target exception (BTI)",
        0x0e => "illegal execution state",
        class::HVC64 => "HVC",
        class::SMC64 => "SMC",
        class::SYSREG => "system register access",
        0x19 => "SVE access",
        0x1c => "pointer authentication failure",
        0x1d => "SME access",
        class::INSTRUCTION_ABORT_LOWER => "instruction abort below EL2",
        class::INSTRUCTION_ABORT_SAME => "instruction abort",
        0x22 => "misaligned PC",
        class::DATA_ABORT_LOWER => "data abort below EL2",
        class::DATA_ABORT_SAME => "data abort",
        0x26 => "misaligned SP",
        0x2f => "SError",
        0x3c => "BRK",
        _ => "unknown exception class",
    }
}

fn fault_name(fsc: u64) -> &'static str {
    match fsc {
        0b00_0000..=0b00_0011 => "address size fault",
        0b00_0100..=0b00_0111 => "translation fault",
        0b00_1000..=0b00_1011 => "access flag fault",
        0b00_1100..=0b00_1111 => "permission fault",
        abort::FSC_EXTERNAL => "external abort",
        0b01_0100..=0b01_0111 => "external abort on a table walk",
        0b01_0001 => "tag check fault",
        abort::FSC_ALIGNMENT => "alignment fault",
        0b11_0000 => "TLB conflict",
        0b11_0101 => "unsupported exclusive or atomic",
        _ => "unknown fault",
    }
}

/// Processor state in words.
#[derive(Clone, Copy, Debug)]
pub struct State(pub u64);

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.0 & 0b1_1111 {
            0b0_0000 => "EL0t",
            0b0_0100 => "EL1t",
            0b0_0101 => "EL1h",
            0b0_1000 => "EL2t",
            0b0_1001 => "EL2h",
            _ => "AArch32 or reserved",
        };
        f.write_str(mode)?;
        let spsr = SpsrEl2::from_bits_retain(self.0);
        let flags = [
            (SpsrEl2::D, " D"),
            (SpsrEl2::A, " A"),
            (SpsrEl2::I, " I"),
            (SpsrEl2::F, " F"),
            (SpsrEl2::PAN, " PAN"),
            (SpsrEl2::SS, " SS"),
            (SpsrEl2::IL, " IL"),
        ];
        flags
            .into_iter()
            .filter(|(bit, _)| spsr.contains(*bit))
            .try_for_each(|(_, name)| f.write_str(name))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_translation_fault_is_told_with_level_and_direction() {
        let esr = 0x25 << 26 | abort::IL | abort::WNR | 0b00_0111;
        assert_eq!(Syndrome(esr).to_string(), "data abort, translation fault level 3, write");
    }

    #[test]
    fn the_page_of_a_fault_is_its_intermediate_address() {
        assert_eq!(fault_ipa_pfn(0x0000_0000_0040_0010), 0x4_0001);
    }

    #[test]
    fn processor_state_names_the_mode() {
        assert_eq!(State(0x3c5).to_string(), "EL1h D A I F");
    }
}
