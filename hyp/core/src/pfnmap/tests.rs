use std::sync::{Arc, Mutex};
use std::vec;
use std::vec::Vec;

use pfnguard_shared::info::{Capabilities, RegionInfo};
use pfnguard_shared::request::{CHECK_DECISIONS_OFFSET, Decision};
use pfnguard_shared::trace::TraceRecord;
use pfnguard_shared::vm::{ContractFlags, Promise};
use pfnguard_shared::{HostFunction, MemType, NO_PFN, PAGE_SHIFT, Perms, Rule, Status, Subject};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::addr::{Pfn, PfnRange, PhysAddr};
use crate::fake::{self, FakeMachine, Op, RAM, Setup, assert_consistent, snapshot, take_log};
use crate::host::AbortOutcome;
use crate::hypervisor::Hypervisor;
use crate::machine::{GuestExit, RegisterWidth, Stage2Attrs, Stage2Type, TagAccess};
use crate::manifest::{Entry, Register, Reset};
use crate::region::fixture::{MEMORY, MMIO, memory, mmio, range, request};

mod edges;

/// Argument page of the test CPU.
const ARG_PAGE: u64 = RAM.0 + 1;
/// First table page of VM 0, and how many.
const TABLES: u64 = RAM.0 + 16;
/// A data abort of the host: a load, translation fault.
const LOAD_FAULT: u64 = 0x9200_0007;

struct Bench {
    hv: Hypervisor<FakeMachine>,
    cpu: Cpu<FakeMachine>,
}

/// Room for what the tests use and for the image: few frames are compared fast, under Miri too.
fn small_ram() -> Vec<PfnRange> {
    vec![range((RAM.0, 128)), range((fake::IMAGE.start().0, 128))]
}

fn id(number: u64) -> VmId {
    VmId::from_raw(number).unwrap()
}

impl Bench {
    fn new(entries: Vec<Entry>) -> Self {
        Self::with(Setup { entries, ram: small_ram(), ..Setup::default() })
    }

    /// An argument page, and two VMs with eight table pages each.
    fn with(setup: Setup) -> Self {
        let (hv, mut cpus) = setup.launch();
        let mut bench = Self { hv, cpu: cpus.remove(0) };
        bench.done(HostFunction::HostShareHyp, &[ARG_PAGE, 1]);
        bench.done(HostFunction::ArgPageSet, &[ARG_PAGE]);
        bench.create(ContractFlags::NONE, TABLES, 8);
        bench.create(ContractFlags::NONE, TABLES + 8, 8);
        take_log();
        bench
    }

    fn create(&mut self, contract: ContractFlags, tables: u64, pages: u64) -> u64 {
        let flags = u64::from(contract.raw());
        self.done(HostFunction::VmCreate, &[flags, 1, tables, pages])[1]
    }

    fn call(&mut self, function: HostFunction, args: &[u64]) -> [u64; 8] {
        fake::call(&self.hv, &mut self.cpu, function, args)
    }

    fn done(&mut self, function: HostFunction, args: &[u64]) -> [u64; 8] {
        let regs = self.call(function, args);
        assert_eq!(Status::from_register(regs[0]), Some(Status::Success), "{regs:x?}");
        regs
    }

    /// Makes a call that must be refused and must change nothing.
    fn refused(&mut self, function: HostFunction, args: &[u64]) -> (Status, Option<Rule>) {
        let before = snapshot(&self.hv);
        take_log();
        let regs = self.call(function, args);
        assert_eq!(take_log(), [], "a refused call touched the machine");
        assert_eq!(snapshot(&self.hv), before);
        let rule = u16::try_from(regs[1] & 0xffff).unwrap();
        (Status::from_register(regs[0]).unwrap(), Rule::from_raw(rule))
    }

    fn bind(&mut self, wire: &Request) {
        self.done(HostFunction::PfnmapBind, &registers(wire));
        assert_consistent(&self.hv);
    }

    fn refused_bind(&mut self, wire: &Request) -> (Status, Option<Rule>) {
        self.refused(HostFunction::PfnmapBind, &registers(wire))
    }

    fn unbind(&mut self, vm: u64, ipa: u64) -> u64 {
        let state = self.done(HostFunction::PfnmapUnbind, &[vm, ipa])[1];
        assert_consistent(&self.hv);
        state
    }

