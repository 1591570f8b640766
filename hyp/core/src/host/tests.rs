use std::vec::Vec;

use pfnguard_shared::request::Request;
use pfnguard_shared::{HostFunction, MemType, Mode};

use super::*;
use crate::fake::{self, FakeMachine, IMAGE, Op, RAM, RAM_PAGES, call, take_log};
use crate::host::AbortOutcome::{Absent, Inject, Resume};
use crate::region::fixture;
use crate::vcpu::{PendingLoad, Widen};

const DATA: u64 = 0x24 << 26;
const FETCH: u64 = 0x20 << 26;
const WRITE: u64 = 1 << 6;
const MAINTENANCE: u64 = 1 << 8;
const TRANSLATION: u64 = 0b000111;
const PERMISSION: u64 = 0b001111;
const READ: u64 = DATA | TRANSLATION;

fn pages(first: u64, count: u64) -> PfnRange {
    PfnRange::new(Pfn(first), count).unwrap()
}

fn mapped() -> Vec<(PfnRange, Perms)> {
    let mut maps = Vec::new();
    for op in take_log() {
        if let Op::HostMap { range, attrs } = op {
            maps.push((range, attrs.perms));
        }
    }
    maps
}

fn create_vm(hv: &Hypervisor<FakeMachine>, cpu: &mut Cpu<FakeMachine>) {
    assert_eq!(call(hv, cpu, HostFunction::VmCreate, &[0, 1, RAM.0, 8])[0], 0);
}

#[test]
fn the_first_touch_maps_the_largest_block_and_no_second_one_faults() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let page = Pfn(RAM.0 + 3 * 512 + 77);
    assert_eq!(fake::abort(&hv, &mut cpus[0], page, READ), Resume);
    assert_eq!(mapped(), [(pages(RAM.0 + 3 * 512, 512), Perms::ALL)]);
    assert_eq!(fake::abort(&hv, &mut cpus[1], page, READ), Resume, "the other CPU's race");
    assert_eq!(mapped(), []);
}

#[test]
fn a_donated_page_costs_its_chunk_two_faults() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    create_vm(&hv, c);
    let chunk = RAM.0 + 1024;
    let donate = [0, chunk + 100, 0x8_0000, 1];
    assert_eq!(call(&hv, c, HostFunction::HostDonateGuest, &donate)[0], 0);
    take_log();
    assert_eq!(fake::abort(&hv, c, Pfn(chunk + 1), READ), Resume);
    assert_eq!(fake::abort(&hv, c, Pfn(chunk + 101), READ), Resume);
    let around = [(pages(chunk, 100), Perms::ALL), (pages(chunk + 101, 411), Perms::ALL)];
    assert_eq!(mapped(), around);
    assert_eq!(fake::abort(&hv, c, Pfn(chunk + 100), READ), Inject);
    fake::assert_consistent(&hv);
}

#[test]
fn a_chunk_is_one_block_again_once_it_is_the_hosts() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    create_vm(&hv, c);
    let chunk = RAM.0 + 1024;
    call(&hv, c, HostFunction::HostDonateGuest, &[0, chunk + 100, 0x8_0000, 1]);
    assert_eq!(fake::abort(&hv, c, Pfn(chunk + 1), READ), Resume);
    call(&hv, c, HostFunction::VmTeardown, &[0]);
    call(&hv, c, HostFunction::HostReclaimGuest, &[0, chunk + 100, 1]);
    take_log();
    assert_eq!(fake::abort(&hv, c, Pfn(chunk + 100), READ), Resume);
    let block = pages(chunk, 512);
    let attrs = FULL;
    assert_eq!(take_log(), [Op::HostUnmap { range: block }, Op::HostMap { range: block, attrs }]);
}

