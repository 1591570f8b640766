//! The specification of calls, by example: what is subtle, and that nothing is left out.

#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges of pages are meant")]

use pfnguard_model::Platform;
use pfnguard_model::call::{AbortCause, Access, Call, GuestEvent, GuestStep, Outcome, Seen};
use pfnguard_model::machine::Machine;
use pfnguard_model::state::{Frame, Load, Registers, State, Vcpu, Widen};
use pfnguard_model::vcpu::Next;
use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::{BlockSizes, Entry, RegionClass, RegionFlags, ResetKind};
use pfnguard_shared::request::{MemTypes, Modes, Request, RequestFlags};
use pfnguard_shared::vm::{ContractFlags, ExitReason};
use pfnguard_shared::{
    GuestFunction, HostFunction, MemType, Mode, PAGE_SHIFT, Perms, Rule, Status, Subject,
};

/// First page of RAM, of the hypervisor's image in it, of table memory, of guests' pages.
const RAM: u64 = 0x4_0000;
const RAM_PAGES: u64 = 0x1000;
const IMAGE: u64 = RAM;
const TRACE: u64 = RAM + 16;
const POOL: u64 = RAM + 0x100;
const DATA: u64 = RAM + 0x200;
const ARGS: u64 = RAM + 0x80;
/// Where guests have what they have.
const IPA: u64 = 0x8_0000;
/// Regions: memory, MMIO with a polled reset, MMIO that the host's driver resets.
const MEMORY: u64 = 0x1_0000;
const POLLED: u64 = 0x1_1000;
const DRIVEN: u64 = 0x1_2000;
const REGION_PAGES: u64 = 0x400;
const POLL_READS: u32 = 3;

fn entry(start: u64, class: RegionClass, reset: ResetKind) -> Entry {
    let mut name = [0; 32];
    name[..8].copy_from_slice(&start.to_le_bytes().map(|byte| b'a' + byte % 16));
    Entry {
        name,
        base: start << PAGE_SHIFT,
        size: REGION_PAGES << PAGE_SHIFT,
        class: class.raw(),
        modes: Modes::ALL.raw(),
        types: MemTypes::DEVICE.raw(),
        perms: Perms::READ.with(Perms::WRITE).raw(),
        max_vms: 2,
        blocks: BlockSizes::ALL.raw(),
        reset: reset.raw(),
        ..Entry::zeroed()
    }
}

fn machine() -> Machine {
    let promises = RegionFlags::CMO_BY_ADDRESS.with(RegionFlags::EXCLUSIVES);
    let memory = Entry {
        types: MemTypes::ALL.raw(),
        perms: Perms::ALL.raw(),
        flags: promises.with(RegionFlags::ATOMICS).with(RegionFlags::NC_SAFE).raw(),
        ..entry(MEMORY, RegionClass::Memory, ResetKind::None)
    };
    let polled = Entry {
        reset_addr: POLLED << PAGE_SHIFT,
        reset_width: 4,
        reset_mask: 1,
        reset_value: 1,
        reset_bound: POLL_READS,
        ..entry(POLLED, RegionClass::Mmio, ResetKind::Poll)
    };
    let driven = entry(DRIVEN, RegionClass::Mmio, ResetKind::External);
    let ram = RAM << PAGE_SHIFT..(RAM + RAM_PAGES) << PAGE_SHIFT;
    let capabilities = Capabilities::ALL.without(Capabilities::REPEAT_TLBI);
    Machine {
        platform: Platform { capabilities, ram: vec![ram], ..Platform::default() },
        entries: vec![memory, polled, driven],
        pa_bits: 40,
        guest_ipa_bits: 39,
        vmid_bits: 8,
        trace_pages: vec![TRACE..TRACE + 1, TRACE + 1..TRACE + 2],
        ..Machine::default()
    }
}

/// A machine in some state.
struct Bench {
    machine: Machine,
    state: State,
    arg_page: [u8; 4096],
    seen: Seen,
}

impl Bench {
    fn new() -> Self {
        let machine = machine();
        let state = machine.launch(&[IMAGE..IMAGE + 16]);
        Self { machine, state, arg_page: [0; 4096], seen: Seen::default() }
    }

