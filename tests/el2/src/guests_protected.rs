//! Protected guests: what the host cannot see, and what is left when they end.

use pfnguard_host_interface::{GuestValue, IpaPfn, Pages, VcpuId};
use pfnguard_shared::vm::ContractFlags;
use spin::Mutex;

use crate::abort;
use crate::guest_code::{PATTERN, Program};
use crate::outcome::{Failure, Outcome, aborted, denied, ensure, equal};
use crate::suite::Test;
use crate::vm::{DATA, RW, TestVm, VCPU, ipa_address};
use crate::{Hyp, frames, smp};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("protected:registers-are-hidden-after-the-first-run", hidden_registers),
    ("protected:memory-comes-back-zeroed", zeroed),
    ("protected:tables-come-back-zeroed", zeroed_tables),
    ("protected:nothing-can-be-lent-to-it", nothing_lent),
    ("protected:teardown-and-reclaim-wait-for-a-running-vcpu", busy_while_running),
    ("protected:vm-numbers-are-given-again", numbers),
];

fn hidden_registers() -> Outcome {
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Store, ipa_address(DATA))?);
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    vm.set(1, 0x5ec)?;
    let before = denied(Hyp::vcpu_get_reg(vm.id, VCPU, 1), "register is readable before the run");
    let ran = vm.run_to_yield();
    let read = denied(Hyp::vcpu_get_reg(vm.id, VCPU, 20), "register is readable after the run");
    let written =
        denied(Hyp::vcpu_set_reg(vm.id, VCPU, 20, 0), "register is writable after the run");
    let again = denied(Hyp::vcpu_init(vm.id, VCPU, 0, 0), "vCPU was put elsewhere after its run");
    vm.destroy(&[code, page])?;
    equal(ran?[0], 0x5ec, "value that the guest yields")?;
    before.and(read).and(written).and(again).map(drop)
}

fn zeroed() -> Outcome {
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Fill, ipa_address(DATA))?);
    let pages = frames::take(3);
    Hyp::donate_guest(vm.id, pages, DATA)?;
    vm.set(1, 3 << 12)?;
    let filled = vm.run_to_yield();
    let hidden = aborted(abort::load(frames::address(pages.start)), "guest memory is readable");
    vm.destroy(&[pages, code])?;
    equal(filled?[0], 1, "value after filling")?;
    hidden?;
    ensure(!frames::is_filled(pages, PATTERN), "reclaimed memory holds the guest's data")?;
    ensure(frames::is_filled(pages, 0) && frames::is_filled(code, 0), "memory is not zero")
}

fn zeroed_tables() -> Outcome {
    let tables = frames::take(8);
    frames::fill(tables, 0x7ab1e);
    let vm = TestVm { id: Hyp::vm_create(ContractFlags::PROTECTED, 1, tables)? };
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    vm.destroy(&[page])?;
    ensure(frames::is_filled(tables, 0), "table pages hold what they were used for")
}

fn nothing_lent() -> Outcome {
    let vm = TestVm::protected()?;
    let page = Pages::one(frames::take_one());
    let lent = denied(Hyp::share_guest(vm.id, page, DATA, RW), "page was lent to a protected VM");
    vm.destroy(&[])?;
    lent.map(drop)
}

/// The VM that spins on the second CPU.
static SPINNING: Mutex<Option<TestVm>> = Mutex::new(None);

/// Runs the guest of [`SPINNING`], which runs until its memory goes.
fn spin_there() {
    let id = SPINNING.lock().as_ref().map(|vm| vm.id);
    if let Some(id) = id {
        // How the guest ends is the other CPU's claim.
        let _ = TestVm { id }.run();
    }
}

/// The guest runs on the second CPU and cannot be torn down; an open VM's memory can be taken from
/// under it, which is how it ends.
fn busy_while_running() -> Outcome {
    smp::required()?;
    let vm = TestVm::open()?;
    let (id, counter) = (vm.id, IpaPfn(DATA.0 + 1));
    let page = vm.lend(DATA, RW)?;
    let count = vm.lend(counter, RW)?;
    vm.load(Program::Hammer, ipa_address(DATA))?;
    vm.set(1, ipa_address(counter))?;
    *SPINNING.lock() = Some(vm);
    smp::begin(spin_there)?;
    smp::until(|| frames::read(frames::address(count)) > 0, "guest does not start")?;
    let teardown = denied(Hyp::vm_teardown(id), "VM was torn down while it ran");
    let run = denied(Hyp::vcpu_run(id, VCPU, GuestValue(0)), "ran twice");
    let init = denied(Hyp::vcpu_init(id, VCPU, 0, 0), "vCPU was initialised while it ran");
    let register = denied(Hyp::vcpu_get_reg(id, VcpuId(0), 0), "register of a running vCPU");
    let owned = denied(Hyp::reclaim_guest(id, Pages::one(page)), "reclaimed while it ran");
    Hyp::unshare_guest(id, Pages::one(page), DATA)?;
    smp::join()?;
    let vm = SPINNING.lock().take().ok_or(Failure::Wrong("VM is gone"))?;
    vm.destroy(&[])?;
    teardown.and(run).and(init).and(register).and(owned).map(drop)
}

fn numbers() -> Outcome {
    // More than there are numbers: each must be free again.
    for _ in 0..40 {
        TestVm::protected()?.destroy(&[])?;
    }
    Ok(())
}
