//! PFNMAP regions on the machine: who reaches a BAR, when, and with which type.

use arrayvec::ArrayVec;
use pfnguard_host_interface::{Exit, IpaPfn, Pfn, Promised};
use pfnguard_lines::Verdict;
use pfnguard_shared::info::{Capabilities, InfoSelector, RegionInfo, RegionState};
use pfnguard_shared::manifest::ResetKind;
use pfnguard_shared::migration::{MigrationHeader, MigrationItem};
use pfnguard_shared::request::{MemType, Mode, Perms, Request, RequestFlags};
use pfnguard_shared::vm::Promise;
use pfnguard_shared::{GuestFunction, Rule, Status, Subject};

use crate::abort;
use crate::bars::{self, Granted};
use crate::guest_code::Program;
use crate::outcome::{Failure, Outcome, aborted, denied, ensure, equal, refused};
use crate::pci::Function;
use crate::suite::Test;
use crate::vm::{TestVm, args, check, ipa_address, yielded};
use crate::{Hyp, frames, suite};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("pfnmap:host-loses-a-donated-bar-and-gets-it-back", donated_bar),
    ("pfnmap:host-keeps-a-shared-bar", shared_bar),
    ("pfnmap:guest-reads-the-devices-identity", identity),
    ("pfnmap:binding-without-map-is-filled-at-the-fault", lazy),
    ("pfnmap:unbound-guest-loses-the-bar", unbound),
    ("pfnmap:query-says-what-was-promised", query),
    ("pfnmap:probe-reports-the-type", probe),
    ("pfnmap:teardown-lets-go-of-bindings", teardown),
    ("pfnmap:outside-the-manifest-nothing-is-bound", outside),
    ("pfnmap:ram-is-never-bound", ram),
    ("pfnmap:cow-and-dirty-log-are-refused", flags),
    ("pfnmap:check-and-bind-agree-on-odd-requests", odd_requests),
    ("pfnmap:quarantine-lasts-until-the-report", quarantine),
    ("pfnmap:region-without-external-reset-is-free-at-once", reset_contracts),
    ("pfnmap:one-holder-more-than-granted-is-refused", holders),
    ("pfnmap:mte-cannot-be-switched-on-after-the-first-bind", late_mte),
    ("pfnmap:migration-descriptor-fits-its-own-host", migration),
    ("pfnmap:damaged-migration-descriptor-is-refused", damaged_descriptor),
    ("pfnmap:reset-of-what-is-not-quarantined-is-refused", reset_of_free),
];

/// Page where guests see a BAR.
const PLACE: IpaPfn = IpaPfn(0x4_0000);

/// Finds a BAR that allows a mode as device memory.
fn device_bar(mode: Mode) -> Result<Granted, Failure> {
    find(|_, info| bars::allows(info, mode, MemType::Device))
}

fn find(wanted: impl Fn(&Function, &RegionInfo) -> bool) -> Result<Granted, Failure> {
    bars::find(&suite::context()?.functions, wanted)
}

fn bind(vm: &TestVm, granted: &Granted, mode: Mode) -> Outcome {
    let request = bars::request(vm.id.0, &granted.bar, PLACE.0, mode, MemType::Device);
    Hyp::pfnmap_bind(&request).map_err(Failure::from)
}

fn unbind(vm: &TestVm, granted: &Granted) -> Outcome {
    let state = Hyp::pfnmap_unbind(vm.id, PLACE)?;
    bars::settle(granted.region, state);
    Ok(())
}

fn state_of(granted: &Granted) -> Option<RegionState> {
    let (_, info) = bars::region_of(bars::pages(&granted.bar).start)?;
    RegionState::from_raw(info.state)
}

fn donated_bar() -> Outcome {
    let granted = device_bar(Mode::Donate)?;
    let address = bars::address(&granted.bar);
    let before = abort::load32(address);
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Donate)?;
    let state = state_of(&granted);
    let read = aborted(abort::load32(address), "donated BAR is readable");
    let written = aborted(abort::store(address, 0), "donated BAR is writable");
    unbind(&vm, &granted)?;
    vm.destroy(&[])?;
    ensure(before.is_ok(), "BAR was not readable before")?;
    ensure(state == Some(RegionState::Donated), "region is not in state Donated")?;
    read.and(written)?;
    abort::load32(address)?;
    ensure(state_of(&granted) == Some(RegionState::Free), "region is not free afterwards")
}

