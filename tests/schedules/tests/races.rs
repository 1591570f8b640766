//! Races of two CPUs: whatever the order, one of them was first, and both were told the truth.

use pfnguard_core::addr::{Pfn, PfnRange};
use pfnguard_core::manifest::{Entry, Label, Reset};
use pfnguard_schedules::{Answer, IPA, PAGE, TABLES, World, draw, enumerate};
use pfnguard_shared::HostFunction as F;
use pfnguard_shared::manifest::{BlockSizes, RegionClass, RegionFlags};
use pfnguard_shared::request::{HostAlias, MemTypes, Modes, Request, RequestFlags};
use pfnguard_shared::vm::ExitReason;
use pfnguard_shared::{MemType, Mode, Perms, Status};

const NORMAL: u64 = 0;
const PROTECTED: u64 = 1;
const RWX: u64 = 7;
/// The region of tests.
const REGION: (u64, u64) = (0x1_0000, 4);
const MEM_SHARE: u64 = 0xc600_0003;

/// Prints how many orders there were: the number is part of the result.
fn report(race: &str, orders: usize) {
    println!("{race}: {orders} orders");
    assert!(orders > 1, "nothing was raced");
}

fn region() -> Entry {
    let mut name = [0; 32];
    name[..4].copy_from_slice(b"mmio");
    Entry {
        name: Label::decode(&name).expect("a label"),
        range: PfnRange::new(Pfn(REGION.0), REGION.1).expect("in range"),
        class: RegionClass::Mmio,
        modes: Modes::ALL,
        types: MemTypes::DEVICE,
        perms: Perms::READ.with(Perms::WRITE),
        max_vms: 2,
        blocks: BlockSizes::ALL,
        flags: RegionFlags::NONE,
        reset: Reset::None,
        streams: [].into_iter().collect(),
        quirk: Label::EMPTY,
    }
}

fn bind(vm: u16, mode: Mode) -> [u64; 4] {
    let request = Request {
        vm,
        mode: mode.raw(),
        mem_type: MemType::Device.raw(),
        perms: Perms::READ.raw(),
        flags: RequestFlags::MAP_NOW.raw(),
        alias: HostAlias::None.raw(),
        reserved: 0,
        pfn: REGION.0,
        ipa_pfn: IPA,
        pages: REGION.1,
    };
    [request.word().0, request.pfn, request.ipa_pfn, request.pages]
}

/// One of the two was granted and the other refused with `status`.
fn one_wins(answers: (Answer, Answer), status: Status) {
    let (first, second) = answers;
    assert_ne!(first.is_granted(), second.is_granted(), "{first:x?} {second:x?}");
    assert_eq!(first.refusal().or(second.refusal()), Some(status));
}

#[test]
fn two_creations_get_two_numbers() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        let create = |first| [NORMAL, 1, first, 4];
        let (one, other) = world.race(
            move |host| host.call(F::VmCreate, &create(TABLES)).granted(),
            move |host| host.call(F::VmCreate, &create(TABLES + 16)).granted(),
        );
        assert_eq!(one + other, 1, "numbers 0 and 1");
    });
    report("VM_CREATE against VM_CREATE", orders);
}

#[test]
fn a_page_donated_twice_has_one_owner() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        world.vm(0, NORMAL, 4);
        world.vm(1, PROTECTED, 4);
        let answers = world.race(
            |host| host.call(F::HostDonateGuest, &[0, PAGE, IPA, 1]),
            |host| host.call(F::HostDonateGuest, &[1, PAGE, IPA, 1]),
        );
        one_wins(answers, Status::WrongState);
    });
    report("DONATE against DONATE", orders);
}

#[test]
fn a_page_cannot_become_table_memory_and_a_guests_page() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        world.vm(0, NORMAL, 4);
        let answers = world.race(
            |host| host.call(F::VmPoolAdd, &[0, PAGE, 1]),
            |host| host.call(F::HostDonateGuest, &[0, PAGE, IPA, 1]),
        );
        one_wins(answers, Status::WrongState);
    });
    report("VM_POOL_ADD against DONATE", orders);
}

#[test]
fn a_pinned_argument_page_is_not_taken_back() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        world.call(F::HostShareHyp, &[PAGE, 1]).granted();
        let (set, unshare) = world.race(
            |host| host.call(F::ArgPageSet, &[PAGE]),
            |host| host.call(F::HostUnshareHyp, &[PAGE, 1]),
        );
        assert_ne!(set.is_granted(), unshare.is_granted());
        assert!(unshare.is_granted() || unshare.refusal() == Some(Status::Busy));
    });
    report("ARG_PAGE_SET against UNSHARE", orders);
}