    /// Makes a call on CPU 0, and checks what holds after every call.
    fn call(&mut self, function: HostFunction, args: &[u64]) -> Outcome {
        let mut regs = [0; 8];
        regs[0] = u64::from(function.raw());
        regs[1..=args.len()].copy_from_slice(args);
        let arg_page = self.state.arg_pages[0].is_some().then_some(&self.arg_page);
        let call = Call { cpu: 0, regs, arg_page, seen: &self.seen };
        let before = self.state.clone();
        let outcome = self.state.host_call(&self.machine, &call);
        self.state.check_invariants(&self.machine).expect("every state is sound");
        let refused = Status::from_register(outcome.regs[0]).is_some_and(|s| s != Status::Success);
        assert!(!refused || self.state == before, "{function:?} refused, and changed something");
        outcome
    }

    fn granted(&mut self, function: HostFunction, args: &[u64]) -> Outcome {
        let outcome = self.call(function, args);
        assert_eq!(outcome.regs[0], 0, "{function:?} {args:x?}: {:x?}", outcome.regs);
        outcome
    }

    fn refused(&mut self, function: HostFunction, args: &[u64]) -> (Status, Subject, [u64; 3]) {
        let [x0, x1, x2, x3, x4, ..] = self.call(function, args).regs;
        let status = Status::from_register(x0).expect("a status");
        assert_ne!(status, Status::Success, "{function:?} {args:x?}");
        let subject = u16::try_from(x1 >> 16).ok().and_then(Subject::from_raw);
        (status, subject.expect("a subject"), [x2, x3, x4])
    }

    /// VM 0 (the next: 1) with this contract, one vCPU and so many pages for tables.
    fn vm(&mut self, contract: ContractFlags, tables: u64) -> u64 {
        let pool = POOL + 0x20 * u64::try_from(self.state.vms.len()).unwrap();
        let contract = u64::from(contract.raw());
        self.granted(HostFunction::VmCreate, &[contract, 1, pool, tables]).regs[1]
    }

    fn bind(&mut self, vm: u64, mode: Mode, ipa: u64, flags: RequestFlags) -> Outcome {
        self.bind_part(vm, mode, (MEMORY, REGION_PAGES), ipa, flags)
    }

    fn bind_part(
        &mut self,
        vm: u64,
        mode: Mode,
        (pfn, pages): (u64, u64),
        ipa: u64,
        flags: RequestFlags,
    ) -> Outcome {
        let request = Request {
            vm: vm.try_into().unwrap(),
            mode: mode.raw(),
            mem_type: MemType::Device.raw(),
            perms: Perms::READ.raw(),
            flags: flags.raw(),
            ..Request::zeroed()
        };
        self.granted(HostFunction::PfnmapBind, &[request.word().0, pfn, ipa, pages])
    }

    /// Runs the vCPU; the guest does what the script says.
    fn run(&mut self, vm: u64, load: u64, guest: Vec<GuestStep>) -> Outcome {
        self.seen.guest = guest;
        self.granted(HostFunction::VcpuRun, &[vm, 0, load])
    }

    fn frame(&self, page: u64) -> Option<Frame> {
        self.state.frames.get(&page).copied()
    }

    fn tables(&self, vm: u16) -> (Vec<(u8, u64)>, u64) {
        let tables = &self.state.vms[&vm].tables;
        (tables.live.iter().copied().collect(), tables.free)
    }
}

fn guest(x: &[u64], event: GuestEvent) -> GuestStep {
    let mut general = [0; 31];
    general[..x.len()].copy_from_slice(x);
    GuestStep { registers: Registers { general, pc: 0x1000 }, event }
}

fn calls(function: GuestFunction, args: &[u64]) -> GuestStep {
    let x: Vec<u64> = [u64::from(function.raw())].iter().chain(args).copied().collect();
    guest(&x, GuestEvent::Hvc(0))
}

fn touches(ipa: u64, access: Option<Access>) -> GuestStep {
    let abort =
        GuestEvent::Abort { ipa: ipa << PAGE_SHIFT, cause: AbortCause::Translation, access };
    guest(&[], abort)
}

fn interrupted() -> GuestStep {
    guest(&[], GuestEvent::Interrupt)
}

#[test]
fn every_function_refuses_garbage_without_a_change_or_answers() {
    for &function in HostFunction::ALL {
        let mut bench = Bench::new();
        let garbage = bench.call(function, &[u64::MAX; 7]).regs[0];
        let answers = [
            HostFunction::Uid,
            HostFunction::Revision,
            HostFunction::ArgPageClear,
            HostFunction::MigrateCheck,
        ];
        let status = Status::from_register(garbage);
        let malformed =
            status == Some(Status::InvalidParameter) || status == Some(Status::NotFound);
        assert!(malformed || answers.contains(&function), "{function:?}: {garbage:x}");
    }
}

