use std::vec::Vec;

use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::vm::{ContractFlags, PageState};
use pfnguard_shared::{HostFunction, Mode, Rule, Status, Subject};

use super::*;
use crate::fake::{
    self, FakeMachine, IMAGE, Op, RAM, RAM_PAGES, Setup, assert_consistent, call, snapshot,
    take_log,
};
use crate::hypervisor::Hypervisor;
use crate::machine::GuestExit;

mod edges;

type Hv = Hypervisor<FakeMachine>;
type FakeCpu = Cpu<FakeMachine>;

/// First page that tests use as table memory.
const TABLES: u64 = RAM.0;
/// First page that tests share and donate.
const PAGE: u64 = RAM.0 + 64;
/// Guest page where they appear.
const IPA: u64 = 0x8_0000;
const PROTECTED: u64 = 1;
const NORMAL: u64 = 0;
const RWX: u64 = 7;
/// Data abort, translation fault, read.
const READ_FAULT: u64 = 0x24 << 26 | 0b000111;

fn ok(regs: [u64; 8]) -> [u64; 8] {
    assert_eq!(Status::from_register(regs[0]), Some(Status::Success), "{regs:x?}");
    regs
}

fn refused(regs: [u64; 8]) -> Status {
    let status = Status::from_register(regs[0]).expect("a status");
    assert_ne!(status, Status::Success);
    status
}

/// Makes VM `number` with `tables` table pages.
fn vm(hv: &Hv, cpu: &mut FakeCpu, contract: u64, tables: u64) -> u64 {
    let first = (TABLES..).step_by(16).find(|pfn| is_free(hv, *pfn)).expect("free page");
    ok(call(hv, cpu, HostFunction::VmCreate, &[contract, 1, first, tables]))[1]
}

fn is_free(hv: &Hv, pfn: u64) -> bool {
    state(hv, pfn) == FrameState::HostOwned
}

fn state(hv: &Hv, pfn: u64) -> FrameState {
    hv.enter().lock_host().vmemmap.state(Pfn(pfn))
}

/// Runs one guest call on the VM's only vCPU and returns the guest's `x0`.
fn guest_call(hv: &Hv, cpu: &mut FakeCpu, vm: u64, regs: [u64; 3]) -> u64 {
    let answer = std::sync::Arc::new(std::sync::Mutex::new(0));
    let copy = std::sync::Arc::clone(&answer);
    cpu.local.scene(move |context| {
        context.regs[..3].copy_from_slice(&regs);
        context.regs[3] = 0;
        GuestExit::Sync { esr: 0x16 << 26, far: 0, hpfar: 0 }
    });
    cpu.local.scene(move |context| {
        *copy.lock().unwrap() = context.regs[0];
        GuestExit::Interrupt
    });
    call(hv, cpu, HostFunction::VcpuInit, &[vm, 0, 0, 0]);
    ok(call(hv, cpu, HostFunction::VcpuRun, &[vm, 0, 0]));
    *answer.lock().unwrap()
}

const MEM_SHARE: u64 = 0xc600_0003;
const MEM_UNSHARE: u64 = 0xc600_0004;

/// One page in each state that a frame can be in, as seen by VM 0 (and VM 1, its neighbour).
struct World {
    hv: Hv,
    cpu: FakeCpu,
}

/// States of the table below, with the page that is in it.
const STATES: [(&str, u64); 10] = [
    ("outside RAM", RAM.0 + RAM_PAGES),
    ("host owned", PAGE),
    ("lent to hyp", PAGE + 1),
    ("argument page", PAGE + 2),
    ("lent to VM 0", PAGE + 3),
    ("lent to VM 1", PAGE + 4),
    ("hyp owned", IMAGE.start().0),
    ("VM 0's", PAGE + 5),
    ("VM 1's", PAGE + 6),
    ("VM 0's, lent", PAGE + 7),
];

fn world() -> World {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let mut cpu = cpus.remove(0);
    let c = &mut cpu;
    assert_eq!(vm(&hv, c, NORMAL, 16), 0);
    assert_eq!(vm(&hv, c, NORMAL, 16), 1);
    ok(call(&hv, c, HostFunction::HostShareHyp, &[PAGE + 1, 2]));
    ok(call(&hv, c, HostFunction::ArgPageSet, &[PAGE + 2]));
    ok(call(&hv, c, HostFunction::HostShareGuest, &[0, PAGE + 3, PAGE + 3, 1, RWX]));
    ok(call(&hv, c, HostFunction::HostShareGuest, &[1, PAGE + 4, PAGE + 4, 1, RWX]));
    ok(call(&hv, c, HostFunction::HostDonateGuest, &[0, PAGE + 5, PAGE + 5, 1]));
    ok(call(&hv, c, HostFunction::HostDonateGuest, &[1, PAGE + 6, PAGE + 6, 1]));
    ok(call(&hv, c, HostFunction::HostDonateGuest, &[0, PAGE + 7, PAGE + 7, 1]));
    assert_eq!(guest_call(&hv, c, 0, [MEM_SHARE, (PAGE + 7) << 12, 0]), 0);
    assert_consistent(&hv);
    World { hv, cpu }
}

