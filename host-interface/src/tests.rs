//! Claims about the callers, with a conduit that records and replays.

extern crate std;

use core::cell::Cell;
use std::string::ToString;
use std::thread_local;

use pfnguard_shared::info::RegionState;
use pfnguard_shared::request::{MemType, Mode, Perms, Request};
use pfnguard_shared::vm::{ContractFlags, ExitReason, MmioAccess, Promise};
use pfnguard_shared::{GuestFunction, HostFunction, NO_PFN, Rule, Status, Subject};

use crate::{
    ArgumentPage, Exit, Guest, GuestValue, Host, Hypercall, IpaPfn, Mmio, Pages, Pfn, Promised,
    Refused, RegionIndex, VcpuId, VmId,
};

thread_local! {
    static ASKED: Cell<[u64; 8]> = const { Cell::new([0; 8]) };
    static ANSWER: Cell<[u64; 8]> = const { Cell::new([0; 8]) };
}

/// Records the registers and answers what the test prepared.
struct Fake;

impl Hypercall for Fake {
    fn call(regs: [u64; 8]) -> [u64; 8] {
        ASKED.set(regs);
        ANSWER.get()
    }
}

type Callee = Host<Fake>;

fn answer(regs: [u64; 8]) {
    ANSWER.set(regs);
}

/// Asserts which function was called with which arguments.
fn asked(function: HostFunction, args: [u64; 5]) {
    let [fid, a, b, c, d, e, f, g] = ASKED.get();
    assert_eq!(fid, u64::from(function.raw()), "{}", function.name());
    assert_eq!([a, b, c, d, e], args, "{}", function.name());
    assert_eq!([f, g], [0, 0], "{}", function.name());
}

const VM: VmId = VmId(7);
const RAM: Pages = Pages::new(Pfn(0x40000), 16);
const IPA: IpaPfn = IpaPfn(0x80);

#[test]
fn memory_calls_put_their_arguments_where_the_abi_says() {
    answer([0; 8]);
    Callee::share_hyp(RAM).unwrap();
    asked(HostFunction::HostShareHyp, [0x40000, 16, 0, 0, 0]);
    Callee::unshare_hyp(RAM).unwrap();
    asked(HostFunction::HostUnshareHyp, [0x40000, 16, 0, 0, 0]);
    Callee::share_guest(VM, RAM, IPA, Perms::READ).unwrap();
    asked(HostFunction::HostShareGuest, [7, 0x40000, 0x80, 16, 1]);
    Callee::unshare_guest(VM, RAM, IPA).unwrap();
    asked(HostFunction::HostUnshareGuest, [7, 0x40000, 0x80, 16, 0]);
    Callee::donate_guest(VM, RAM, IPA).unwrap();
    asked(HostFunction::HostDonateGuest, [7, 0x40000, 0x80, 16, 0]);
    Callee::reclaim_guest(VM, RAM).unwrap();
    asked(HostFunction::HostReclaimGuest, [7, 0x40000, 16, 0, 0]);
}

#[test]
fn vm_calls_put_their_arguments_where_the_abi_says() {
    answer([0, 7, 3, 0, 0, 0, 0, 0]);
    assert_eq!(Callee::vm_create(ContractFlags::PROTECTED, 2, RAM), Ok(VM));
    asked(HostFunction::VmCreate, [1, 2, 0x40000, 16, 0]);
    Callee::vm_pool_add(VM, RAM).unwrap();
    asked(HostFunction::VmPoolAdd, [7, 0x40000, 16, 0, 0]);
    assert_eq!(Callee::vm_free(VM), Ok((Pfn(7), 3)));
    asked(HostFunction::VmFree, [7, 0, 0, 0, 0]);
    Callee::vm_teardown(VM).unwrap();
    asked(HostFunction::VmTeardown, [7, 0, 0, 0, 0]);
    Callee::vm_enable_mte(VM).unwrap();
    asked(HostFunction::VmEnableMte, [7, 0, 0, 0, 0]);
    Callee::vcpu_init(VM, VcpuId(1), 0x1000, 5).unwrap();
    asked(HostFunction::VcpuInit, [7, 1, 0x1000, 5, 0]);
    assert_eq!(Callee::vcpu_get_reg(VM, VcpuId(1), 30), Ok(7));
    asked(HostFunction::VcpuGetReg, [7, 1, 30, 0, 0]);
    Callee::vcpu_set_reg(VM, VcpuId(1), 30, 9).unwrap();
    asked(HostFunction::VcpuSetReg, [7, 1, 30, 9, 0]);
}

#[test]
fn pfnmap_calls_put_their_arguments_where_the_abi_says() {
    let mut request = Request::zeroed();
    request.vm = 7;
    request.mode = Mode::Donate.raw();
    request.mem_type = MemType::Cacheable.raw();
    (request.pfn, request.ipa_pfn, request.pages) = (0x8000_0000, 0x80, 512);
    answer([0, u64::from(RegionState::Quarantined.raw()), 0, 0, 0, 0, 0, 0]);
    Callee::pfnmap_bind(&request).unwrap();
    asked(HostFunction::PfnmapBind, [request.word().0, 0x8000_0000, 0x80, 512, 0]);
    assert_eq!(Callee::pfnmap_unbind(VM, IPA), Ok(Some(RegionState::Quarantined)));
    asked(HostFunction::PfnmapUnbind, [7, 0x80, 0, 0, 0]);
    assert_eq!(Callee::pfnmap_reset(RegionIndex(2)), Ok(Some(RegionState::Quarantined)));
    asked(HostFunction::PfnmapReset, [2, 0, 0, 0, 0]);
    assert_eq!(Callee::pfnmap_probe(VM, IPA), Ok(3));
    asked(HostFunction::PfnmapProbe, [7, 0x80, 0, 0, 0]);
    Callee::pfnmap_map(VM, IPA).unwrap();
    asked(HostFunction::PfnmapMap, [7, 0x80, 0, 0, 0]);
}

