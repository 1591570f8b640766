//! Translation tables in pages that are not the host's: the CPU's own walks must not get there.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pfnguard_host_interface::{Pages, Pfn};
use pfnguard_shared::PAGE_SHIFT;

use crate::abort::{self, Fault};
use crate::cpu::{read_register, write_register};
use crate::malformed::Random;
use crate::outcome::{Failure, Outcome, aborted, ensure, equal};
use crate::stage1::{
    PAGE, WINDOW, forget_own_translations, forget_translations, point_window, set_window,
};
use crate::suite::Test;
use crate::trace::Ring;
use crate::vm::{DATA, TestVm};
use crate::{Hyp, cpu, frames, smp};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("walks:window-works", window_works),
    ("walks:table-in-a-donated-page-aborts", table_in_donated_page),
    ("walks:table-in-hypervisor-memory-aborts", table_in_hypervisor_memory),
    ("walks:at-on-a-donated-table-reveals-nothing", at_on_donated_table),
    ("walks:mapping-of-hypervisor-memory-aborts", mapping_of_hypervisor_memory),
    ("walks:hot-translation-to-a-donated-page-aborts", hot_translation),
    ("walks:table-that-vanishes-under-an-abort-stops-nobody", vanishing_table),
];

/// A page of the hypervisor's image.
const PAYLOAD: u64 = 0x4020_0000;
/// What the page behind the window holds.
const MARK: u64 = 0x6d61_726b;

/// Makes a level-3 table whose first entry leads to a marked page, and opens the window to it.
fn open_window() -> (Pfn, Pfn) {
    let (table, page) = (frames::take_one(), frames::take_one());
    frames::fill(Pages::one(table), 0);
    frames::write(frames::address(page), MARK);
    frames::write(frames::address(table), frames::address(page) | PAGE);
    set_window(Some(frames::address(table)));
    (table, page)
}

fn window_works() -> Outcome {
    open_window();
    let seen = abort::load(WINDOW);
    set_window(None);
    equal(seen?, MARK, "load through the window")?;
    aborted(abort::load(WINDOW), "closed window is readable").map(drop)
}

/// Opens the window through a table, donates the table, lets `touch` try, takes it back.
fn with_donated_table(touch: impl FnOnce() -> Outcome) -> Outcome {
    let vm = TestVm::protected()?;
    let (table, _) = open_window();
    let before = abort::load(WINDOW);
    Hyp::donate_guest(vm.id, Pages::one(table), DATA)?;
    let touched = touch();
    set_window(None);
    vm.destroy(&[Pages::one(table)])?;
    equal(before?, MARK, "load before the donation")?;
    touched
}

fn table_in_donated_page() -> Outcome {
    with_donated_table(|| {
        forget_translations();
        aborted(abort::load(WINDOW), "walk through a donated table went through")?;
        aborted(abort::store(WINDOW, 1), "store through a donated table went through")?;
        match abort::call(WINDOW) {
            Err(fault) if fault.is_fetch() => Ok(()),
            Err(fault) => Err(Failure::Faulted(fault)),
            Ok(()) => Err(Failure::Wrong("fetch through a donated table went through")),
        }
    })
}

fn table_in_hypervisor_memory() -> Outcome {
    set_window(Some(PAYLOAD));
    let touched = abort::load(WINDOW);
    set_window(None);
    aborted(touched, "walk through the hypervisor's image went through").map(drop)
}

fn at_on_donated_table() -> Outcome {
    with_donated_table(|| {
        forget_translations();
        match abort::translate(WINDOW) {
            Ok(par) => ensure(par & 1 == 1, "AT through a donated table succeeded"),
            Err(Fault { esr, far }) => ensure(Fault { esr, far }.is_data(), "AT met no data abort"),
        }
    })
}

fn mapping_of_hypervisor_memory() -> Outcome {
    let (table, _) = open_window();
    frames::write(frames::address(table), PAYLOAD | PAGE);
    forget_translations();
    let touched = abort::load(WINDOW);
    set_window(None);
    aborted(touched, "the hypervisor's image is readable through another address").map(drop)
}