/// Calls after which each other can be granted, in one life of a VM.
#[test]
fn every_function_can_be_granted() {
    use HostFunction as F;
    let mut bench = Bench::new();
    let share = Request { mode: 1, mem_type: 1, perms: 1, pages: 1, ..Request::zeroed() };
    let life: &[(F, &[u64])] = &[
        (F::Info, &[0]),
        (F::HostShareHyp, &[ARGS, 2]),
        (F::ArgPageSet, &[ARGS]),
        (F::HostUnshareHyp, &[ARGS + 1, 1]),
        (F::RegionInfo, &[0]),
        (F::TraceInfo, &[1]),
        (F::VmCreate, &[0, 1, POOL, 8]),
        (F::VmPoolAdd, &[0, POOL + 8, 1]),
        (F::VmEnableMte, &[0]),
        (F::HostShareGuest, &[0, DATA, IPA, 4, 3]),
        (F::HostUnshareGuest, &[0, DATA, IPA, 4]),
        (F::HostDonateGuest, &[0, DATA, IPA, 4]),
        (F::VcpuInit, &[0, 0, 0x1000, 7]),
        (F::VcpuSetReg, &[0, 0, 1, 8]),
        (F::VcpuGetReg, &[0, 0, 1]),
        (F::VcpuRun, &[0, 0, 0]),
        (F::PfnmapCheck, &[1]),
        (F::PfnmapBind, &[share.word().0, DRIVEN, IPA + 16, 1]),
        (F::PfnmapMap, &[0, IPA + 16]),
        (F::PfnmapProbe, &[0, IPA + 16]),
        (F::MigrateExport, &[0]),
        (F::PfnmapUnbind, &[0, IPA + 16]),
        (F::PfnmapReset, &[2]),
        (F::VmTeardown, &[0]),
        (F::HostReclaimGuest, &[0, DATA, 4]),
        (F::VmFree, &[0]),
        (F::ArgPageClear, &[]),
    ];
    bench.seen.guest = vec![interrupted()];
    let mut granted = vec![F::Uid, F::Revision, F::MigrateCheck];
    for (function, args) in life {
        bench.granted(*function, args);
        granted.push(*function);
    }
    granted.sort_unstable();
    assert_eq!(granted, HostFunction::ALL, "a function without an example");
}

#[test]
fn what_is_no_function_is_said_to_be_none() {
    let mut bench = Bench::new();
    for id in [0, u64::from(HostFunction::Info.raw()) | 1 << 32] {
        let call = Call { cpu: 0, regs: [id; 8], arg_page: None, seen: &Seen::default() };
        let regs = bench.state.host_call(&bench.machine, &call).regs;
        assert_eq!(regs[0], Status::NotSupported.to_register());
        assert_eq!(regs[3], id);
    }
}

#[test]
fn a_page_is_lent_once_for_every_guest_page_that_leads_to_it() {
    let mut bench = Bench::new();
    let vms = [bench.vm(ContractFlags::NONE, 8), bench.vm(ContractFlags::NONE, 8)];
    bench.granted(HostFunction::HostShareGuest, &[vms[0], DATA, IPA, 2, 1]);
    bench.granted(HostFunction::HostShareGuest, &[vms[0], DATA, IPA + 8, 1, 3]);
    bench.granted(HostFunction::HostShareGuest, &[vms[1], DATA, IPA, 1, 1]);
    assert_eq!(bench.frame(DATA), Some(Frame::HostLentGuests(3)));

    bench.granted(HostFunction::VmTeardown, &[vms[0]]);

    assert_eq!(bench.frame(DATA), Some(Frame::HostLentGuests(1)));
    assert_eq!(bench.frame(DATA + 1), Some(Frame::Host));
}

#[test]
fn taking_a_part_of_a_block_back_makes_a_table_and_taking_all_frees_one() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 4);
    let (root, gib, piece) = ((1, 0), (2, IPA), (3, IPA));
    bench.granted(HostFunction::HostShareGuest, &[vm, DATA, IPA, 512, 1]);
    assert_eq!(bench.tables(0), (vec![root, gib], 2));

    bench.granted(HostFunction::HostUnshareGuest, &[vm, DATA + 8, IPA + 8, 8]);
    assert_eq!(bench.tables(0), (vec![root, gib, piece], 1));

    bench.granted(HostFunction::HostShareGuest, &[vm, DATA + 8, IPA + 8, 8, 1]);
    bench.granted(HostFunction::HostUnshareGuest, &[vm, DATA, IPA, 512]);
    assert_eq!(bench.tables(0), (vec![root, gib], 2));
}