/// The whole table: each operation on a page in each state gives this state, or is refused and
/// changes nothing.
#[test]
#[cfg_attr(miri, ignore = "a table of worlds takes minutes")]
fn every_state_allows_exactly_its_operations() {
    use HostFunction as F;
    use PageState as S;
    type Row = (&'static str, fn(u64) -> (F, [u64; 5]), [Option<S>; 10]);
    let no = None;
    let rows: [Row; 8] = [
        (
            "share with hyp",
            |p| (F::HostShareHyp, [p, 1, 0, 0, 0]),
            [no, Some(S::HostSharedHyp), no, no, no, no, no, no, no, no],
        ),
        (
            "unshare with hyp",
            |p| (F::HostUnshareHyp, [p, 1, 0, 0, 0]),
            [no, no, Some(S::HostOwned), no, no, no, no, no, no, no],
        ),
        (
            "share with VM 0",
            |p| (F::HostShareGuest, [0, p, IPA, 1, RWX]),
            [
                no,
                Some(S::HostSharedGuest),
                no,
                no,
                Some(S::HostSharedGuest),
                Some(S::HostSharedGuest),
                no,
                no,
                no,
                no,
            ],
        ),
        (
            "unshare from VM 0",
            |p| (F::HostUnshareGuest, [0, p, p, 1, 0]),
            [no, no, no, no, Some(S::HostOwned), no, no, no, no, no],
        ),
        (
            "unshare from VM 0 at a wrong address",
            |p| (F::HostUnshareGuest, [0, p, p + 1, 1, 0]),
            [no; 10],
        ),
        (
            "donate to VM 0",
            |p| (F::HostDonateGuest, [0, p, IPA, 1, 0]),
            [no, Some(S::GuestOwned), no, no, no, no, no, no, no, no],
        ),
        ("reclaim from a living VM", |p| (F::HostReclaimGuest, [0, p, 1, 0, 0]), [no; 10]),
        (
            "donate as table memory",
            |p| (F::VmPoolAdd, [0, p, 1, 0, 0]),
            [no, Some(S::HypOwned), no, no, no, no, no, no, no, no],
        ),
    ];
    for (name, operation, expected) in rows {
        for ((page_name, page), expected) in STATES.into_iter().zip(expected) {
            let World { hv, mut cpu } = world();
            let before = snapshot(&hv);
            let (function, args) = operation(page);
            let regs = call(&hv, &mut cpu, function, &args);
            match expected {
                Some(new) => {
                    ok(regs);
                    assert_eq!(state(&hv, page).page_state(), new, "{name}: {page_name}");
                }
                None => {
                    refused(regs);
                    assert_eq!(snapshot(&hv), before, "{name}: {page_name}");
                }
            }
            assert_consistent(&hv);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "a table of worlds takes minutes")]
fn a_guest_lends_and_takes_back_exactly_what_is_its_own() {
    for (name, page) in STATES {
        let World { hv, mut cpu } = world();
        let shared = guest_call(&hv, &mut cpu, 0, [MEM_SHARE, page << 12, 0]);
        assert_eq!(shared == 0, name == "VM 0's", "share: {name}");
        assert_consistent(&hv);
        let World { hv, mut cpu } = world();
        let unshared = guest_call(&hv, &mut cpu, 0, [MEM_UNSHARE, page << 12, 0]);
        assert_eq!(unshared == 0, name == "VM 0's, lent", "unshare: {name}");
        assert_consistent(&hv);
    }
}

#[test]
#[cfg_attr(miri, ignore = "a table of worlds takes minutes")]
fn a_dying_vm_gives_back_exactly_what_is_its_own() {
    for (name, page) in STATES {
        let World { hv, mut cpu } = world();
        ok(call(&hv, &mut cpu, HostFunction::VmTeardown, &[0]));
        assert_consistent(&hv);
        let before = snapshot(&hv);
        let regs = call(&hv, &mut cpu, HostFunction::HostReclaimGuest, &[0, page, 1]);
        if name.starts_with("VM 0's") {
            ok(regs);
            assert_eq!(state(&hv, page), FrameState::HostOwned, "{name}");
        } else {
            assert_eq!(refused(regs), Status::WrongState, "{name}");
            assert_eq!((regs[2], snapshot(&hv)), (page, before), "{name}");
        }
        assert_consistent(&hv);
    }
}

/// R35: whichever page of a range is wrong, it is named and nothing changes.
#[test]
#[cfg_attr(miri, ignore = "a table of worlds takes minutes")]
fn r35_a_wrong_page_anywhere_in_a_range_refuses_all_of_it() {
    use HostFunction as F;
    const PAGES: u64 = 6;
    const FIRST: u64 = PAGE + 32;
    type Call = fn(&Hv, &mut FakeCpu) -> [u64; 8];
    let prepared: [(F, [u64; 5], Call); 6] = [
        (F::Uid, [0; 5], |hv, c| call(hv, c, F::HostShareHyp, &[FIRST, PAGES])),
        (F::HostShareHyp, [FIRST, PAGES, 0, 0, 0], |hv, c| {
            call(hv, c, F::HostUnshareHyp, &[FIRST, PAGES])
        }),
        (F::Uid, [0; 5], |hv, c| call(hv, c, F::HostShareGuest, &[0, FIRST, IPA, PAGES, RWX])),
        (F::Uid, [0; 5], |hv, c| call(hv, c, F::HostDonateGuest, &[0, FIRST, IPA, PAGES])),
        (F::Uid, [0; 5], |hv, c| call(hv, c, F::VmPoolAdd, &[0, FIRST, PAGES])),
        (F::Uid, [0; 5], |hv, c| call(hv, c, F::VmCreate, &[0, 1, FIRST, PAGES])),
    ];
    for (setup, args, attempt) in prepared {
        for wrong in FIRST..FIRST + PAGES {
            let World { hv, mut cpu } = world();
            call(&hv, &mut cpu, setup, &args);
            if setup == F::HostShareHyp {
                ok(call(&hv, &mut cpu, F::ArgPageSet, &[wrong]));
            } else {
                ok(call(&hv, &mut cpu, F::HostDonateGuest, &[1, wrong, IPA, 1]));
            }
            let before = snapshot(&hv);
            let regs = attempt(&hv, &mut cpu);
            refused(regs);
            assert_eq!(regs[2], wrong, "the refusal names the page");
            assert_eq!(snapshot(&hv), before);
        }
    }
}

#[test]
fn r35_a_range_that_is_not_all_borrowed_stays_borrowed() {
    for wrong in 0..4 {
        let World { hv, mut cpu } = world();
        let c = &mut cpu;
        for page in (0..4).filter(|page| *page != wrong) {
            let share = [0, PAGE + 32 + page, IPA + page, 1, RWX];
            ok(call(&hv, c, HostFunction::HostShareGuest, &share));
        }
        let before = snapshot(&hv);
        let regs = call(&hv, c, HostFunction::HostUnshareGuest, &[0, PAGE + 32, IPA, 4]);
        assert_eq!((refused(regs), regs[2]), (Status::WrongState, PAGE + 32 + wrong));
        assert_eq!(snapshot(&hv), before);
    }
}

#[test]
fn a_range_that_leaves_ram_is_refused_at_its_first_page_outside() {
    let World { hv, mut cpu } = world();
    let last = RAM.0 + RAM_PAGES - 1;
    let regs = call(&hv, &mut cpu, HostFunction::HostShareHyp, &[last, 2]);
    assert_eq!((refused(regs), regs[2]), (Status::WrongState, last + 1));
    assert_eq!(regs[4], u64::from(PageState::NoPage.raw()));
}

#[test]
fn r35_too_little_table_memory_is_refused_before_anything_changes() {
    use HostFunction as F;
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let id = vm(&hv, c, NORMAL, 2);
    let before = snapshot(&hv);
    // Two groups of addresses need two tables; one is left beside the root.
    let across = IPA + 510;
    for regs in [
        call(&hv, c, F::HostShareGuest, &[id, PAGE, across, 4, RWX]),
        call(&hv, c, F::HostDonateGuest, &[id, PAGE, across, 4]),
    ] {
        assert_eq!(refused(regs), Status::NoMemory);
        assert_eq!(regs[1] >> 16, u64::from(Subject::Tables.raw()));
        assert_eq!((regs[3], regs[4]), (2, 1));
    }
    assert_eq!(snapshot(&hv), before);
    ok(call(&hv, c, F::VmPoolAdd, &[id, PAGE + 16, 1]));
    ok(call(&hv, c, F::HostDonateGuest, &[id, PAGE, across, 4]));
    assert_consistent(&hv);
}

#[test]
fn r35_a_block_that_cannot_be_split_stays_whole() {
    use HostFunction as F;
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let id = vm(&hv, c, NORMAL, 2);
    let block = RAM.0 + 1024;
    ok(call(&hv, c, F::HostShareGuest, &[id, block, IPA, 512, RWX]));
    ok(call(&hv, c, F::HostShareGuest, &[id, PAGE, IPA + 512, 1, RWX]));
    let before = snapshot(&hv);
    let regs = call(&hv, c, F::HostUnshareGuest, &[id, block, IPA, 1]);
    assert_eq!(refused(regs), Status::NoMemory);
    assert_eq!(snapshot(&hv), before);
    ok(call(&hv, c, F::HostUnshareGuest, &[id, block, IPA, 512]));
    assert_consistent(&hv);
}

#[test]
fn an_occupied_or_distant_guest_address_is_refused() {
    let World { hv, mut cpu } = world();
    let c = &mut cpu;
    let before = snapshot(&hv);
    let donate = [0, PAGE + 32, PAGE + 3, 1];
    let regs = call(&hv, c, HostFunction::HostDonateGuest, &donate);
    assert_eq!((refused(regs), regs[3]), (Status::Busy, PAGE + 3));
    let limit = 1 << 28;
    let share = [0, PAGE + 32, limit - 1, 2, RWX];
    let regs = call(&hv, c, HostFunction::HostShareGuest, &share);
    assert_eq!((refused(regs), regs[4]), (Status::InvalidParameter, limit));
    let unshare = [0, PAGE + 32, limit, 1];
    let regs = call(&hv, c, HostFunction::HostUnshareGuest, &unshare);
    assert_eq!(refused(regs), Status::InvalidParameter);
    assert_eq!(guest_call(&hv, c, 0, [MEM_SHARE, limit << 12, 0]), u64::MAX - 2);
    assert_eq!(snapshot(&hv).frames, before.frames);
}

#[test]
fn ram_never_lands_where_a_region_is_announced() {
    use crate::region::fixture;
    let (hv, mut cpus) = fake::machine(std::vec![fixture::mmio()]);
    let c = &mut cpus[0];
    let id = vm(&hv, c, NORMAL, 8);
    let mut request = fixture::request(fixture::MMIO, Mode::Share, MemType::Device);
    request.flags = 0;
    let args = [request.word().0, request.pfn, request.ipa_pfn, request.pages];
    ok(call(&hv, c, HostFunction::PfnmapBind, &args));
    let before = snapshot(&hv);
    let last = request.ipa_pfn + request.pages - 1;
    let regs = call(&hv, c, HostFunction::HostDonateGuest, &[id, PAGE, last - 1, 4]);
    assert_eq!((refused(regs), regs[3]), (Status::Busy, last - 1));
    // The table of the announced region is reserved: RAM cannot take it (R30).
    let left = 8 - 1 - 1;
    for group in 0..left {
        let ipa = IPA + 512 * group;
        ok(call(&hv, c, HostFunction::HostDonateGuest, &[id, PAGE + group, ipa, 1]));
    }
    let beyond = [id, PAGE + left, IPA + 512 * left, 1];
    assert_eq!(refused(call(&hv, c, HostFunction::HostDonateGuest, &beyond)), Status::NoMemory);
    assert_eq!(snapshot(&hv).regions, before.regions);
    ok(call(&hv, c, HostFunction::PfnmapMap, &[id, request.ipa_pfn]));
    assert_consistent(&hv);
}

#[test]
fn a_protected_vm_borrows_nothing() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let id = vm(&hv, c, PROTECTED, 8);
    let before = snapshot(&hv);
    let regs = call(&hv, c, HostFunction::HostShareGuest, &[id, PAGE, IPA, 1, RWX]);
    assert_eq!(refused(regs), Status::Denied);
    assert_eq!(snapshot(&hv), before);
}

#[test]
fn several_guests_borrow_a_page_and_the_last_return_frees_it() {
    use HostFunction as F;
    let World { hv, mut cpu } = world();
    let c = &mut cpu;
    for (id, ipa) in [(0, IPA), (0, IPA + 1), (1, IPA)] {
        ok(call(&hv, c, F::HostShareGuest, &[id, PAGE, ipa, 1, RWX]));
    }
    assert_eq!(state(&hv, PAGE), FrameState::HostSharedGuest { count: 3 });
    for (id, ipa) in [(0, IPA), (0, IPA + 1), (1, IPA)] {
        refused(call(&hv, c, F::HostDonateGuest, &[1, PAGE, IPA + 9, 1]));
        ok(call(&hv, c, F::HostUnshareGuest, &[id, PAGE, ipa, 1]));
    }
    assert_eq!(state(&hv, PAGE), FrameState::HostOwned);
}

#[test]
#[cfg_attr(miri, ignore = "a table of worlds takes minutes")]
fn a_page_that_is_lent_255_times_is_lent_no_more() {
    use HostFunction as F;
    let World { hv, mut cpu } = world();
    for time in 0..255 {
        ok(call(&hv, &mut cpu, F::HostShareGuest, &[0, PAGE, IPA + time, 1, RWX]));
    }
    let before = snapshot(&hv);
    let regs = call(&hv, &mut cpu, F::HostShareGuest, &[0, PAGE, IPA + 255, 1, RWX]);
    assert_eq!((refused(regs), regs[2]), (Status::Busy, PAGE));
    // Only one more borrower waits for a return: to other calls it is a lent page.
    let regs = call(&hv, &mut cpu, F::HostDonateGuest, &[1, PAGE, IPA, 1]);
    assert_eq!((refused(regs), regs[2]), (Status::WrongState, PAGE));
    assert_eq!(snapshot(&hv), before);
}

fn position(log: &[Op], wanted: &Op) -> usize {
    log.iter().position(|op| op == wanted).unwrap_or_else(|| panic!("{wanted:?} in {log:?}"))
}

fn pages(first: u64, count: u64) -> PfnRange {
    PfnRange::new(Pfn(first), count).unwrap()
}

#[test]
fn a_donated_page_leaves_the_host_before_the_guest_has_it() {
    let (hv, mut cpus) = Setup { capabilities: Capabilities::NONE, ..Setup::default() }.launch();
    let c = &mut cpus[0];
    let id = vm(&hv, c, PROTECTED, 8);
    let _ = fake::abort(&hv, c, Pfn(PAGE), READ_FAULT);
    take_log();
    ok(call(&hv, c, HostFunction::HostDonateGuest, &[id, PAGE, IPA, 4]));
    let log = take_log();
    let range = pages(PAGE, 4);
    let unmap = position(&log, &Op::HostUnmap { range });
    // Without FWB the guest may look around the caches: its pages are clean before it can.
    let clean = position(&log, &Op::CleanInvalidate { range });
    let map = log.iter().position(|op| matches!(op, Op::GuestMap { .. })).unwrap();
    assert!(unmap < clean && clean < map);
}

#[test]
fn with_fwb_no_cache_maintenance_is_wasted_on_ram() {
    let World { hv, mut cpu } = world();
    take_log();
    ok(call(&hv, &mut cpu, HostFunction::HostDonateGuest, &[0, PAGE + 32, IPA, 4]));
    assert!(!take_log().iter().any(|op| matches!(op, Op::CleanInvalidate { .. })));
}

#[test]
fn r40_a_borrowed_page_leaves_the_guest_before_its_count_drops() {
    let World { hv, mut cpu } = world();
    take_log();
    ok(call(&hv, &mut cpu, HostFunction::HostUnshareGuest, &[0, PAGE + 3, PAGE + 3, 1]));
    assert!(matches!(take_log()[..], [Op::GuestUnmap { .. }]));
}

#[test]
fn r44_protected_memory_is_zeroed_before_the_host_can_have_it() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let id = vm(&hv, c, PROTECTED, 8);
    ok(call(&hv, c, HostFunction::HostDonateGuest, &[id, PAGE, IPA, 2]));
    c.local.write(Pfn(PAGE), 0, b"secret");
    assert_eq!(guest_call(&hv, c, id, [MEM_SHARE, (IPA + 1) << 12, 0]), 0);
    ok(call(&hv, c, HostFunction::VmTeardown, &[id]));
    assert_eq!(fake::abort(&hv, c, Pfn(PAGE), READ_FAULT), crate::host::AbortOutcome::Inject);
    take_log();
    ok(call(&hv, c, HostFunction::HostReclaimGuest, &[id, PAGE, 2]));
    assert_eq!(fake::abort(&hv, c, Pfn(PAGE), READ_FAULT), crate::host::AbortOutcome::Resume);
    let log = take_log();
    let range = pages(PAGE, 2);
    let unmap = position(&log, &Op::HostUnmap { range });
    let zero = position(&log, &Op::Zero { range });
    let map = log.iter().position(|op| matches!(op, Op::HostMap { .. })).unwrap();
    assert!(unmap < zero && zero < map);
    let mut bytes = [1; 6];
    c.local.read(Pfn(PAGE), 0, &mut bytes);
    assert_eq!(bytes, [0; 6]);
}