    fn touch(&mut self, pfn: u64) -> AbortOutcome {
        fake::abort(&self.hv, &mut self.cpu, Pfn(pfn), LOAD_FAULT)
    }

    fn host_type(&mut self, pfn: u64) -> Option<Stage2Type> {
        let mut door = self.hv.enter();
        door.lock_host().stage2.lookup(Pfn(pfn)).map(|attrs| attrs.mem)
    }

    fn leaf(&mut self, vm: u64, ipa: u64) -> Option<Stage2Attrs> {
        let mut door = self.hv.enter();
        let guest = door.lock_guest(id(vm)).unwrap();
        guest.stage2.lookup(IpaPfn(ipa)).map(|leaf| leaf.attrs)
    }

    fn state(&mut self, pfn: u64) -> RegionState {
        let mut door = self.hv.enter();
        let host = door.lock_host();
        host.regions.lookup(Pfn(pfn)).unwrap().1.hold.state()
    }

    fn write<T: IntoBytes + zerocopy::Immutable>(&mut self, offset: usize, item: &T) {
        self.cpu.local.write(Pfn(ARG_PAGE), offset, item.as_bytes());
    }

    fn read<T: FromBytes + IntoBytes>(&mut self, offset: usize) -> T {
        let mut item = T::new_zeroed();
        self.cpu.local.read(Pfn(ARG_PAGE), offset, item.as_mut_bytes());
        item
    }

    /// The record before that of the last host call.
    fn record_before_the_call(&self) -> TraceRecord {
        let trace = &self.cpu.trace;
        *trace.record_at(trace.written() - 2).unwrap()
    }

    /// Judges one request by CHECK.
    fn check(&mut self, wire: &Request) -> Decision {
        self.write(0, wire);
        self.done(HostFunction::PfnmapCheck, &[1]);
        self.read(CHECK_DECISIONS_OFFSET)
    }
}

fn registers(wire: &Request) -> [u64; 4] {
    [wire.word().0, wire.pfn, wire.ipa_pfn, wire.pages]
}

fn share(mem_type: MemType) -> Request {
    request(MEMORY, Mode::Share, mem_type)
}

fn donate(mem_type: MemType) -> Request {
    request(MEMORY, Mode::Donate, mem_type)
}

fn lazily(mut wire: Request) -> Request {
    wire.flags = RequestFlags::NONE.raw();
    wire
}

fn part(mut wire: Request, first: u64, pages: u64) -> Request {
    (wire.pfn, wire.ipa_pfn, wire.pages) = (wire.pfn + first, wire.ipa_pfn + first, pages);
    wire
}

fn raw(state: RegionState) -> u64 {
    u64::from(state.raw())
}

fn both() -> Bench {
    Bench::new(vec![mmio(), memory()])
}

fn memory_with(reset: Reset) -> Bench {
    let entry = Entry { reset, ..memory() };
    Bench::new(vec![mmio(), entry])
}

fn register() -> Register {
    Register { addr: PhysAddr(MMIO.0 << PAGE_SHIFT), width: RegisterWidth::Word }
}

fn poll(bound: u32) -> Reset {
    Reset::Poll { register: register(), mask: 0xf0, value: 0x10, bound }
}

#[test]
fn r30_a_bind_that_says_so_installs_at_once() {
    let mut bench = both();
    bench.bind(&share(MemType::Cacheable));
    let expected = Stage2Attrs {
        mem: Stage2Type::Forced(MemType::Cacheable),
        perms: Perms::READ.with(Perms::WRITE),
        tags: TagAccess::Allowed,
    };
    assert_eq!(bench.leaf(0, MEMORY.0 + 5), Some(expected));
}

#[test]
fn r30_an_announced_binding_is_installed_by_map_or_by_the_first_access() {
    let mut bench = both();
    bench.bind(&lazily(share(MemType::Device)));
    assert_eq!(bench.leaf(0, MEMORY.0), None);
    bench.done(HostFunction::PfnmapMap, &[0, MEMORY.0 + 3]);
    assert!(bench.leaf(0, MEMORY.0).is_some());
    bench.done(HostFunction::PfnmapMap, &[0, MEMORY.0]);

    bench.bind(&lazily(request(MMIO, Mode::Share, MemType::Device)));
    let mut door = bench.hv.enter();
    let mut fault = |ipa| guest_fault(&mut door, &mut bench.cpu, id(0), IpaPfn(ipa));
    assert_eq!(fault(MMIO.0 - 1), GuestFault::Unbound);
    assert_eq!(fault(MMIO.0 + 7), GuestFault::Mapped);
    assert_eq!(fault(MMIO.0), GuestFault::AlreadyMapped);
    assert_consistent(&bench.hv);
}