fn hot_translation() -> Outcome {
    let vm = TestVm::protected()?;
    let (_, page) = open_window();
    let before = abort::load(WINDOW + 8).is_ok();
    Hyp::donate_guest(vm.id, Pages::one(page), DATA)?;
    // No invalidation by the host: what it has cached must not help it.
    let touched = abort::load(WINDOW);
    set_window(None);
    vm.destroy(&[Pages::one(page)])?;
    ensure(before, "window was closed before the donation")?;
    let fault = aborted(touched, "hot translation still leads to the donated page")?;
    equal(fault.far >> PAGE_SHIFT, WINDOW >> PAGE_SHIFT, "page of the abort")
}

/// QEMU's virt machine has nothing from here on: whoever reads gets an external abort.
const HOLE: u64 = 0x0b00_0000;
/// Seconds of stores: time enough for both CPUs to run at once on a busy machine.
const SECONDS: u64 = 1;
/// Longest time between two turns of [`vanish`], in hints.
const PAUSE: u64 = 64;

/// The table that the second CPU takes away.
static VANISHING: AtomicU64 = AtomicU64::new(0);
/// Whether it still does.
static VANISHES: AtomicBool = AtomicBool::new(false);

/// Points the window to the table and into the hole by turns. What faults is not cached, so the
/// first CPU sees each turn without an invalidation here.
fn vanish() {
    let table = VANISHING.load(Ordering::Acquire);
    let mut random = Random::new(11);
    while VANISHES.load(Ordering::Acquire) {
        for place in [HOLE, table] {
            point_window(Some(place));
            (0..random.next() % PAUSE).for_each(|_| core::hint::spin_loop());
        }
    }
}

/// Stores to a page behind the window that must not be written. Returns how many stores stage 2
/// refused, and how many met the hole.
fn store_often() -> Result<(u64, u64), Failure> {
    let (mut refused, mut external) = (0, 0);
    let (start, ticks) = (cpu::now(), read_register!("cntfrq_el0") * SECONDS);
    while cpu::now().wrapping_sub(start) < ticks {
        forget_own_translations();
        let fault = aborted(abort::store(WINDOW, 0), "trace ring is writable")?;
        ensure(fault.is_refused_data() || fault.is_external(), "abort of a third kind")?;
        refused += u64::from(fault.is_refused_data());
        external += u64::from(fault.is_external());
    }
    Ok((refused, external))
}

/// Stage 2 refuses a store, and EL2 asks stage 1 for the page: that walk may meet the hole.
fn vanishing_table() -> Outcome {
    smp::required()?;
    let answer = aborted(abort::load32(HOLE), "hole is readable")?;
    ensure(answer.is_external(), "hole is refused by stage 2")?;
    let (table, _) = open_window();
    let ring = frames::address(Ring::of(0)?.pages.start);
    // Puts the ring into stage 2: from here on a store meets a permission fault, not a missing page.
    abort::load(ring)?;
    frames::write(frames::address(table), ring | PAGE);
    VANISHING.store(frames::address(table), Ordering::Release);
    VANISHES.store(true, Ordering::Release);
    write_register!("sp_el0", MARK);
    write_register!("tpidr_el1", MARK);
    write_register!("par_el1", MARK << PAGE_SHIFT);
    smp::begin(vanish)?;
    let stored = store_often();
    VANISHES.store(false, Ordering::Release);
    smp::join()?;
    set_window(None);
    let (refused, external) = stored?;
    ensure(refused > 0 && external > 0, "the table never vanished, or always")?;
    equal(read_register!("sp_el0"), MARK, "SP_EL0")?;
    equal(read_register!("tpidr_el1"), MARK, "TPIDR_EL1")?;
    equal(read_register!("par_el1"), MARK << PAGE_SHIFT, "PAR_EL1")?;
    Hyp::trace_info(0).map(drop).map_err(Failure::from)
}