/// A VM is not torn down under a vCPU that runs; one that is torn down does not run.
#[test]
fn teardown_and_run_exclude_each_other() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        world.vm(0, PROTECTED, 4);
        world.call(F::HostDonateGuest, &[0, PAGE, IPA, 1]).granted();
        let (run, teardown) = world.race(
            |host| host.run_guest_call(0, [MEM_SHARE, IPA << 12, 0]),
            |host| host.call(F::VmTeardown, &[0]),
        );
        match (run.refusal(), teardown.refusal()) {
            (None, None) => assert_eq!(run.granted(), ExitReason::Interrupt.raw()),
            (None, Some(busy)) => assert_eq!(busy, Status::Busy),
            (Some(dying), None) => assert_eq!(dying, Status::WrongState),
            both @ (Some(_), Some(_)) => panic!("neither happened: {both:?}"),
        }
    });
    report("VCPU_RUN against VM_TEARDOWN", orders);
}

#[test]
fn a_vcpu_runs_on_one_cpu() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        world.vm(0, NORMAL, 4);
        let (one, other) = world.race(
            |host| host.run_guest_call(0, [MEM_SHARE, 0, 0]),
            |host| host.run_guest_call(0, [MEM_SHARE, 0, 0]),
        );
        let busy = [one, other].into_iter().filter_map(Answer::refusal).collect::<Vec<_>>();
        assert!(busy.is_empty() || busy == [Status::Busy], "{busy:?}");
    });
    report("VCPU_RUN against VCPU_RUN", orders);
}

/// The number of a VM that is given back is free once, and its VMID is nobody's in between.
#[test]
fn a_freed_number_is_reused_whole() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        world.vm(0, NORMAL, 1);
        world.call(F::VmTeardown, &[0]).granted();
        let (freed, created) = world.race(
            |host| host.call(F::VmFree, &[0]).granted(),
            |host| host.call(F::VmCreate, &[NORMAL, 1, TABLES + 16, 2]).granted(),
        );
        assert_eq!(freed, TABLES, "the only table page");
        assert!(created <= 1, "the freed number or the next");
    });
    report("VM_FREE against VM_CREATE", orders);
}

#[test]
fn a_region_is_donated_to_one_vm() {
    let orders = enumerate(|| {
        let mut world = World::new(&[region()]);
        world.vm(0, NORMAL, 4);
        world.vm(1, NORMAL, 4);
        let (one, other) = world.race(
            |host| host.call(F::PfnmapBind, &bind(0, Mode::Donate)),
            |host| host.call(F::PfnmapBind, &bind(1, Mode::Donate)),
        );
        assert_ne!(one.is_granted(), other.is_granted());
    });
    report("BIND against BIND", orders);
}

#[test]
fn a_fault_of_the_host_does_not_undo_a_bind() {
    let orders = enumerate(|| {
        let mut world = World::new(&[region()]);
        world.vm(0, NORMAL, 4);
        // `assert_consistent` looks for a translation that the host should no longer have.
        world.race(
            |host| host.call(F::PfnmapBind, &bind(0, Mode::Donate)).granted(),
            |host| host.touch(REGION.0),
        );
    });
    report("BIND against a fault of the host", orders);
}

#[test]
fn a_fault_of_the_host_does_not_undo_a_donation() {
    let orders = enumerate(|| {
        let mut world = World::new(&[]);
        world.vm(0, PROTECTED, 4);
        world.race(
            |host| host.call(F::HostDonateGuest, &[0, PAGE, IPA, 1]).granted(),
            |host| host.touch(PAGE),
        );
    });
    report("DONATE against a fault of the host", orders);
}

/// Longer lives, too many orders to enumerate: whole VMs on either CPU, over the same pages.
#[test]
fn two_hosts_with_the_same_pages_end_consistently() {
    draw(4_000, || {
        let mut world = World::new(&[region()]);
        world.vm(0, NORMAL, 6);
        world.vm(1, PROTECTED, 6);
        let life = |vm: u16, mode: Mode| {
            move |host: &mut pfnguard_schedules::Host| {
                let id = u64::from(vm);
                host.call(F::HostShareGuest, &[id, PAGE, IPA + 8, 2, RWX]);
                host.call(F::HostDonateGuest, &[id, PAGE + 1, IPA + 16, 2]);
                host.call(F::PfnmapBind, &bind(vm, mode));
                host.touch(PAGE + 1);
                host.run_guest_call(id, [MEM_SHARE, (IPA + 16) << 12, 0]);
                host.call(F::HostUnshareGuest, &[id, PAGE, IPA + 8, 2]);
                host.call(F::PfnmapUnbind, &[id, IPA]);
                host.call(F::VmTeardown, &[1 - id]);
                host.call(F::HostReclaimGuest, &[1 - id, PAGE + 1, 2]);
                while host.call(F::VmFree, &[1 - id]).is_granted() {}
                host.touch(REGION.0);
            }
        };
        world.race(life(0, Mode::Share), life(1, Mode::Donate));
    });
}