#[test]
fn r30_nothing_takes_the_tables_of_an_announced_binding() {
    let mut bench = both();
    let vm = bench.create(ContractFlags::NONE, TABLES + 16, 4); // the root, and three
    let wire = unaligned(vm, lazily(share(MemType::Device)));
    bench.bind(&wire);
    let donation = [vm, RAM.0 + 64, 0x8_0000, 1];
    let found = bench.refused(HostFunction::HostDonateGuest, &donation);
    assert_eq!(found, (Status::NoMemory, None));
    bench.done(HostFunction::PfnmapMap, &[vm, wire.ipa_pfn]);
    assert_consistent(&bench.hv);
}

/// The request for `vm`, where no block fits: it spans three tables.
fn unaligned(vm: u64, wire: Request) -> Request {
    Request { vm: u16::try_from(vm).unwrap(), ipa_pfn: wire.ipa_pfn + 1, ..wire }
}

#[test]
fn r30_a_bind_that_could_lack_tables_at_map_is_refused_at_bind() {
    let mut bench = both();
    let vm = bench.create(ContractFlags::NONE, TABLES + 16, 3);
    for wire in [share(MemType::Device), lazily(share(MemType::Device))] {
        let wire = unaligned(vm, wire);
        assert_eq!(bench.refused_bind(&wire), (Status::NoMemory, None));
        assert_eq!(bench.check(&wire).status, Status::NoMemory.raw());
    }
}

#[test]
fn r30_unbinding_an_announced_binding_frees_its_tables() {
    let mut bench = both();
    let vm = bench.create(ContractFlags::NONE, TABLES + 16, 4);
    let wire = unaligned(vm, lazily(share(MemType::Device)));
    bench.bind(&wire);
    bench.unbind(vm, wire.ipa_pfn);
    bench.done(HostFunction::HostDonateGuest, &[vm, RAM.0 + 64, 0x8_0000, 1]);
}

#[test]
fn r32_check_decides_as_bind_does_and_changes_nothing() {
    let mut streams = memory();
    streams.streams = [1].into_iter().collect();
    // The model's grid compares decisions; this one compares the calls. Miri needs one round.
    let rounds = if cfg!(miri) { 1 } else { 2 };
    for entry in [memory(), streams].into_iter().take(rounds) {
        for mem_type in [MemType::Device, MemType::AnyUncached, MemType::Cacheable] {
            for mode in [Mode::Share, Mode::Donate] {
                for place in [MEMORY, MMIO, (MMIO.0, 0x101), (0, 1), (RAM.0, 1)] {
                    let mut bench = Bench::new(vec![mmio(), entry.clone()]);
                    let wire = request(place, mode, mem_type);
                    let before = snapshot(&bench.hv);
                    let decision = bench.check(&wire);
                    assert_eq!(snapshot(&bench.hv), before);
                    let regs = bench.call(HostFunction::PfnmapBind, &registers(&wire));
                    let status = Status::from_raw(decision.status).unwrap();
                    assert_eq!(Status::from_register(regs[0]), Some(status));
                    if status != Status::Success {
                        let word = u64::from(decision.rule) | u64::from(decision.subject) << 16;
                        let facts = [decision.pfn, decision.requested, decision.granted];
                        assert_eq!((regs[1], &regs[2..5]), (word, &facts[..]));
                    }
                }
            }
        }
    }
}

#[test]
fn r32_items_of_a_batch_are_judged_each_for_itself() {
    let mut bench = both();
    let mut nobody = share(MemType::Device);
    nobody.vm = 9;
    let malformed = Request { pages: 0, ..share(MemType::Device) };
    for (index, wire) in [share(MemType::Device), nobody, malformed].iter().enumerate() {
        bench.write(index * size_of::<Request>(), wire);
    }
    bench.done(HostFunction::PfnmapCheck, &[3]);
    let statuses = [0, 1, 2].map(|index| {
        let decision: Decision = bench.read(CHECK_DECISIONS_OFFSET + index * 32);
        Status::from_raw(decision.status).unwrap()
    });
    assert_eq!(statuses, [Status::Success, Status::NotFound, Status::InvalidParameter]);
}