#[test]
fn an_announced_binding_keeps_its_tables_from_all_others() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 3);
    bench.bind_part(vm, Mode::Share, (MEMORY, 4), IPA, RequestFlags::NONE);
    assert_eq!(bench.tables(0).1, 2);
    let far = IPA + 512;

    let refused = bench.refused(HostFunction::HostDonateGuest, &[vm, DATA, far, 1]);
    assert_eq!(refused, (Status::NoMemory, Subject::Tables, [u64::MAX, 2, 0]));

    bench.granted(HostFunction::VcpuInit, &[vm, 0, 0, 0]);
    let outcome = bench.run(vm, 0, vec![touches(IPA + 1, None), interrupted()]);
    assert_eq!(outcome.entered.len(), 2);
    assert_eq!(bench.tables(0), (vec![(1, 0), (2, IPA), (3, IPA)], 0));
}

#[test]
fn the_first_occupied_page_is_named_be_it_mapped_or_announced() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.granted(HostFunction::HostDonateGuest, &[vm, DATA, IPA + 5, 1]);
    bench.bind_part(vm, Mode::Share, (MEMORY, 1), IPA + 2, RequestFlags::NONE);

    let refused = bench.refused(HostFunction::HostDonateGuest, &[vm, DATA + 8, IPA, 8]);

    assert_eq!(refused, (Status::Busy, Subject::Ipa, [u64::MAX, IPA + 2, 0]));
}

#[test]
fn a_range_that_leaves_ram_is_refused_where_it_does() {
    let mut bench = Bench::new();
    let end = RAM + RAM_PAGES;
    bench.granted(HostFunction::HostShareHyp, &[end - 2, 1]);

    let (status, _, facts) = bench.refused(HostFunction::HostShareHyp, &[end - 2, 4]);

    assert_eq!((status, facts[0]), (Status::WrongState, end));
}

#[test]
fn a_protected_vm_borrows_nothing_and_leaves_zeroes() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::PROTECTED, 8);
    let refused = bench.refused(HostFunction::HostShareGuest, &[vm, DATA, IPA, 1, 1]);
    assert_eq!(refused.0, Status::Denied);
    bench.granted(HostFunction::HostDonateGuest, &[vm, DATA, IPA, 4]);
    bench.granted(HostFunction::VmTeardown, &[vm]);

    let outcome = bench.granted(HostFunction::HostReclaimGuest, &[vm, DATA, 4]);

    assert_eq!(outcome.zeroed, [DATA..DATA + 4]);
}

#[test]
fn a_region_is_let_go_with_its_last_binding_and_lost_where_nothing_resets_it() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.bind_part(vm, Mode::Share, (POLLED, 4), IPA, RequestFlags::MAP_NOW);
    bench.bind_part(vm, Mode::Share, (POLLED + 8, 4), IPA + 8, RequestFlags::NONE);
    let first = bench.granted(HostFunction::PfnmapUnbind, &[vm, IPA]);
    assert_eq!((first.regs[1], first.reads), (u64::from(RegionState::Shared.raw()), 0));

    bench.seen.reads = vec![(POLLED << PAGE_SHIFT, Some(0)), (POLLED << PAGE_SHIFT, Some(2))];
    let second = bench.granted(HostFunction::PfnmapUnbind, &[vm, IPA + 11]);

    assert_eq!(second.regs[1], u64::from(RegionState::Lost.raw()));
    assert_eq!(second.reads, usize::try_from(POLL_READS).unwrap());
    let refused = bench.refused(HostFunction::PfnmapReset, &[1]);
    assert_eq!(refused.0, Status::Busy);
}

#[test]
fn teardown_resets_a_region_once() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.bind_part(vm, Mode::Donate, (POLLED, 4), IPA, RequestFlags::NONE);
    bench.bind_part(vm, Mode::Donate, (POLLED + 8, 4), IPA + 8, RequestFlags::NONE);
    bench.seen.reads = vec![(POLLED << PAGE_SHIFT, Some(3)), (POLLED << PAGE_SHIFT, Some(0))];

    let outcome = bench.granted(HostFunction::VmTeardown, &[vm]);

    assert_eq!((outcome.reads, bench.state.regions[1].state), (1, RegionState::Free));
}

