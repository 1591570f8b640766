//! Ends of ranges, and what records say.

use std::vec;

use pfnguard_shared::trace::TraceKind;

use super::*;

/// First page past a guest's address space, as `fake::Setup` has it.
const IPA_END: u64 = 1 << (40 - 12);

#[test]
fn ram_may_end_with_the_guests_address_space_and_not_behind_it() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let cpu = &mut cpus[0];
    vm(&hv, cpu, NORMAL, 16);
    ok(call(&hv, cpu, HostFunction::HostDonateGuest, &[0, PAGE, IPA_END - 2, 2]));
    let behind = call(&hv, cpu, HostFunction::HostDonateGuest, &[0, PAGE + 2, IPA_END - 1, 2]);
    assert_eq!(refused(behind), Status::InvalidParameter);
}

#[test]
fn a_page_that_changes_hands_leaves_a_record_with_vm_and_states() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let cpu = &mut cpus[0];
    vm(&hv, cpu, NORMAL, 8);
    let id = vm(&hv, cpu, NORMAL, 8);
    ok(call(&hv, cpu, HostFunction::HostDonateGuest, &[id, PAGE, IPA, 3]));
    let record = *cpu.trace.record_at(cpu.trace.written() - 2).unwrap();
    assert_eq!(record.kind, TraceKind::Ownership.raw());
    let [old, new] =
        [PageState::HostOwned, PageState::GuestOwned].map(|state| u64::from(state.raw()));
    assert_eq!((record.a, record.b, record.c), (PAGE, 3, id << 16 | old << 8 | new));
    assert_eq!(u64::from(record.vm), id);
}

/// What a VM borrowed goes back from all places, adjacent or not, and around its regions.
#[test]
fn a_teardown_gives_back_every_borrowed_page_once() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let cpu = &mut cpus[0];
    let id = vm(&hv, cpu, NORMAL, 16);
    for (page, ipa, pages) in [(PAGE, IPA, 2), (PAGE + 2, IPA + 2, 1), (PAGE + 8, IPA + 3, 1)] {
        ok(call(&hv, cpu, HostFunction::HostShareGuest, &[id, page, ipa, pages, RWX]));
    }
    ok(call(&hv, cpu, HostFunction::VmTeardown, &[id]));
    for page in [PAGE, PAGE + 1, PAGE + 2, PAGE + 8] {
        assert_eq!(state(&hv, page), FrameState::HostOwned, "{page:#x}");
    }
    assert_consistent(&hv);
}

#[test]
fn what_is_full_says_how_much_it_holds() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let cpu = &mut cpus[0];
    for _ in 0..16 {
        vm(&hv, cpu, NORMAL, 1);
    }
    let [status, rule, _, requested, granted, ..] =
        call(&hv, cpu, HostFunction::VmCreate, &[NORMAL, 1, PAGE + 512, 1]);
    assert_eq!(Status::from_register(status), Some(Status::NoMemory));
    assert_eq!((rule, requested, granted), (u64::from(Subject::Object.raw()) << 16, 17, 16));
}

/// Nobody watches a page being zeroed: what had been lent to the host is taken from it first.
#[test]
fn a_lent_page_leaves_the_host_before_it_is_zeroed_and_others_cost_nothing() {
    for lent in [None, Some(0), Some(1)] {
        let (hv, mut cpus) = fake::machine(Vec::new());
        let cpu = &mut cpus[0];
        vm(&hv, cpu, PROTECTED, 16);
        ok(call(&hv, cpu, HostFunction::HostDonateGuest, &[0, PAGE, IPA, 2]));
        if let Some(page) = lent {
            assert_eq!(guest_call(&hv, cpu, 0, [MEM_SHARE, (IPA + page) << 12, 0]), 0);
        }
        ok(call(&hv, cpu, HostFunction::VmTeardown, &[0]));
        take_log();
        ok(call(&hv, cpu, HostFunction::HostReclaimGuest, &[0, PAGE, 2]));
        let range = PfnRange::new(Pfn(PAGE), 2).unwrap();
        let (unmap, zero) = (Op::HostUnmap { range }, Op::Zero { range });
        let expected = if lent.is_some() { vec![unmap, zero] } else { vec![zero] };
        assert_eq!(take_log(), expected, "{lent:?}");
    }
}