#[test]
#[cfg_attr(miri, ignore = "a hundred machines")]
fn r32_an_item_gets_what_it_gets_alone_whatever_the_one_before_got() {
    let whole = share(MemType::Device);
    let items = [
        whole,
        part(whole, 3, 1),
        Request { pfn: whole.pfn + 1, ..whole },
        Request { ipa_pfn: whole.ipa_pfn + 1, ..whole },
        Request { ipa_pfn: 1 << 28, ..whole },
        Request { pages: 0, ..whole },
        Request { pfn: u64::MAX, ..whole },
        Request { pfn: RAM.0, ..whole },
        Request { pfn: RAM.0, ipa_pfn: 1 << 28, ..whole },
        Request { pfn: RAM.0, vm: 9, ..whole },
        Request { pfn: MMIO.0 - 1, pages: 1, ..whole },
        Request { pfn: MEMORY.0 - 1, ..whole },
        Request { vm: 1, ..whole },
        Request { vm: 9, ..whole },
        Request { perms: Perms::ALL.raw(), ..whole },
    ];
    for bound in [None, Some(lazily(part(whole, 8, 8)))] {
        let mut bench = both();
        bound.iter().for_each(|wire| bench.bind(wire));
        let pairs = items.iter().flat_map(|first| items.iter().map(move |next| [first, next]));
        for pair in pairs {
            let alone = pair.map(|wire| bench.check(wire));
            bench.write(0, pair[0]);
            bench.write(size_of::<Request>(), pair[1]);
            bench.done(HostFunction::PfnmapCheck, &[2]);
            let together: [Decision; 2] =
                [0, 32].map(|offset| bench.read(CHECK_DECISIONS_OFFSET + offset));
            assert_eq!(together, alone, "{pair:?}");
        }
    }
}

#[test]
fn r32_check_needs_an_argument_page() {
    let mut bench = both();
    bench.done(HostFunction::ArgPageClear, &[]);
    assert_eq!(bench.refused(HostFunction::PfnmapCheck, &[1]), (Status::WrongState, None));
    assert_eq!(bench.refused(HostFunction::RegionInfo, &[0]), (Status::WrongState, None));
    assert_eq!(bench.refused(HostFunction::MigrateExport, &[0]), (Status::WrongState, None));
    assert_eq!(bench.refused(HostFunction::MigrateCheck, &[]), (Status::WrongState, None));
}

#[test]
fn r34_a_refusal_is_explained_in_the_registers_and_in_the_trace() {
    let mut bench = both();
    let wire = request((MMIO.0, 1), Mode::Share, MemType::Cacheable);
    let regs = bench.call(HostFunction::PfnmapBind, &registers(&wire));
    let word = u64::from(Rule::R06.raw()) | u64::from(Subject::Types.raw()) << 16;
    assert_eq!(&regs[..5], &[Status::Unsupported.to_register(), word, MMIO.0, 4, 3]);
    let record = bench.record_before_the_call();
    assert_eq!((record.kind, record.rule), (TraceKind::Decision.raw(), Rule::R06.raw()));
    assert_eq!((record.subject, record.pfn), (Subject::Types.raw(), MMIO.0));
    assert_eq!((record.a, record.b, record.c), (wire.word().0, 4, 3));
}

#[test]
fn r34_the_trace_names_the_first_item_of_a_batch_that_is_refused() {
    let mut bench = both();
    let refused = request((MMIO.0, 1), Mode::Share, MemType::Cacheable);
    let later = request((MMIO.0 - 1, 1), Mode::Share, MemType::Device);
    for (index, wire) in [share(MemType::Device), refused, later].iter().enumerate() {
        bench.write(index * size_of::<Request>(), wire);
    }
    let before = bench.cpu.trace.written();
    bench.done(HostFunction::PfnmapCheck, &[3]);
    assert_eq!(bench.cpu.trace.written() - before, 2, "one of the batch, one of the call");
    let record = bench.record_before_the_call();
    assert_eq!((record.kind, record.rule), (TraceKind::Decision.raw(), Rule::R06.raw()));
    assert_eq!((record.a, record.pfn), (refused.word().0, MMIO.0));
    bench.done(HostFunction::PfnmapCheck, &[1]);
    assert_eq!(bench.cpu.trace.written() - before, 3, "nothing refused, nothing to name");
}