#[test]
fn a_batch_lies_at_the_start_of_the_page_and_is_cut_at_64() {
    let mut page = ArgumentPage::zeroed();
    let mut request = Request::zeroed();
    request.pfn = 0x1122;
    answer([0; 8]);
    assert_eq!(Callee::check(&mut page, &[request; 65]), Ok(64));
    asked(HostFunction::PfnmapCheck, [64, 0, 0, 0, 0]);
    assert_eq!(page.bytes()[63 * 32 + 8..63 * 32 + 10], [0x22, 0x11]);
    page.bytes_mut()[2048 + 63 * 32] = 0xfc;
    page.bytes_mut()[2048 + 63 * 32 + 1..2048 + 63 * 32 + 4].fill(0xff);
    assert_eq!(page.decision(63).map(|decision| decision.status), Some(Status::Denied.raw()));
    assert_eq!(page.decision(64), None);
}

#[test]
fn a_refusal_carries_every_fact() {
    let word = u64::from(Rule::R04.raw()) | u64::from(Subject::Types.raw()) << 16;
    answer([Status::Denied.to_register(), word, 0x10000, 2, 1, 0, 0, 0]);
    let refused = Callee::share_hyp(RAM).unwrap_err();
    assert_eq!(refused.status, Status::Denied);
    assert_eq!(refused.rule, Some(Rule::R04));
    assert_eq!(refused.subject, Subject::Types);
    assert_eq!(refused.pfn, Some(0x10000));
    assert_eq!((refused.requested, refused.granted), (2, 1));
    assert!(refused.to_string().starts_with("Denied by R04: "));
    assert!(refused.to_string().ends_with("(Types 0x2, granted 0x1) at page 0x10000"));
}

#[test]
fn a_refusal_that_no_page_caused_names_none() {
    answer([Status::NoMemory.to_register(), 0, NO_PFN, 3, 2, 0, 0, 0]);
    let refused = Callee::vm_teardown(VM).unwrap_err();
    assert_eq!((refused.rule, refused.pfn), (None, None));
    assert_eq!(refused.to_string(), "NoMemory");
}

#[test]
fn a_status_that_the_abi_does_not_define_is_no_success() {
    for code in [1, 0xffff_ffff, (-100i64).cast_unsigned()] {
        let refused = Refused::from_registers([code, 0, 0, 0, 0, 0, 0, 0]).unwrap_err();
        assert_eq!((refused.status, refused.code), (Status::NotSupported, code));
    }
}

#[test]
fn every_exit_is_told_apart() {
    let run = |regs: [u64; 8]| {
        answer(regs);
        Callee::vcpu_run(VM, VcpuId(0), GuestValue(9)).unwrap()
    };
    let exit = |reason: ExitReason, a, b, c| run([0, reason.raw(), a, b, c, 0, 0, 0]);
    assert_eq!(exit(ExitReason::Interrupt, 0, 0, 0), Exit::Interrupt);
    asked(HostFunction::VcpuRun, [7, 0, 9, 0, 0]);
    assert_eq!(exit(ExitReason::Wait, 0, 0, 0), Exit::Wait);
    let mmio = Mmio { ipa: 0x1000, access: MmioAccess::WRITE, bytes: 4, value: 5 };
    assert_eq!(exit(ExitReason::Mmio, 0x1000, 0x401, 5), Exit::Mmio(mmio));
    assert_eq!(exit(ExitReason::Fault, 0x2000, 0, 0), Exit::Fault { ipa: 0x2000 });
    assert_eq!(exit(ExitReason::Yield, 1, 2, 3), Exit::Yield([1, 2, 3]));
    assert_eq!(exit(ExitReason::Power, 8, 0, 0), Exit::Power(8));
    assert_eq!(exit(ExitReason::Unsupported, 7, 0, 0), Exit::Unsupported(7));
    assert_eq!(run([0, 99, 0, 0, 0, 0, 0, 0]), Exit::Undefined(99));
}

#[test]
fn a_promise_is_unpacked() {
    let promise = Promise::PRESENT.with(Promise::PFNMAP);
    let word = 0x3 | u64::from(MemType::AnyUncached.raw()) << 8 | u64::from(promise.raw()) << 16;
    answer([0, word, 256, 0, 0, 0, 0, 0]);
    let promised = Guest::<Fake>::query(IPA, 512).unwrap();
    let perms = Perms::READ.with(Perms::WRITE);
    let expected = Promised { promise, mem_type: Some(MemType::AnyUncached), perms, pages: 256 };
    assert_eq!(promised, expected);
    assert_eq!(ASKED.get()[..3], [u64::from(GuestFunction::Query.raw()), 0x80, 512]);
}

#[test]
fn calls_without_a_status_return_what_is_in_the_registers() {
    answer([1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(Callee::uid(), [1, 2, 3, 4]);
    assert_eq!(Callee::revision(), (1, 2));
    assert_eq!(Guest::<Fake>::hyp_meminfo(), 1);
    assert_eq!(Guest::<Fake>::features(), [1, 2, 3, 4]);
}