#[test]
fn memory_of_a_vm_without_protection_comes_back_as_it_is() {
    let World { hv, mut cpu } = world();
    cpu.local.write(Pfn(PAGE + 5), 0, b"result");
    ok(call(&hv, &mut cpu, HostFunction::VmTeardown, &[0]));
    ok(call(&hv, &mut cpu, HostFunction::HostReclaimGuest, &[0, PAGE + 5, 1]));
    let mut bytes = [0; 6];
    cpu.local.read(Pfn(PAGE + 5), 0, &mut bytes);
    assert_eq!(&bytes, b"result");
}

#[test]
fn a_page_that_the_guest_takes_back_leaves_the_host() {
    let World { hv, mut cpu } = world();
    let page = Pfn(PAGE + 7);
    assert_eq!(fake::abort(&hv, &mut cpu, page, READ_FAULT), crate::host::AbortOutcome::Resume);
    assert_eq!(guest_call(&hv, &mut cpu, 0, [MEM_UNSHARE, page.0 << 12, 0]), 0);
    assert_consistent(&hv);
    assert_eq!(fake::abort(&hv, &mut cpu, page, READ_FAULT), crate::host::AbortOutcome::Inject);
}

/// Everything that a VM took comes back, and its number can be used again.
#[test]
fn a_vm_ends_without_a_trace() {
    use HostFunction as F;
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let before = snapshot(&hv);
    for _ in 0..2 {
        let id = vm(&hv, c, NORMAL, 3);
        ok(call(&hv, c, F::VmPoolAdd, &[id, PAGE, 2]));
        ok(call(&hv, c, F::HostDonateGuest, &[id, PAGE + 8, IPA, 8]));
        ok(call(&hv, c, F::HostShareGuest, &[id, PAGE + 16, IPA + 8, 8, 1]));
        assert_eq!(refused(call(&hv, c, F::VmFree, &[id])), Status::WrongState);
        ok(call(&hv, c, F::VmTeardown, &[id]));
        assert_eq!(state(&hv, PAGE + 16), FrameState::HostOwned);
        assert_eq!(refused(call(&hv, c, F::VmTeardown, &[id])), Status::WrongState);
        assert_eq!(refused(call(&hv, c, F::VmFree, &[id])), Status::Busy);
        ok(call(&hv, c, F::HostReclaimGuest, &[id, PAGE + 8, 8]));
        for left in (0..5).rev() {
            let regs = ok(call(&hv, c, F::VmFree, &[id]));
            assert_eq!((state(&hv, regs[1]), regs[2]), (FrameState::HostOwned, left));
            assert_consistent(&hv);
        }
        assert_eq!(refused(call(&hv, c, F::VmFree, &[id])), Status::NotFound);
        assert_eq!(snapshot(&hv), before);
    }
}