#[test]
fn r35_a_refused_bind_has_changed_nothing() {
    let mut bench = both();
    bench.bind(&share(MemType::Device));
    let cases = [
        (share(MemType::Device), (Status::Busy, None)), // its own place is occupied
        (donate(MemType::Device), (Status::Busy, Some(Rule::R02))),
        (share(MemType::Cacheable), (Status::Unsupported, Some(Rule::R10))),
        (request((0, 1), Mode::Share, MemType::Device), (Status::Denied, Some(Rule::R01))),
        (Request { vm: 5, ..share(MemType::Device) }, (Status::NotFound, None)),
        (Request { ipa_pfn: 1 << 28, ..share(MemType::Device) }, (Status::InvalidParameter, None)),
        (Request { pages: 0, ..share(MemType::Device) }, (Status::InvalidParameter, None)),
    ];
    for (wire, expected) in cases {
        assert_eq!(bench.refused_bind(&wire), expected);
    }
}

#[test]
fn a_binding_and_ram_never_share_an_address() {
    let mut bench = both();
    bench.done(HostFunction::HostDonateGuest, &[0, RAM.0 + 64, MEMORY.0 + 3, 1]);
    assert_eq!(bench.refused_bind(&share(MemType::Device)), (Status::Busy, None));
    bench.bind(&lazily(request(MMIO, Mode::Share, MemType::Device)));
    let over = [0, RAM.0 + 65, MMIO.0 + 1, 1];
    assert_eq!(bench.refused(HostFunction::HostDonateGuest, &over), (Status::Busy, None));
}

#[test]
fn a_refusal_names_the_first_occupied_page_be_it_bound_or_mapped() {
    let mut bench = both();
    bench.bind(&lazily(request(MMIO, Mode::Share, MemType::Device)));
    let mapped = MMIO.0 + MMIO.1;
    bench.done(HostFunction::HostDonateGuest, &[0, RAM.0 + 64, mapped, 1]);
    let over = [0, RAM.0 + 65, MMIO.0 - 1, MMIO.1 + 2];
    assert_eq!(bench.call(HostFunction::HostDonateGuest, &over)[3], MMIO.0);
}

#[test]
fn r10_a_shared_region_has_the_guests_type_for_the_host_too() {
    let mut bench = both();
    assert_eq!(bench.touch(MEMORY.0), AbortOutcome::Resume);
    assert_eq!(bench.host_type(MEMORY.0), Some(Stage2Type::AsStage1));
    bench.bind(&share(MemType::AnyUncached));
    assert_eq!(bench.host_type(MEMORY.0), None);
    assert_eq!(bench.touch(MEMORY.0), AbortOutcome::Resume);
    assert_eq!(bench.host_type(MEMORY.0), Some(Stage2Type::Forced(MemType::AnyUncached)));
    bench.unbind(0, MEMORY.0);
    assert_eq!(bench.host_type(MEMORY.0), None);
}

#[test]
fn r10_a_donated_region_is_not_the_hosts_to_touch() {
    let mut bench = both();
    assert_eq!(bench.touch(MEMORY.0), AbortOutcome::Resume);
    bench.bind(&part(donate(MemType::Cacheable), 0, 1));
    // The host loses the whole region, not only the pages that are bound.
    for pfn in [MEMORY.0, MEMORY.0 + MEMORY.1 - 1] {
        assert_eq!(bench.host_type(pfn), None);
        assert_eq!(bench.touch(pfn), AbortOutcome::Inject);
    }
    bench.unbind(0, MEMORY.0);
    assert_eq!(bench.touch(MEMORY.0), AbortOutcome::Resume);
}

#[test]
fn r08_without_fwb_the_hypervisor_maintains_donated_memory_itself() {
    let capabilities = Capabilities::NONE;
    let entries = vec![mmio(), memory()];
    let mut bench =
        Bench::with(Setup { entries, capabilities, ram: small_ram(), ..Setup::default() });
    let clean = Op::CleanInvalidate { range: range(MEMORY) };
    assert_eq!(
        bench.refused_bind(&share(MemType::Cacheable)),
        (Status::Unsupported, Some(Rule::R07))
    );
    bench.bind(&donate(MemType::Cacheable));
    let log = take_log();
    let (unmapped, cleaned) = (Op::HostUnmap { range: range(MEMORY) }, clean.clone());
    assert_eq!(&log[..2], &[unmapped, cleaned]);
    assert!(matches!(log[2], Op::GuestMap { .. }));
    bench.unbind(0, MEMORY.0);
    assert!(take_log().contains(&clean));
    bench.bind(&donate(MemType::Cacheable));
    take_log();
    bench.done(HostFunction::VmTeardown, &[0]);
    assert!(take_log().contains(&clean));
}

