//! Translation tables in pages that are not the host's: the CPU's own walks must not get there.

use pfnguard_host_interface::{Pages, Pfn};
use pfnguard_shared::PAGE_SHIFT;

use crate::abort::{self, Fault};
use crate::outcome::{Failure, Outcome, aborted, ensure, equal};
use crate::stage1::{PAGE, WINDOW, forget_translations, set_window};
use crate::suite::Test;
use crate::vm::{DATA, TestVm};
use crate::{Hyp, frames};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("walks:window-works", window_works),
    ("walks:table-in-a-donated-page-aborts", table_in_donated_page),
    ("walks:table-in-hypervisor-memory-aborts", table_in_hypervisor_memory),
    ("walks:at-on-a-donated-table-reveals-nothing", at_on_donated_table),
    ("walks:mapping-of-hypervisor-memory-aborts", mapping_of_hypervisor_memory),
    ("walks:hot-translation-to-a-donated-page-aborts", hot_translation),
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