#[test]
fn a_dying_vm_returns_what_it_borrows_run_by_run_and_no_other_vms() {
    use HostFunction as F;
    let (hv, mut cpus) = Setup { capabilities: Capabilities::NONE, ..Setup::default() }.launch();
    let c = &mut cpus[0];
    let (a, b) = (vm(&hv, c, NORMAL, 8), vm(&hv, c, NORMAL, 8));
    ok(call(&hv, c, F::HostShareGuest, &[a, PAGE, IPA, 8, RWX]));
    ok(call(&hv, c, F::HostShareGuest, &[a, PAGE + 32, IPA + 600, 8, RWX]));
    ok(call(&hv, c, F::HostShareGuest, &[b, PAGE, IPA, 4, RWX]));
    ok(call(&hv, c, F::HostDonateGuest, &[a, PAGE + 16, IPA + 8, 2]));
    take_log();
    ok(call(&hv, c, F::VmTeardown, &[a]));
    let unmap = |first, count| {
        let ipa = IpaRange::new(IpaPfn(first), count).unwrap();
        Op::GuestUnmap { vmid: VmId::from_raw(a).unwrap().vmid(), ipa }
    };
    let clean = |range| Op::CleanInvalidate { range };
    let forget = || Op::ForgetInstructions;
    let log = take_log();
    // Lines are cleaned once no translation can fill them any more.
    let first = [unmap(IPA, 8), clean(pages(PAGE, 8)), forget()];
    let second = [unmap(IPA + 600, 8), clean(pages(PAGE + 32, 8)), forget()];
    assert_eq!((&log[..3], &log[3..6]), (&first[..], &second[..]));
    assert!(matches!(log[6..], [Op::GuestDestroy { .. }]));
    assert_eq!(state(&hv, PAGE), FrameState::HostSharedGuest { count: 1 });
    assert_eq!(state(&hv, PAGE + 4), FrameState::HostOwned);
    assert_consistent(&hv);
}