#[test]
fn r40_letting_go_of_a_shared_region_runs_in_order() {
    let entry = Entry {
        flags: memory().flags.with(RegionFlags::ZERO_ON_RETURN),
        reset: Reset::Readback(register()),
        ..memory()
    };
    let mut bench = Bench::new(vec![mmio(), entry]);
    bench.bind(&share(MemType::Cacheable));
    take_log();
    assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Free));
    let ipa = IpaRange::new(IpaPfn(MEMORY.0), MEMORY.1).unwrap();
    let range = range(MEMORY);
    assert_eq!(
        take_log(),
        [
            Op::GuestUnmap { vmid: id(0).vmid(), ipa },
            Op::HostUnmap { range },
            Op::CleanInvalidate { range },
            Op::ZeroDevice { range },
            Op::ReadRegister { addr: register().addr },
        ]
    );
}

#[test]
fn r40_teardown_runs_in_the_same_order() {
    let mut bench = memory_with(Reset::Readback(register()));
    bench.bind(&donate(MemType::Cacheable));
    take_log();
    bench.done(HostFunction::VmTeardown, &[0]);
    let range = range(MEMORY);
    assert_eq!(
        take_log(),
        [
            Op::GuestDestroy { vmid: id(0).vmid() },
            Op::CleanInvalidate { range },
            Op::ReadRegister { addr: register().addr },
        ]
    );
    assert_eq!(bench.state(MEMORY.0), RegionState::Free);
    assert_consistent(&bench.hv);
}

#[test]
fn r40_uncached_bindings_leave_nothing_to_clean() {
    let mut bench = both();
    bench.bind(&share(MemType::AnyUncached));
    take_log();
    bench.unbind(0, MEMORY.0);
    assert!(!take_log().iter().any(|op| matches!(op, Op::CleanInvalidate { .. })));
}

#[test]
fn r40_only_pages_that_nobody_else_holds_are_zeroed() {
    let flags = memory().flags.with(RegionFlags::ZERO_ON_RETURN);
    let mut bench = Bench::new(vec![mmio(), Entry { flags, ..memory() }]);
    bench.bind(&part(share(MemType::Cacheable), 0, 10));
    for (first, pages) in [(2, 2), (8, 8)] {
        let other = part(share(MemType::Cacheable), first, pages);
        bench.bind(&Request { vm: 1, ..other });
    }
    take_log();
    assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Shared));
    let zeroed: Vec<PfnRange> = take_log()
        .into_iter()
        .filter_map(|op| if let Op::ZeroDevice { range } = op { Some(range) } else { None })
        .collect();
    assert_eq!(zeroed, [range((MEMORY.0, 2)), range((MEMORY.0 + 4, 4))]);
}

#[test]
fn r40_the_reset_waits_for_the_last_binding() {
    let mut bench = memory_with(Reset::Readback(register()));
    bench.bind(&part(donate(MemType::Device), 0, 1));
    bench.bind(&part(donate(MemType::Device), 1, 1));
    take_log();
    assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Donated));
    assert!(!take_log().contains(&Op::ReadRegister { addr: register().addr }));
    assert_eq!(bench.unbind(0, MEMORY.0 + 1), raw(RegionState::Free));
    assert!(take_log().contains(&Op::ReadRegister { addr: register().addr }));
}

#[test]
fn r41_a_region_without_a_reset_is_free_at_once() {
    let mut bench = both();
    bench.bind(&donate(MemType::Device));
    assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Free));
    bench.bind(&Request { vm: 1, ..donate(MemType::Cacheable) });
}

#[test]
fn r41_an_external_reset_keeps_the_region_in_quarantine_until_it_is_reported() {
    let mut bench = memory_with(Reset::External);
    let region = 1;
    let early = bench.refused(HostFunction::PfnmapReset, &[region]);
    assert_eq!(early, (Status::WrongState, Some(Rule::R41)));
    bench.bind(&share(MemType::Device));
    assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Quarantined));
    assert_eq!(bench.refused_bind(&share(MemType::Device)), (Status::Busy, Some(Rule::R41)));
    assert_eq!(bench.touch(MEMORY.0), AbortOutcome::Inject);
    let regs = bench.done(HostFunction::PfnmapReset, &[region]);
    assert_eq!(regs[1], raw(RegionState::Free));
    assert_eq!(bench.touch(MEMORY.0), AbortOutcome::Resume);
    bench.bind(&share(MemType::Device));
}