#[test]
fn the_hypervisors_memory_is_out_of_reach_for_every_kind_of_access() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let image = IMAGE.start();
    for esr in [READ, READ | WRITE, FETCH | TRANSLATION, READ | WRITE | MAINTENANCE, READ | 1 << 7]
    {
        let written = c.trace.written();
        assert_eq!(fake::abort(&hv, c, image, esr), Inject);
        let record = c.trace.record_at(written).unwrap();
        assert_eq!((record.kind, record.a), (TraceKind::HostAbort.raw(), image.0 << 12));
        assert_eq!(record.b, esr);
    }
    assert_eq!(mapped(), []);
}

#[test]
fn the_trace_ring_can_be_read_and_nothing_else() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let ring = hv.trace_pages[0].unwrap().start();
    assert_eq!(fake::abort(&hv, c, ring, READ | WRITE), Inject);
    assert_eq!(fake::abort(&hv, c, ring, DATA | PERMISSION | WRITE), Inject, "not mapped now");
    assert_eq!(fake::abort(&hv, c, ring, FETCH | TRANSLATION), Inject);
    assert_eq!(mapped(), []);
    assert_eq!(fake::abort(&hv, c, ring, READ), Resume);
    assert_eq!(mapped(), [(pages(IMAGE.end().0, 2), Perms::READ)], "both CPUs' rings");
    assert_eq!(fake::abort(&hv, c, ring, DATA | PERMISSION | WRITE), Inject);
    let maintenance = DATA | PERMISSION | WRITE | MAINTENANCE;
    assert_eq!(fake::abort(&hv, c, ring, maintenance), Inject, "would fault for ever");
}

#[test]
fn addresses_without_ram_and_regions_are_the_hosts_up_to_the_last_bit() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let gib = 512 * 512;
    assert_eq!(fake::abort(&hv, c, Pfn(0x9000), READ | WRITE), Resume);
    assert_eq!(fake::abort(&hv, c, Pfn(RAM.0 + RAM_PAGES), READ), Resume, "behind RAM");
    let last = (1 << 36) - 1;
    assert_eq!(fake::abort(&hv, c, Pfn(last), READ), Resume);
    let expected = [
        (pages(0, gib), Perms::ALL),
        (pages(RAM.0 + RAM_PAGES, 512), Perms::ALL),
        (pages(last + 1 - gib, gib), Perms::ALL),
    ];
    assert_eq!(mapped(), expected);
    assert_eq!(fake::abort(&hv, c, Pfn(last + 1), READ), Inject);
    assert_eq!(fake::abort(&hv, c, Pfn(u64::MAX >> 12), READ), Inject);
}

#[test]
fn a_fault_that_no_translation_cures_is_injected_and_not_repeated() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let page = Pfn(RAM.0 + 600);
    assert_eq!(fake::abort(&hv, c, page, READ), Resume);
    // External abort, alignment, access flag, TLB conflict; then a class that is no abort.
    for status in [0b010000, 0b100001, 0b001001, 0b110000] {
        assert_eq!(fake::abort(&hv, c, page, DATA | status), Inject);
    }
    assert_eq!(fake::abort(&hv, c, page, 0x16 << 26 | TRANSLATION), Inject);
    assert_eq!(fake::abort(&hv, c, page, 0), Inject);
}

#[test]
fn a_permission_fault_on_a_page_that_allows_the_access_by_now_is_repeated() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let page = Pfn(RAM.0 + 600);
    let write = DATA | PERMISSION | WRITE;
    assert_eq!(fake::abort(&hv, &mut cpus[0], page, write), Resume, "unmapped since: faults anew");
    assert_eq!(mapped(), []);
    assert_eq!(fake::abort(&hv, &mut cpus[0], page, READ | WRITE), Resume);
    assert_eq!(fake::abort(&hv, &mut cpus[1], page, write), Resume);
}