#[test]
fn table_memory_is_hidden_and_zeroed_on_both_ways() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    take_log();
    let id = vm(&hv, c, NORMAL, 1);
    let range = pages(TABLES, 1);
    let to = [Op::HostUnmap { range }, Op::El2Map { range }, Op::Zero { range }];
    assert_eq!(take_log(), to);
    ok(call(&hv, c, HostFunction::VmTeardown, &[id]));
    take_log();
    ok(call(&hv, c, HostFunction::VmFree, &[id]));
    assert_eq!(take_log(), [Op::Zero { range }, Op::El2Unmap { range }]);
}

#[test]
fn there_are_as_many_vms_as_documented() {
    use crate::hypervisor::MAX_VMS;
    let (hv, mut cpus) = fake::machine(Vec::new());
    for _ in 0..MAX_VMS {
        vm(&hv, &mut cpus[0], NORMAL, 1);
    }
    let before = snapshot(&hv);
    let regs = call(&hv, &mut cpus[0], HostFunction::VmCreate, &[0, 1, PAGE + 512, 1]);
    assert_eq!(refused(regs), Status::NoMemory);
    assert_eq!(snapshot(&hv), before);
}

#[test]
fn r20_r21_mte_needs_the_machine_and_a_vm_that_never_ran() {
    let mte = u64::from(ContractFlags::MTE.raw());
    let capabilities = Capabilities::ALL.without(Capabilities::MTE);
    let (hv, mut cpus) = Setup { capabilities, ..Setup::default() }.launch();
    let c = &mut cpus[0];
    let regs = call(&hv, c, HostFunction::VmCreate, &[mte, 1, TABLES, 1]);
    assert_eq!((refused(regs), regs[1] & 0xffff), (Status::Denied, Rule::R20.raw().into()));
    let platform = InfoSelector::Platform.raw();
    let told = ok(call(&hv, c, HostFunction::Info, &[platform]))[1];
    assert_eq!(regs[4], told, "present, as INFO says");
    let id = vm(&hv, c, NORMAL, 1);
    let regs = call(&hv, c, HostFunction::VmEnableMte, &[id]);
    assert_eq!(regs[1] & 0xffff, Rule::R20.raw().into());

    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let id = vm(&hv, c, NORMAL, 1);
    ok(call(&hv, c, HostFunction::VmEnableMte, &[id]));
    ok(call(&hv, c, HostFunction::VcpuInit, &[id, 0, 0, 0]));
    ok(call(&hv, c, HostFunction::VcpuRun, &[id, 0, 0]));
    let regs = call(&hv, c, HostFunction::VmEnableMte, &[id]);
    assert_eq!((refused(regs), regs[1] & 0xffff), (Status::Denied, Rule::R21.raw().into()));
}