#[test]
fn r41_a_poll_that_succeeds_within_its_bound_frees_the_region() {
    let mut bench = memory_with(poll(3));
    bench.cpu.local.register(register().addr, &[0, 0x0f, 0x1f]);
    bench.bind(&donate(MemType::Device));
    assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Free));
}

#[test]
fn r42_a_poll_that_fails_loses_the_region_for_good_and_leaves_a_record() {
    let mut bench = memory_with(poll(3));
    bench.cpu.local.register(register().addr, &[0, 0, 0, 0x10]);
    bench.bind(&donate(MemType::Device));
    take_log();
    assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Lost));
    let record = bench.record_before_the_call();
    assert_eq!((record.kind, record.rule), (TraceKind::Region.raw(), Rule::R42.raw()));
    assert_eq!((record.b, record.c), (raw(RegionState::Free), raw(RegionState::Lost)));
    let reads = take_log();
    let reads = reads.iter().filter(|op| matches!(op, Op::ReadRegister { .. }));
    assert_eq!(reads.count(), 3);
    assert_eq!(bench.refused_bind(&donate(MemType::Device)), (Status::Busy, Some(Rule::R42)));
    assert_eq!(bench.touch(MEMORY.0), AbortOutcome::Inject);
    let late = bench.refused(HostFunction::PfnmapReset, &[1]);
    assert_eq!(late, (Status::Busy, Some(Rule::R42)));
}

#[test]
fn r42_a_device_that_does_not_answer_has_not_been_reset() {
    for reset in [poll(3), Reset::Readback(register())] {
        let mut bench = memory_with(reset);
        bench.cpu.local.absent.insert(register().addr);
        bench.bind(&donate(MemType::Device));
        assert_eq!(bench.unbind(0, MEMORY.0), raw(RegionState::Lost));
        assert_eq!(bench.refused_bind(&donate(MemType::Device)), (Status::Busy, Some(Rule::R42)));
    }
}

#[test]
fn r43_a_quirked_region_shows_its_reason() {
    let mut entry = memory();
    entry.flags = entry.flags.with(RegionFlags::QUIRKED);
    entry.quirk = crate::region::fixture::label("loses writes");
    let mut bench = Bench::new(vec![mmio(), entry]);
    assert_eq!(bench.refused_bind(&share(MemType::Device)), (Status::Denied, Some(Rule::R43)));
    bench.done(HostFunction::RegionInfo, &[1]);
    let info: RegionInfo = bench.read(0);
    assert!(info.quirk.starts_with(b"loses writes\0"));
}

#[test]
fn r21_mte_cannot_be_switched_on_after_the_first_bind() {
    let mut bench = both();
    bench.done(HostFunction::VmEnableMte, &[1]);
    bench.bind(&share(MemType::Device));
    bench.unbind(0, MEMORY.0);
    let found = bench.refused(HostFunction::VmEnableMte, &[0]);
    assert_eq!(found, (Status::Denied, Some(Rule::R21)));
}

#[test]
fn r20_an_mte_vm_is_bound_without_tag_access_where_stage_2_can_forbid_it() {
    let capabilities = Capabilities::ALL;
    let entry = Entry { flags: RegionFlags::CMO_BY_ADDRESS, ..memory() };
    let mut bench = Bench::with(Setup {
        entries: vec![entry],
        capabilities,
        ram: small_ram(),
        ..Setup::default()
    });
    bench.done(HostFunction::VmEnableMte, &[0]);
    bench.bind(&share(MemType::Cacheable));
    assert_eq!(bench.leaf(0, MEMORY.0).unwrap().tags, TagAccess::Forbidden);
}

#[test]
fn r31_regions_are_enumerated_with_grants_and_state() {
    let mut bench = both();
    bench.bind(&share(MemType::Device));
    let regs = bench.done(HostFunction::RegionInfo, &[1]);
    assert_eq!(&regs[1..3], &[MEMORY.0, MEMORY.1]);
    let info: RegionInfo = bench.read(0);
    assert_eq!((info.types, info.perms, info.modes), (7, 7, 3));
    assert_eq!((info.state, info.holders), (RegionState::Shared.raw(), 1));
    assert_eq!(bench.refused(HostFunction::RegionInfo, &[2]), (Status::NotFound, None));
}