#[test]
fn the_host_has_a_shared_region_with_its_type_and_a_donated_one_not_at_all() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    let free = bench.state.host_access(&bench.machine, MEMORY).unwrap();
    assert_eq!((free.mem_type, free.perms.contains(Perms::EXEC)), (None, false));
    bench.bind(vm, Mode::Share, IPA, RequestFlags::MAP_NOW);
    let shared = bench.state.host_access(&bench.machine, MEMORY).unwrap();
    assert_eq!(shared.mem_type, Some(MemType::Device));

    bench.granted(HostFunction::PfnmapUnbind, &[vm, IPA]);
    bench.bind(vm, Mode::Donate, IPA, RequestFlags::MAP_NOW);

    assert_eq!(bench.state.host_access(&bench.machine, MEMORY), None);
    assert_eq!(bench.state.host_access(&bench.machine, POOL), None);
    assert!(bench.state.el2_may_map(POOL) && !bench.state.el2_may_map(DATA));
}

#[test]
fn a_promise_about_ram_ends_where_a_binding_begins() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.granted(HostFunction::HostDonateGuest, &[vm, DATA, IPA, 4]);
    let request = Request {
        mode: Mode::Donate.raw(),
        mem_type: MemType::Cacheable.raw(),
        perms: Perms::ALL.raw(),
        flags: RequestFlags::MAP_NOW.raw(),
        ..Request::zeroed()
    };
    bench.granted(HostFunction::PfnmapBind, &[request.word().0, MEMORY, IPA + 4, 4]);
    bench.granted(HostFunction::VcpuInit, &[vm, 0, 0, 0]);

    let script = vec![
        calls(GuestFunction::Query, &[IPA + 1, 64]),
        calls(GuestFunction::Query, &[IPA + 5, 64]),
        calls(GuestFunction::Query, &[IPA + 8, 64]),
        interrupted(),
    ];
    let outcome = bench.run(vm, 0, script);

    let pages: Vec<u64> = outcome.entered[1..].iter().map(|guest| guest.general[2]).collect();
    assert_eq!(pages, [3, 3, 64]);
}

#[test]
fn a_guest_lends_and_takes_back_its_own_page_alone() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::PROTECTED, 8);
    bench.granted(HostFunction::HostDonateGuest, &[vm, DATA, IPA, 1]);
    bench.granted(HostFunction::VcpuInit, &[vm, 0, 0, 0]);
    let own = [IPA << PAGE_SHIFT];

    let twice = vec![
        calls(GuestFunction::MemShare, &own),
        calls(GuestFunction::MemShare, &own),
        interrupted(),
    ];
    let outcome = bench.run(vm, 0, twice);

    assert_eq!(bench.frame(DATA), Some(Frame::GuestLentHost(0)));
    let x0: Vec<u64> = outcome.entered[1..].iter().map(|guest| guest.general[0]).collect();
    assert_eq!(x0, [0, Status::WrongState.to_register()]);
    // A guest learns neither frames nor states.
    assert_eq!(outcome.entered[2].general[2..5], [u64::MAX, 0, 0]);
    bench.run(vm, 0, vec![calls(GuestFunction::MemUnshare, &own), interrupted()]);
    assert_eq!(bench.frame(DATA), Some(Frame::Guest(0)));
}

#[test]
fn a_load_is_completed_by_the_next_run() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.granted(HostFunction::VcpuInit, &[vm, 0, 0x1000, 0]);
    let load = Load { register: 3, bytes: 2, widen: Widen::Sign32 };

    let exit = bench.run(vm, 0, vec![touches(IPA, Some(Access::Load(load)))]);
    assert_eq!(exit.regs[1], ExitReason::Mmio.raw());
    assert_eq!(exit.regs[3], 2 << 8 | 2);
    let again = bench.run(vm, 0xffff_8001, vec![interrupted()]);

    assert_eq!(again.entered[0].general[3], 0xffff_8001);
    assert_eq!(again.entered[0].pc, 0x1004);
    assert!(matches!(bench.state.vms[&0].vcpus[0], Vcpu::Idle(_, None)));
}