fn shared_bar() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let address = bars::address(&granted.bar);
    let before = abort::load32(address);
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Share)?;
    let state = state_of(&granted);
    let during = abort::load32(address);
    unbind(&vm, &granted)?;
    vm.destroy(&[])?;
    before?;
    during?;
    ensure(state == Some(RegionState::Shared), "region is not in state Shared")
}

/// `edu` says 0x010000ed in its first register (QEMU, docs/specs/edu.rst).
const EDU_IDENTITY: u64 = 0x0100_00ed;

fn identity() -> Outcome {
    let granted = find(|function, info| {
        function.name() == "edu" && bars::allows(info, Mode::Donate, MemType::Device)
    })?;
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Donate)?;
    vm.load(Program::Load32, ipa_address(PLACE))?;
    let exit = vm.run();
    unbind(&vm, &granted)?;
    vm.destroy(&[])?;
    equal(yielded(exit?)?[0], EDU_IDENTITY, "identity of edu")
}

fn lazy() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let vm = TestVm::open()?;
    let mut request = bars::request(vm.id.0, &granted.bar, PLACE.0, Mode::Share, MemType::Device);
    request.flags = RequestFlags::NONE.raw();
    Hyp::pfnmap_bind(&request)?;
    vm.load(Program::Load32, ipa_address(PLACE))?;
    let exit = vm.run();
    unbind(&vm, &granted)?;
    vm.destroy(&[])?;
    yielded(exit?).map(drop)
}

fn unbound() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Share)?;
    vm.load(Program::Load32, ipa_address(PLACE))?;
    let before = vm.run();
    unbind(&vm, &granted)?;
    let after = vm.run();
    let twice = denied(Hyp::pfnmap_unbind(vm.id, PLACE), "unbound twice");
    vm.destroy(&[])?;
    ensure(matches!(before?, Exit::Yield(_)), "guest did not reach the BAR")?;
    ensure(matches!(after?, Exit::Mmio(_)), "guest still reaches the BAR")?;
    twice.map(drop)
}

fn query() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Share)?;
    vm.load(Program::Hvc, u64::from(GuestFunction::Query.raw()))?;
    vm.set(1, PLACE.0)?;
    vm.set(2, bars::pages(&granted.bar).count)?;
    let answer = vm.run_to_yield();
    unbind(&vm, &granted)?;
    vm.destroy(&[])?;
    let [status, word, pages] = answer?;
    equal(status, 0, "status of QUERY")?;
    let promised = Promised::from_registers(word, pages);
    let bits = Promise::PRESENT.with(Promise::PFNMAP).with(Promise::SHARED);
    ensure(promised.promise.contains(bits), "promise is not of a shared region")?;
    ensure(promised.mem_type == Some(MemType::Device), "promised type is not Device")?;
    ensure(promised.perms == Perms::READ.with(Perms::WRITE), "promised permissions differ")?;
    equal(promised.pages, bars::pages(&granted.bar).count, "pages of the promise")
}

/// Attribute byte of `PAR_EL1` for Device-nGnRE.
const DEVICE_NGNRE: u64 = 0x04;

fn probe() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let vm = TestVm::open()?;
    let empty = Hyp::pfnmap_probe(vm.id, PLACE);
    bind(&vm, &granted, Mode::Share)?;
    let par = Hyp::pfnmap_probe(vm.id, PLACE);
    unbind(&vm, &granted)?;
    let after = Hyp::pfnmap_probe(vm.id, PLACE);
    vm.destroy(&[])?;
    let par = par?;
    equal(par & 1, 0, "PAR_EL1.F of a bound page")?;
    equal(par >> 56, DEVICE_NGNRE, "type that the CPU reports")?;
    equal(par & 0xf_ffff_ffff_f000, bars::address(&granted.bar), "address that the CPU reports")?;
    for unmapped in [empty, after] {
        ensure(unmapped.is_err() || unmapped.is_ok_and(|par| par & 1 == 1), "unmapped page maps")?;
    }
    Ok(())
}