#[test]
fn r23_a_guest_is_told_what_its_binding_promises() {
    let mut bench = both();
    bench.bind(&lazily(share(MemType::AnyUncached)));
    let mut door = bench.hv.enter();
    let host = door.lock_host();
    let ask = |ipa, pages| {
        let ipa = IpaRange::new(IpaPfn(ipa), pages).unwrap();
        promise(&host.regions, id(0), ipa)
    };
    let promised = ask(MEMORY.0 + 0x3ff, 100).unwrap();
    assert_eq!(promised.pages, 1);
    let bits = Promise::PRESENT.with(Promise::PFNMAP).with(Promise::SHARED);
    let bits = bits.with(Promise::EXCLUSIVES).with(Promise::ATOMICS);
    assert_eq!(promised.word, u64::from(bits.raw()) << 16 | 2 << 8 | 3);
    assert_eq!(ask(MEMORY.0 - 1, 2), None);
}

/// RAM of the VM's own ends where a binding begins, whatever both are mapped with.
#[test]
fn r23_a_promise_about_ram_ends_where_a_region_begins() {
    const QUERY: u64 = 0xc600_0180;
    let mut bench = both();
    bench.bind(&Request { perms: Perms::ALL.raw(), ..share(MemType::Cacheable) });
    let (ram, ipa) = (RAM.0 + 40, MEMORY.0 - 2);
    bench.done(HostFunction::HostDonateGuest, &[0, ram, ipa, 2]);
    bench.done(HostFunction::VcpuInit, &[0, 0, 0, 0]);
    let answer = Arc::new(Mutex::new([0; 3]));
    let copy = Arc::clone(&answer);
    bench.cpu.local.scene(move |context| {
        context.regs[..4].copy_from_slice(&[QUERY, ipa, 100, 0]);
        GuestExit::Sync { esr: 0x16 << 26, far: 0, hpfar: 0 }
    });
    bench.cpu.local.scene(move |context| {
        copy.lock().unwrap().copy_from_slice(&context.regs[..3]);
        GuestExit::Interrupt
    });
    bench.done(HostFunction::VcpuRun, &[0, 0, 0]);
    let [status, word, pages] = *answer.lock().unwrap();
    assert_eq!((status, pages), (0, 2), "{word:#x}");
    assert_eq!(word >> 16 & u64::from(Promise::PFNMAP.raw()), 0);
}

#[test]
fn a_probe_asks_the_cpu_about_pages_of_an_active_vm() {
    let mut bench = both();
    bench.cpu.local.par = 0x44 << 56;
    bench.bind(&share(MemType::AnyUncached));
    let regs = bench.done(HostFunction::PfnmapProbe, &[0, MEMORY.0]);
    assert_eq!(regs[1], 0x44 << 56);
    let beyond = bench.refused(HostFunction::PfnmapProbe, &[0, 1 << 28]);
    assert_eq!(beyond, (Status::InvalidParameter, None));
    let protected = bench.create(ContractFlags::PROTECTED, TABLES + 16, 4);
    let hidden = bench.refused(HostFunction::PfnmapProbe, &[protected, 0]);
    assert_eq!(hidden, (Status::Denied, None));
}

#[test]
fn calls_on_what_does_not_exist_are_refused() {
    let mut bench = both();
    for function in [HostFunction::PfnmapMap, HostFunction::PfnmapUnbind, HostFunction::PfnmapProbe]
    {
        assert_eq!(bench.refused(function, &[9, 0]).0, Status::NotFound);
    }
    for function in [HostFunction::PfnmapMap, HostFunction::PfnmapUnbind] {
        assert_eq!(bench.refused(function, &[0, 0]).0, Status::NotFound);
    }
    assert_eq!(bench.refused(HostFunction::PfnmapReset, &[2]).0, Status::NotFound);
    bench.done(HostFunction::VmTeardown, &[0]);
    assert_eq!(bench.refused_bind(&share(MemType::Device)), (Status::WrongState, None));
    assert_eq!(decision_pfn(&mut bench), NO_PFN);
}

fn decision_pfn(bench: &mut Bench) -> u64 {
    bench.check(&Request { vm: 1, ..share(MemType::Device) }).pfn
}