#[test]
fn while_a_vcpu_runs_its_registers_are_nobodys_and_its_vm_stays() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.granted(HostFunction::VcpuInit, &[vm, 0, 0x1000, 7]);
    let entered = bench.state.vcpu_enter((0, 0), 1, 0).expect("it is fresh");
    assert_eq!((entered.pc, entered.general[0]), (0x1000, 7));

    for (function, args) in [
        (HostFunction::VmTeardown, vec![vm]),
        (HostFunction::VcpuRun, vec![vm, 0, 0]),
        (HostFunction::VcpuInit, vec![vm, 0, 0, 0]),
        (HostFunction::VcpuGetReg, vec![vm, 0, 0]),
        (HostFunction::VcpuSetReg, vec![vm, 0, 0, 0]),
    ] {
        assert_eq!(bench.refused(function, &args).0, Status::Busy, "{function:?}");
    }
    bench.granted(HostFunction::HostDonateGuest, &[vm, DATA, IPA, 1]);

    let Next::Leave(leave) = bench.state.guest_step(&bench.machine, 0, &interrupted()) else {
        panic!("an interrupt is the host's");
    };
    bench.state.vcpu_leave((0, 0), leave);
    bench.granted(HostFunction::VmTeardown, &[vm]);
}

#[test]
fn a_page_that_is_lent_as_often_as_can_be_is_busy_for_one_borrower_more() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    for times in 0..u64::from(u8::MAX) {
        bench.granted(HostFunction::HostShareGuest, &[vm, DATA, IPA + times, 1, 1]);
    }

    let more = bench.refused(HostFunction::HostShareGuest, &[vm, DATA, IPA + 300, 1, 1]);
    let other = bench.refused(HostFunction::HostDonateGuest, &[vm, DATA, IPA + 300, 1]);

    assert_eq!((more.0, other.0), (Status::Busy, Status::WrongState));
}

#[test]
fn a_protected_guest_shows_no_access_and_no_register() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::PROTECTED, 8);
    bench.granted(HostFunction::VcpuInit, &[vm, 0, 0, 0]);
    let store = Access::Store { register: 0, bytes: 8 };

    let exit = bench.run(vm, 0, vec![touches(IPA, Some(store))]);

    assert_eq!(exit.regs[1..5], [ExitReason::Fault.raw(), IPA << PAGE_SHIFT, 0, 0]);
    assert_eq!(bench.refused(HostFunction::VcpuGetReg, &[vm, 0, 0]).0, Status::Denied);
    assert_eq!(bench.refused(HostFunction::VcpuSetReg, &[vm, 0, 0, 1]).0, Status::Denied);
}

#[test]
fn mte_is_sealed_by_the_first_bind() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.bind(vm, Mode::Share, IPA, RequestFlags::NONE);
    bench.granted(HostFunction::PfnmapUnbind, &[vm, IPA]);

    let regs = bench.call(HostFunction::VmEnableMte, &[vm]).regs;

    assert_eq!(regs[1] & 0xffff, u64::from(Rule::R21.raw()));
}

#[test]
fn a_vm_gives_its_tables_back_one_by_one() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 2);
    bench.granted(HostFunction::VmTeardown, &[vm]);
    bench.seen.answer[1] = POOL + 1;
    let first = bench.granted(HostFunction::VmFree, &[vm]);
    assert_eq!((first.regs[1], first.regs[2]), (POOL + 1, 1));
    assert_eq!(first.zeroed, [POOL + 1..POOL + 2]);

    let last = bench.granted(HostFunction::VmFree, &[vm]);

    assert_eq!((last.regs[1], last.regs[2], bench.state.vms.len()), (POOL, 0, 0));
    assert_eq!(bench.refused(HostFunction::VmFree, &[vm]).0, Status::NotFound);
}

#[test]
fn a_broken_state_is_found() {
    let mut bench = Bench::new();
    let vm = bench.vm(ContractFlags::NONE, 8);
    bench.granted(HostFunction::HostShareGuest, &[vm, DATA, IPA, 2, 1]);
    let breakages: [fn(&mut State); 6] = [
        |state| state.frames.insert(DATA..DATA + 1, Frame::Host),
        |state| state.frames.insert(DATA..DATA + 1, Frame::HostLentGuests(2)),
        |state| state.frames.insert(DATA..DATA + 1, Frame::Guest(0)),
        |state| state.frames.insert(POOL..POOL + 1, Frame::Host),
        |state| state.regions[0].state = RegionState::Shared,
        |state| state.vms.get_mut(&0).unwrap().tables.free += 1,
    ];
    for breakage in breakages {
        let mut broken = bench.state.clone();
        breakage(&mut broken);
        assert!(broken.check_invariants(&bench.machine).is_err(), "{broken:x?}");
    }
}