#[test]
fn an_ownership_record_tells_range_states_and_vm() {
    let World { hv, mut cpu } = world();
    let written = cpu.trace.written();
    ok(call(&hv, &mut cpu, HostFunction::HostDonateGuest, &[0, PAGE, IPA, 1]));
    assert_eq!(cpu.trace.written(), written + 2, "one for the pages, one for the call");
    let before_last = cpu.trace.record_at(written).unwrap();
    assert_eq!(before_last.kind, TraceKind::Ownership.raw());
    assert_eq!((before_last.a, before_last.b, before_last.c), (PAGE, 1, 0x0105));
}

#[test]
fn of_pages_lent_to_the_hypervisor_the_record_of_the_call_says_all() {
    let World { hv, mut cpu } = world();
    for function in [HostFunction::HostShareHyp, HostFunction::HostUnshareHyp] {
        let written = cpu.trace.written();
        ok(call(&hv, &mut cpu, function, &[PAGE, 1]));
        assert_eq!(cpu.trace.written(), written + 1);
        let record = cpu.trace.newest().unwrap();
        assert_eq!(record.kind, TraceKind::HostCall.raw());
        assert_eq!((record.a, record.b, record.c), (function.raw().into(), PAGE, 1));
    }
}

/// A small generator: the same sequence everywhere, no dependency.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Any order of calls on few pages, few VMs and few addresses, so that they collide.
#[test]
#[cfg_attr(miri, ignore = "a table of worlds takes minutes")]
fn random_sequences_keep_one_owner_a_page() {
    use HostFunction as F;
    let functions = [
        F::HostShareHyp,
        F::HostUnshareHyp,
        F::HostShareGuest,
        F::HostUnshareGuest,
        F::HostDonateGuest,
        F::HostReclaimGuest,
        F::VmCreate,
        F::VmPoolAdd,
        F::VmTeardown,
        F::VmFree,
        F::ArgPageSet,
        F::ArgPageClear,
    ];
    for seed in 0..8 {
        let (hv, mut cpus) = fake::machine(Vec::new());
        let mut random = Lcg(seed);
        for step in 0..1000 {
            let cpu = &mut cpus[usize::try_from(random.below(2)).unwrap()];
            let function = functions[usize::try_from(random.below(12)).unwrap()];
            random_call(&hv, cpu, function, &mut random);
            if step % 8 == 0 {
                assert_consistent(&hv);
            }
        }
        assert_consistent(&hv);
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "every other call here names a VM")]
fn random_call(hv: &Hv, cpu: &mut FakeCpu, function: HostFunction, random: &mut Lcg) {
    use HostFunction as F;
    let id = random.below(3);
    // Around the end of RAM, of the image, and of nothing.
    let page = [PAGE, IMAGE.start().0 - 8, IMAGE.end().0, RAM.0 + RAM_PAGES - 16]
        [usize::try_from(random.below(4)).unwrap()]
        + random.below(24);
    let count = 1 + random.below(6);
    let ipa = IPA + 500 + random.below(24);
    let args = match function {
        F::HostShareHyp | F::HostUnshareHyp | F::ArgPageSet | F::ArgPageClear => {
            [page, count, 0, 0, 0]
        }
        F::HostShareGuest | F::HostUnshareGuest | F::HostDonateGuest => {
            [id, page, ipa, count, 1 + random.below(7)]
        }
        F::HostReclaimGuest | F::VmPoolAdd => [id, page, count, 0, 0],
        F::VmCreate => [random.below(2), 1, page, count, 0],
        _ => [id, 0, 0, 0, 0],
    };
    let before = snapshot(hv);
    let regs = call(hv, cpu, function, &args);
    if regs[0] != 0 {
        assert_eq!(before, snapshot(hv), "{function:?} {args:x?}");
    }
    let touched = Pfn(page);
    let open = hv.enter().lock_host().vmemmap.state(touched).host_access();
    let outcome = fake::abort(hv, cpu, touched, READ_FAULT);
    let ram = hv.enter().lock_host().vmemmap.is_ram(touched);
    let may = open != crate::vmemmap::HostAccess::None || !ram;
    assert_eq!(outcome == crate::host::AbortOutcome::Resume, may, "{touched}");
}