#[test]
fn r10_the_host_sees_a_region_with_the_type_and_only_while_its_state_allows() {
    let (hv, mut cpus) = fake::machine(std::vec![fixture::mmio(), fixture::memory()]);
    let c = &mut cpus[0];
    create_vm(&hv, c);
    let region = fixture::range(fixture::MMIO);
    let page = Pfn(region.start().0 + 7);
    assert_eq!(fake::abort(&hv, c, page, FETCH | TRANSLATION), Inject, "never executable");
    assert_eq!(fake::abort(&hv, c, page, READ), Resume);
    assert_eq!(mapped(), [(region, Perms::READ.with(Perms::WRITE))], "no page of a neighbour");

    bind(&hv, c, &fixture::request(fixture::MMIO, Mode::Share, MemType::Device));
    assert_eq!(fake::abort(&hv, c, page, READ), Resume);
    let attrs = hv.enter().lock_host().stage2.lookup(page).unwrap();
    assert_eq!(attrs.mem, Stage2Type::Forced(MemType::Device));

    let memory = Pfn(fixture::MEMORY.0);
    bind(&hv, c, &fixture::request(fixture::MEMORY, Mode::Donate, MemType::Cacheable));
    assert_eq!(fake::abort(&hv, c, memory, READ), Inject);
    fake::assert_consistent(&hv);
}

#[test]
fn a_guests_device_is_absent_to_the_kernels_own_loads_and_stores() {
    /// `ISS.ISV`, four bytes, register 5.
    const DESCRIBED: u64 = 1 << 24 | 0b10 << 22 | 5 << 16;
    const KERNEL: u64 = 0xffff_8000_0000_0000;
    let (hv, mut cpus) = fake::machine(std::vec![fixture::mmio()]);
    let c = &mut cpus[0];
    create_vm(&hv, c);
    bind(&hv, c, &fixture::request(fixture::MMIO, Mode::Donate, MemType::Device));
    let ipa = PhysAddr((fixture::MMIO.0 + 7) << 12);
    let good = HostAbort { ipa, far: KERNEL, esr: READ | DESCRIBED, elr: 0, pstate: 0b0101 };

    let load = PendingLoad { register: 5, bytes: 4, widen: Widen::Zero };
    let written = c.trace.written();
    assert_eq!(hv.host_abort(c, good), Absent(Access::Load(load)));
    let store = HostAbort { esr: good.esr | WRITE, ..good };
    assert_eq!(hv.host_abort(c, store), Absent(Access::Store { register: 5, bytes: 4 }));
    assert_eq!(c.trace.written(), written + 2, "both are written down");

    let others = [
        ("no description", HostAbort { esr: READ, ..good }),
        ("a table walk", HostAbort { esr: good.esr | 1 << 7, ..good }),
        ("cache maintenance", HostAbort { esr: store.esr | MAINTENANCE, ..good }),
        ("a fetch", HostAbort { esr: FETCH | TRANSLATION, ..good }),
        ("a program's address", HostAbort { far: 0x8000_0000, ..good }),
        ("a program", HostAbort { pstate: 0, ..good }),
        ("the hypervisor's memory", HostAbort { ipa: PhysAddr(IMAGE.start().0 << 12), ..good }),
    ];
    for (what, abort) in others {
        assert_eq!(hv.host_abort(c, abort), Inject, "{what}");
    }
}

fn bind(hv: &Hypervisor<FakeMachine>, cpu: &mut Cpu<FakeMachine>, request: &Request) {
    let args = [request.word().0, request.pfn, request.ipa_pfn, request.pages];
    let regs = call(hv, cpu, HostFunction::PfnmapBind, &args);
    assert_eq!(regs[0], 0, "{regs:x?}");
}

#[test]
fn a_block_beside_a_region_holds_no_page_of_it() {
    let (hv, mut cpus) = fake::machine(std::vec![fixture::mmio()]);
    let c = &mut cpus[0];
    let (first, count) = fixture::MMIO;
    assert_eq!(fake::abort(&hv, c, Pfn(first - 1), READ), Resume);
    assert_eq!(fake::abort(&hv, c, Pfn(first + count), READ), Resume);
    let around = [(pages(first - 512, 512), Perms::ALL), (pages(first + count, 1), Perms::ALL)];
    assert_eq!(mapped(), around);
}