fn teardown() -> Outcome {
    let granted = device_bar(Mode::Donate)?;
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Donate)?;
    let freed = vm.destroy(&[]);
    let state = state_of(&granted);
    bars::settle(granted.region, state);
    freed?;
    abort::load32(bars::address(&granted.bar))?;
    ensure(state_of(&granted) == Some(RegionState::Free), "region is not free afterwards")
}

/// Binds something that no manifest lists and wants `rule`.
fn bind_at(pfn: Pfn, pages: u64, rule: Rule) -> Outcome {
    let vm = TestVm::open()?;
    let mut request = Request::zeroed();
    request.vm = vm.id.0;
    request.mode = Mode::Share.raw();
    request.mem_type = MemType::Device.raw();
    request.perms = Perms::READ.raw();
    (request.pfn, request.ipa_pfn, request.pages) = (pfn.0, PLACE.0, pages);
    let answer = Hyp::pfnmap_bind(&request);
    vm.destroy(&[])?;
    let facts = denied(answer, "something outside the manifest was bound")?;
    ensure(facts.rule == Some(rule), "refused by another rule")
}

fn outside() -> Outcome {
    bind_at(Pfn(0xf_0000_0000), 1, Rule::R01)?;
    bind_at(Pfn(0x90_0000_0000 >> 12), 16, Rule::R01)
}

fn ram() -> Outcome {
    bind_at(frames::take_one(), 1, Rule::R15)
}

fn flags() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let vm = TestVm::open()?;
    let mut answers = [Ok(()), Ok(())];
    for (answer, flag) in answers.iter_mut().zip([RequestFlags::COW, RequestFlags::DIRTY_LOG]) {
        let mut request =
            bars::request(vm.id.0, &granted.bar, PLACE.0, Mode::Share, MemType::Device);
        request.flags = flag.raw();
        *answer = Hyp::pfnmap_bind(&request);
    }
    vm.destroy(&[])?;
    for (answer, rule) in answers.into_iter().zip([Rule::R12, Rule::R13]) {
        let facts = refused(answer, Status::Unsupported, "flag was accepted")?;
        ensure(facts.rule == Some(rule), "refused by another rule")?;
    }
    Ok(())
}

/// Single fields set to what they must not be: CHECK must say what BIND says.
fn odd_requests() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let vm = TestVm::open()?;
    let base = bars::request(vm.id.0, &granted.bar, PLACE.0, Mode::Share, MemType::Device);
    let with = |change: fn(&mut Request)| {
        let mut request = base;
        change(&mut request);
        request
    };
    let odd = [
        with(|r| r.mode = 0),
        with(|r| r.mem_type = 9),
        with(|r| r.perms = 0),
        with(|r| r.perms = Perms::WRITE.raw()),
        with(|r| r.perms = 0xff),
        with(|r| r.flags = 0x80),
        with(|r| r.alias = 7),
        with(|r| r.reserved = 1),
        with(|r| r.vm = u16::MAX),
        with(|r| r.pages = 0),
        with(|r| r.pages = u64::MAX),
        with(|r| r.pages = 1 << 39),
        with(|r| r.pfn = u64::MAX),
        with(|r| r.ipa_pfn = u64::MAX),
        with(|r| r.ipa_pfn = 1 << 39),
    ];
    let checked = check(&odd)?;
    let mut agreed = Ok(());
    for (request, checked) in odd.iter().zip(checked) {
        let bound = Verdict::from(Hyp::pfnmap_bind(request));
        if bound != checked {
            say!("@mismatch word={:#x} bind[{bound}] check[{checked}]", request.word().0);
            agreed = Err(Failure::Wrong("CHECK and BIND disagree"));
        }
        if bound.is_granted() {
            agreed = Err(Failure::Wrong("odd request was granted"));
        }
    }
    vm.destroy(&[])?;
    agreed
}