/// Two CPUs at once on the same pages and VMs: every call is answered, and the end is consistent.
#[test]
#[allow(clippy::wildcard_enum_match_arm, reason = "the others are range calls of a VM")]
fn two_cpus_on_the_same_pages_keep_one_owner_a_page() {
    use HostFunction as F;
    let functions = [
        F::HostShareHyp,
        F::HostUnshareHyp,
        F::HostShareGuest,
        F::HostUnshareGuest,
        F::HostDonateGuest,
        F::HostReclaimGuest,
        F::VmTeardown,
    ];
    let (hv, mut cpus) = fake::machine(Vec::new());
    vm(&hv, &mut cpus[0], NORMAL, 8);
    vm(&hv, &mut cpus[0], PROTECTED, 8);
    std::thread::scope(|scope| {
        for (seed, cpu) in (0..).zip(&mut cpus) {
            let hv = &hv;
            scope.spawn(move || {
                let mut random = Lcg(seed);
                for _ in 0..if cfg!(miri) { 20 } else { 2000 } {
                    // Teardown is rare: it ends what the others can do.
                    let last = if random.below(100) == 0 { 7 } else { 6 };
                    let function = functions[usize::try_from(random.below(last)).unwrap()];
                    let (id, page) = (random.below(2), PAGE + random.below(8));
                    let args = match function {
                        F::HostShareHyp | F::HostUnshareHyp => [page, 2, 0, 0, 0],
                        F::HostReclaimGuest | F::VmTeardown => [id, page, 2, 0, 0],
                        _ => [id, page, IPA + random.below(8), 2, RWX],
                    };
                    call(hv, cpu, function, &args);
                    let _ = fake::abort(hv, cpu, Pfn(page), READ_FAULT);
                }
            });
        }
    });
    assert_consistent(&hv);
}
