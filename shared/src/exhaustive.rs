//! Decoders of the ABI for every value that crosses it. Bits are tried one by one where a number
//! is too wide to count through: membership is decided bit by bit.

extern crate std;

use crate::call::{GuestFunction, HostFunction};
use crate::info::{Capabilities, InfoSelector, RegionState};
use crate::manifest::{BlockSizes, PlatformFlags, RegionClass, RegionFlags, ResetKind};
use crate::request::{HostAlias, MemTypes, Modes, Request, RequestFlags, RequestWord};
use crate::trace::TraceKind;
use crate::vm::{ContractFlags, ExitReason, MmioAccess, PageState, Promise, VmState};
use crate::{MemType, Mode, Perms, Rule, Status, Subject};

/// Every value of a narrow number decodes to itself or to nothing.
macro_rules! number {
    ($($name:ident: $repr:ty),*) => { $(
        for raw in 0..=<$repr>::MAX {
            let known = $name::ALL.iter().find(|one| one.raw() == raw).copied();
            assert_eq!($name::from_raw(raw), known, "{raw:#x}");
        }
    )* };
}

/// Every value of a narrow set decodes to itself unless it has an unknown bit.
macro_rules! set {
    ($($name:ident: $repr:ty),*) => { $(
        for raw in 0..=<$repr>::MAX {
            let known = raw & !$name::ALL.raw() == 0;
            assert_eq!($name::from_raw(raw).map($name::raw), known.then_some(raw), "{raw:#x}");
        }
    )* };
}

/// Wide sets, bit by bit: alone, missing from all, and beside all known ones.
macro_rules! wide_set {
    ($($name:ident: $repr:ty),*) => { $(
        for bit in 0..<$repr>::BITS {
            let (bit, all): ($repr, $repr) = (1 << bit, $name::ALL.raw());
            let known = all & bit != 0;
            assert_eq!($name::from_raw(bit).is_some(), known);
            assert_eq!($name::from_raw(all | bit).is_some(), known);
            assert_eq!($name::from_raw(all & !bit).map($name::raw), Some(all & !bit));
        }
    )* };
}

#[test]
fn every_narrow_number_and_set_decodes_to_itself_or_to_nothing() {
    number!(RegionState: u8, RegionClass: u8, ResetKind: u8, Mode: u8, MemType: u8, HostAlias: u8);
    number!(VmState: u8, PageState: u8, Rule: u16, Subject: u16, TraceKind: u16);
    set!(BlockSizes: u8, Modes: u8, MemTypes: u8, Perms: u8, RequestFlags: u8, Promise: u16);
    wide_set!(PlatformFlags: u32, RegionFlags: u32, ContractFlags: u32);
    wide_set!(Capabilities: u64, MmioAccess: u64);
}

/// Function ids: all of the two owners' ranges that this service lies in, and every single-bit
/// mistake around the known ones.
#[test]
fn function_ids_are_exact() {
    let host = |raw: u32| HostFunction::ALL.iter().any(|function| function.raw() == raw);
    let guest = |raw: u32| GuestFunction::ALL.iter().any(|function| function.raw() == raw);
    for raw in (0x8600_0000..=0x8600_ffff).chain(0xc600_0000..=0xc600_ffff) {
        assert_eq!(HostFunction::from_raw(raw).map(HostFunction::raw), host(raw).then_some(raw));
        assert_eq!(GuestFunction::from_raw(raw).map(GuestFunction::raw), guest(raw).then_some(raw));
    }
    for function in HostFunction::ALL {
        for bit in 0..u32::BITS {
            let raw = function.raw() ^ 1 << bit;
            assert_eq!(HostFunction::from_raw(raw).is_some(), host(raw), "{raw:#x}");
        }
    }
}

#[test]
fn statuses_and_selectors_survive_their_registers() {
    for status in Status::ALL {
        assert_eq!(Status::from_register(status.to_register()), Some(*status));
    }
    for bit in 0..u64::BITS {
        let register = 1u64 << bit;
        let known = Status::ALL.iter().any(|status| status.to_register() == register);
        assert_eq!(Status::from_register(register).is_some(), known, "{register:#x}");
    }
    let selectors: u64 = InfoSelector::ALL.iter().map(|selector| 1 << selector.raw()).sum();
    let reasons: u64 = ExitReason::ALL.iter().map(|reason| 1 << reason.raw()).sum();
    for raw in 0..64 {
        assert_eq!(InfoSelector::from_raw(raw).is_some(), selectors >> raw & 1 == 1);
        assert_eq!(ExitReason::from_raw(raw).is_some(), reasons >> raw & 1 == 1);
    }
}

/// Each byte of the word is one byte of the request, whatever the others are: with every value of
/// every byte over both extremes of the rest, that is every word.
#[test]
fn every_request_word_survives_and_its_bytes_do_not_mix() {
    for rest in [0, u64::MAX] {
        for (place, value) in (0..8).flat_map(|place| (0..=u8::MAX).map(move |v| (place, v))) {
            let mut bytes = rest.to_le_bytes();
            bytes[place] = value;
            let word = RequestWord(u64::from_le_bytes(bytes));
            let request = Request::from_registers(word, 1, 2, 3);
            assert_eq!(request.word(), word);
            let [vm0, vm1] = request.vm.to_le_bytes();
            let Request { mode, mem_type, perms, flags, alias, reserved, .. } = request;
            assert_eq!([vm0, vm1, mode, mem_type, perms, flags, alias, reserved], bytes);
            assert_eq!((request.pfn, request.ipa_pfn, request.pages), (1, 2, 3));
        }
    }
}