fn quarantine() -> Outcome {
    let granted = find(|_, info| {
        info.reset == ResetKind::External.raw() && bars::allows(info, Mode::Donate, MemType::Device)
    })?;
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Donate)?;
    let state = Hyp::pfnmap_unbind(vm.id, PLACE)?;
    let request = bars::request(vm.id.0, &granted.bar, PLACE.0, Mode::Donate, MemType::Device);
    let rebound = Hyp::pfnmap_bind(&request);
    let touched = abort::load32(bars::address(&granted.bar));
    let reset = Hyp::pfnmap_reset(granted.region);
    vm.destroy(&[])?;
    ensure(state == Some(RegionState::Quarantined), "region is not in quarantine")?;
    aborted(touched, "host reaches a region in quarantine")?;
    refused(rebound, Status::Busy, "region in quarantine was bound")?;
    ensure(reset? == Some(RegionState::Free), "region is not free after the report")?;
    abort::load32(bars::address(&granted.bar)).map(drop).map_err(Failure::from)
}

fn reset_of_free() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    denied(Hyp::pfnmap_reset(granted.region), "reset of a free region was accepted").map(drop)
}

fn reset_contracts() -> Outcome {
    for reset in [ResetKind::None, ResetKind::Readback, ResetKind::Poll] {
        let found = find(|_, info| {
            info.reset == reset.raw() && bars::allows(info, Mode::Donate, MemType::Device)
        });
        let Ok(granted) = found else { continue };
        let vm = TestVm::open()?;
        bind(&vm, &granted, Mode::Donate)?;
        let state = Hyp::pfnmap_unbind(vm.id, PLACE);
        vm.destroy(&[])?;
        ensure(state? == Some(RegionState::Free), "reset contract was not satisfied at once")?;
        abort::load32(bars::address(&granted.bar))?;
    }
    Ok(())
}

fn holders() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let mut vms: ArrayVec<TestVm, 9> = ArrayVec::new();
    let mut outcome = Ok(());
    for number in 0..=granted.info.max_vms {
        let vm = TestVm::open()?;
        let request = bars::request(vm.id.0, &granted.bar, PLACE.0, Mode::Share, MemType::Device);
        let answer = Hyp::pfnmap_bind(&request);
        vms.push(vm);
        outcome = outcome.and(if number < granted.info.max_vms {
            answer.map_err(Failure::from)
        } else {
            denied(answer, "one holder more than granted").and_then(|facts| {
                ensure(facts.rule == Some(Rule::R02), "refused by another rule")?;
                ensure(facts.subject == Subject::Holders, "subject is not the holders")
            })
        });
    }
    for vm in vms {
        vm.destroy(&[])?;
    }
    bars::settle(granted.region, state_of(&granted));
    outcome
}

/// Binds a region, exports the VM's needs, and lets `judge` have the descriptor in the page.
fn with_descriptor(judge: impl FnOnce() -> Outcome) -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Share)?;
    let bytes = Hyp::migrate_export(vm.id);
    let judged = judge();
    unbind(&vm, &granted)?;
    vm.destroy(&[])?;
    let least = size_of::<MigrationHeader>() + size_of::<MigrationItem>();
    equal(bytes?, u64::try_from(least).unwrap_or(0), "bytes of the descriptor")?;
    judged
}

fn migration() -> Outcome {
    with_descriptor(|| equal(Hyp::migrate_check()?, 0, "items that fail on the same host"))
}

fn damaged_descriptor() -> Outcome {
    with_descriptor(|| {
        args(|page| page.bytes_mut()[0] ^= 1);
        refused(Hyp::migrate_check(), Status::InvalidParameter, "bad magic was accepted").map(drop)
    })
}

fn late_mte() -> Outcome {
    let granted = device_bar(Mode::Share)?;
    let [capabilities, ..] = Hyp::info(InfoSelector::Platform)?;
    let has_mte = capabilities & Capabilities::MTE.raw() != 0;
    let vm = TestVm::open()?;
    bind(&vm, &granted, Mode::Share)?;
    let late = Hyp::vm_enable_mte(vm.id);
    unbind(&vm, &granted)?;
    let later = Hyp::vm_enable_mte(vm.id);
    vm.destroy(&[])?;
    for answer in [late, later] {
        let facts = denied(answer, "MTE was switched on after a bind")?;
        ensure(!has_mte || facts.rule == Some(Rule::R21), "refused by another rule")?;
    }
    Ok(())
}
