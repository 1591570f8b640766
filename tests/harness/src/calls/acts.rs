//! What guests do.

use arbitrary::{Result, Unstructured};
use pfnguard_core::addr::PFN_LIMIT;
use pfnguard_shared::GuestFunction;

use super::pick::Pick;
use crate::guest::{Access, Act};

impl Pick<'_> {
    /// What a guest of `vm` does.
    pub(super) fn acts(&self, vm: u64, bytes: &mut Unstructured<'_>) -> Result<Vec<Act>> {
        let count = bytes.int_in_range(0..=4usize)?;
        (0..count).map(|_| self.act(vm, bytes)).collect()
    }

    fn act(&self, vm: u64, bytes: &mut Unstructured<'_>) -> Result<Act> {
        // No CPU has more address bits: stage 1 lets none through.
        let ipa = self.guest_ipa(vm, bytes)? & (PFN_LIMIT - 1);
        Ok(match bytes.int_in_range(0..=15u8)? {
            0..=1 => {
                let ipa = self.lent_page(vm).unwrap_or(ipa);
                let unshare = u64::from(GuestFunction::MemUnshare.raw());
                Act::Hvc { regs: [unshare, ipa.wrapping_shl(12), 0, 0], immediate: 0 }
            }
            2..=5 => Act::Hvc { regs: hvc(ipa, bytes)?, immediate: u16::from(bytes.ratio(1, 16)?) },
            6 => {
                let regs = [firmware_function(bytes)?, bytes.arbitrary()?, 0, 0];
                Act::Smc { regs, immediate: u16::from(bytes.ratio(1, 8)?) }
            }
            7 => Act::Wait,
            8 => Act::Trapped,
            9 => Act::SError,
            10 => Act::Other { class: bytes.arbitrary()? },
            11 => Act::Odd { ipa: ipa << 12, walk: bytes.arbitrary()? },
            _ => Act::Access(access(ipa, bytes)?),
        })
    }

    fn guest_ipa(&self, vm: u64, bytes: &mut Unstructured<'_>) -> Result<u64> {
        match bytes.int_in_range(0..=3u8)? {
            0 => self.bound_page(vm, bytes),
            1 => self.ipa(bytes, 0),
            _ => match self.guest_page(vm, bytes)? {
                Some((ipa, _, _)) => Ok(ipa),
                None => self.ipa(bytes, 0),
            },
        }
    }
}

fn hvc(ipa: u64, bytes: &mut Unstructured<'_>) -> Result<[u64; 4]> {
    let function = *bytes.choose(GuestFunction::ALL)?;
    let x0 = u64::from(function.raw());
    let odd = if bytes.ratio(1, 16)? { bytes.arbitrary()? } else { 0 };
    Ok(match function {
        GuestFunction::MemShare | GuestFunction::MemUnshare => {
            [x0, ipa.wrapping_shl(12).wrapping_add(odd), 0, 0]
        }
        GuestFunction::Query => [x0, ipa, bytes.int_in_range(0..=600)?, 0],
        GuestFunction::Info => [x0, bytes.int_in_range(0..=5)?, 0, 0],
        GuestFunction::Uid | GuestFunction::Features | GuestFunction::HypMeminfo => {
            [x0.wrapping_add(odd), odd, 0, 0]
        }
        GuestFunction::Yield if bytes.arbitrary()? => [firmware_function(bytes)?, odd, 0, 0],
        GuestFunction::Yield => [x0, 1, 2, odd],
    })
}

/// PSCI and architecture calls: SMCCC_VERSION, PSCI_VERSION, SYSTEM_OFF, SYSTEM_RESET2, CPU_ON.
fn firmware_function(bytes: &mut Unstructured<'_>) -> Result<u64> {
    let known = [0x8000_0000, 0x8400_0000, 0x8400_0008, 0xc400_0012, 0xc400_0003, 0x8400_0009];
    bytes.choose(&known).copied()
}

fn access(ipa: u64, bytes: &mut Unstructured<'_>) -> Result<Access> {
    let offset: u64 = bytes.int_in_range(0..=0xfff)?;
    Ok(Access {
        ipa: ipa.wrapping_shl(12) | offset,
        kind: bytes.arbitrary()?,
        register: bytes.int_in_range(0..=31)?,
        value: bytes.arbitrary()?,
        size: bytes.int_in_range(0..=3)?,
        extend: bytes.arbitrary()?,
        described: bytes.ratio(7, 8)?,
    })
}
